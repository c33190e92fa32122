"""The time between two times of a row."""

import polars as pl

from feature_store import columns, expressions
from feature_store.columns import SchemaMismatch
from feature_store.features import Elapsed, FeatureSet, TimeUnit
from feature_store.kinds.kind import Kind, Learned, Schema

_MICROSECONDS = {"s": 1_000_000, "ms": 1000, "us": 1}
_NANOSECONDS_A_MICROSECOND = 1000
_MICROSECONDS_A_DAY = 86_400_000_000
_FIRST, _END = (second * 1_000_000 for second in (columns.FIRST_SECOND, columns.END_SECOND))
"""Of plausible times, in microseconds."""


class ElapsedKind(Kind[Elapsed]):
    """`Elapsed`: see there."""

    def reads(self, feature: Elapsed, features: FeatureSet) -> tuple[str, ...]:
        """Both times."""
        return feature.source, _until(feature, features)

    def moments(self, feature: Elapsed, features: FeatureSet, schema: Schema) -> pl.Expr | None:
        """Of standardised ones, after log1p."""
        return _elapsed(feature, features, schema) if feature.standardize else None

    def encode(
        self, feature: Elapsed, features: FeatureSet, schema: Schema, learned: Learned
    ) -> list[pl.Expr]:
        """The seconds, and the indicator where declared."""
        value = _elapsed(feature, features, schema)
        return expressions.finite(feature, value, learned.moments.get(feature.name))

    def dense(self, feature: Elapsed) -> tuple[str, ...]:
        """The number, and its indicator where declared."""
        return (feature.name, *expressions.indicator_names(feature))


def _until(feature: Elapsed, features: FeatureSet) -> str:
    name = feature.until or features.timestamp
    assert name is not None, "FeatureSet demands a timestamp where `until` is absent"
    return name


def _elapsed(feature: Elapsed, features: FeatureSet, schema: Schema) -> pl.Expr:
    """Seconds as float64, after log1p; null where there are none."""
    until = _until(feature, features)
    end = _microseconds(feature, until, schema[until], feature.until_unit)
    passed = end - _microseconds(feature, feature.source, schema[feature.source], feature.unit)
    seconds = passed * 1e-6
    if feature.future == "missing":
        seconds = pl.when(passed >= 0).then(seconds)
    return expressions.signed_log1p(seconds) if feature.log1p else seconds


def _microseconds(feature: Elapsed, name: str, dtype: pl.DataType, unit: TimeUnit) -> pl.Expr:
    """A raw time in whole microseconds since 1970, UTC; null where it is no plausible time.

    Raises:
        SchemaMismatch: The raw column holds neither times nor numbers.
    """
    value = pl.col(name)
    if isinstance(dtype, pl.Date):
        days = value.cast(pl.Int64)
        in_range = days.is_between(_FIRST // _MICROSECONDS_A_DAY, _END // _MICROSECONDS_A_DAY - 1)
        return pl.when(in_range).then(days) * _MICROSECONDS_A_DAY
    if isinstance(dtype, pl.Datetime):
        value, unit = columns.utc(value, dtype).cast(pl.Int64), dtype.time_unit
    elif isinstance(dtype, pl.Null):
        value = value.cast(pl.Int64)
    elif dtype.is_float() or dtype.is_decimal():
        value = value.cast(pl.Float64)
    elif not dtype.is_integer():
        raise SchemaMismatch(
            f"elapsed {feature.name!r} needs a datetime, a date or a number of {unit} since 1970,"
            f" but {name!r} has the type {dtype}"
        )
    fractional = dtype.is_float() or dtype.is_decimal()
    if unit == "ns":
        return _whole(value * 1e-3) if fractional else value // _NANOSECONDS_A_MICROSECOND
    factor = _MICROSECONDS[unit]
    # Before the product, which would run over.
    possible = (value >= _FIRST // factor) & (value < _END // factor)
    return _whole(pl.when(possible).then(value) * factor)


def _whole(number: pl.Expr) -> pl.Expr:
    return pl.when((number >= _FIRST) & (number < _END)).then(
        number.floor().cast(pl.Int64, strict=False)
    )
