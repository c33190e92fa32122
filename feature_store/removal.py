"""The note that a version was removed: it stands before the first of its files goes.

Whoever is killed while removing leaves a version that says it is removed, and files that the next
one removes; never a version that opens and lacks rows.
"""

import os
from datetime import datetime
from pathlib import Path

from pydantic import NonNegativeInt

from feature_store.config import Config

_FOLDER = "removed"


class Removal(Config):
    """When a version's data were removed."""

    when: datetime
    size_bytes: NonNegativeInt
    """Of all its files."""


def read(folder: Path, number: int) -> Removal | None:
    """The note on a version; None if it was not removed.

    Args:
        folder: Of the feature table.
        number: Of the version.
    """
    try:
        text = _path(folder, number).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return Removal.model_validate_json(text)


def write(folder: Path, number: int, removal: Removal) -> None:
    """Write the note down; on disk, whole or not at all."""
    path = _path(folder, number)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(removal.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _path(folder: Path, number: int) -> Path:
    return folder / _FOLDER / f"{number}.json"
