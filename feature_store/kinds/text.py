"""Texts as bags of hashed n-grams."""

import polars as pl

from feature_store.columns import SchemaMismatch
from feature_store.features import FIRST_ID, FeatureSet, IdField, Text, source_of
from feature_store.kinds.kind import Kind, Learned, Schema
from feature_store.vocabulary import bucket_ids, hash_ids


class TextKind(Kind[Text]):
    """`Text`: see there."""

    def hashed(self, feature: Text) -> bool:
        """Unless there are buckets."""
        return feature.num_buckets is None

    def encode(
        self, feature: Text, features: FeatureSet, schema: Schema, learned: Learned
    ) -> list[pl.Expr]:
        """The list of ids."""
        dtype = schema[source_of(feature)]
        if not isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Null):
            raise SchemaMismatch(
                f"text feature {feature.name!r} needs a column of text, but {source_of(feature)!r}"
                f" has the type {dtype}; declare the column as string, or the feature as"
                " categorical or bag"
            )
        grams = _grams(feature, pl.col(source_of(feature)).cast(pl.String))
        if feature.max_length is not None:
            grams = grams.list.head(feature.max_length)
        gram = pl.element()
        buckets = feature.num_buckets
        ids = grams.list.eval(hash_ids(gram) if buckets is None else bucket_ids(gram, buckets))
        return [ids.fill_null(pl.lit([], dtype=pl.List(pl.Int64))).alias(feature.name)]

    def id_fields(
        self, feature: Text, features: FeatureSet, learned: Learned
    ) -> tuple[IdField, ...]:
        """One bag."""
        buckets = feature.num_buckets
        field = IdField(
            name=feature.name,
            shape="bag",
            side=feature.side,
            space=feature.name,
            cardinality=None if buckets is None else buckets + FIRST_ID,
            max_length=feature.max_length,
        )
        return (field,)


def _grams(feature: Text, text: pl.Expr) -> pl.Expr:
    """The n-grams of every size; null for a missing text."""
    text = text.str.normalize("NFC")
    if feature.lowercase:
        # An upper-case letter may become two in lower case, which may be one in the normal form.
        text = text.str.to_lowercase().str.normalize("NFC")
    if feature.unit == "word":
        units, between = text.str.extract_all(r"\w+"), " "
    else:
        units, between = text.str.replace_all(r"\s+", " ").str.split(""), ""
    return pl.concat_list(units.list.eval(_neighbours(n, between)) for n in feature.ngrams)


def _neighbours(size: int, between: str) -> pl.Expr:
    """Every run of so many elements of a list, as one text."""
    runs = [pl.element().shift(-place) for place in range(size)]
    return pl.concat_str(runs, separator=between).drop_nulls()
