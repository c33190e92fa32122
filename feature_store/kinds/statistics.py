"""What the training split tells of a value: how often it was there, how often the label was 1."""

from collections.abc import Mapping

import polars as pl

from feature_store import keyed
from feature_store.features import (
    MISSING_ID,
    FeatureSet,
    Frequency,
    Label,
    TargetEncoding,
    source_of,
)
from feature_store.kinds.kind import Kind, Learned, Schema
from feature_store.targets import label_value

_NO_NUMBER = pl.lit(0.0, pl.Float32)


class FrequencyKind(Kind[Frequency]):
    """`Frequency`: see there."""

    def reads(self, feature: Frequency, features: FeatureSet) -> tuple[str, ...]:
        """All columns of the combination."""
        return columns_of(feature)

    def table(
        self, feature: Frequency, features: FeatureSet, train: pl.LazyFrame, learned: Learned
    ) -> pl.LazyFrame:
        """A number for each value; 0 for a missing one."""
        counts = _counted(train, key_of(feature, train.collect_schema()), {})
        count = pl.col("rows")
        number = count.log1p() if feature.scale == "log1p" else count / count.sum()
        present = pl.when(pl.col(keyed.KEY) != MISSING_ID).then(number).otherwise(0.0)
        return counts.select(keyed.KEY, present.cast(pl.Float32).alias(keyed.VALUE))

    def encode(
        self, feature: Frequency, features: FeatureSet, schema: Schema, learned: Learned
    ) -> list[pl.Expr]:
        """The number."""
        return [_looked_up(feature, schema, learned)]

    def dense(self, feature: Frequency) -> tuple[str, ...]:
        """One number."""
        return (feature.name,)


class TargetEncodingKind(Kind[TargetEncoding]):
    """`TargetEncoding`: see there; what training rows get is in `pipelines.folds`."""

    def reads(self, feature: TargetEncoding, features: FeatureSet) -> tuple[str, ...]:
        """All columns of the combination."""
        return columns_of(feature)

    def table(
        self, feature: TargetEncoding, features: FeatureSet, train: pl.LazyFrame, learned: Learned
    ) -> pl.LazyFrame:
        """The smoothed rate of each value; the rate of all rows for a missing one."""
        schema = train.collect_schema()
        label = label_of(feature, features)
        positive = {"positives": label_value(label, schema[source_of(label)]).cast(pl.Int64)}
        counts = _counted(train, key_of(feature, schema), positive)
        prior = pl.col("positives").sum() / pl.col("rows").sum()
        rate = smoothed(feature, pl.col("positives"), pl.col("rows"), prior)
        rated = pl.when(pl.col(keyed.KEY) != MISSING_ID).then(rate).otherwise(prior)
        return counts.select(keyed.KEY, rated.cast(pl.Float32).alias(keyed.VALUE))

    def encode(
        self, feature: TargetEncoding, features: FeatureSet, schema: Schema, learned: Learned
    ) -> list[pl.Expr]:
        """The rate."""
        return [_looked_up(feature, schema, learned)]

    def dense(self, feature: TargetEncoding) -> tuple[str, ...]:
        """One number."""
        return (feature.name,)


def columns_of(feature: Frequency | TargetEncoding) -> tuple[str, ...]:
    """The raw columns whose values together are one value."""
    return (source_of(feature), *feature.together_with)


def key_of(feature: Frequency | TargetEncoding, schema: Schema) -> pl.Expr:
    """The int64 by which the value is known."""
    return keyed.key_of(f"{feature.kind} {feature.name!r}", columns_of(feature), schema)


def label_of(feature: TargetEncoding, features: FeatureSet) -> Label:
    """The label whose rate it is."""
    if feature.label is None:
        return features.labels[0]
    return next(label for label in features.labels if label.name == feature.label)


def smoothed(feature: TargetEncoding, positives: pl.Expr, rows: pl.Expr, prior: pl.Expr) -> pl.Expr:
    """(positives + smoothing x prior) / (rows + smoothing); the prior where there is nothing.

    The posterior mean of Micci-Barreca (SIGKDD Explorations 2001, equation 3) with the weight
    rows / (rows + smoothing).
    """
    weight = rows + feature.smoothing
    rate = (positives + prior * feature.smoothing) / weight
    return pl.when(weight > 0).then(rate).otherwise(prior)


def _counted(train: pl.LazyFrame, key: pl.Expr, sums: Mapping[str, pl.Expr]) -> pl.LazyFrame:
    """Rows, and sums, by rising key; the missing value is always among them."""
    rows = train.select(key.alias(keyed.KEY), **sums)
    none = pl.LazyFrame({name: [0] for name in (keyed.KEY, "rows", *sums)})
    number = pl.len().cast(pl.Int64).alias("rows")
    counted = rows.group_by(keyed.KEY).agg(number, *(pl.col(name).sum() for name in sums))
    every = pl.concat([counted, none], how="diagonal").group_by(keyed.KEY)
    return every.agg(pl.col("rows", *sums).sum()).sort(keyed.KEY)


def _looked_up(feature: Frequency | TargetEncoding, schema: Schema, learned: Learned) -> pl.Expr:
    key, table = key_of(feature, schema), learned.tables.get(feature.name)
    number = _NO_NUMBER if table is None else keyed.looked_up(key, table)
    return number.alias(feature.name)
