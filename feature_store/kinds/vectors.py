"""Precomputed dense vectors: one number a dimension."""

import polars as pl

from feature_store import columns, expressions
from feature_store.columns import SchemaMismatch
from feature_store.features import FeatureSet, Vector, source_of
from feature_store.kinds.kind import Fault, Kind, Learned, Schema, as_list


class VectorKind(Kind[Vector]):
    """`Vector`: see there."""

    def faults(self, feature: Vector, features: FeatureSet, schema: Schema) -> list[Fault]:
        """A list of another length."""
        column = source_of(feature)
        if column not in schema:
            return []
        lists = _lists(feature, schema)
        return [
            Fault(
                f"vector {feature.name!r}",
                f"a list of {feature.dim} numbers or nothing",
                column,
                (lists.list.len() != feature.dim).fill_null(False),
            )
        ]

    def encode(
        self, feature: Vector, features: FeatureSet, schema: Schema, learned: Learned
    ) -> list[pl.Expr]:
        """A number a dimension, and the indicator where declared."""
        lists = _lists(feature, schema)
        # After the cast, so that a float64 too large for a float32 is caught as the infinity it is.
        numbers = lists.cast(pl.List(pl.Float32))
        finite = numbers.list.eval(pl.element().is_finite().fill_null(False)).list.all()
        # Another length is refused where rows are read, by name of the row; here it is no vector.
        present = ((numbers.list.len() == feature.dim) & finite).fill_null(False)
        default = pl.lit([feature.default] * feature.dim, dtype=pl.List(pl.Float32))
        vectors = pl.when(present).then(numbers).otherwise(default)
        values = [vectors.list.get(place).alias(name) for place, name in enumerate(_names(feature))]
        return [*values, *expressions.indicators(feature, present)]

    def dense(self, feature: Vector) -> tuple[str, ...]:
        """The numbers in their order, and the indicator where declared."""
        return (*_names(feature), *expressions.indicator_names(feature))


def _names(feature: Vector) -> list[str]:
    return [f"{feature.name}__{place}" for place in range(feature.dim)]


def _lists(feature: Vector, schema: Schema) -> pl.Expr:
    """The raw column as lists.

    Raises:
        SchemaMismatch: It holds no lists of numbers of this length.
    """
    dtype = schema[source_of(feature)]
    element = columns.element_type(dtype)
    if not (columns.is_list(dtype) and (element.is_numeric() or element == pl.Null)):
        raise SchemaMismatch(
            f"vector {feature.name!r} needs lists of {feature.dim} numbers, but"
            f" {source_of(feature)!r} has the type {dtype}; declare the column as list<float>"
        )
    if isinstance(dtype, pl.Array) and dtype.size != feature.dim:
        raise SchemaMismatch(
            f"vector {feature.name!r} has {feature.dim} dimensions, but {source_of(feature)!r}"
            f" holds lists of {dtype.size}; set dim to {dtype.size}"
        )
    return as_list(source_of(feature), schema)
