"""Columns that are computed from raw ones: `features.derived`.

They are computed where rows are encoded, so a request carries what they are computed from and never
the results. Before, the columns they read are brought to the types of the training data: whether a
file keeps an integer in 8 bits or in 64 changes no result.
"""

from collections.abc import Mapping

import polars as pl

from feature_store import casting, columns, sql
from feature_store.columns import ColumnType, SchemaMismatch
from feature_store.features import FeatureSet
from feature_store.kinds import kind_of

_SECONDS_A_DAY = 86_400


def schema_with_derived(
    schema: Mapping[str, pl.DataType],
    feature_set: FeatureSet,
    types: Mapping[str, ColumnType] | None = None,
) -> dict[str, pl.DataType]:
    """The types of raw columns and of those derived from them; as `with_derived` gives them.

    Raises:
        SchemaMismatch: An expression cannot be computed from columns of these types.
    """
    known = dict(schema)
    used = _used(feature_set)
    for name in _roots(used, schema):
        known[name] = columns.polars_type(_type(name, schema[name], types))
    return known | {name: _type_of(name, text, known) for name, text in used.items()}


def with_derived(
    raw: pl.LazyFrame, feature_set: FeatureSet, types: Mapping[str, ColumnType] | None = None
) -> pl.LazyFrame:
    """The rows with the derived columns that features read, in place of any of those names.

    Args:
        raw: Has the columns that the expressions read, in any type that carries their values.
        feature_set: Declares the expressions.
        types: Of the raw columns in the training data, by name; None: as they are.

    Raises:
        SchemaMismatch: A column is missing, or an expression cannot be computed from such columns.
    """
    used = _used(feature_set)
    if not used:
        return raw
    schema = raw.collect_schema()
    known = schema_with_derived(schema, feature_set, types)
    typed = []
    for name in _roots(used, schema):
        if schema[name] != known[name]:
            form = casting.TextForm(type=_type(name, schema[name], types))
            typed.append(casting.from_column(name, schema[name], form)[0].alias(name))
    computed = [
        _plausible(sql.parse(text).expression, known[name]).alias(name)
        for name, text in used.items()
    ]
    return raw.with_columns(typed).with_columns(computed)


def _used(feature_set: FeatureSet) -> dict[str, str]:
    """The derived columns that features read, and their expressions."""
    if not feature_set.derived:
        return {}
    read = {
        name
        for feature in feature_set.inputs
        for name in kind_of(feature).reads(feature, feature_set)
    }
    return {name: text for name, text in feature_set.derived.items() if name in read}


def _roots(used: Mapping[str, str], schema: Mapping[str, pl.DataType]) -> list[str]:
    """The raw columns behind derived ones; SchemaMismatch where one is missing."""
    needed: dict[str, str] = {}
    for name, text in used.items():
        for column in sql.parse(text).columns:
            needed.setdefault(column, f"features.derived.{name}")
    columns.require_columns(schema, needed)
    return list(needed)


def _type(name: str, dtype: pl.DataType, types: Mapping[str, ColumnType] | None) -> ColumnType:
    if types is not None and name in types:
        return types[name]
    return columns.column_type(name, dtype)


def _type_of(name: str, text: str, schema: Mapping[str, pl.DataType]) -> pl.DataType:
    try:
        found = sql.parse(text).type_over(schema)
    except sql.InvalidExpression as error:
        raise SchemaMismatch(f"features.derived.{name}: {error}") from error
    try:
        columns.column_type(name, found)
    except SchemaMismatch as error:
        raise SchemaMismatch(
            f"features.derived.{name}: {text!r} gives {found}, which no feature can read; expected"
            " text, a number, a bool, a date, a datetime or a list of one of them (the kind elapsed"
            " reads the seconds between two times)"
        ) from error
    return found


def _plausible(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Null in place of a date or time outside the years 1 to 9999: its text is not ISO 8601."""
    first, end = columns.FIRST_SECOND, columns.END_SECOND
    number = value.cast(pl.Int64)
    if isinstance(dtype, pl.Date):
        within = (number >= first // _SECONDS_A_DAY) & (number < end // _SECONDS_A_DAY)
    elif isinstance(dtype, pl.Datetime) and dtype.time_unit == "us":
        within = (number >= first * 1_000_000) & (number < end * 1_000_000)
    else:
        return value
    return pl.when(within).then(value)
