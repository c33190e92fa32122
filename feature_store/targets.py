"""What is predicted: the label of a raw row as a number."""

import polars as pl

from feature_store.columns import SchemaMismatch
from feature_store.features import Label, source_of


def label_value(label: Label, dtype: pl.DataType) -> pl.Expr:
    """A label as float32: 1.0 or 0.0 where there is a threshold, else the number itself.

    Raises:
        SchemaMismatch: The raw column holds neither numbers nor bools.
    """
    if not (dtype.is_numeric() or isinstance(dtype, pl.Boolean)):
        raise SchemaMismatch(
            f"label {label.name!r} needs a number or a bool, but {source_of(label)!r} has the"
            f" type {dtype}; declare the column as int, float or bool"
        )
    value = pl.col(source_of(label))
    if label.threshold is not None:
        value = value.cast(pl.Float64) >= label.threshold
    return value.cast(pl.Float32).alias(label.name)
