"""Parquet files as one lazy table in the declared types; nothing is copied."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.casting import from_column
from feature_store.columns import SchemaMismatch
from feature_store.features import ROW_COLUMN, nearest
from pipelines.delimited import UnreadableFile
from pipelines.tables import TableConfig

UNREADABLE = "__unreadable"
"""Holds the name of the first column of a row whose value cannot be read as declared, or null."""


@dataclass(frozen=True)
class Typed:
    """Parquet files, not yet read."""

    frame: pl.LazyFrame
    """`__row`, the columns, and `UNREADABLE` where values may fail to be read."""
    num_rows: list[int]
    """By file."""


def scan(files: Sequence[Path], table: TableConfig, names: Sequence[str]) -> Typed:
    """The named columns of Parquet files, rows in the order of the files.

    Raises:
        SchemaMismatch: A column is missing, named twice, or cannot be read as its declared type.
        UnreadableFile: A file is damaged or no Parquet.
    """
    metadata = [_metadata(file) for file in files]
    schemas = [_checked(file, m.schema.to_arrow_schema(), table) for file, m in metadata]
    frames = []
    for _, group in groupby(range(len(files)), key=lambda i: str(schemas[i])):
        same = [files[i] for i in group]
        frames.append(
            _cast(pl.scan_parquet(same, glob=False, hive_partitioning=False), table, names)
        )
    checked = any(UNREADABLE in frame.collect_schema() for frame in frames)
    if checked:
        frames = [_with_check(frame) for frame in frames]
    frame = frames[0] if len(frames) == 1 else pl.concat(frames)
    numbered = frame.with_row_index(ROW_COLUMN).with_columns(pl.col(ROW_COLUMN).cast(pl.Int64))
    return Typed(numbered, [m.num_rows for _, m in metadata])


def _cast(frame: pl.LazyFrame, table: TableConfig, names: Sequence[str]) -> pl.LazyFrame:
    schema = frame.collect_schema()
    columns, failed = [], None
    for name in reversed(names):
        source = _name_in_file(table, name)
        value, may_fail = from_column(source, schema[source], table.columns[name])
        columns.append(value.alias(name))
        if may_fail:
            lost = value.is_null() & _present(source, schema[source])
            failed = (
                pl.when(lost)
                .then(pl.lit(name))
                .otherwise(pl.lit(None, pl.String) if failed is None else failed)
            )
    columns.reverse()
    if failed is not None:
        columns.append(failed.alias(UNREADABLE))
    return frame.select(columns)


def _present(name: str, dtype: pl.DataType) -> pl.Expr:
    """Whether there is a value to read: the empty text and NaN are missing values."""
    value = pl.col(name)
    if isinstance(dtype, pl.String):
        return (value != "").fill_null(False)
    if dtype.is_float():
        return value.is_not_nan().fill_null(False)
    return value.is_not_null()


def _with_check(frame: pl.LazyFrame) -> pl.LazyFrame:
    if UNREADABLE in frame.collect_schema():
        return frame
    return frame.with_columns(pl.lit(None, pl.String).alias(UNREADABLE))


def _metadata(file: Path) -> tuple[Path, pq.FileMetaData]:
    try:
        return file, pq.read_metadata(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UnreadableFile(f"{file} cannot be read as Parquet: {error}") from error


def _checked(file: Path, schema: pa.Schema, table: TableConfig) -> pa.Schema:
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise SchemaMismatch(f"{file} has the column {twice[0]!r} twice; rename one")
    for name in table.columns:
        wanted = _name_in_file(table, name)
        if wanted not in schema.names:
            raise SchemaMismatch(
                f"{file} has no column {wanted!r}; {nearest(wanted, schema.names)}"
            )
    return schema


def _name_in_file(table: TableConfig, name: str) -> str:
    column = table.columns[name].column
    return name if column is None else str(column)
