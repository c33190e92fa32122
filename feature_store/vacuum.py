"""Retention: removing the data of versions that nobody needs any more.

A version stays if it is the latest, among those to be kept, too young, named by somebody (a run, a
checkpoint, a bundle) or open in some process. The others' rows and fitted features go; the files
of rejected rows and the commits stay, these with a note that stands before the first file goes. So
whoever is killed here leaves versions that are whole, or removed: never one that opens and lacks
rows. What a killed one left is removed by the next.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from feature_store import removal
from feature_store.features import SPLIT_COLUMN
from feature_store.lease import alone
from feature_store.removal import Removal
from feature_store.store import TABLE_FOLDER, Entry, Store, lease_file
from feature_store.version import BUILDS_FOLDER, Record

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@dataclass(frozen=True)
class Removed:
    """A version whose data are gone, or would be."""

    number: int
    created: datetime
    size_bytes: int


@dataclass(frozen=True)
class Kept:
    """A version that stays."""

    number: int
    why: str


@dataclass(frozen=True)
class Vacuumed:
    """What `vacuum` did, or would do."""

    removed: tuple[Removed, ...]
    kept: tuple[Kept, ...]
    leftover_bytes: int
    """Of files that a vacuum before had no time to remove."""

    @property
    def size_bytes(self) -> int:
        """Of all that went."""
        return sum(each.size_bytes for each in self.removed) + self.leftover_bytes


def vacuum(
    store: Store,
    name: str,
    *,
    keep: int | None = None,
    older_than: timedelta | None = None,
    named: Callable[[], Mapping[str, str]],
    dry_run: bool = False,
) -> Vacuumed:
    """Remove the data of versions that nobody needs.

    Args:
        store: Where the table is.
        name: The feature table.
        keep: The newest so many stay, whoever needs them.
        older_than: Only versions that are older go.
        named: Says who needs a version, by its fingerprint. Asked when nobody can open those that
            may go any more, so that a training that began before has written down its own.
        dry_run: Only say what would go.

    Raises:
        VersionNotFound: There is no such table.
        ValueError: Neither `keep` nor `older_than` says what may go.
    """
    if keep is None and older_than is None:
        raise ValueError("say what may go: all but the newest (--keep), or old ones (--older-than)")
    if keep is not None and keep < 1:
        raise ValueError(f"--keep {keep}: the latest version always stays; expected 1 or more")
    entries = [(e, e.record) for e in store.entries(name) if e.record is not None]
    folder = store.folder(name)
    removed: list[Removed] = []
    leftover_bytes = 0
    why = _reasons(entries, keep, older_than)
    with ExitStack() as locks:
        for entry, record in entries:
            if entry.state == "removed" or entry.number in why:
                continue
            lease = lease_file(folder / BUILDS_FOLDER / record.build)
            # What has lost its features cannot be opened, so nobody needs to be kept out.
            with suppress(FileNotFoundError):
                if not locks.enter_context(alone(lease)):
                    why[entry.number] = "open in some process"
        needed = named()
        for entry, record in entries:
            files = list(_files(folder, record))
            if entry.state == "removed":
                leftover_bytes += _size(files)
                if not dry_run:
                    _delete(folder, record, files)
                continue
            fingerprint = record.metadata["fingerprint"]
            if fingerprint in needed:
                why.setdefault(entry.number, f"named by {needed[fingerprint]}")
            if entry.number in why:
                continue
            size_bytes = _size(files)
            if not dry_run:
                note = Removal(when=datetime.now(UTC), size_bytes=size_bytes)
                removal.write(folder, entry.number, note)
                _delete(folder, record, files)
            removed.append(Removed(entry.number, record.created, size_bytes))
    kept = tuple(Kept(number, reason) for number, reason in sorted(why.items()))
    return Vacuumed(tuple(removed), kept, leftover_bytes)


def parse_age(text: str) -> timedelta:
    """A duration such as `12h`, `30d` or `8w`.

    Raises:
        ValueError: It is none.
    """
    match = re.fullmatch(r"([0-9]+)([hdw])", text.strip())
    if match is None:
        raise ValueError(f"--older-than {text!r}: expected a number with h, d or w, such as 30d")
    return int(match[1]) * _UNITS[match[2]]


def _reasons(
    entries: list[tuple[Entry, Record]], keep: int | None, older_than: timedelta | None
) -> dict[int, str]:
    """By number: why a version stays, whoever needs it."""
    present = [entry.number for entry, _ in entries if entry.state == "present"]
    newest = present[-(keep or 1) :]
    now = datetime.now(UTC)
    reasons = {}
    for entry, record in entries:
        if entry.state == "removed":
            continue
        if present and entry.number == present[-1]:
            reasons[entry.number] = "the latest"
        elif entry.number in newest:
            reasons[entry.number] = f"among the newest {keep}"
        elif older_than is not None and now - record.created < older_than:
            reasons[entry.number] = f"built {record.created:%Y-%m-%d %H:%M} UTC, too young"
    return reasons


def _files(folder: Path, record: Record) -> Iterator[Path]:
    """All files of a version that are there."""
    yield from (folder / TABLE_FOLDER).glob(f"{SPLIT_COLUMN}=*/{record.build}-*.parquet")
    build = folder / BUILDS_FOLDER / record.build
    yield from (path for path in build.rglob("*") if path.is_file())


def _delete(folder: Path, record: Record, files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
    build = folder / BUILDS_FOLDER / record.build
    if build.exists():
        shutil.rmtree(build, onerror=_unless_gone)


def _unless_gone(_function: object, _path: object, failure: tuple[object, ...]) -> None:
    """Another vacuum may remove the same leftovers."""
    error = failure[1]
    if isinstance(error, BaseException) and not isinstance(error, FileNotFoundError):
        raise error


def _size(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.exists())
