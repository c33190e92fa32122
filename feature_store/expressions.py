"""The Polars expressions that turn raw columns into encoded ones, one function per feature kind.

All of them are pure and work row by row: a row alone gives what it gives in any batch, and Polars
runs them streaming, on one request as on a billion rows.
"""

import polars as pl

from feature_store import columns
from feature_store.columns import SchemaMismatch
from feature_store.features import (
    FIRST_ID,
    MISSING_ID,
    UNSEEN_ID,
    Bag,
    Categorical,
    DatePart,
    Elapsed,
    Numeric,
    Part,
    Sequence,
    Vector,
    source_of,
)
from feature_store.vocabulary import hash_ids, vocabulary_ids

_FIRST_YEAR, _LAST_YEAR = 1970, 2169

DATE_PARTS: dict[Part, tuple[int, int]] = {
    "minute": (0, 59),
    "hour": (0, 23),
    "weekday": (1, 7),
    "day": (1, 31),
    "month": (1, 12),
    "year": (_FIRST_YEAR, _LAST_YEAR),
}
"""Smallest and largest value of each part: its id is value - smallest + FIRST_ID."""

_UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def transformed(feature: Numeric, dtype: pl.DataType) -> pl.Expr:
    """The raw number as float64 after log1p; null, NaN and infinities stay what they are.

    Raises:
        SchemaMismatch: The raw column holds no numbers.
    """
    if not (dtype.is_numeric() or isinstance(dtype, pl.Boolean | pl.Null)):
        raise SchemaMismatch(
            f"numeric feature {feature.name!r} needs a column of numbers, but"
            f" {source_of(feature)!r} has the type {dtype}; declare the column as a number"
        )
    value = pl.col(source_of(feature)).cast(pl.Float64)
    return signed_log1p(value) if feature.log1p else value


def signed_log1p(value: pl.Expr) -> pl.Expr:
    """sign(x) * log(1 + |x|)."""
    return value.sign() * value.abs().log1p()


def number(
    feature: Numeric, dtype: pl.DataType, moments: tuple[float, float] | None
) -> list[pl.Expr]:
    """The float32 column of a numeric feature, and its missing indicator where declared.

    Args:
        feature: A numeric feature without buckets.
        dtype: Type of its raw column.
        moments: Mean and standard deviation after log1p; None without standardisation.
    """
    return finite(feature, transformed(feature, dtype), moments)


def finite(
    feature: Numeric | Elapsed, value: pl.Expr, moments: tuple[float, float] | None
) -> list[pl.Expr]:
    """A float64 as a finite float32, and its missing indicator where declared.

    Args:
        feature: Names the columns, and what stands for a missing number.
        value: The number, after log1p.
        moments: Of its standardisation; None without.
    """
    if moments is not None:
        mean, standard_deviation = moments
        # Polars divides many rows by a number as it multiplies by its reciprocal, but not one row.
        value = (value - mean) * (1.0 / standard_deviation)
    value = value.cast(pl.Float32)
    # After the cast, so that a float64 too large for a float32 is caught as the infinity it becomes
    present = value.is_finite()
    default = pl.lit(feature.default, pl.Float32)
    number = pl.when(present).then(value).otherwise(default).alias(feature.name)
    return [number, *indicators(feature, present)]


def indicator_names(feature: Numeric | Elapsed | Vector) -> tuple[str, ...]:
    """Name of the column that says where a feature was missing; none where not declared."""
    return (f"{feature.name}__missing",) if feature.indicator else ()


def indicators(feature: Numeric | Elapsed | Vector, present: pl.Expr) -> list[pl.Expr]:
    """1.0 where a feature was missing, else 0.0; none where not declared."""
    missing = pl.when(present).then(pl.lit(0.0, pl.Float32)).otherwise(pl.lit(1.0, pl.Float32))
    return [missing.alias(name) for name in indicator_names(feature)]


def bucket(feature: Numeric, dtype: pl.DataType, boundaries: list[float]) -> pl.Expr:
    """The id of a number's bucket: the count of boundaries at or below it, after FIRST_ID."""
    value = transformed(feature, dtype)
    # Not search_sorted: it leaves the streaming engine and takes ten times as long on one row.
    place = value.bin_intervals(boundaries, labels=False)
    ids = place.cast(pl.Int64) + FIRST_ID
    missing = pl.lit(MISSING_ID, pl.Int64)
    return pl.when(value.is_finite()).then(ids).otherwise(missing).alias(feature.name)


def single_id(
    feature: Categorical, dtype: pl.DataType, vocabulary_index: pl.Enum | None
) -> pl.Expr:
    """The int64 id of a categorical value.

    Args:
        feature: A categorical feature.
        dtype: Type of its raw column.
        vocabulary_index: From `vocabulary.index`; None for hashed features.
    """
    if columns.is_list(dtype):
        raise SchemaMismatch(
            f"categorical feature {feature.name!r} needs one value a row, but"
            f" {source_of(feature)!r} has the type {dtype}; declare a bag or a sequence"
        )
    columns.column_type(source_of(feature), dtype)
    return _ids(pl.col(source_of(feature)), dtype, vocabulary_index).alias(feature.name)


def id_list(
    feature: Bag | Sequence, dtype: pl.DataType, vocabulary_index: pl.Enum | None
) -> pl.Expr:
    """The list<int64> of a bag or sequence: nulls and empty texts dropped, then cut to length.

    A bag keeps its first `max_length` ids, a sequence its last (most recent) ones.
    """
    columns.column_type(source_of(feature), dtype)
    lists = as_lists(feature, dtype)
    element = columns.element_type(dtype)
    ids = lists.list.eval(_ids(pl.element(), element, vocabulary_index))
    ids = ids.list.filter(pl.element() != MISSING_ID)
    if isinstance(feature, Sequence):
        ids = ids.list.tail(feature.max_length)
    elif feature.max_length is not None:
        ids = ids.list.head(feature.max_length)
    return ids.fill_null(pl.lit([], dtype=pl.List(pl.Int64))).alias(feature.name)


def as_lists(feature: Bag | Sequence, dtype: pl.DataType) -> pl.Expr:
    """The raw column as lists: a list column as it is, text split at the separator.

    Raises:
        SchemaMismatch: The column holds neither.
    """
    column = pl.col(source_of(feature))
    if isinstance(dtype, pl.Array):
        return column.arr.to_list()
    if isinstance(dtype, pl.List):
        return column
    if columns.column_type(source_of(feature), dtype) != "string":
        raise SchemaMismatch(
            f"{feature.kind} feature {feature.name!r} needs lists or separated text, but"
            f" {source_of(feature)!r} has the type {dtype}"
        )
    return column.cast(pl.String).str.split(feature.separator)


def date_part(feature: DatePart, dtype: pl.DataType) -> pl.Expr:
    """The id of a part of a time in UTC.

    0 where the time is missing or no plausible time (years outside 1 to 9999), 1 for a year outside
    1970 to 2169, else the part's value from its smallest on.

    Raises:
        SchemaMismatch: The raw column holds neither times nor numbers.
    """
    column = pl.col(feature.source)
    if isinstance(dtype, pl.Datetime):
        time = columns.utc(column, dtype)
    elif isinstance(dtype, pl.Date):
        time = column.cast(pl.Datetime("ms"))
    elif dtype.is_numeric() or isinstance(dtype, pl.Null):
        time = _from_number(column, dtype, _UNITS_PER_SECOND[feature.unit])
    else:
        raise SchemaMismatch(
            f"date part {feature.name!r} needs a datetime, a date or a number of"
            f" {feature.unit} since 1970, but {feature.source!r} has the type {dtype}"
        )
    parts = {
        "minute": time.dt.minute,
        "hour": time.dt.hour,
        "weekday": time.dt.weekday,
        "day": time.dt.day,
        "month": time.dt.month,
        "year": time.dt.year,
    }
    smallest, largest = DATE_PARTS[feature.part]
    value = parts[feature.part]().cast(pl.Int64)
    ids = pl.when(value.is_between(smallest, largest)).then(value - smallest + FIRST_ID)
    missing = pl.when(value.is_null()).then(pl.lit(MISSING_ID, pl.Int64))
    return ids.otherwise(missing.otherwise(pl.lit(UNSEEN_ID, pl.Int64))).alias(feature.name)


def _ids(value: pl.Expr, dtype: pl.DataType, vocabulary_index: pl.Enum | None) -> pl.Expr:
    text = columns.canonical_text(value, dtype)
    return hash_ids(text) if vocabulary_index is None else vocabulary_ids(text, vocabulary_index)


def _from_number(column: pl.Expr, dtype: pl.DataType, units_per_second: int) -> pl.Expr:
    """A number of units since 1970 as a datetime; null where no plausible time."""
    number = column.cast(pl.Float64) if dtype.is_decimal() else column
    first = max(columns.FIRST_SECOND * units_per_second, -(2**63))
    end = min(columns.END_SECOND * units_per_second, 2**63 - 1)
    plausible = (number >= first) & (number < end)
    # Whole seconds are enough for every part, and a floor keeps times before 1970 right.
    whole = number.floor() if dtype.is_float() or dtype.is_decimal() else number
    seconds = pl.when(plausible).then(whole.cast(pl.Int64, strict=False) // units_per_second)
    return (seconds * 1000).cast(pl.Datetime("ms"))
