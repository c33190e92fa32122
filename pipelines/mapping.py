"""How the independent jobs of a build are worked off: here one after the other, or as one is told.

A job is a part of the source, or a feature. What a job gives depends on nothing but the job, so a
build gives the same version bit for bit wherever its jobs run, and one that is lost is done again
alone. `recsys` brings a mapper that hands jobs to Ray; nothing here knows of it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

OnProgress = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is done, and how much there is if known."""
Job = TypeVar("Job")
Result = TypeVar("Result")


class Mapper(Protocol):
    """Works off jobs."""

    def __call__(self, work: Callable[[Job], Result], jobs: Sequence[Job], /) -> Iterator[Result]:
        """What `work` gives for each job, in the order of the jobs; the first error is raised.

        Both may be pickled, and results too. Folders that they name are on a disk that all share.
        """
        ...


def in_process(work: Callable[[Job], Result], jobs: Sequence[Job], /) -> Iterator[Result]:
    """One job after the other, in this process."""
    yield from map(work, jobs)


def told(
    results: Iterator[Result], sizes: Sequence[int], stage: str, on_progress: OnProgress
) -> Iterator[Result]:
    """The same results; `on_progress` is told of the rows that are done.

    Args:
        results: Of a mapper.
        sizes: Rows of each job.
        stage: What is being done.
        on_progress: Called as `OnProgress` says.
    """
    done, total = 0, sum(sizes)
    on_progress(stage, done, total)
    for result, size in zip(results, sizes, strict=True):
        done += size
        on_progress(stage, done, total)
        yield result
