"""What a feature is: the declared features of an experiment and the layout of their encoded rows.

Encoded columns, the contract between the feature store and everything that trains or serves:

- single ids (`Categorical`, `DatePart`, bucketed `Numeric`): int64, never null;
- bags and sequences: list<int64>, never null, possibly empty; a sequence is oldest first;
- numbers (`Numeric` without buckets): float32, never null, always finite;
- labels: float32; weight: float32; group: int64; timestamp: int64.

Ids are positions in a vocabulary (0 missing, 1 out of vocabulary, then by falling frequency) or
the bits of a stable 64-bit hash (0 is missing there too). Rows of an embedding table are not
stored: `recsys.embeddings` derives them, so one version serves every table size.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from feature_store.config import Config
from feature_store.inputs import (
    Bag,
    Categorical,
    DatePart,
    Encoding,
    Feature,
    History,
    Neighbours,
    Numeric,
    Part,
    Sequence,
    Side,
    TimeUnit,
)
from feature_store.names import NAME, nearest

__all__ = [
    "FIRST_ID",
    "GROUP_COLUMN",
    "MISSING_ID",
    "NAME",
    "ROW_COLUMN",
    "SPLITS",
    "SPLIT_COLUMN",
    "TIMESTAMP_COLUMN",
    "UNSEEN_ID",
    "WEIGHT_COLUMN",
    "Bag",
    "Categorical",
    "DatePart",
    "Encoding",
    "Feature",
    "FeatureSet",
    "History",
    "IdField",
    "Label",
    "Layout",
    "Numeric",
    "Part",
    "Sequence",
    "Side",
    "TimeUnit",
    "nearest",
    "source_of",
]

MISSING_ID = 0
UNSEEN_ID = 1
FIRST_ID = 2

WEIGHT_COLUMN = "__weight"
GROUP_COLUMN = "__group"
TIMESTAMP_COLUMN = "__timestamp"
ROW_COLUMN = "__row"
"""The row's place in the source, 0-based: keeps order, ties and errors traceable to the input."""
SPLIT_COLUMN = "split"
SPLITS = ("train", "valid", "test")


class Label(Config):
    """What is predicted: a 0/1 column, or a number cut at a threshold."""

    name: str = "label"
    source: str | None = None
    threshold: FiniteFloat | None = None
    """The label is 1 where the source is at least this; without it the source must be 0 or 1."""


class FeatureSet(Config):
    """All that is read from a raw row."""

    inputs: tuple[Feature, ...] = Field(min_length=1)
    labels: tuple[Label, ...] = (Label(),)
    weight: str | None = None
    """Raw column with the row's non-negative weight; 1.0 if absent."""
    group: str | None = None
    """Raw column that groups rows for GAUC, usually the user."""
    timestamp: str | None = None
    """Raw column with the event time; needed by histories and by splits in time."""
    selection: Path | None = None
    """A selected_features.parquet that a run wrote: values that it does not keep are out of
    vocabulary, and features of which it keeps nothing are left out."""

    @model_validator(mode="after")
    def _names_fit(self) -> "FeatureSet":
        names = [feature.name for feature in self.inputs] + [label.name for label in self.labels]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two features or labels are named {name!r}; names must be unique")
            if not NAME.fullmatch(name) or name == SPLIT_COLUMN:
                raise ValueError(
                    f"feature {name!r}: a name is a letter followed by letters, digits, '_' and"
                    f" '-', and is not {SPLIT_COLUMN!r}; give the raw column in `source`"
                )
        neighbours = Neighbours(
            {feature.name: feature for feature in self.inputs},
            tuple(label.name for label in self.labels),
            self.timestamp,
        )
        for feature in self.inputs:
            feature.check(neighbours)
        return self

    def feature(self, name: str) -> Feature:
        """The feature of that name; KeyError if there is none."""
        for feature in self.inputs:
            if feature.name == name:
                return feature
        raise KeyError(name)


class IdField(Config):
    """One id column of an encoded row, as embeddings and models see it."""

    name: str
    shape: Literal["single", "bag", "sequence"]
    side: Side
    space: str
    """Name of the feature whose ids these are: fields of one space share one embedding table."""
    cardinality: NonNegativeInt | None = None
    """Ids are 0 .. cardinality - 1; None: any 64-bit hash."""
    max_length: PositiveInt | None = None
    """Longest list; None for single ids and for bags without a bound."""


class Layout(Config):
    """What an encoded row looks like; derived from fitted features, read by everything after."""

    ids: tuple[IdField, ...]
    dense: tuple[str, ...]
    """Names of the float32 columns, in their order in `Batch.dense_BN`."""
    tasks: tuple[str, ...]
    """Names of the labels, in their order in `Batch.labels_BT`."""
    dense_sides: tuple[Side, ...] = ()
    """Side of each of the float32 columns; empty: all are context."""

    @model_validator(mode="after")
    def _a_side_each(self) -> "Layout":
        if self.dense_sides and len(self.dense_sides) != len(self.dense):
            raise ValueError(
                f"dense_sides: expected a side for each of {list(self.dense)}, found"
                f" {list(self.dense_sides)}"
            )
        return self

    def dense_of(self, sides: tuple[Side, ...]) -> tuple[int, ...]:
        """Places in `dense` of the numbers of some sides."""
        known = self.dense_sides or ("context",) * len(self.dense)
        return tuple(place for place, side in enumerate(known) if side in sides)

    def id_field(self, name: str) -> IdField:
        """The id field of that name; KeyError if there is none."""
        for field in self.ids:
            if field.name == name:
                return field
        raise KeyError(name)


def source_of(feature: Feature | Label) -> str:
    """The raw column a feature or label reads."""
    return feature.source or feature.name
