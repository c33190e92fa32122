"""Which raw numbers are missing: encoded ones have a default in their place and no longer tell."""

from collections.abc import Mapping, Sequence

import polars as pl

from feature_store.features import SPLIT_COLUMN, SPLITS, FeatureSet, source_of
from feature_store.kinds import kind_of
from feature_store.tallies import indicator_of

_MARK = " missing "


def missing_numbers(feature_set: FeatureSet, schema: Mapping[str, pl.DataType]) -> list[pl.Expr]:
    """Rows by split and encoded number whose raw value is null, NaN or infinite, as aggregates.

    Numbers with an indicator are left out: their encoded rows tell.

    Args:
        feature_set: The features.
        schema: Raw columns and `split`.
    """
    found = []
    for feature in feature_set.inputs:
        names = kind_of(feature).dense(feature)
        if not names or indicator_of(names[0], names) is not None:
            continue
        source = source_of(feature)
        if source not in schema:
            continue
        value = pl.col(source)
        is_missing = value.is_null()
        if schema[source].is_float():
            is_missing = is_missing | ~value.is_finite()
        for name in names:
            found += [
                ((pl.col(SPLIT_COLUMN) == split) & is_missing).sum().alias(f"{split}{_MARK}{name}")
                for split in SPLITS
            ]
    return found


def by_split(counts: Sequence[Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """The sums of what the aggregates gave for parts of the rows, by split and number."""
    total: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    for part in counts:
        for key, rows in part.items():
            split, _, name = key.partition(_MARK)
            total[split][name] = total[split].get(name, 0) + rows
    return total
