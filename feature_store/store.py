"""The store: a feature table is a Delta table, and a version of it is one commit.

```
<store>/<name>/table/             the Delta table: encoded rows, partitioned by split
<store>/<name>/builds/<build>/    a build's fitted features, and raw rows of its last split
<store>/<name>/rejected/          rows that could not be read
<store>/<name>/removed/           notes on versions whose data were removed
<store>/<name>/.building/         workspaces of builds at work
```

Everything a version needs is in place before its commit, and the commit is one file that appears
whole or not at all: whatever happens to a build, the last version opens, and none is half there.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from feature_store import commits, removal, table
from feature_store.commits import Commit, LogDamaged
from feature_store.encoding import FittedFeatures
from feature_store.features import SPLIT_COLUMN, SPLITS, Layout, nearest
from feature_store.lease import Lease
from feature_store.version import (
    BUILDS_FOLDER,
    Metadata,
    Record,
    SourceFile,
    Version,
    VersionNotFound,
    check_name,
)
from feature_store.workspace import Workspace, workspace

__all__ = ["Entry", "Metadata", "SourceFile", "Store", "Version", "VersionNotFound"]

_RECORD = "recsys"
TABLE_FOLDER = "table"
_REJECTED, _WORK = "rejected", ".building"
_MAX_ATTEMPTS = 20
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Entry:
    """A version as the history knows it, whether or not its data are still there."""

    number: int
    record: Record | None
    """What its commit says; None where that cannot be read."""
    state: Literal["present", "removed", "lost", "damaged"]
    """Removed by `vacuum`; lost: files are gone that nobody removed; damaged: so is the log."""
    note: str
    """Why it does not open; empty if it does."""


class Store:
    """A folder of feature tables, each with its versions.

    Args:
        path: The folder; made by the first build.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def open(self, name: str, number: int | None = None) -> Version:
        """A version by number, or the latest.

        Raises:
            VersionNotFound: Lists the tables or versions that there are.
        """
        folder = self._require(name)
        if number is None:
            newest = commits.numbers(folder / TABLE_FOLDER)[-1]
            record = self._record(name, newest)  # a damaged one is not passed over in silence
            found = next(self._records(name), None) if record is None else (newest, *record)
            if found is None:
                raise VersionNotFound(f"{folder} has no version; build one")
            return self._version(name, *found)
        record = self._record(name, number)
        if record is None:
            if number in commits.missing(folder / TABLE_FOLDER):
                raise VersionNotFound(
                    f"version {number} of {name!r} cannot be opened: its entry"
                    f" {commits.entry(folder / TABLE_FOLDER, number)} is missing in the log"
                )
            known = [str(n) for n, *_ in self._records(name)]
            raise VersionNotFound(
                f"{name!r} has no version {number} in {self.path}; known:"
                f" {', '.join(reversed(known)) or 'none'}"
            )
        return self._version(name, number, *record)

    def find(self, name: str, fingerprint: str) -> Version | None:
        """The latest version with a fingerprint whose files are all there; None without one."""
        if not self.exists(name):
            return None
        for number, record, commit in self._records(name):
            if record.metadata["fingerprint"] == fingerprint:
                try:
                    return self._version(name, number, record, commit)
                except VersionNotFound:  # its files are gone: it has to be built again
                    continue
        return None

    def history(self, name: str) -> list[Version]:
        """All versions that were not removed, oldest first.

        Raises:
            VersionNotFound: There is no such table, or files of a version are gone.
        """
        folder = self._require(name)
        kept = [found for found in self._records(name) if removal.read(folder, found[0]) is None]
        return [self._version(name, *found) for found in reversed(kept)]

    def entries(self, name: str) -> list[Entry]:
        """All that the log knows of, oldest first, also what cannot be opened, with the reason.

        Raises:
            VersionNotFound: There is no such table.
        """
        folder = self._require(name)
        found = [self._missing(folder, number) for number in commits.missing(folder / TABLE_FOLDER)]
        for number in commits.numbers(folder / TABLE_FOLDER):
            try:
                record = self._record(name, number)
            except LogDamaged as error:
                found.append(Entry(number, None, "damaged", str(error)))
                continue
            if record is not None:
                found.append(self._entry(name, number, *record))
        return sorted(found, key=lambda entry: entry.number)

    def _entry(self, name: str, number: int, record: Record, commit: Commit) -> Entry:
        removed = removal.read(self.folder(name), number)
        if removed is not None:
            return Entry(number, record, "removed", _removed(name, number, removed))
        try:
            self._version(name, number, record, commit)
        except VersionNotFound as error:
            return Entry(number, record, "lost", str(error))
        return Entry(number, record, "present", "")

    def _missing(self, folder: Path, number: int) -> Entry:
        path = commits.entry(folder / TABLE_FOLDER, number)
        return Entry(number, None, "damaged", f"its entry {path} is missing in the log")

    def hashes(self, name: str) -> dict[tuple[str, int, int], str]:
        """sha256 of the files that builds have read, by path, size and time of modification.

        Files that were modified just before they were read are left out: another change may have
        come within the clock's resolution.
        """
        if not self.exists(name):
            return {}
        return {
            (source["path"], source["size_bytes"], source["modified_ns"]): source["sha256"]
            for _, record, _ in self._records(name)
            for source in record.metadata["sources"]
            if source["hashed_ns"] - source["modified_ns"] > _SETTLED_NS
        }

    def names(self) -> list[str]:
        """The feature tables that there are, sorted."""
        return sorted(path.parent.name for path in self.path.glob(f"*/{TABLE_FOLDER}"))

    def require_names(self) -> list[str]:
        """The same; VersionNotFound where there is none."""
        names = self.names()
        if not names:
            raise VersionNotFound(
                f"there is no feature table in the store {self.path}; `recsys build FILE` makes"
                " one, and --store names another folder"
            )
        return names

    def exists(self, name: str) -> bool:
        """Whether there is a table of that name."""
        return bool(commits.numbers(self.folder(name) / TABLE_FOLDER))

    def workspace(self, name: str) -> AbstractContextManager[Workspace]:
        """A folder of one's own for a build; what dead builds left is removed first.

        Raises:
            LogDamaged: An entry of the table's log is missing or cannot be read.
        """
        if self.exists(name):
            self._table(name)  # a build of hours is to learn of it before it begins
        return workspace(self.folder(name) / _WORK, lambda build: self._discard(name, build))

    def rejected_folder(self, name: str) -> Path:
        """Where rows that could not be read are kept; made if needed."""
        folder = self.folder(name) / _REJECTED
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write(
        self,
        name: str,
        rows: pl.LazyFrame,
        fitted: FittedFeatures,
        metadata: Metadata,
        workspace: Workspace,
        raw_sample: pl.DataFrame,
    ) -> Version:
        """Write one new version, or none.

        Args:
            name: The feature table.
            rows: Encoded rows of all splits with the column `split`, in the order of the source.
            fitted: What encoded them.
            metadata: Where they come from.
            workspace: Of this build, from `workspace`.
            raw_sample: A few raw rows, kept for checks of what serves them.

        Raises:
            SchemaMismatch: The rows are not what the fitted features encode.
            CommitFailedError: Others kept committing to the same table.
            LogDamaged: An entry of the table's log is missing or cannot be read.
        """
        ordered = table.in_order(rows, fitted.layout)
        files = table.sink(ordered, workspace.path / "rows", workspace.build)
        return self.write_files(name, files, fitted, metadata, workspace, raw_sample)

    def write_files(
        self,
        name: str,
        files: Sequence[tuple[str, Path]],
        fitted: FittedFeatures,
        metadata: Metadata,
        workspace: Workspace,
        raw_sample: pl.DataFrame,
    ) -> Version:
        """`write`, of rows that are in files already.

        Args:
            name: The feature table.
            files: Split and Parquet file, as `table.sink` gives them; they are moved.
            fitted: What encoded them.
            metadata: Where they come from.
            workspace: Of this build, from `workspace`; the files are in it.
            raw_sample: A few raw rows, kept for checks of what serves them.

        Raises:
            CommitFailedError: Others kept committing to the same table.
            LogDamaged: An entry of the table's log is missing or cannot be read.
        """
        kept = workspace.path / "build"
        fitted.save(kept / table.FEATURES_FOLDER)
        raw_sample.write_parquet(kept / "raw.parquet")
        folder = self.folder(name)
        (folder / BUILDS_FOLDER).mkdir(exist_ok=True)
        kept.rename(folder / BUILDS_FOLDER / workspace.build)
        counts = dict.fromkeys(SPLITS, 0)
        actions: list[AddAction | RemoveAction] = []
        for split, file in files:
            target = folder / TABLE_FOLDER / table.folder_of(split) / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            num_rows = pq.read_metadata(file).num_rows
            actions.append(table.add_action(split, file.rename(target), num_rows))
            counts[split] += num_rows
        record = Record(
            metadata=metadata, build=workspace.build, created=datetime.now(UTC), rows=counts
        )
        return self._commit(name, record, actions, fitted.layout)

    def _commit(
        self,
        name: str,
        record: Record,
        actions: list[AddAction | RemoveAction],
        layout: Layout,
    ) -> Version:
        """Make the version; one of the same content that came first is taken instead."""
        fingerprint = record.metadata["fingerprint"]
        for attempt in range(_MAX_ATTEMPTS):
            seen = self._table(name) if self.exists(name) else None
            found = None if seen is None else self.find(name, fingerprint)
            if found is not None:
                self._discard(name, record.build)
                return found
            try:
                self._transact(name, seen, record, actions, layout)
            except CommitFailedError:  # another build committed first: look again, and go after it
                if attempt == _MAX_ATTEMPTS - 1:
                    raise
            except DeltaError:
                # Two builds made the table at once; the one that came second joins it.
                if attempt or not self.exists(name):
                    raise
            else:
                return self._built(name, record.build)
        raise AssertionError("the last attempt returns or raises")

    def _transact(
        self,
        name: str,
        seen: DeltaTable | None,
        record: Record,
        actions: list[AddAction | RemoveAction],
        layout: Layout,
    ) -> None:
        """Commit right after the version that was seen, or make the table, or fail."""
        path = str(self.folder(name) / TABLE_FOLDER)
        schema = table.delta_schema(layout)
        partition_by = [SPLIT_COLUMN]
        properties = CommitProperties(
            custom_metadata={_RECORD: record.model_dump_json()}, max_commit_retries=0
        )
        # Versions are kept for good, so the log is too.
        hooks = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)
        if seen is not None:
            seen.create_write_transaction(
                actions,
                "overwrite",
                schema,
                partition_by,
                commit_properties=properties,
                post_commithook_properties=hooks,
            )
        else:
            create_table_with_add_actions(
                path,
                schema,
                [action for action in actions if isinstance(action, AddAction)],
                partition_by=partition_by,
                commit_properties=properties,
                post_commithook_properties=hooks,
            )

    def _built(self, name: str, build: str) -> Version:
        for number, record, commit in self._records(name):
            if record.build == build:
                return self._version(name, number, record, commit)
        raise AssertionError("a commit that succeeded is in the log")

    def _discard(self, name: str, build: str) -> None:
        """Remove what a build left in the table's folders, unless it is a version."""
        folder = self.folder(name)
        if any(record.build == build for _, record, _ in self._records(name)):
            return
        for file in (folder / TABLE_FOLDER).glob(f"{SPLIT_COLUMN}=*/{build}-*.parquet"):
            file.unlink(missing_ok=True)
        shutil.rmtree(folder / BUILDS_FOLDER / build, ignore_errors=True)

    def _version(self, name: str, number: int, record: Record, commit: Commit) -> Version:
        folder = self.folder(name)
        build = folder / BUILDS_FOLDER / record.build
        needed = [build, *(path for paths in commit.files.values() for path in paths)]
        lease = None
        if (features := lease_file(build)).exists():
            lease = Lease(features)
        # In this order: whoever removes a version holds its lease alone, and writes the note first.
        removed = removal.read(folder, number)
        if removed is not None:
            raise VersionNotFound(_removed(name, number, removed))
        gone = [path for path in (features, *needed) if not path.exists()]
        if gone:
            others = f" and {len(gone) - 1} more are" if len(gone) > 1 else " is"
            raise VersionNotFound(
                f"version {number} of {name!r} has lost files: {gone[0]}{others} gone; build it"
                " again"
            )
        metadata = record.metadata.copy()
        if metadata["rejected_path"] is not None:  # the store may have moved since
            metadata["rejected_path"] = str(
                folder / _REJECTED / Path(metadata["rejected_path"]).name
            )
        return Version(
            name=name,
            number=number,
            path=folder,
            metadata=metadata,
            rows=record.rows,
            build=record.build,
            created=record.created,
            _files=dict(commit.files),
            _lease=lease,
        )

    def _records(self, name: str) -> Iterator[tuple[int, Record, Commit]]:
        """Versions that builds wrote, newest first.

        Commits of other programs are passed over, and so are damaged entries: whoever asks for
        what one of them holds is told by `open`, whoever would add to them by `write`.
        """
        for number in reversed(commits.numbers(self.folder(name) / TABLE_FOLDER)):
            try:
                found = self._record(name, number)
            except LogDamaged:
                continue
            if found is not None:
                yield number, *found

    def _record(self, name: str, number: int) -> tuple[Record, Commit] | None:
        """What the commit of that number says; None if there is none, or another program's."""
        commit = commits.read(self.folder(name) / TABLE_FOLDER, number)
        if commit is None or _RECORD not in commit.info:
            return None
        return Record.model_validate_json(commit.info[_RECORD]), commit

    def _require(self, name: str) -> Path:
        """The folder of a table that is there."""
        if not self.exists(name):
            known = nearest(name, self.names())
            raise VersionNotFound(f"the store {self.path} has no feature table {name!r}; {known}")
        return self.folder(name)

    def _table(self, name: str) -> DeltaTable:
        folder = self._require(name) / TABLE_FOLDER
        try:
            return DeltaTable(str(folder))
        except DeltaError:
            commits.require_whole(folder)
            raise

    def folder(self, name: str) -> Path:
        """The folder of a feature table, whether or not it is there."""
        check_name(name)
        return self.path / name


def lease_file(build: Path) -> Path:
    """The file that whoever reads a version has a lease of.

    Args:
        build: The folder of the version's build.
    """
    return build / table.FEATURES_FOLDER / "features.json"


def _removed(name: str, number: int, removed: removal.Removal) -> str:
    return (
        f"version {number} of {name!r} was removed by `recsys features vacuum` on"
        f" {removed.when:%Y-%m-%d %H:%M} UTC; build it again from its sources if it is needed"
    )
