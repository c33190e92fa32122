"""The store: a feature table is a Delta table, and a version of it is one commit.

```
<store>/<name>/table/             the Delta table: encoded rows, partitioned by split
<store>/<name>/builds/<build>/    a build's fitted features, and raw rows of its last split
<store>/<name>/rejected/          rows that could not be read
<store>/<name>/.building/         workspaces of builds at work
```

Everything a version needs is in place before its commit, and the commit is one file that appears
whole or not at all: whatever happens to a build, the last version opens, and none is half there.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import NotRequired

import polars as pl
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions
from typing_extensions import TypedDict

from feature_store import table
from feature_store.config import Config
from feature_store.encoding import FittedFeatures
from feature_store.features import SPLIT_COLUMN, SPLITS, Layout, nearest
from feature_store.workspace import Workspace, workspace

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RECORD = "recsys"
_TABLE, _BUILDS, _REJECTED, _WORK = "table", "builds", "rejected", ".building"
_MAX_ATTEMPTS = 20
_SETTLED_NS = 2_000_000_000


class VersionNotFound(LookupError):
    """There is no such table, no such version, or its files are gone."""


class SourceFile(TypedDict):
    """A file that was read, and what was in it."""

    path: str
    size_bytes: int
    modified_ns: int
    """Time of the last modification, in nanoseconds since 1970."""
    sha256: str
    hashed_ns: int
    """Time at which the content was identified, likewise."""


class Metadata(TypedDict):
    """Where a version comes from; plain values, for reports."""

    fingerprint: str
    """Of the sources' content, the configuration and the code's formats: equal means the same."""
    config_hash: str
    sources: list[SourceFile]
    rows_in: int
    rows_rejected: int
    rejected_reasons: dict[str, int]
    rejected_path: str | None
    """CSV file of the rows that could not be read; None when there are none."""
    unmatched: dict[str, int]
    """By joined file: rows without a partner in it."""
    libraries: dict[str, str]
    negatives_dropped: NotRequired[int]
    """Training rows that data.negative_downsampling left out; absent without it."""


class _Record(Config):
    """What a commit says of its version."""

    metadata: Metadata
    build: str
    created: datetime
    rows: dict[str, int]


@dataclass(frozen=True)
class Version:
    """One immutable version of a feature table."""

    name: str
    number: int
    """The version of the Delta table."""
    path: Path
    """Folder of the feature table in the store."""
    metadata: Metadata
    rows: dict[str, int]
    """Rows per split."""
    build: str
    """Unique name of the build that wrote it."""
    created: datetime
    _files: dict[str, tuple[Path, ...]]

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints mean the same sources, configuration and code formats."""
        return self.metadata["fingerprint"]

    @property
    def folder(self) -> Path:
        """What its build left beside the rows; what follows from the version may be kept here."""
        return self.path / _BUILDS / self.build

    @cached_property
    def fitted(self) -> FittedFeatures:
        """The features as fitted to this version's training split."""
        return FittedFeatures.load(self.folder / "features")

    @property
    def layout(self) -> Layout:
        """What an encoded row looks like."""
        return self.fitted.layout

    def files(self, split: str) -> list[Path]:
        """Parquet files of a split; their rows, file after file, are in the order of the source."""
        return list(self._files[table.known_split(split)])

    def scan(self, split: str) -> pl.LazyFrame:
        """The encoded rows of a split, in the order of the source."""
        files = self.files(split)
        if not files:
            return pl.LazyFrame(schema=table.encoded_schema(self.layout))
        return pl.scan_parquet(files, hive_partitioning=False)

    def raw_sample(self) -> pl.DataFrame:
        """Some raw rows of the last split that has any, with histories, as scoring gets them."""
        return pl.read_parquet(self.folder / "raw.parquet")


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
        latest = self._table(name).version()
        if number is None:
            found = next(self._records(name, latest), None)
            if found is None:
                raise VersionNotFound(f"{self._folder(name)} has no version; build one")
            return self._version(name, *found)
        record = _read_record(self._folder(name), number)
        if record is None:
            known = [str(n) for n, _ in self._records(name, latest)]
            raise VersionNotFound(
                f"{name!r} has no version {number} in {self.path}; known:"
                f" {', '.join(reversed(known)) or 'none'}"
            )
        return self._version(name, number, record)

    def find(self, name: str, fingerprint: str) -> Version | None:
        """The latest version with a fingerprint whose files are all there; None without one."""
        if not self.exists(name):
            return None
        return self._find(name, fingerprint, self._table(name).version())

    def _find(self, name: str, fingerprint: str, latest: int) -> Version | None:
        for number, record in self._records(name, latest):
            if record.metadata["fingerprint"] == fingerprint:
                try:
                    return self._version(name, number, record)
                except VersionNotFound:  # its files are gone: it has to be built again
                    continue
        return None

    def history(self, name: str) -> list[Version]:
        """All versions, oldest first.

        Raises:
            VersionNotFound: There is no such table, or files of a version are gone.
        """
        records = list(self._records(name, self._table(name).version()))
        return [self._version(name, number, record) for number, record in reversed(records)]

    def hashes(self, name: str) -> dict[tuple[str, int, int], str]:
        """sha256 of the files that builds have read, by path, size and time of modification.

        Files that were modified just before they were read are left out: another change may have
        come within the clock's resolution.
        """
        if not self.exists(name):
            return {}
        return {
            (source["path"], source["size_bytes"], source["modified_ns"]): source["sha256"]
            for _, record in self._records(name, self._table(name).version())
            for source in record.metadata["sources"]
            if source["hashed_ns"] - source["modified_ns"] > _SETTLED_NS
        }

    def names(self) -> list[str]:
        """The feature tables that there are, sorted."""
        return sorted(path.parent.name for path in self.path.glob(f"*/{_TABLE}"))

    def exists(self, name: str) -> bool:
        """Whether there is a table of that name."""
        return DeltaTable.is_deltatable(str(self._folder(name) / _TABLE))

    def workspace(self, name: str) -> AbstractContextManager[Workspace]:
        """A folder of one's own for a build; what dead builds left is removed first."""
        return workspace(self._folder(name) / _WORK, lambda build: self._discard(name, build))

    def rejected_folder(self, name: str) -> Path:
        """Where rows that could not be read are kept; made if needed."""
        folder = self._folder(name) / _REJECTED
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
        """
        ordered = table.in_order(rows, fitted.layout)
        files = table.sink(ordered, workspace.path / "rows", workspace.build)
        kept = workspace.path / "build"
        fitted.save(kept / "features")
        raw_sample.write_parquet(kept / "raw.parquet")
        folder = self._folder(name)
        (folder / _BUILDS).mkdir(exist_ok=True)
        kept.rename(folder / _BUILDS / workspace.build)
        counts = dict.fromkeys(SPLITS, 0)
        actions: list[AddAction | RemoveAction] = []
        for split, file in files:
            target = folder / _TABLE / table.folder_of(split) / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            num_rows = pq.read_metadata(file).num_rows
            actions.append(table.add_action(split, file.rename(target), num_rows))
            counts[split] += num_rows
        record = _Record(
            metadata=metadata, build=workspace.build, created=datetime.now(UTC), rows=counts
        )
        return self._commit(name, record, actions, fitted.layout)

    def _commit(
        self,
        name: str,
        record: _Record,
        actions: list[AddAction | RemoveAction],
        layout: Layout,
    ) -> Version:
        """Make the version; one of the same content that came first is taken instead."""
        fingerprint = record.metadata["fingerprint"]
        for attempt in range(_MAX_ATTEMPTS):
            seen = self._table(name) if self.exists(name) else None
            found = None if seen is None else self._find(name, fingerprint, seen.version())
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
        record: _Record,
        actions: list[AddAction | RemoveAction],
        layout: Layout,
    ) -> None:
        """Commit right after the version that was seen, or make the table, or fail."""
        path = str(self._folder(name) / _TABLE)
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
        for number, record in self._records(name, self._table(name).version()):
            if record.build == build:
                return self._version(name, number, record)
        raise AssertionError("a commit that succeeded is in the log")

    def _discard(self, name: str, build: str) -> None:
        """Remove what a build left in the table's folders, unless it is a version."""
        folder = self._folder(name)
        if self.exists(name):
            records = self._records(name, self._table(name).version())
            if any(record.build == build for _, record in records):
                return
        for file in (folder / _TABLE).glob(f"{SPLIT_COLUMN}=*/{build}-*.parquet"):
            file.unlink(missing_ok=True)
        shutil.rmtree(folder / _BUILDS / build, ignore_errors=True)

    def _version(self, name: str, number: int, record: _Record) -> Version:
        folder = self._folder(name)
        files = table.data_files(folder / _TABLE, number)
        needed = [path for paths in files.values() for path in paths]
        gone = [p for p in (*needed, folder / _BUILDS / record.build) if not p.exists()]
        if gone:
            raise VersionNotFound(
                f"version {number} of {name!r} has lost files: {gone[0]} and"
                f" {len(gone) - 1} more are gone; build it again"
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
            _files=files,
        )

    def _records(self, name: str, latest: int) -> Iterator[tuple[int, _Record]]:
        """Versions that builds wrote, newest first; commits of other programs are passed over."""
        for number in range(latest, -1, -1):
            record = _read_record(self._folder(name), number)
            if record is not None:
                yield number, record

    def _table(self, name: str) -> DeltaTable:
        if not self.exists(name):
            known = nearest(name, self.names())
            raise VersionNotFound(f"the store {self.path} has no feature table {name!r}; {known}")
        return DeltaTable(str(self._folder(name) / _TABLE))

    def _folder(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot name a feature table: expected a letter or digit followed by"
                " letters, digits, '.', '_' and '-'"
            )
        return self.path / name


def _read_record(folder: Path, number: int) -> _Record | None:
    """What the commit of that number says; None if there is none, or another program's."""
    commit = table.read_commit(folder / _TABLE, number)
    if commit is None or _RECORD not in commit:
        return None
    return _Record.model_validate_json(commit[_RECORD])
