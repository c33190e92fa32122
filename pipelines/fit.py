"""Fitting: what the features must learn from the training split, and from it alone.

Everything is exact and deterministic: counts and quantiles by construction (ties in frequency are
broken by the value), moments because they are rounded to nine significant digits, far below what a
float32 shows and far above what the order of a parallel sum can change.
"""

from collections.abc import Mapping

import polars as pl

from feature_store.encoding import FittedFeatures, check_columns, raw_columns
from feature_store.features import FeatureSet
from feature_store.kinds import Counts, Learned, Quantiles, kind_of, sources_of
from feature_store.selection import Selection

_MOMENT_DIGITS = 9


def fit(
    train: pl.LazyFrame, feature_set: FeatureSet, selection: Selection | None = None
) -> FittedFeatures:
    """Fitted features of a training split, read in streamed passes.

    Memory holds one row per distinct value of the vocabulary columns and, one after the other, the
    numbers of one bucketed column.

    Args:
        train: The raw columns of the training rows and of no others.
        feature_set: The declared features.
        selection: The values that vocabularies may have; None: all.

    Raises:
        SchemaMismatch: A column is missing or of a type its feature cannot read.
        ValueError: There are no training rows.
    """
    schema = train.collect_schema()
    check_columns(feature_set, schema)
    moments = {f.name: kind_of(f).moments(f, feature_set, schema) for f in feature_set.inputs}
    statistics = _statistics(train, feature_set, moments)
    if statistics["rows"] == 0:
        raise ValueError("the training split has no rows, so features cannot be fitted to it")
    quantiles = {f.name: kind_of(f).quantiles(f, feature_set, schema) for f in feature_set.inputs}
    numbers = Learned(
        boundaries={n: _boundaries(train, q) for n, q in quantiles.items() if q is not None},
        moments={
            name: _moments(statistics[f"mean {name}"], statistics[f"std {name}"])
            for name, values in moments.items()
            if values is not None
        },
    )
    vocabularies = _vocabularies(train, feature_set, schema, numbers)
    if selection is not None:
        vocabularies = {n: selection.vocabulary(n, v) for n, v in vocabularies.items()}
    return FittedFeatures(
        feature_set=feature_set,
        vocabularies=vocabularies,
        boundaries=dict(numbers.boundaries),
        moments=dict(numbers.moments),
        tables=_tables(train, feature_set, numbers),
        columns=raw_columns(
            feature_set, schema, [name for name in schema if statistics.get(f"nulls {name}")]
        ),
    )


def _statistics(
    train: pl.LazyFrame, feature_set: FeatureSet, moments: Mapping[str, pl.Expr | None]
) -> dict[str, float]:
    """Rows, nulls per column, mean and deviation per standardised number, in one streamed pass."""
    aggregates = [pl.len().alias("rows")]
    for name in sources_of(feature_set):
        aggregates.append(pl.col(name).null_count().alias(f"nulls {name}"))
    for name, values in moments.items():
        if values is not None:
            aggregates.append(values.mean().alias(f"mean {name}"))
            aggregates.append(values.std(ddof=0).alias(f"std {name}"))
    return train.select(aggregates).collect(engine="streaming").row(0, named=True)


def _moments(mean: float | None, std: float | None) -> tuple[float, float]:
    """Rounded moments; a column without any number, or with a single one, is left as it is."""
    if mean is None or std is None:
        return 0.0, 1.0
    rounded = float(f"{std:.{_MOMENT_DIGITS}g}")
    return float(f"{mean:.{_MOMENT_DIGITS}g}"), rounded if rounded > 0.0 else 1.0


def _boundaries(train: pl.LazyFrame, quantiles: Quantiles) -> list[float]:
    """The distinct inner quantiles: at most num_buckets - 1, fewer where values repeat.

    Each is a value of the column, the smallest with at least its share of the rows at or below it,
    and none is the column's smallest, so no bucket stays empty.
    """
    values = (
        train.select(quantiles.values.alias("value"))
        .drop_nulls()
        .collect(engine="streaming")
        .get_column("value")
        .sort()
    )
    if values.is_empty():
        return []
    cuts = [len(values) * i // quantiles.num_buckets for i in range(1, quantiles.num_buckets)]
    inner = values.gather(cuts).unique().sort()
    return inner.filter(inner > values[0]).to_list()


def _vocabularies(
    train: pl.LazyFrame,
    feature_set: FeatureSet,
    schema: Mapping[str, pl.DataType],
    learned: Learned,
) -> dict[str, pl.Series]:
    counts = {
        f.name: kind_of(f).counts(f, feature_set, schema, learned) for f in feature_set.inputs
    }
    wanted = {name: _counted(train, of) for name, of in counts.items() if of is not None}
    collected = pl.collect_all(list(wanted.values()), engine="streaming")
    return {
        name: frame.get_column("value").alias(name)
        for name, frame in zip(wanted, collected, strict=True)
    }


def _counted(train: pl.LazyFrame, counts: Counts) -> pl.LazyFrame:
    """The values of a vocabulary, most frequent first, ties in the order of their bytes."""
    kept = (
        train.select(counts.texts.alias("value"))
        .filter(pl.col("value").is_not_null() & (pl.col("value") != ""))
        .group_by("value")
        .len()
        .filter(pl.col("len") >= counts.min_count)
        .sort("len", "value", descending=[True, False])
    )
    return kept.head(counts.max_size) if counts.max_size is not None else kept


def _tables(
    train: pl.LazyFrame, feature_set: FeatureSet, learned: Learned
) -> dict[str, pl.DataFrame]:
    tables = {f.name: kind_of(f).table(f, feature_set, train, learned) for f in feature_set.inputs}
    wanted = {name: table for name, table in tables.items() if table is not None}
    collected = pl.collect_all(list(wanted.values()), engine="streaming")
    return dict(zip(wanted, collected, strict=True))
