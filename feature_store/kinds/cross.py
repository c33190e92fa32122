"""Combinations of the values of several features."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from feature_store.features import FIRST_ID, Bag, Cross, Feature, FeatureSet, IdField
from feature_store.kinds.kind import Counts, Kind, Learned, Schema, vocabulary_size
from feature_store.vocabulary import bucket_ids, hash_ids, vocabulary_ids

_BETWEEN = "\x1f"
"""Stands between the parts of a combination: ASCII's unit separator, rare in any text."""
_BETWEEN_LISTED = "\x1d"
"""Stands between the combinations of one row while they are made."""
_ESCAPES = (("\x1e", "\x1e0"), (_BETWEEN, "\x1e1"), (_BETWEEN_LISTED, "\x1e2"))
"""So that no two combinations have one text, whatever is in the values."""


class CrossKind(Kind[Cross]):
    """`Cross`: see there.

    Args:
        kinds: Those that parts may be of.
    """

    def __init__(self, kinds: Mapping[str, Kind[Any]]) -> None:
        self.kinds = kinds

    def reads(self, feature: Cross, features: FeatureSet) -> tuple[str, ...]:
        """Those of its parts."""
        parts = self._parts(feature, features)
        found = [self.kinds[part.kind].reads(part, features) for part in parts]
        return tuple(dict.fromkeys(column for columns in found for column in columns))

    def logged(self, feature: Cross, features: FeatureSet) -> dict[str, str]:
        """None but those of its parts, which ask for them."""
        return {}

    def refers(self, feature: Cross) -> tuple[str, ...]:
        """Its parts."""
        return feature.of

    def hashed(self, feature: Cross) -> bool:
        """As declared, unless there are buckets."""
        return feature.encoding == "hash" and feature.num_buckets is None

    def counts(
        self, feature: Cross, features: FeatureSet, schema: Schema, learned: Learned
    ) -> Counts | None:
        """The texts of the combinations."""
        if feature.encoding == "hash":
            return None
        texts = self._texts(feature, features, schema, learned)
        if _bag_of(feature, features) is not None:
            texts = texts.explode()
        return Counts(texts, feature.min_count, feature.max_size, feature.max_distinct)

    def encode(
        self, feature: Cross, features: FeatureSet, schema: Schema, learned: Learned
    ) -> list[pl.Expr]:
        """The id, or the list of them."""
        texts = self._texts(feature, features, schema, learned)
        index = learned.indexes.get(feature.name)
        if _bag_of(feature, features) is None:
            return [_ids(texts, feature, index).alias(feature.name)]
        ids = texts.list.eval(_ids(pl.element(), feature, index))
        return [ids.fill_null(pl.lit([], dtype=pl.List(pl.Int64))).alias(feature.name)]

    def id_fields(
        self, feature: Cross, features: FeatureSet, learned: Learned
    ) -> tuple[IdField, ...]:
        """One id, or one bag."""
        bag = _bag_of(feature, features)
        cardinality = vocabulary_size(feature.name, learned)
        if feature.num_buckets is not None:
            cardinality = feature.num_buckets + FIRST_ID
        field = IdField(
            name=feature.name,
            shape="single" if bag is None else "bag",
            side=feature.side,
            space=feature.name,
            cardinality=cardinality,
            max_length=None if bag is None else bag.max_length,
        )
        return (field,)

    def _parts(self, feature: Cross, features: FeatureSet) -> list[Feature]:
        return [features.feature(name) for name in feature.of]

    def _texts(
        self, feature: Cross, features: FeatureSet, schema: Schema, learned: Learned
    ) -> pl.Expr:
        """The combination as text, null where a part is missing; of a bag, the list of them."""
        before: list[pl.Expr] = []
        after: list[pl.Expr] = []
        listed: pl.Expr | None = None
        for part in self._parts(feature, features):
            text = self.kinds[part.kind].crossed(part, features, schema, learned)
            assert text is not None, "a feature set refuses crosses of such parts"
            if isinstance(part, Bag):
                listed = text
            else:
                (before if listed is None else after).append(_escaped(text))
        if listed is None:
            return pl.concat_str(before, separator=_BETWEEN)
        # In each list of a row the other parts are the same, so they may be written between its
        # values: polars has no expression that puts a column's text to every element of a list.
        prefix = pl.concat_str([*before, pl.lit("")], separator=_BETWEEN)
        suffix = pl.concat_str([pl.lit(""), *after], separator=_BETWEEN)
        between = pl.concat_str(suffix, pl.lit(_BETWEEN_LISTED), prefix)
        values = listed.list.eval(_escaped(pl.element()))
        joined = pl.concat_str(prefix, values.list.join(between), suffix)
        return pl.when(listed.list.len() > 0).then(joined.str.split(_BETWEEN_LISTED))


def _bag_of(feature: Cross, features: FeatureSet) -> Bag | None:
    parts = (features.feature(name) for name in feature.of)
    return next((part for part in parts if isinstance(part, Bag)), None)


def _escaped(text: pl.Expr) -> pl.Expr:
    for found, written in _ESCAPES:
        text = text.str.replace_all(found, written, literal=True)
    return text


def _ids(text: pl.Expr, feature: Cross, index: pl.Enum | None) -> pl.Expr:
    if feature.num_buckets is not None:
        return bucket_ids(text, feature.num_buckets)
    return hash_ids(text) if index is None else vocabulary_ids(text, index)
