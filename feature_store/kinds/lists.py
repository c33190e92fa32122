"""Several ids a row: bags and sequences."""

import polars as pl

from feature_store import columns, expressions
from feature_store.features import Bag, FeatureSet, IdField, Sequence, source_of
from feature_store.kinds.kind import Counts, Kind, Learned, Schema, vocabulary_size


class BagKind(Kind[Bag]):
    """`Bag`: see there."""

    def separators(self, feature: Bag) -> dict[str, str]:
        """That of the source."""
        return {source_of(feature): feature.separator}

    def hashed(self, feature: Bag) -> bool:
        """As declared."""
        return feature.encoding == "hash"

    def counts(
        self, feature: Bag, features: FeatureSet, schema: Schema, learned: Learned
    ) -> Counts | None:
        """The canonical texts of all elements."""
        if self.hashed(feature):
            return None
        dtype = schema[source_of(feature)]
        values = expressions.as_lists(feature, dtype).explode()
        texts = columns.canonical_text(values, columns.element_type(dtype))
        return Counts(texts, feature.min_count, feature.max_size)

    def encode(
        self, feature: Bag, features: FeatureSet, schema: Schema, learned: Learned
    ) -> list[pl.Expr]:
        """The list of ids."""
        index = learned.indexes.get(feature.name)
        return [expressions.id_list(feature, schema[source_of(feature)], index)]

    def id_fields(
        self, feature: Bag, features: FeatureSet, learned: Learned
    ) -> tuple[IdField, ...]:
        """One bag."""
        field = IdField(
            name=feature.name,
            shape="bag",
            side=feature.side,
            space=feature.name,
            cardinality=vocabulary_size(feature.name, learned),
            max_length=feature.max_length,
        )
        return (field,)


class SequenceKind(Kind[Sequence]):
    """`Sequence`: see there."""

    def logged(self, feature: Sequence, features: FeatureSet) -> dict[str, str]:
        """The list itself, or the columns from which the build gathers it."""
        if feature.history is None:
            return super().logged(feature, features)
        return {feature.history.by: f"the history of {feature.name!r}"}

    def separators(self, feature: Sequence) -> dict[str, str]:
        """That of the source."""
        return {source_of(feature): feature.separator}

    def encode(
        self, feature: Sequence, features: FeatureSet, schema: Schema, learned: Learned
    ) -> list[pl.Expr]:
        """The list of ids."""
        index = learned.indexes.get(feature.of)
        return [expressions.id_list(feature, schema[source_of(feature)], index)]

    def id_fields(
        self, feature: Sequence, features: FeatureSet, learned: Learned
    ) -> tuple[IdField, ...]:
        """One sequence, in the space of another feature."""
        field = IdField(
            name=feature.name,
            shape="sequence",
            side=feature.side,
            space=feature.of,
            cardinality=vocabulary_size(feature.of, learned),
            max_length=feature.max_length,
        )
        return (field,)
