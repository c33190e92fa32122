"""A mapper whose work notes what it does and dies once; importable by the processes that run it."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.mapping import Mapper


def worked(argument: int) -> int:
    if argument == 1:
        raise ValueError("one cannot be")
    if argument == 2:
        os._exit(3)
    return 10 * argument


@dataclass(frozen=True)
class Noted:
    """Work that leaves a file for every time it is begun, and dies the first time at one job."""

    work: Callable[[Any], Any]
    folder: Path
    number: int
    """Of the call of the mapper."""
    dies: bool
    """Kill the process at the second job, if it is the first time."""
    jobs: tuple[str, ...]

    def __call__(self, job: Any) -> Any:
        place = self.jobs.index(str(job))
        begun = f"{self.number:02d}-{type(self.work).__name__}-{place}"
        times = len(list(self.folder.glob(f"{begun}-*")))
        (self.folder / f"{begun}-{times}").touch()
        if self.dies and place == 1 and times == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.work(job)


@dataclass
class NotingMapper:
    """Hands noted work on to another mapper."""

    mapper: Mapper
    folder: Path
    dies_in: str
    """Name of the class of the work that dies; empty: none."""
    calls: int = 0

    def __call__(self, work: Callable[[Any], Any], jobs: Sequence[Any], /) -> Iterator[Any]:
        self.calls += 1
        dies = type(work).__name__ == self.dies_in
        noted = Noted(work, self.folder, self.calls, dies, tuple(str(job) for job in jobs))
        return self.mapper(noted, jobs)

    def begun(self) -> dict[str, int]:
        """How often each job was begun, by `call-work-place`."""
        names = [path.name.rsplit("-", 1)[0] for path in self.folder.iterdir()]
        return {name: names.count(name) for name in names}
