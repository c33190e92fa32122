"""The declared features: a class per kind, with what a user may set.

All else of a kind is in `feature_store.kinds`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, PositiveInt, model_validator

from feature_store.config import Config
from feature_store.names import nearest

Side = Literal["user", "item", "context"]
Encoding = Literal["vocabulary", "hash"]
Part = Literal["minute", "hour", "weekday", "day", "month", "year"]
TimeUnit = Literal["s", "ms", "us", "ns"]


@dataclass(frozen=True)
class Neighbours:
    """What else a feature set declares, for a feature that refers to it."""

    features: Mapping[str, "Feature"]
    """By name."""
    labels: tuple[str, ...]
    timestamp: str | None
    """Raw column with the event time."""

    def of_kind(self, *kinds: type["Input"]) -> list[str]:
        """Names of the features of some kinds."""
        return [name for name, feature in self.features.items() if isinstance(feature, kinds)]


class Input(Config):
    """The base of every kind."""

    def check(self, neighbours: Neighbours) -> None:
        """Check what the feature says of others; ValueError tells what does not fit."""


class Numeric(Input):
    """A number: kept as float32, or cut at quantiles of the training split into ids."""

    kind: Literal["numeric"] = "numeric"
    name: str
    source: str | None = None
    """Raw column; the feature's name if absent."""
    side: Side = "context"
    log1p: bool = False
    """sign(x) * log(1 + |x|) before anything else."""
    standardize: bool = False
    """Subtract the mean and divide by the standard deviation of the training split."""
    num_buckets: Annotated[int, Field(ge=2)] | None = None
    """Turn the number into one of so many quantile buckets of the training split (an id)."""
    default: FiniteFloat = 0.0
    """Stands for a missing, NaN or infinite value, after log1p and standardisation."""
    indicator: bool = False
    """Add the number `<name>__missing`: 1.0 where the raw value was missing, else 0.0."""

    @model_validator(mode="after")
    def _bucketed_or_scaled(self) -> "Numeric":
        if self.num_buckets is not None and (self.standardize or self.indicator):
            raise ValueError(
                f"numeric feature {self.name!r}: num_buckets makes ids (a missing value has its"
                " own), so standardize and indicator do not apply; drop them or num_buckets"
            )
        return self


class Categorical(Input):
    """One id a row."""

    kind: Literal["categorical"] = "categorical"
    name: str
    source: str | None = None
    side: Side = "context"
    encoding: Encoding = "vocabulary"
    min_count: PositiveInt = 1
    """Values seen less often in the training split are out of vocabulary."""
    max_size: PositiveInt | None = None
    """Keep only so many of the most frequent values."""


class Bag(Input):
    """Any number of ids a row, without order (genres, tags); duplicates are kept."""

    kind: Literal["bag"] = "bag"
    name: str
    source: str | None = None
    side: Side = "context"
    encoding: Encoding = "vocabulary"
    min_count: PositiveInt = 1
    max_size: PositiveInt | None = None
    separator: str = " "
    """Splits a text column; a list column is taken as it is."""
    max_length: PositiveInt | None = None
    """Keep only the first so many ids."""


class History(Config):
    """Where a sequence's past comes from when the source has one event a row."""

    by: str
    """Raw column whose rows form one history, usually the user."""
    where: str | None = None
    """Name of a label: only past rows with that label 1 enter the history; all rows if absent."""
    events: str | None = None
    """Name of one of `data.events`: its events make the history, not the rows themselves. The table
    has the column that the `of` feature reads, and `where` names a column of it."""


class Sequence(Input):
    """Past values of another feature, oldest first, at most `max_length` of the most recent.

    With `history`, the build gathers it from the log: rows of the same `by` value with a strictly
    earlier timestamp, so neither the present row nor one of the same instant is ever included.
    Without it, `source` is a raw column that holds the list (or a separated text).
    In batch scoring and in the server the raw row always carries the list itself, under `source`.
    """

    kind: Literal["sequence"] = "sequence"
    name: str
    of: str
    """The categorical feature whose ids (vocabulary or hash, and embedding table) it shares."""
    source: str | None = None
    side: Side = "user"
    separator: str = " "
    max_length: PositiveInt = 50
    history: History | None = None

    def check(self, neighbours: Neighbours) -> None:
        """`of` must be a categorical feature, and a history needs a time and known labels."""
        categorical = neighbours.of_kind(Categorical)
        if self.of not in categorical:
            raise ValueError(
                f"sequence {self.name!r} is a history of {self.of!r}, which is not a"
                f" categorical feature; {nearest(self.of, categorical)}"
            )
        if self.history is None:
            return
        if neighbours.timestamp is None:
            raise ValueError(
                f"sequence {self.name!r} has a history, so features.timestamp is needed"
            )
        where = self.history.where
        of_log = self.history.events is None
        if of_log and where is not None and where not in neighbours.labels:
            raise ValueError(
                f"sequence {self.name!r}: history.where names the label {where!r};"
                f" {nearest(where, list(neighbours.labels))}"
            )


class DatePart(Input):
    """A part of a timestamp in UTC, as an id."""

    kind: Literal["date_part"] = "date_part"
    name: str
    source: str
    side: Side = "context"
    part: Part
    unit: TimeUnit = "s"
    """Unit of an integer column; ignored for a datetime column."""


Feature = Annotated[Numeric | Categorical | Bag | Sequence | DatePart, Field(discriminator="kind")]
"""A feature of any kind; a new kind is a class here and a line in `feature_store.kinds.KINDS`."""
