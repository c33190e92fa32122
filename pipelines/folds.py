"""Out-of-fold target encoding: what training rows get, so that no row sees its own label.

A training row's value comes from the training rows of all folds but its own; other splits and
serving get the value of all training rows, which is what `FittedFeatures.encode` looks up. A row's
fold is a stable hash of its place in the source, so it does not depend on who encodes the row, and
not the hash that splits rows at random.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from feature_store import keyed
from feature_store.features import (
    MISSING_ID,
    ROW_COLUMN,
    SPLIT_COLUMN,
    FeatureSet,
    TargetEncoding,
    source_of,
)
from feature_store.kinds.kind import Schema
from feature_store.kinds.statistics import key_of, label_of
from feature_store.targets import label_value

_FOLD = "fold"


def fold_of(folds: int) -> pl.Expr:
    """The fold of a row, 0 to folds - 1, as int64."""
    text = pl.concat_str(pl.lit("fold "), pl.col(ROW_COLUMN).cast(pl.String))
    return (text.nchash.xxhash64() % folds).cast(pl.Int64)  # type: ignore[attr-defined]


def out_of_fold(
    encoders: Sequence[pl.Expr], train: pl.LazyFrame, feature_set: FeatureSet
) -> list[pl.Expr]:
    """Encoders that give training rows the values of the other folds.

    Args:
        encoders: Those of all rows, from `FittedFeatures.encoders`.
        train: Raw columns of the training rows, with `__row`; read once per target encoding.
        feature_set: The declared features.

    Returns:
        Encoders for rows that have `__row` and `split`, in the same order.
    """
    encoded = [f for f in feature_set.inputs if isinstance(f, TargetEncoding)]
    if not encoded:
        return list(encoders)
    schema = train.collect_schema()
    by_name = {f.name: _of_other_folds(f, feature_set, train, schema) for f in encoded}
    is_train = pl.col(SPLIT_COLUMN) == "train"
    return [
        pl.when(is_train).then(by_name[name]).otherwise(encoder).alias(name)
        if (name := encoder.meta.output_name()) in by_name
        else encoder
        for encoder in encoders
    ]


def _of_other_folds(
    feature: TargetEncoding, feature_set: FeatureSet, train: pl.LazyFrame, schema: Schema
) -> pl.Expr:
    """The value of a row's key in the folds that are not the row's."""
    label = label_of(feature, feature_set)
    key = key_of(feature, schema)
    counted = (
        train.select(
            key.alias(keyed.KEY),
            fold_of(feature.folds).alias(_FOLD),
            label_value(label, schema[source_of(label)]).cast(pl.Int64).alias("positives"),
        )
        .group_by(keyed.KEY, _FOLD)
        .agg(pl.col("positives").sum(), pl.len().cast(pl.Int64).alias("rows"))
        .sort(keyed.KEY)
        .collect(engine="streaming")
    )
    keys, values_KF = _values(counted, feature)
    return pl.map_batches(
        [key, fold_of(feature.folds)],
        LookUpInFolds(keys, values_KF),
        return_dtype=pl.Float32(),
        is_elementwise=True,
    )


def _values(counted: pl.DataFrame, feature: TargetEncoding) -> tuple[np.ndarray, np.ndarray]:
    """Rising keys (K,), and the value of each outside each fold, float32 (K, F)."""
    seen = counted.get_column(keyed.KEY).to_numpy()
    keys = np.union1d(seen, [MISSING_ID])
    sums = {}
    for name in ("positives", "rows"):
        by_fold_KF = np.zeros((len(keys), feature.folds), np.int64)
        place = (np.searchsorted(keys, seen), counted.get_column(_FOLD).to_numpy())
        by_fold_KF[place] = counted.get_column(name).to_numpy()
        sums[name] = by_fold_KF
    prior = sums["positives"].sum() / sums["rows"].sum()
    positives_KF, rows_KF = (
        sums[name].sum(axis=1, keepdims=True) - sums[name] for name in ("positives", "rows")
    )
    weight_KF = rows_KF + feature.smoothing
    rates_KF = (positives_KF + prior * feature.smoothing) / np.where(weight_KF > 0, weight_KF, 1)
    nothing_KF = (weight_KF == 0) | (keys == MISSING_ID)[:, None]
    return keys, np.where(nothing_KF, prior, rates_KF).astype(np.float32)


@dataclass(frozen=True, eq=False)
class LookUpInFolds:
    """The values of keys outside their rows' folds; can be sent to another process."""

    keys: np.ndarray
    """Rising, int64 (K,); MISSING_ID is among them."""
    values_KF: np.ndarray
    """float32."""

    def __call__(self, wanted: Sequence[pl.Series]) -> pl.Series:
        """float32 of int64 keys and folds."""
        # Polars may put nulls where `when` will not take the result.
        key, fold = (series.fill_null(0).to_numpy() for series in wanted)
        return pl.Series(wanted[0].name, self.values_KF[keyed.places(self.keys, key), fold])
