"""Runs a function on several gloo ranks, each in a process of its own, and returns its results."""

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(*arguments)` on every rank of a gloo group; the results in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(
            _rank, args=(world_size, folder, function, arguments), nprocs=world_size
        )
        return [
            pickle.loads((Path(folder) / f"result-{rank}").read_bytes())
            for rank in range(world_size)
        ]


def _rank(
    rank: int, world_size: int, folder: str, function: Callable[..., Any], arguments: tuple
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), world_size)
    dist.init_process_group("gloo", rank=rank, world_size=world_size, store=store)
    try:
        result = function(*arguments)
        (Path(folder) / f"result-{rank}").write_bytes(pickle.dumps(result))
    finally:
        dist.destroy_process_group()
