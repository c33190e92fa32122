"""What a bundle takes and gives: raw columns with their types in, one score per task out.

A raw table from a file or a data frame is brought to the declared types here, losslessly or not at
all; rows of a request are checked value by value in `recsys.export.requests`.
"""

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import JsonValue

from feature_store.columns import (
    ColumnType,
    RawColumn,
    column_type,
    element_type,
    is_list,
    polars_type,
    require_columns,
)
from feature_store.config import Config
from feature_store.encoding import FittedFeatures
from feature_store.features import Bag, FeatureSet, Sequence, source_of
from recsys.export.tensors import input_names

_TIME_FORMS = (
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f%:z",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%dT%H:%M%:z",
)


class RowMismatch(ValueError):
    """A raw value that is not of its column's declared type."""


class Column(Config):
    """One raw column that every row must have."""

    name: str
    type: ColumnType
    nullable: bool
    """Nulls were seen in training; a request may have them only then."""
    separator: str | None = None
    """Between the values of a list, where a file carries the list as text."""
    example: JsonValue = None
    """A value of a golden row."""

    @property
    def dtype(self) -> pl.DataType:
        """The Polars type the column is encoded from."""
        return polars_type(self.type)

    @property
    def is_list(self) -> bool:
        """Whether a value is a list."""
        return self.type.startswith("list<")


class Signature(Config):
    """A bundle's inputs and outputs; `signature.json`, and the answer to `GET /signature`."""

    columns: tuple[Column, ...]
    tasks: tuple[str, ...]
    """One probability per task and row, in this order."""
    program_inputs: tuple[str, ...]
    """The tensors of the program inside, in their order; see `recsys.export.tensors`."""

    @classmethod
    def of(cls, fitted: FittedFeatures, example: pl.DataFrame) -> "Signature":
        """The signature of fitted features.

        Args:
            fitted: Tells the raw columns and their types.
            example: Raw rows; the first gives every column's example.
        """
        separators = _separators(fitted.feature_set)
        return cls(
            columns=tuple(
                Column(
                    name=column.name,
                    type=column.type,
                    nullable=column.nullable,
                    separator=separators.get(column.name),
                    example=_example(example, column),
                )
                for column in fitted.columns
            ),
            tasks=fitted.layout.tasks,
            program_inputs=input_names(fitted.layout),
        )

    @property
    def names(self) -> list[str]:
        """Names of the raw columns, in their order."""
        return [column.name for column in self.columns]

    def conform(self, raw: pl.DataFrame, first_row: int = 1) -> pl.DataFrame:
        """The declared columns of a raw table, ready to be encoded; other columns are dropped.

        Text is read as the declared type (a list's text is split at its separator), whole floats
        pass for ints, ints for floats and for text. Nulls stay: the fitted features say what a
        missing value means.

        Args:
            raw: Rows as they come from a file or a query.
            first_row: Number of the first row in error messages.

        Raises:
            SchemaMismatch: A column is missing; names the nearest one there is.
            RowMismatch: A value does not fit its column's type; names column, row and value.
        """
        require_columns(raw.schema, dict.fromkeys(self.names, "the bundle"))
        return pl.DataFrame(
            [_conformed(raw[column.name], column, first_row) for column in self.columns]
        )


def _separators(feature_set: FeatureSet) -> dict[str, str]:
    """Separators by raw column; none for a column that two features split differently."""
    found: dict[str, set[str]] = {}
    for feature in feature_set.inputs:
        if isinstance(feature, Bag | Sequence):
            found.setdefault(source_of(feature), set()).add(feature.separator)
    return {name: ones.copy().pop() for name, ones in found.items() if len(ones) == 1}


def _example(rows: pl.DataFrame, column: RawColumn) -> JsonValue:
    """The first value there is, as a request would write it."""
    values = rows[column.name].drop_nulls()
    if not len(values):
        return None
    return _json_value(values[0])


def _json_value(value: object) -> JsonValue:
    if isinstance(value, pl.Series):
        return [_json_value(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value).replace(" ", "T")  # dates and times, in ISO form


def _conformed(values: pl.Series, column: Column, first_row: int) -> pl.Series:
    found = column_type(column.name, values.dtype)
    if found == column.type:
        return values
    if values.dtype == pl.Null:
        return values.cast(column.dtype)
    if column.is_list and not is_list(values.dtype):
        values = _split(values, column)
    elif is_list(values.dtype) and not column.is_list:
        raise _wrong(column, first_row, 0, values)
    if not column.is_list:
        converted = _converted(values, column.dtype)
        place = _first_lost(values, converted)
        if place is not None:
            raise _wrong(column, first_row, place, values)
        return converted
    return _with_items_converted(values, column, first_row)


def _split(values: pl.Series, column: Column) -> pl.Series:
    """Lists from separated text; empty text is an empty list, empty items fall away."""
    if column_type(column.name, values.dtype) != "string":
        raise _wrong(column, 1, 0, values)
    if column.separator is None:
        raise RowMismatch(
            f"column {column.name!r} holds text, and the features that read it split text"
            f" differently; give it as {column.type}, from Parquet or JSON lines"
        )
    lists = values.cast(pl.String).str.split(column.separator)
    return lists.list.eval(pl.element().filter(pl.element() != ""))


def _with_items_converted(values: pl.Series, column: Column, first_row: int) -> pl.Series:
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    lists = values.rechunk().to_arrow()
    items = pl.Series(column.name, lists.values)
    converted = _converted(items, element_type(column.dtype))
    place = _first_lost(items, converted)
    if place is not None:
        row = int(np.searchsorted(lists.offsets.to_numpy(), place, side="right")) - 1
        raise _wrong(column, first_row, row, values)
    rebuilt = pa.LargeListArray.from_arrays(lists.offsets, converted.to_arrow())
    series = pl.Series(column.name, rebuilt)
    return series.set(values.is_null(), None) if values.null_count() else series


def _converted(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Values that can be encoded as the declared type; null where one cannot."""
    found = values.dtype
    if column_type(values.name, found) == column_type(values.name, dtype):
        return values
    if isinstance(found, pl.String | pl.Categorical | pl.Enum):
        return _from_text(values.cast(pl.String), dtype)
    if found.is_integer() and isinstance(dtype, pl.String | pl.Float64):
        return values
    if found.is_float() and isinstance(dtype, pl.Int64):
        whole = values.cast(pl.Int64, strict=False)
        return whole.set(whole.cast(pl.Float64) != values.cast(pl.Float64), None)
    if isinstance(found, pl.Date) and isinstance(dtype, pl.Datetime):
        return values.cast(dtype)
    return pl.Series(values.name, [None], dtype=dtype).new_from_index(0, len(values))


def _from_text(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Text read as another type; null where it is none."""
    stripped = values.str.strip_chars()
    if isinstance(dtype, pl.Boolean):
        words = {"true": True, "1": True, "false": False, "0": False}
        lowered = stripped.str.to_lowercase()
        return lowered.replace_strict(words, default=None, return_dtype=pl.Boolean)
    if isinstance(dtype, pl.Datetime):
        return _times(stripped)
    if isinstance(dtype, pl.Date):
        return stripped.str.to_date("%Y-%m-%d", strict=False)
    return stripped.cast(dtype, strict=False)


def _times(values: pl.Series) -> pl.Series:
    """ISO times in UTC; each by its own form, since an inferred one would depend on its batch."""
    values = values.str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T").str.replace("Z$", "+00:00")
    times = pl.Series(values.name, [None], dtype=pl.Datetime("us")).new_from_index(0, len(values))
    for form in _TIME_FORMS:
        if not times.null_count():
            break
        zone = "UTC" if form.endswith("z") else None
        read = values.str.to_datetime(form, time_unit="us", time_zone=zone, strict=False)
        times = times.fill_null(read.dt.replace_time_zone(None))
    return times


def _first_lost(before: pl.Series, after: pl.Series) -> int | None:
    """Place of the first value that a conversion lost; empty text and NaN are missing values."""
    if before is after:
        return None
    lost = after.is_null() & before.is_not_null()
    if isinstance(before.dtype, pl.String):
        lost &= before.str.strip_chars() != ""
    elif before.dtype.is_float():
        lost &= before.is_not_nan()
    return lost.arg_max() if lost.any() else None


def _wrong(column: Column, first_row: int, place: int, values: pl.Series) -> RowMismatch:
    value = _json_value(values[place]) if len(values) else None
    return RowMismatch(
        f"row {first_row + place}, column {column.name!r}: expected {column.type}, found {value!r}"
        f" (the column is read as {column_type(column.name, values.dtype)})"
    )
