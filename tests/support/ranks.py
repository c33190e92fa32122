"""Runs a function on several gloo ranks, each in a process of its own, and returns its results.

The processes of a world size are started once (an import of torchrec takes seconds) and serve
every call, each in a new process group; one rank alone is this process. A call that fails ends
them. A process never changes its world size: torchrec counts its first collective per process.
"""

import atexit
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

TIMEOUT = timedelta(minutes=2)

_pools: dict[int, list[tuple[Any, Connection]]] = {}


def on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(*arguments)` on every rank of a gloo group; the results in rank order.

    The function must be importable: defined at the top of a module.
    """
    with tempfile.TemporaryDirectory() as folder:
        call = (world_size, Path(folder) / "store", function, arguments)
        if world_size == 1:
            return [_call(0, *call)]
        pool = _pools.get(world_size) or _start(world_size)
        results: dict[int, Any] = {}
        connections = {connection: rank for rank, (_, connection) in enumerate(pool)}
        for connection, rank in connections.items():
            connection.send((rank, *call))
        while len(results) < world_size:
            waiting = [c for c, rank in connections.items() if rank not in results]
            ready = wait(waiting, TIMEOUT.total_seconds())
            if not ready:
                _stop()
                raise TimeoutError(f"ranks hang; only {sorted(results)} of {world_size} answered")
            for connection in ready:
                rank = connections[connection]  # type: ignore[index]
                results[rank] = _received(connection, rank)
    return [results[rank] for rank in range(world_size)]


def _received(connection: Any, rank: int) -> Any:
    try:
        worked, result = connection.recv()
    except EOFError:
        worked, result = False, "the process died"
    if not worked:
        _stop()
        raise RuntimeError(f"rank {rank} failed:\n{result}")
    return result


def _start(world_size: int) -> list[tuple[Any, Connection]]:
    context = multiprocessing.get_context("spawn")
    pool = _pools.setdefault(world_size, [])
    for _ in range(world_size):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        pool.append((process, ours))
    return pool


@atexit.register
def _stop() -> None:
    for process, connection in [worker for pool in _pools.values() for worker in pool]:
        connection.close()
        process.kill()
        process.join()
    _pools.clear()


def _serve(connection: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            connection.send((True, _call(*connection.recv())))
        except EOFError:
            return
        except BaseException:
            connection.send((False, traceback.format_exc()))


def _call(
    rank: int, world_size: int, store: Path, function: Callable[..., Any], arguments: tuple
) -> Any:
    dist.init_process_group(
        "gloo",
        rank=rank,
        world_size=world_size,
        store=dist.FileStore(str(store), world_size),
        timeout=TIMEOUT,
    )
    try:
        return function(*arguments)
    finally:
        dist.destroy_process_group()
