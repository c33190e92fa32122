"""What makes a row unusable: its label, weight or time, and lists that do not fit each other.

Values of features never do: they have defaults.
"""

from collections.abc import Callable, Mapping

import polars as pl

from feature_store.columns import SchemaMismatch, require_columns
from feature_store.encoding import label_value
from feature_store.features import ROW_COLUMN, FeatureSet, Label, source_of
from feature_store.kinds import faults_of
from pipelines.rejection import Rejection, content_of

Place = Callable[[int], tuple[str, int]]
"""From `__row` to file and line."""


def unusable(frame: pl.LazyFrame, feature_set: FeatureSet, place: Place) -> dict[int, Rejection]:
    """By `__row`: the rows that neither train nor test a model, and why.

    Raises:
        SchemaMismatch: A label, weight or timestamp is of a type that cannot be read.
    """
    schema = frame.collect_schema()
    checks = _checks(feature_set, schema)
    bad = [is_bad for _, _, _, is_bad in checks]
    found = frame.select(pl.any_horizontal(bad).sum()).collect(engine="streaming").item()
    if not found:
        return {}
    flags = [is_bad.alias(f"__bad {number}") for number, is_bad in enumerate(bad)]
    rows = frame.with_columns(flags).filter(pl.any_horizontal(pl.col("^__bad .*$")))
    rejections = {}
    for row in rows.collect(engine="streaming").iter_rows(named=True):
        number = next(n for n in range(len(checks)) if row[f"__bad {n}"])
        what, expected, column, _ = checks[number]
        rejections[row[ROW_COLUMN]] = Rejection(
            *place(row[ROW_COLUMN]),
            kind=f"{what}: not {expected}",
            reason=f"{what}: expected {expected}, found {shown(row[column])} in {column!r}",
            content=content_of(row),
        )
    return rejections


def _checks(
    feature_set: FeatureSet, schema: Mapping[str, pl.DataType]
) -> list[tuple[str, str, str, pl.Expr]]:
    """What, what is expected of it, its column, and where it is not so."""
    needed = {source_of(label): f"label {label.name!r}" for label in feature_set.labels}
    for what in ("weight", "timestamp"):
        if (name := getattr(feature_set, what)) is not None:
            needed[name] = f"features.{what}"
    require_columns(schema, needed)
    checks = [_label(label, schema[source_of(label)]) for label in feature_set.labels]
    if feature_set.weight is not None:
        checks.append(_weight(feature_set.weight, schema[feature_set.weight]))
    if feature_set.timestamp is not None:
        name = feature_set.timestamp
        is_bad = ~_is_number(name, schema[name])
        checks.append(("timestamp", "a time", name, is_bad))
    faults = faults_of(feature_set, schema)
    return checks + [(fault.what, fault.expected, fault.column, fault.is_bad) for fault in faults]


def _label(label: Label, dtype: pl.DataType) -> tuple[str, str, str, pl.Expr]:
    column = source_of(label)
    value = label_value(label, dtype)
    if label.threshold is not None:
        return f"label {label.name!r}", "a number", column, ~_is_number(column, dtype)
    return f"label {label.name!r}", "0 or 1", column, ~value.is_in([0.0, 1.0]).fill_null(False)


def _weight(name: str, dtype: pl.DataType) -> tuple[str, str, str, pl.Expr]:
    if not dtype.is_numeric():
        raise SchemaMismatch(
            f"features.weight: {name!r} has the type {dtype}; expected a number: declare it as"
            " float"
        )
    is_good = _is_number(name, dtype) & (pl.col(name) >= 0).fill_null(False)
    return "weight", "a finite number that is not negative", name, ~is_good


def _is_number(name: str, dtype: pl.DataType) -> pl.Expr:
    """Not null, and finite if it is a float."""
    value = pl.col(name)
    return value.is_finite().fill_null(False) if dtype.is_float() else value.is_not_null()


def shown(value: object) -> str:
    """A raw value in an error."""
    return "nothing" if value is None else str(value)
