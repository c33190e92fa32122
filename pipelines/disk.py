"""A full disk, said in the user's words, whichever library met it."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa
from deltalake.exceptions import DeltaError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries that are not Python's tell the system's error in words only.
_SIGNS = ("No space left on device", "Disk quota exceeded", "File too large")


class DiskFull(ValueError):
    """There is no room for what is to be written."""


@contextmanager
def told_if_full(folder: Path) -> Iterator[None]:
    """Turn errors of a full disk into one that names the folder.

    Args:
        folder: Where is written.

    Raises:
        DiskFull: The disk, a quota or a limit of the process left no room.
    """
    try:
        yield
    except (OSError, pl.exceptions.PolarsError, pa.ArrowException, DeltaError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number not in _FULL and not any(sign in str(error) for sign in _SIGNS):
            raise
        free = shutil.disk_usage(folder).free
        raise DiskFull(
            f"{folder}: there is no room left to write the new version ({free / 1e9:.1f} GB free);"
            " nothing of it was kept and older versions are as they were: free some space, or put"
            f" the store elsewhere; the system says: {str(error).splitlines()[0]}"
        ) from error
