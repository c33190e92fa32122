"""Independent pieces of work as Ray tasks, on a laptop or a cluster."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import ray
from ray.exceptions import RayError

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Argument], Result],
    arguments: Sequence[Argument],
    *,
    address: str | None = None,
    cpus_per_task: int = 1,
) -> Iterator[tuple[int, Result | Exception]]:
    """Run `function` on every argument as a Ray task; results as they come.

    One that fails, or whose worker dies, gives its exception and does not stop the others.

    Args:
        function: importable by name.
        arguments: picklable.
        address: of a running cluster; None: this machine.
        cpus_per_task: also the number of threads of a task; as many tasks run at once as fit.

    Yields:
        The argument's place and its result, or the exception it ended with.
    """
    with _cluster(address, cpus_per_task):
        task = ray.remote(num_cpus=cpus_per_task, max_retries=0)(function)
        waiting = {task.remote(argument): place for place, argument in enumerate(arguments)}
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            place = waiting.pop(done)
            try:
                yield place, ray.get(done)
            except RayError as error:
                yield place, error


@contextmanager
def _cluster(address: str | None, cpus_per_task: int) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    ray.init(
        address=address or "local",
        num_cpus=max(cpus_per_task, os.cpu_count() or 1) if address is None else None,
        include_dashboard=False if address is None else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()
