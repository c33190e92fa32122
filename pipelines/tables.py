"""A raw table as a user describes it: where its files are, in which format, with which columns."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, model_validator

from feature_store.casting import TextForm
from feature_store.columns import ColumnType
from feature_store.config import Config
from pipelines.delta_table import DeltaFiles, delta_files, is_delta
from pipelines.files import COMPRESSIONS, AnyFile, matches, partition_of, size_of
from pipelines.iceberg_table import IcebergFiles, iceberg_files, is_iceberg

Format = Literal["csv", "tsv", "jsonl", "parquet", "arrow", "delta", "iceberg"]

_ENDINGS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_NOT_COMPRESSED = ("parquet", "arrow")


class ColumnConfig(TextForm):
    """One raw column: its type and where it is in the file."""

    column: str | int | None = None
    """Name in the file, or 0-based place where the file has no header; the name itself if absent,
    and without a header the place in the order of declaration. In JSON lines `user.id` is the field
    `id` of the object `user`, unless a field is named so. A column that the files do not have may
    be one of their folders: `day` in `day=2026-11-01/part.parquet`."""


def _named_type(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


Column = Annotated[
    ColumnConfig, BeforeValidator(_named_type, json_schema_input_type=ColumnConfig | ColumnType)
]
"""A column, or its type alone."""


class TableConfig(Config):
    """Files of one format with the same columns."""

    path: str | tuple[str, ...]
    """A file, a pattern (`clicks/*.parquet`, `clicks/**/*.parquet`), a folder with all in it, or
    several of them, on disk or in an object store (`s3://bucket/clicks/`); read in this order, the
    files of a pattern or folder by name."""
    format: Format | None = None
    """By the ending of each file if absent; text and JSON lines may be compressed (`.csv.gz`). A
    folder with a Delta log is a Delta table, one with Iceberg's metadata an Iceberg table."""
    version: NonNegativeInt | None = None
    """Of a Delta table, or the id of an Iceberg table's snapshot; the latest if absent."""
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Between fields; a comma for csv and a tab for tsv if absent."""
    header: bool = True
    """The first line of a text file names the columns."""
    quoting: bool | None = None
    """Text fields may stand in double quotes; so for csv and not for tsv if absent."""
    multiline: bool = False
    """Quoted values may hold line breaks; without it, one that does is an error, since a quote
    that is never closed looks the same and would swallow rows."""
    null_values: tuple[str, ...] = ()
    """Texts that mean a missing value, besides the empty one."""
    columns: Annotated[dict[str, Column], Field(min_length=1)]
    """Raw columns by the name that features use; the type alone will do (`user: string`)."""

    @model_validator(mode="after")
    def _places_fit(self) -> "TableConfig":
        places = [column.column for column in self.columns.values()]
        for name, place in zip(self.columns, places, strict=True):
            if isinstance(place, int) and (self.header or place < 0):
                raise ValueError(
                    f"column {name!r}: a place ({place}) is for files without a header and counts"
                    " from 0; give the name of the column in the file"
                )
            if isinstance(place, str) and not self.header:
                raise ValueError(
                    f"column {name!r}: the files have no header that could name {place!r}; give"
                    " the 0-based place, or declare the columns in the order of the file"
                )
        if not self.header and None in places and places.count(None) != len(places):
            raise ValueError(
                "without a header, give the place (`column`) of every column or of none"
            )
        return self


@dataclass(frozen=True)
class SourceFile:
    """One file of a table."""

    file: AnyFile
    format: Format
    partition: Mapping[str, str | None]
    """What its folders, or its table's log, say of all of its rows, as text by name."""
    optional: frozenset[str] = frozenset()
    """Columns that a file may lack, because its table has them: they are missing there."""
    field_ids: Mapping[str, int] = field(default_factory=dict)
    """By column, the id that tells it in files that have ids, whatever its name is there."""


_listed: ContextVar[dict[str, list[SourceFile]] | None] = ContextVar("listed", default=None)


@contextmanager
def listed_once() -> Iterator[None]:
    """Within it a table's files are looked up once.

    So a build reads the files that it identified, whatever is added to a folder or to a Delta table
    meanwhile.
    """
    token = _listed.set({})
    try:
        yield
    finally:
        _listed.reset(token)


def table_files(table: TableConfig) -> list[SourceFile]:
    """The files of a table, in the order in which they are read.

    Raises:
        FileNotFoundError: Nothing is there under one of the names.
        ValueError: A file is empty, its ending says nothing, or `version` is given for what has no
            versions.
    """
    listed = _listed.get()
    key = repr((table.path, table.format, table.version))
    if listed is None:
        return _table_files(table)
    if key not in listed:
        listed[key] = _table_files(table)
    return listed[key]


def _table_files(table: TableConfig) -> list[SourceFile]:
    found: list[SourceFile] = []
    for entry in (table.path,) if isinstance(table.path, str) else table.path:
        if table.format == "delta" or (table.format is None and is_delta(entry)):
            found += _of_delta(delta_files(entry, table.version))
        elif table.format == "iceberg" or (table.format is None and is_iceberg(entry)):
            found += _of_iceberg(iceberg_files(entry, table.version))
        elif table.format is not None and (is_delta(entry) or is_iceberg(entry)):
            raise ValueError(
                f"{entry} is a table with a log, whose folder also holds files that are no longer"
                f" its rows; leave out format: {table.format}"
            )
        elif table.version is not None:
            raise ValueError(f"version {table.version}: {entry} has no versions")
        else:
            found += [
                SourceFile(file, format_of(table, file), partition_of(file))
                for file in matches(entry)
            ]
    for source in found:
        if size_of(source.file) == 0:
            raise ValueError(f"{source.file} is empty; expected rows")
    return found


def source_files(table: TableConfig) -> list[AnyFile]:
    """As `table_files`: the files alone."""
    return [source.file for source in table_files(table)]


def format_of(table: TableConfig, file: AnyFile) -> Format:
    """The declared format, or the one the file's ending says.

    Raises:
        ValueError: The ending says nothing, or says that what cannot be is compressed.
    """
    path = PurePosixPath(file.name)
    compressed = path.suffix in COMPRESSIONS
    found = table.format or _ENDINGS.get((path.with_suffix("") if compressed else path).suffix)
    if found is None:
        raise ValueError(
            f"{file}: the ending does not tell the format; set `format` to csv, tsv, jsonl, parquet"
            " or arrow"
        )
    if compressed and found in _NOT_COMPRESSED:
        raise ValueError(f"{file}: {found} is compressed within; unpack the file")
    return found


def _of_delta(found: DeltaFiles) -> list[SourceFile]:
    return [
        SourceFile(file, "parquet", partition, found.columns)
        for file, partition in found.files.items()
    ]


def _of_iceberg(found: IcebergFiles) -> list[SourceFile]:
    return [
        SourceFile(file, "parquet", partition, frozenset(found.columns), found.columns)
        for file, partition in found.files.items()
    ]
