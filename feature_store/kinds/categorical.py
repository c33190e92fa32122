"""One id a row: of a category, or of a part of a time."""

import polars as pl

from feature_store import columns, expressions
from feature_store.features import (
    FIRST_ID,
    Categorical,
    DatePart,
    FeatureSet,
    IdField,
    source_of,
)
from feature_store.kinds.kind import Counts, Kind, Learned, Schema, id_text, vocabulary_size


class CategoricalKind(Kind[Categorical]):
    """`Categorical`: see there."""

    def hashed(self, feature: Categorical) -> bool:
        """As declared."""
        return feature.encoding == "hash"

    def counts(
        self, feature: Categorical, features: FeatureSet, schema: Schema, learned: Learned
    ) -> Counts | None:
        """The canonical texts."""
        if self.hashed(feature):
            return None
        name = source_of(feature)
        texts = columns.canonical_text(pl.col(name), schema[name])
        return Counts(texts, feature.min_count, feature.max_size, feature.max_distinct)

    def crossed(
        self, feature: Categorical, features: FeatureSet, schema: Schema, learned: Learned
    ) -> pl.Expr | None:
        """The canonical text."""
        name = source_of(feature)
        text = columns.canonical_text(pl.col(name), schema[name])
        return pl.when(text != "").then(text)

    def encode(
        self, feature: Categorical, features: FeatureSet, schema: Schema, learned: Learned
    ) -> list[pl.Expr]:
        """The id."""
        index = learned.indexes.get(feature.name)
        return [expressions.single_id(feature, schema[source_of(feature)], index)]

    def id_fields(
        self, feature: Categorical, features: FeatureSet, learned: Learned
    ) -> tuple[IdField, ...]:
        """One id."""
        field = IdField(
            name=feature.name,
            shape="single",
            side=feature.side,
            space=feature.name,
            cardinality=vocabulary_size(feature.name, learned),
        )
        return (field,)


class DatePartKind(Kind[DatePart]):
    """`DatePart`: see there."""

    def crossed(
        self, feature: DatePart, features: FeatureSet, schema: Schema, learned: Learned
    ) -> pl.Expr | None:
        """The id as text."""
        return id_text(self.encode(feature, features, schema, learned)[0])

    def encode(
        self, feature: DatePart, features: FeatureSet, schema: Schema, learned: Learned
    ) -> list[pl.Expr]:
        """The id."""
        return [expressions.date_part(feature, schema[feature.source])]

    def id_fields(
        self, feature: DatePart, features: FeatureSet, learned: Learned
    ) -> tuple[IdField, ...]:
        """One id of all that the part can be."""
        smallest, largest = expressions.DATE_PARTS[feature.part]
        field = IdField(
            name=feature.name,
            shape="single",
            side=feature.side,
            space=feature.name,
            cardinality=largest - smallest + 1 + FIRST_ID,
        )
        return (field,)
