"""A Delta table as the Parquet files of one of its versions.

A version of a Delta table is a list of files, so they are read as any others, each where it lies.
What a plain reading of the files would get wrong (rows marked as deleted, renamed columns) is
refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from pipelines.files import AnyFile, is_remote, local_path, matches, remote_listing

_PARTITION = "partition."


class UnreadableTable(ValueError):
    """A table whose log cannot be read, or not by us."""


@dataclass(frozen=True)
class DeltaFiles:
    """One version of a Delta table."""

    files: Mapping[AnyFile, Mapping[str, str | None]]
    """Its files, older ones first, each with the partition columns of its rows as text."""
    columns: frozenset[str]
    """Of the table; files that are older than a column lack it."""


def is_delta(entry: str) -> bool:
    """Whether a path or URL is the folder of a Delta table."""
    if is_remote(entry):
        return "*" not in entry and any(remote_listing(f"{entry.rstrip('/')}/_delta_log"))
    return (Path(local_path(entry)) / "_delta_log").is_dir()


def delta_files(entry: str, version: int | None) -> DeltaFiles:
    """The files of a version.

    Args:
        entry: Folder or URL of the table.
        version: The latest if None.

    Raises:
        FileNotFoundError: There is no such table, or a file that its log names is gone.
        UnreadableTable: The log is damaged, lacks the version, or asks for more than its files say.
    """
    remote = is_remote(entry)
    place = entry.rstrip("/") if remote else local_path(entry)
    if not remote and not Path(place).is_dir():
        matches(entry)  # names the nearest folder
        raise UnreadableTable(f"{entry} is a file, no folder of a Delta table")
    try:
        table = DeltaTable(place, version=version)
    except TableNotFoundError as error:
        raise FileNotFoundError(f"{entry} holds no Delta table: it has no log") from error
    except (DeltaError, OSError, ValueError) as error:
        wanted = "" if version is None else f" at version {version}"
        raise UnreadableTable(
            f"the log of the Delta table {entry} cannot be read{wanted}:"
            f" {_reason(place, version, error)}"
        ) from error
    _require_plain(table, entry)
    actions = pl.DataFrame(table.get_add_actions(flatten=True)).sort("modification_time", "path")
    keys = table.metadata().partition_columns
    by_path = {
        unquote(row["path"]): {key: row[_PARTITION + key] for key in keys}
        for row in actions.with_columns(pl.col("^partition\\..*$").cast(pl.String)).iter_rows(
            named=True
        )
    }
    below = remote_listing(place) if remote else None
    files: dict[AnyFile, Mapping[str, str | None]] = {}
    for path, partition in by_path.items():
        file = Path(place) / path if below is None else below.get(path)
        if file is None or (isinstance(file, Path) and not file.is_file()):
            raise FileNotFoundError(
                f"version {table.version()} of the Delta table {entry} has lost the file {path};"
                " restore it, or read another version"
            )
        files[file] = partition
    if not files:
        raise UnreadableTable(f"version {table.version()} of the Delta table {entry} has no rows")
    return DeltaFiles(files, frozenset(field.name for field in table.schema().fields))


def _require_plain(table: DeltaTable, entry: str) -> None:
    """Refuse what the files alone do not tell."""
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    if mapping != "none":
        raise UnreadableTable(
            f"the Delta table {entry} names its columns by column mapping ({mapping}), which cannot"
            " be read; write it anew without"
        )
    if "deletionVectors" in (table.protocol().reader_features or []):
        try:
            marked = pl.DataFrame(table.deletion_vectors())
        except DeltaError as error:
            raise UnreadableTable(
                f"the deletion vectors of the Delta table {entry} cannot be read: {error}"
            ) from error
        if len(marked):
            raise UnreadableTable(
                f"{len(marked)} files of the Delta table {entry} hold rows that are marked as"
                " deleted (deletion vectors), which cannot be read; purge them (REORG TABLE ..."
                " APPLY (PURGE))"
            )


def _reason(place: str, version: int | None, error: Exception) -> str:
    """The commit that is not there, or what the log's reader says."""
    if is_remote(place):
        found = list(remote_listing(f"{place}/_delta_log"))
    else:
        found = [path.name for path in (Path(place) / "_delta_log").iterdir()]
    commits = sorted(int(name[:-5]) for name in found if name[:-5].isdigit())
    for commit, after in pairwise(commits):
        if after > commit + 1:
            return f"it has lost the file {commit + 1:020d}.json"
    if version is not None and commits and version > commits[-1]:
        return f"its latest version is {commits[-1]}"
    return str(error).strip().splitlines()[0]
