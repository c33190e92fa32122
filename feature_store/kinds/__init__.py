"""The kinds of features, each in one place: raw columns, what is learnt, how it is encoded.

A new kind is a class in `feature_store.inputs`, which says what a user may set, a `Kind` in a file
here, and a line in `KINDS`.
"""

from typing import Any

from feature_store.features import Feature, FeatureSet, IdField
from feature_store.kinds.categorical import CategoricalKind, DatePartKind
from feature_store.kinds.cross import CrossKind
from feature_store.kinds.elapsed import ElapsedKind
from feature_store.kinds.kind import Counts, Fault, Kind, Learned, Quantiles, Schema
from feature_store.kinds.lists import BagKind, SequenceKind
from feature_store.kinds.numeric import NumericKind
from feature_store.kinds.statistics import FrequencyKind, TargetEncodingKind
from feature_store.kinds.text import TextKind
from feature_store.kinds.vectors import VectorKind

__all__ = [
    "KINDS",
    "Counts",
    "Fault",
    "Kind",
    "Learned",
    "Quantiles",
    "Schema",
    "columns_of",
    "declared_fields",
    "faults_of",
    "kind_of",
    "sources_of",
]

_PLAIN: dict[str, Kind[Any]] = {
    "numeric": NumericKind(),
    "categorical": CategoricalKind(),
    "bag": BagKind(),
    "sequence": SequenceKind(),
    "date_part": DatePartKind(),
    "vector": VectorKind(),
    "frequency": FrequencyKind(),
    "target_encoding": TargetEncodingKind(),
    "elapsed": ElapsedKind(),
    "text": TextKind(),
}
KINDS: dict[str, Kind[Any]] = {**_PLAIN, "cross": CrossKind(_PLAIN)}
"""By `kind` of the declared feature."""


def kind_of(feature: Feature) -> Kind[Any]:
    """What the project knows of a feature's kind."""
    return KINDS[feature.kind]


def sources_of(features: FeatureSet) -> dict[str, str]:
    """The raw columns that encoding reads, in the order the features name them, and for what."""
    needed: dict[str, str] = {}
    for feature in features.inputs:
        for column in kind_of(feature).sources(feature, features):
            needed.setdefault(column, f"feature {feature.name!r}")
    return needed


def faults_of(features: FeatureSet, schema: Schema) -> list[Fault]:
    """What makes raw rows of these columns unusable.

    Raises:
        SchemaMismatch: A raw column is of a type that a feature cannot read.
    """
    return [
        fault
        for feature in features.inputs
        for fault in kind_of(feature).faults(feature, features, schema)
    ]


def declared_fields(feature: Feature, features: FeatureSet) -> tuple[IdField, ...]:
    """The id columns a feature will have; without cardinality, as nothing is fitted yet."""
    return kind_of(feature).id_fields(feature, features, Learned())


def columns_of(feature: Feature, features: FeatureSet) -> tuple[str, ...]:
    """The encoded columns of a feature, in their order."""
    ids = declared_fields(feature, features)
    lists = (name for f in ids for name in ((f.name, f.weights) if f.weighted else (f.name,)))
    return (*lists, *kind_of(feature).dense(feature))
