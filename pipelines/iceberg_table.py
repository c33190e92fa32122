"""An Iceberg table as the Parquet files of one of its snapshots.

As with Delta, a snapshot is a list of files that are read where they lie. Their columns are found
by the ids that Iceberg gives them, so columns that were renamed, or dropped and added again, are
what the table says they are. Rows that are marked as deleted are refused. The library that reads
the metadata comes with the extra `iceberg`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.delta_table import UnreadableTable
from pipelines.files import (
    AnyFile,
    RemoteFile,
    current,
    is_remote,
    local_path,
    matches,
    remote_listing,
)

_ENDING = ".metadata.json"


@dataclass(frozen=True)
class IcebergFiles:
    """One snapshot of an Iceberg table."""

    files: Mapping[AnyFile, Mapping[str, str | None]]
    """Its files by name, each with the columns that the partition gives, as text."""
    columns: Mapping[str, int]
    """Of the table, with their ids; files that are older than a column lack it."""


def is_iceberg(entry: str) -> bool:
    """Whether a path or URL is the folder of an Iceberg table, or its metadata."""
    if entry.endswith(_ENDING):
        return True
    return "*" not in entry and any(name.endswith(_ENDING) for name in _metadata_names(entry))


def iceberg_files(entry: str, snapshot: int | None) -> IcebergFiles:
    """The files of a snapshot.

    Args:
        entry: Folder or URL of the table, or one of its metadata files.
        snapshot: Its id; the current one if None.

    Raises:
        FileNotFoundError: There is no such table, or a file that it names is gone.
        UnreadableTable: The metadata are damaged, lack the snapshot, or ask for more than the
            files say; or the library is not installed.
    """
    try:
        # Optional, and slow to import: only who reads such a table pays for it.
        library = import_module("pyiceberg.table")
        invalid = import_module("pyiceberg.exceptions").ValidationError
    except ImportError as error:
        raise UnreadableTable(
            f"{entry} is an Iceberg table; to read it, pip install 'recsys[iceberg]'"
        ) from error
    location = _metadata(entry)
    try:
        table = library.StaticTable.from_metadata(location)
        found = table.current_snapshot() if snapshot is None else table.snapshot_by_id(snapshot)
        if found is None:
            known = [str(each.snapshot_id) for each in table.metadata.snapshots]
            wanted = "no snapshot" if snapshot is None else f"no snapshot {snapshot}"
            raise UnreadableTable(
                f"the Iceberg table {entry} has {wanted}; known: {', '.join(known) or 'none'}"
            )
        tasks = list(table.scan(snapshot_id=found.snapshot_id).plan_files())
    except UnreadableTable:
        raise
    except (OSError, ValueError, TypeError, invalid) as error:
        raise UnreadableTable(
            f"the metadata of the Iceberg table {entry} cannot be read:"
            f" {str(error).strip().splitlines()[0]}"
        ) from error
    files = {}
    for task in sorted(tasks, key=lambda task: task.file.file_path):
        _require_plain(task, entry)
        files[_there(task.file.file_path, entry)] = _partition(task.file, table)
    if not files:
        raise UnreadableTable(f"the Iceberg table {entry} has no rows")
    return IcebergFiles(files, {field.name: field.field_id for field in table.schema().fields})


def _metadata(entry: str) -> str:
    """Where the newest metadata of a table are."""
    if entry.endswith(_ENDING):
        return entry if is_remote(entry) else local_path(entry)
    names = _metadata_names(entry)
    candidates = [name for name in names if name.endswith(_ENDING)]
    if not candidates:
        if not is_remote(entry):
            matches(entry)  # names the nearest folder
        raise FileNotFoundError(f"{entry} holds no Iceberg table: it has no metadata")
    newest = max(candidates, key=lambda name: (_number(name), name))
    base = entry.rstrip("/") if is_remote(entry) else local_path(entry).rstrip("/")
    return f"{base}/metadata/{newest}"


def _metadata_names(entry: str) -> list[str]:
    if is_remote(entry):
        return list(remote_listing(f"{entry.rstrip('/')}/metadata"))
    folder = Path(local_path(entry)) / "metadata"
    return [file.name for file in folder.iterdir()] if folder.is_dir() else []


def _number(name: str) -> int:
    """`v3.metadata.json` and `00003-<uuid>.metadata.json` are both the third."""
    found = re.match(r"v?(\d+)", name)
    return int(found[1]) if found else -1


def _require_plain(task: Any, entry: str) -> None:
    """Refuse what the files alone do not tell."""
    if task.delete_files:
        raise UnreadableTable(
            f"the Iceberg table {entry} holds rows that are marked as deleted, in"
            f" {task.file.file_path}, which cannot be read; rewrite its data files"
        )
    if task.file.file_format.value != "PARQUET":
        raise UnreadableTable(
            f"the Iceberg table {entry} holds {task.file.file_format.value} files; Parquet files"
            " can be read"
        )


def _there(path: str, entry: str) -> AnyFile:
    url = re.sub(r"^s3[an]://", "s3://", path)
    url = re.sub(r"^file:/(?!/)", "file:///", url)
    try:
        if is_remote(url):
            return current(RemoteFile(url, 0, 0, ""))
        file = Path(local_path(url))
        file.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the Iceberg table {entry} has lost the file {path}") from error
    return file


def _partition(file: Any, table: Any) -> dict[str, str | None]:
    """Columns that are the same in all rows of a file: the file itself may lack them."""
    spec = table.specs()[file.spec_id]
    return {
        table.schema().find_column_name(field.source_id): (
            None if file.partition[place] is None else str(file.partition[place])
        )
        for place, field in enumerate(spec.fields)
        if str(field.transform) == "identity"
    }
