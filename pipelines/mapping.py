"""How the independent jobs of a build are worked off: here one after the other, or as one is told.

A job is a part of the source, or a feature. What a job gives depends on nothing but the job, so a
build gives the same version bit for bit wherever its jobs run, and one that is lost is done again
alone. `recsys` brings a mapper that hands jobs to Ray; nothing here knows of it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

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
