"""Raw columns: their types in the users' words, and the one text form of a categorical value.

The same value may come as text from a CSV file, as an integer from Parquet, as a float because the
column had nulls, or as JSON in a request. `canonical_text` writes all of them alike, so they get
the same id: `"3"`, `3` and `3.0` are one value. Text is taken as it stands: `"3.0"` and `" 3"` are
others.
"""

from collections.abc import Mapping
from typing import Literal

import polars as pl

from feature_store.config import Config
from feature_store.features import nearest

ColumnType = Literal[
    "string", "int", "float", "bool", "date", "datetime",
    "list<string>", "list<int>", "list<float>", "list<bool>", "list<date>", "list<datetime>",
]  # fmt: skip

_POLARS_TYPES: dict[str, pl.DataType] = {
    "string": pl.String(),
    "int": pl.Int64(),
    "float": pl.Float64(),
    "bool": pl.Boolean(),
    "date": pl.Date(),
    "datetime": pl.Datetime("us"),
}

# 0001-01-01 and 10000-01-01 in seconds since 1970: outside, a number is no plausible time.
FIRST_SECOND, END_SECOND = -62_135_596_800, 253_402_300_800

# Above this a float no longer tells neighbouring integers apart, and Int64 ends soon after.
_LARGEST_INTEGRAL_FLOAT = 2.0**63


class SchemaMismatch(ValueError):
    """A raw table lacks a column that is needed, or has it in a type that cannot be encoded."""


class RawColumn(Config):
    """One raw column that scoring needs."""

    name: str
    type: ColumnType
    nullable: bool
    """Nulls were seen in the training split."""

    @property
    def dtype(self) -> pl.DataType:
        """The Polars type in which a request or a text file should be read."""
        return polars_type(self.type)


def polars_type(type_name: ColumnType) -> pl.DataType:
    """The Polars type of a column type; ints are 64 bits wide, times are microseconds."""
    if type_name.startswith("list<"):
        return pl.List(_POLARS_TYPES[type_name.removeprefix("list<").removesuffix(">")])
    return _POLARS_TYPES[type_name]


def column_type(name: str, dtype: pl.DataType) -> ColumnType:
    """The type of a raw column in the users' words.

    A column without any value (Polars' Null) counts as text.

    Raises:
        SchemaMismatch: Polars' type has no meaning for a feature (struct, binary, duration ...).
    """
    if isinstance(dtype, pl.List | pl.Array):
        inner = column_type(name, _inner(dtype))
        if not inner.startswith("list<"):
            return f"list<{inner}>"  # type: ignore[return-value]
    elif isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Null):
        return "string"
    elif dtype.is_integer():
        return "int"
    elif dtype.is_float() or dtype.is_decimal():
        return "float"
    elif isinstance(dtype, pl.Boolean):
        return "bool"
    elif isinstance(dtype, pl.Date):
        return "date"
    elif isinstance(dtype, pl.Datetime):
        return "datetime"
    raise SchemaMismatch(
        f"column {name!r} has the type {dtype}, which no feature can read; expected text, a number,"
        " a bool, a date, a datetime or a list of one of them"
    )


def is_list(dtype: pl.DataType) -> bool:
    """Whether a raw column holds lists."""
    return isinstance(dtype, pl.List | pl.Array)


def element_type(dtype: pl.DataType) -> pl.DataType:
    """The type of a list column's elements; the type itself of any other column."""
    return _inner(dtype) if isinstance(dtype, pl.List | pl.Array) else dtype


def require_columns(schema: Mapping[str, pl.DataType], needed: Mapping[str, str]) -> None:
    """Check that columns are there.

    Args:
        schema: Names and types of the raw table.
        needed: Column name to what needs it, for the message.

    Raises:
        SchemaMismatch: Names every missing column, what needs it and the nearest column there is.
    """
    missing = [
        f"{needed_by} needs the column {name!r}, which is not there; {nearest(name, list(schema))}"
        for name, needed_by in needed.items()
        if name not in schema
    ]
    if missing:
        raise SchemaMismatch("; ".join(missing))


def canonical_text(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """The canonical text of a categorical value; null where there is none (null, NaN, infinity).

    Text stays as it is; integers are written in decimal; floats with an integral value as that
    integer, others in the shortest form that reads back the same; bools as `true` and `false`;
    dates and times in ISO form, times in UTC with microseconds.
    """
    if isinstance(dtype, pl.String):
        return value
    if dtype.is_decimal() or (dtype.is_float() and dtype != pl.Float64()):
        # As a build reads it: the shortest text of a float32 is that of another float64.
        return canonical_text(value.cast(pl.Float64), pl.Float64())
    if dtype.is_float():
        integral = (value == value.floor()) & (value.abs() < _LARGEST_INTEGRAL_FLOAT)
        finite = pl.when(value.is_finite()).then(value)
        return (
            pl.when(integral)
            .then(value.cast(pl.Int64, strict=False).cast(pl.String))
            .otherwise(finite.cast(pl.String))
        )
    if isinstance(dtype, pl.Datetime):
        return utc(value, dtype).cast(pl.Datetime("us")).cast(pl.String)
    return value.cast(pl.String)


def utc(value: pl.Expr, dtype: pl.Datetime) -> pl.Expr:
    """A datetime without time zone that shows the time in UTC; naive values are UTC already."""
    if dtype.time_zone is None:
        return value
    return value.dt.convert_time_zone("UTC").dt.replace_time_zone(None)


def time_number(
    name: str, dtype: pl.DataType, what: str = "features.timestamp"
) -> tuple[pl.Expr, str]:
    """A raw timestamp as a number that keeps its order, and its unit.

    The unit is ms, us or ns since 1970 (UTC) for a datetime or a date, "" for a number, which is
    taken as it is, NaN and infinity as null. `what` names the time in errors.

    Raises:
        SchemaMismatch: The column holds neither times nor numbers.
    """
    value = pl.col(name)
    if isinstance(dtype, pl.Datetime):
        return utc(value, dtype).cast(pl.Int64), dtype.time_unit
    if isinstance(dtype, pl.Date):
        return value.cast(pl.Datetime("us")).cast(pl.Int64), "us"
    if dtype.is_decimal():
        return value.cast(pl.Float64), ""
    if dtype.is_float():
        return pl.when(value.is_finite()).then(value), ""
    if dtype.is_integer():
        return value, ""
    raise SchemaMismatch(
        f"{what}: {name!r} has the type {dtype}; expected a datetime, a date or a number"
    )


def _inner(dtype: pl.List | pl.Array) -> pl.DataType:
    inner = dtype.inner
    return inner() if isinstance(inner, type) else inner
