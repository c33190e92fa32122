"""What a feature is: the declared features of an experiment and the layout of their encoded rows.

Encoded columns, the contract between the feature store and everything that trains or serves:

- single ids (`Categorical`, `DatePart`, bucketed `Numeric`): int64, never null;
- bags and sequences: list<int64>, never null, possibly empty; a sequence is oldest first;
- weights of a bag or sequence (`<name>__weight`): list<float32>, as long as its ids;
- gaps of a sequence (`<name>__gap`): a sequence of ids, as long as its own;
- numbers (`Numeric` without buckets): float32, never null, always finite;
- labels: float32; weight: float32; group: int64; timestamp: int64.

Ids are positions in a vocabulary, of buckets, or the bits of a stable 64-bit hash. Rows of an
embedding table are not stored: `recsys.embeddings` derives them, so one version serves every table
size. What has no id of its own:

| kind | missing | unseen in the training split |
|---|---|---|
| categorical, vocabulary | 0 | 1, and so are values that min_count or max_size leave out |
| categorical, hash | 0 | its hash, like any other; never 0 |
| date_part | 0 | 1: a year outside 1970 to 2169 |
| numeric with num_buckets | 0, NaN and infinity too | the nearest bucket, from 2 on |
| bag, sequence | left out of the list | as categorical; a list without a value is empty |
| cross | 0 (left out of a bag) if any part is missing | as categorical |
| text | an empty bag | never: every n-gram is hashed |
| gaps of a sequence | never | 1: a time that is missing, or not before the row's |

Missing are null, NaN and infinity, and the empty text; a text of spaces is a value. Known values
have ids from 2 on, in a vocabulary by falling frequency and then by their bytes.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from feature_store import sql
from feature_store.config import Config
from feature_store.declaration import Encoding, Neighbours, Part, Side, TimeUnit
from feature_store.id_inputs import Bag, Categorical, Cross, DatePart, History, Sequence, Text
from feature_store.inputs import Elapsed, Feature, Frequency, Numeric, TargetEncoding, Vector
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
    "Cross",
    "DatePart",
    "Elapsed",
    "Encoding",
    "Feature",
    "FeatureSet",
    "Frequency",
    "History",
    "IdField",
    "Label",
    "Layout",
    "Numeric",
    "Part",
    "Sequence",
    "Side",
    "TargetEncoding",
    "Text",
    "TimeUnit",
    "Vector",
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
    derived: dict[str, str] = {}
    """Columns that features may read besides the raw ones: each a SQL expression over raw columns
    that gives a row its value from that row alone (`price_per_night: price / NULLIF(nights, 0)`).
    Requests carry the raw columns."""
    selection: Path | None = None
    """A selected_features.parquet that a run wrote: values that it does not keep are out of
    vocabulary, and features of which it keeps nothing are left out."""
    grow_from: Literal["latest"] | NonNegativeInt | None = None
    """Number of an earlier version of the same table, or `latest`: vocabularies keep its values at
    their ids, and new values follow; where there is no version yet, `latest` begins anew."""
    refit_numbers: bool = False
    """With grow_from, fit buckets, moments and other learnt numbers to the new rows; else they stay
    as they were in that version, for features that are declared as they were."""

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
            {source_of(label): label.name for label in self.labels},
        )
        for feature in self.inputs:
            feature.check(neighbours)
        self._check_derived(neighbours.label_columns)
        if self.refit_numbers and self.grow_from is None:
            raise ValueError(
                "refit_numbers says what becomes of numbers under features.grow_from, which is"
                " absent; drop it or say which version to grow from"
            )
        return self

    def raw_columns(self, names: Iterable[str]) -> tuple[str, ...]:
        """The raw columns behind columns that features read: themselves, or what derives them."""
        raw: dict[str, None] = {}
        for name in names:
            text = self.derived.get(name)
            raw |= dict.fromkeys((name,) if text is None else sql.parse(text).columns)
        return tuple(raw)

    def _check_derived(self, label_columns: Mapping[str, str]) -> None:
        """Expressions must be of one row, over raw columns, and of no label's."""
        for name, text in self.derived.items():
            where = f"features.derived.{name}"
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{where}: a name is a letter followed by letters, digits, '_' and '-'"
                )
            try:
                columns = sql.parse(text).columns
            except sql.InvalidExpression as error:
                raise ValueError(f"{where}: {error}") from error
            for column in columns:
                if column in self.derived:
                    raise ValueError(
                        f"{where}: {text!r} reads {column!r}, which is derived itself; write out"
                        " what that computes"
                    )
                if column in label_columns:
                    raise ValueError(
                        f"{where}: {text!r} reads {column!r}, from which the label"
                        f" {label_columns[column]!r} comes: it would tell what is to be predicted"
                    )
        others = {what: getattr(self, what) for what in ("weight", "group", "timestamp")}
        others |= {f"labels ({name!r})": column for column, name in label_columns.items()}
        for feature in self.inputs:
            if isinstance(feature, Sequence) and feature.history is not None:
                others[f"inputs ({feature.name!r}, history.by)"] = feature.history.by
                source = source_of(self.feature(feature.of))
                others[f"inputs ({feature.name!r}, the source of {feature.of!r})"] = source
        for what, column in others.items():
            if column in self.derived:
                raise ValueError(
                    f"features.{what}: {column!r} is derived, and that must be a raw column;"
                    " derived columns are for what is encoded"
                )

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
    weighted: bool = False
    """The ids of a list have weights: a list of float32 beside them, of the same length."""
    gaps_of: str | None = None
    """Name of the sequence of which these are the gaps in time, position by position."""

    @property
    def weights(self) -> str:
        """The column of the weights, where there are any."""
        return f"{self.name}__weight"


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
    """The raw column a feature or label reads; a cross has none but those of its parts."""
    assert not isinstance(feature, Cross), f"{feature.name!r} is a cross"
    return feature.source or feature.name
