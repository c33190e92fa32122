"""Parquet and Arrow files as lazy tables in the declared types; nothing is copied.

Their footers are read first, all of them, so that what does not fit is known before any work.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from feature_store.casting import from_column, from_text
from feature_store.columns import SchemaMismatch, polars_type
from feature_store.features import ROW_COLUMN, nearest
from pipelines.delimited import UnreadableFile
from pipelines.files import AnyFile, open_bytes
from pipelines.tables import SourceFile, TableConfig

UNREADABLE = "__unreadable"
"""Holds the name of the first column of a row whose value cannot be read as declared, or null."""
_FIELD_ID = b"PARQUET:field_id"


@dataclass(frozen=True)
class Typed:
    """A Parquet or Arrow file whose footer was read."""

    source: SourceFile
    schema: Mapping[str, pl.DataType]
    """Of the columns to read, by their names in the file."""
    places: Mapping[str, str]
    """Declared columns that are in the file, with their names there."""
    num_rows: int
    fixed: Mapping[str, pl.Series]
    """Declared columns that are not in the file, with their one value."""
    first_line: int = 1

    @property
    def file(self) -> AnyFile:
        """Where it is."""
        return self.source.file


def typed(source: SourceFile, table: TableConfig, names: Sequence[str]) -> Typed:
    """Read the footer of a file.

    Raises:
        SchemaMismatch: A column is missing, named twice, or cannot be read as its declared type.
        UnreadableFile: The file is damaged, cut, or not of its format.
    """
    try:
        schema, num_rows = _FOOTERS[source.format](open_bytes(source.file))
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UnreadableFile(
            f"{source.file} cannot be read as {_NAMES[source.format]}: {error}"
        ) from error
    places = _places(source, schema, table)
    in_file = dict.fromkeys(places[name] for name in names if name in places)
    wanted = pa.schema([schema.field(place) for place in in_file])
    dtypes = dict(pl.DataFrame(wanted.empty_table()).schema)
    fixed = {}
    for name in names:
        if name not in places:
            fixed[name] = fixed_value(source, table, name)
            continue
        try:
            from_column(places[name], dtypes[places[name]], table.columns[name])
        except SchemaMismatch as error:
            raise SchemaMismatch(f"{source.file}: {error}") from error
    return Typed(source, dtypes, places, num_rows, fixed)


def scan(file: Typed, table: TableConfig, names: Sequence[str]) -> pl.LazyFrame:
    """The rows of a file: `__row`, the columns, and `UNREADABLE` where values may not be readable.

    Args:
        file: Its footer.
        table: The declared columns.
        names: Those to read.
    """
    options = {"glob": False, "hive_partitioning": False, "row_index_name": ROW_COLUMN}
    read = pl.scan_ipc if file.source.format == "arrow" else pl.scan_parquet
    frame = read(str(file.file), **options)  # type: ignore[arg-type]
    columns, failed = [pl.col(ROW_COLUMN).cast(pl.Int64)], None
    for name in reversed(names):
        if name in file.fixed:
            columns.append(pl.lit(file.fixed[name].first(), file.fixed[name].dtype).alias(name))
            continue
        source = file.places[name]
        value, may_fail = from_column(source, file.schema[source], table.columns[name])
        columns.append(value.alias(name))
        if may_fail:
            lost = value.is_null() & _present(source, file.schema[source])
            failed = (
                pl.when(lost)
                .then(pl.lit(name))
                .otherwise(pl.lit(None, pl.String) if failed is None else failed)
            )
    if failed is not None:
        columns.append(failed.alias(UNREADABLE))
    kept = [ROW_COLUMN, *names] if failed is None else [ROW_COLUMN, *names, UNREADABLE]
    return frame.with_columns(columns).select(kept)


def fixed_value(source: SourceFile, table: TableConfig, name: str) -> pl.Series:
    """The one value of a column that a file's folders give, or that its table leaves out in it.

    Raises:
        SchemaMismatch: It cannot be read as declared.
    """
    column = table.columns[name]
    text = source.partition.get(_name_in_file(table, name))
    value = pl.select(from_text(pl.lit(text, pl.String), column).alias(name)).to_series()
    if text is not None and value[0] is None:
        raise SchemaMismatch(
            f"{source.file}: its folder gives {_name_in_file(table, name)}={text!r}, which cannot"
            f" be read as {column.type}"
        )
    return value.cast(polars_type(column.type))


def _present(name: str, dtype: pl.DataType) -> pl.Expr:
    """Whether there is a value to read: the empty text and NaN are missing values."""
    value = pl.col(name)
    if isinstance(dtype, pl.String):
        return (value != "").fill_null(False)
    if dtype.is_float():
        return value.is_not_nan().fill_null(False)
    return value.is_not_null()


def _parquet_footer(file: Any) -> tuple[pa.Schema, int]:
    metadata = pq.read_metadata(file)
    return metadata.schema.to_arrow_schema(), metadata.num_rows


def _arrow_footer(file: Any) -> tuple[pa.Schema, int]:
    source = pa.memory_map(file) if isinstance(file, str) else file
    with pa.ipc.open_file(source) as reader:
        return reader.schema, reader.count_rows()


_FOOTERS: dict[str, Callable[[Any], tuple[pa.Schema, int]]] = {
    "parquet": _parquet_footer,
    "arrow": _arrow_footer,
}
_NAMES = {"parquet": "Parquet", "arrow": "an Arrow file (with a footer, not a stream)"}


def _places(source: SourceFile, schema: pa.Schema, table: TableConfig) -> dict[str, str]:
    """The declared columns that are in a file, with their names there."""
    found = schema.names
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise SchemaMismatch(f"{source.file} has the column {twice[0]!r} twice; rename one")
    by_id = {
        int(field.metadata[_FIELD_ID]): field.name
        for field in schema
        if source.field_ids and field.metadata and _FIELD_ID in field.metadata
    }
    places: dict[str, str] = {}
    for name in table.columns:
        wanted = _name_in_file(table, name)
        place = by_id.get(source.field_ids.get(wanted, -1)) if by_id else wanted
        if place is not None and place in found:
            places[name] = place
        elif wanted not in {*source.partition, *source.optional}:
            hint = nearest(wanted, found)
            raise SchemaMismatch(f"{source.file} has no column {wanted!r}; {hint}")
    return places


def _name_in_file(table: TableConfig, name: str) -> str:
    column = table.columns[name].column
    return name if column is None else str(column)
