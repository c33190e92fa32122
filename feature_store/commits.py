"""What the log of a Delta table says of each commit, read from the log itself.

Every version is written by a commit that names all of its files, so each is read from its own entry
of the log alone: an entry that is missing or damaged takes no other version with it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_store import table
from feature_store.features import SPLITS

_ENTRY = re.compile(r"(\d{20})\.json")


class LogDamaged(ValueError):
    """An entry of the log is missing or cannot be read."""


@dataclass(frozen=True)
class Commit:
    """One entry of the log."""

    info: Mapping[str, Any]
    """Its commitInfo."""
    files: Mapping[str, tuple[Path, ...]]
    """Files that it adds, by split, in the order of their rows."""


def numbers(folder: Path) -> list[int]:
    """Numbers of a table's entries that are there, rising.

    Args:
        folder: Of the Delta table, here and below.
    """
    matches = (_ENTRY.fullmatch(path.name) for path in (folder / "_delta_log").glob("*.json"))
    return sorted(int(match[1]) for match in matches if match)


def entry(folder: Path, number: int) -> Path:
    """The file of an entry."""
    return folder / "_delta_log" / f"{number:020d}.json"


def read(folder: Path, number: int) -> Commit | None:
    """One entry; None if there is none.

    Raises:
        LogDamaged: Its file is not what a commit writes.
    """
    path = entry(folder, number)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    try:
        actions = [json.loads(line) for line in lines if line]
    except ValueError as error:
        raise LogDamaged(
            f"{path} is damaged, so version {number} cannot be opened: {error}; the other versions"
            " can, but no build can add one until the file is taken from a copy"
        ) from error
    info: dict[str, Any] = {}
    added = []
    for action in actions:
        info |= action.get("commitInfo", {})
        if "add" in action:
            added.append(action["add"]["path"])
    paths = sorted(added)
    files = {
        split: tuple(folder / p for p in paths if p.startswith(f"{table.folder_of(split)}/"))
        for split in SPLITS
    }
    return Commit(info, files)


def missing(folder: Path) -> list[int]:
    """Numbers of entries that are not there although later ones are."""
    present = numbers(folder)
    return sorted(set(range(present[-1])) - set(present)) if present else []


def require_whole(folder: Path) -> None:
    """Check that every entry is there and can be read, as whoever adds one must.

    Raises:
        LogDamaged: Names the first one that is not.
    """
    for number in missing(folder):
        raise LogDamaged(
            f"{entry(folder, number)} is missing, so no version can be added; the other versions"
            " open. Take the file from a copy, or build into another store"
        )
    for number in numbers(folder):
        read(folder, number)
