"""Independent pieces of work as Ray tasks, on a laptop or a cluster."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from recsys.training.launch import WorkerFailed, cluster

Argument = TypeVar("Argument")
Result = TypeVar("Result")

RETRIES = 3
"""How often a task is begun again whose process died."""


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
    with cluster(address, cpus_per_task):
        task = ray.remote(num_cpus=cpus_per_task, max_retries=0)(function)
        waiting = {task.remote(argument): place for place, argument in enumerate(arguments)}
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            place = waiting.pop(done)
            try:
                yield place, ray.get(done)
            except RayError as error:
                yield place, error


@dataclass(frozen=True)
class RayMapper:
    """Works off jobs as tasks of the Ray that this process is connected to; see `ray_mapper`."""

    cpus_per_task: int
    retries: int

    def __call__(
        self, work: Callable[[Argument], Result], jobs: Sequence[Argument], /
    ) -> Iterator[Result]:
        """What `work` gives for each job, in the order of the jobs.

        A task whose process died is begun again alone. The first error of a task ends the others.

        Raises:
            WorkerFailed: a task's process died more often than allowed.
            Exception: what a task raised.
        """
        threads = {"env_vars": {"POLARS_MAX_THREADS": str(self.cpus_per_task)}}
        task = _task.options(
            num_cpus=self.cpus_per_task, max_retries=self.retries, runtime_env=threads
        )
        shared = ray.put(work)
        waiting = deque(task.remote(shared, job) for job in jobs)
        try:
            for job in jobs:
                yield self._result(job, waiting.popleft())
        finally:
            # Only what has not ended, and not by force: Ray 2.60 kills this process when a task
            # that is cancelled ends at the same time.
            for reference in waiting:
                if not ray.wait([reference], timeout=0)[0]:
                    ray.cancel(reference)

    def _result(self, job: Any, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except RayTaskError as error:
            raise error.cause from error
        except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
            raise WorkerFailed(
                f"the process that worked on {job} died {self.retries + 1} times; a look into the"
                " kernel's log tells whether memory ran out"
            ) from error


@contextmanager
def ray_mapper(
    address: str | None, *, cpus_per_task: int = 1, retries: int = RETRIES
) -> Iterator[RayMapper]:
    """A mapper for `pipelines.build` over a cluster's processes.

    Args:
        address: of a running cluster; None: this machine.
        cpus_per_task: also the number of threads of a task; as many tasks run at once as fit.
        retries: how often a task is begun again whose process died.
    """
    with cluster(address, cpus_per_task):
        yield RayMapper(cpus_per_task, retries)


@ray.remote
def _task(work: Callable[[Any], Any], job: Any) -> Any:
    return work(job)
