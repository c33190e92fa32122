"""A lease says that somebody works with a version, so that nobody removes it meanwhile.

It is a shared lock on a file of the version: readers need no right to write, nothing is left over
by one that dies, and whoever removes the version asks for the exclusive lock first.
"""

import contextlib
import fcntl
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Lease:
    """A shared lock on a file, held until the object is gone.

    Args:
        path: The file. Waits for one who holds it alone.

    Raises:
        FileNotFoundError: There is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)  # and the lock is gone
        fcntl.flock(descriptor, fcntl.LOCK_SH)

    def __reduce__(self) -> tuple[Any, ...]:
        return Lease, (self._path,)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether a file's exclusive lock was free; it is held during the block if so.

    Raises:
        FileNotFoundError: There is no such file.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
