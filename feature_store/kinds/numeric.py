"""Numbers: float32, or ids of buckets."""

import polars as pl

from feature_store import expressions
from feature_store.features import FIRST_ID, FeatureSet, IdField, Numeric, source_of
from feature_store.kinds.kind import Kind, Learned, Quantiles, Schema, id_text


class NumericKind(Kind[Numeric]):
    """`Numeric`: see there."""

    def moments(self, feature: Numeric, features: FeatureSet, schema: Schema) -> pl.Expr | None:
        """Of standardised numbers, after log1p; of those that a float32 holds.

        A single one of 1e300 would leave no deviation that can be divided by.
        """
        if not feature.standardize:
            return None
        value = expressions.transformed(feature, schema[source_of(feature)])
        return pl.when(value.cast(pl.Float32).is_finite()).then(value)

    def quantiles(self, feature: Numeric, features: FeatureSet, schema: Schema) -> Quantiles | None:
        """Of bucketed numbers, after log1p."""
        if feature.num_buckets is None:
            return None
        return Quantiles(_finite(feature, schema), feature.num_buckets)

    def crossed(
        self, feature: Numeric, features: FeatureSet, schema: Schema, learned: Learned
    ) -> pl.Expr | None:
        """The bucket's id as text."""
        if feature.num_buckets is None:
            return None
        return id_text(self.encode(feature, features, schema, learned)[0])

    def encode(
        self, feature: Numeric, features: FeatureSet, schema: Schema, learned: Learned
    ) -> list[pl.Expr]:
        """The bucket's id; or the number, and its indicator where declared."""
        dtype = schema[source_of(feature)]
        if feature.num_buckets is not None:
            boundaries = learned.boundaries.get(feature.name, [])
            return [expressions.bucket(feature, dtype, boundaries)]
        return expressions.number(feature, dtype, learned.moments.get(feature.name))

    def id_fields(
        self, feature: Numeric, features: FeatureSet, learned: Learned
    ) -> tuple[IdField, ...]:
        """One id where there are buckets."""
        if feature.num_buckets is None:
            return ()
        field = IdField(
            name=feature.name,
            shape="single",
            side=feature.side,
            space=feature.name,
            cardinality=feature.num_buckets + FIRST_ID,
        )
        return (field,)

    def dense(self, feature: Numeric) -> tuple[str, ...]:
        """The number, and its indicator where declared."""
        if feature.num_buckets is not None:
            return ()
        return (feature.name, *expressions.indicator_names(feature))


def _finite(feature: Numeric, schema: Schema) -> pl.Expr:
    value = expressions.transformed(feature, schema[source_of(feature)])
    return pl.when(value.is_finite()).then(value)
