"""Folders in which builds work before anything is published; those of killed builds are swept."""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_LOCK = ".lock"


@dataclass(frozen=True)
class Workspace:
    """One build's own folder, gone when the build ends; its lock says that the build lives."""

    build: str
    """Unique name of the build."""
    path: Path


@contextlib.contextmanager
def workspace(folder: Path, on_dead: Callable[[str], None]) -> Iterator[Workspace]:
    """A new workspace below a folder, after the ones of dead builds were removed.

    Args:
        folder: Holds the workspaces of one table.
        on_dead: Called with the name of every dead build before its workspace is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder, on_dead)
    build, descriptor = _locked(folder)
    path = folder / build
    try:
        path.mkdir()
        yield Workspace(build, path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        (folder / f"{build}{_LOCK}").unlink(missing_ok=True)
        os.close(descriptor)


def _locked(folder: Path) -> tuple[str, int]:
    """A fresh name whose lock file this process holds."""
    while True:
        build = uuid.uuid4().hex
        lock = folder / f"{build}{_LOCK}"
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # A sweep may have come between the two calls and have taken the file for a dead build's.
        if lock.exists():
            return build, descriptor
        os.close(descriptor)


def _sweep(folder: Path, on_dead: Callable[[str], None]) -> None:
    for lock in folder.glob(f"*{_LOCK}"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            build = lock.name.removesuffix(_LOCK)
            on_dead(build)
            shutil.rmtree(folder / build, ignore_errors=True)
            lock.unlink()
    # A build's lock comes before its folder: one without a lock was left by a build that ended and
    # could not remove all of it.
    for left in folder.iterdir():
        if left.is_dir() and not (folder / f"{left.name}{_LOCK}").exists():
            shutil.rmtree(left, ignore_errors=True)
