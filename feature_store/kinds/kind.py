"""What the project must know of a kind of features, whatever the kind."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import polars as pl

from feature_store import vocabulary
from feature_store.declaration import MAX_DISTINCT
from feature_store.features import FIRST_ID, MISSING_ID, Feature, FeatureSet, IdField, source_of

Schema = Mapping[str, pl.DataType]
F = TypeVar("F", bound=Feature)


@dataclass(frozen=True, eq=False)
class Learned:
    """What features learnt from the training split, each by the feature's name."""

    vocabularies: Mapping[str, pl.Series] = field(default_factory=dict)
    """Texts in the order of their ids, which start at FIRST_ID."""
    boundaries: Mapping[str, list[float]] = field(default_factory=dict)
    """Strictly rising cuts of a number, after log1p."""
    moments: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Mean and standard deviation of a number, after log1p."""
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """Whatever else a kind keeps, as a table."""

    @cached_property
    def indexes(self) -> dict[str, pl.Enum]:
        """The vocabularies as they are looked up; from `vocabulary.index`."""
        return {name: vocabulary.index(values) for name, values in self.vocabularies.items()}


@dataclass(frozen=True)
class Counts:
    """Texts whose counts in the training split make a vocabulary."""

    texts: pl.Expr
    """One text a value, exploded where a row has several; null and "" are not counted."""
    min_count: int = 1
    max_size: int | None = None
    max_distinct: int = MAX_DISTINCT
    """More distinct texts are an error."""


@dataclass(frozen=True)
class Fault:
    """Something that no raw row may have."""

    what: str
    """What may have it, for a message."""
    expected: str
    column: str
    """The raw column to look at."""
    is_bad: pl.Expr
    """Never null."""


@dataclass(frozen=True)
class Quantiles:
    """Numbers at whose quantiles in the training split a feature is cut."""

    values: pl.Expr
    """Null where there is none."""
    num_buckets: int


class Kind(ABC, Generic[F]):
    """One kind: the raw columns it reads, what it learns, how it is encoded, and as what.

    Kinds hold no state. Methods take the feature and, as crosses and sequences refer to other
    features, the feature set it is of.
    """

    def sources(self, feature: F, features: FeatureSet) -> tuple[str, ...]:
        """The raw columns that scoring must have: what encoding reads, or what derives it."""
        return features.raw_columns(self.reads(feature, features))

    def reads(self, feature: F, features: FeatureSet) -> tuple[str, ...]:
        """The columns that encoding reads: raw ones, and those of `features.derived`."""
        return (source_of(feature),)

    def logged(self, feature: F, features: FeatureSet) -> dict[str, str]:
        """The raw columns that a build reads from its sources, and what needs each."""
        return dict.fromkeys(self.sources(feature, features), f"the feature {feature.name!r}")

    def separators(self, feature: F) -> dict[str, str]:
        """By raw column that may hold a list as text: what stands between its elements."""
        return {}

    def hashed(self, feature: F) -> bool:
        """Whether its own ids are 64-bit hashes, of which a table needs to be told its size."""
        return False

    def moments(self, feature: F, features: FeatureSet, schema: Schema) -> pl.Expr | None:
        """Numbers of which mean and deviation are learnt, null where there is none."""
        return None

    def quantiles(self, feature: F, features: FeatureSet, schema: Schema) -> Quantiles | None:
        """What is cut into buckets."""
        return None

    def counts(
        self, feature: F, features: FeatureSet, schema: Schema, learned: Learned
    ) -> Counts | None:
        """What its vocabulary is made of; `learned` has the moments and boundaries of all."""
        return None

    def table(
        self, feature: F, features: FeatureSet, train: pl.LazyFrame, learned: Learned
    ) -> pl.LazyFrame | None:
        """Whatever else it learns; kept in `Learned.tables`.

        Args:
            feature: The feature.
            features: The set it is of.
            train: Raw columns of the training rows, those of the labels too.
            learned: Has the moments and boundaries of all.
        """
        return None

    def refers(self, feature: F) -> tuple[str, ...]:
        """Names of the other features without which it cannot be."""
        return ()

    def crossed(
        self, feature: F, features: FeatureSet, schema: Schema, learned: Learned
    ) -> pl.Expr | None:
        """Its value as text, for crosses; None: it cannot be crossed.

        Null where missing; of a bag, the list of its values, without nulls.
        """
        return None

    def faults(self, feature: F, features: FeatureSet, schema: Schema) -> list["Fault"]:
        """What makes a raw row unusable: builds reject it, servers the request.

        Only of columns that are in the schema: the rows of a log lack those that a build adds.
        """
        return []

    @abstractmethod
    def encode(
        self, feature: F, features: FeatureSet, schema: Schema, learned: Learned
    ) -> list[pl.Expr]:
        """The encoded columns: those of `id_fields`, or those of `dense`.

        Also called before anything is learnt, to see whether raw columns of these types can be
        read: then `learned` is empty, and the expressions are not run.

        Raises:
            SchemaMismatch: A raw column is of a type that it cannot read.
        """

    def id_fields(self, feature: F, features: FeatureSet, learned: Learned) -> tuple[IdField, ...]:
        """The id columns, in the order of `encode`; empty for numbers.

        Before anything is learnt, all but the cardinality is right.
        """
        return ()

    def dense(self, feature: F) -> tuple[str, ...]:
        """Names of the float32 columns, in the order of `encode`; empty for ids."""
        return ()


def vocabulary_size(name: str, learned: Learned) -> int | None:
    """Ids of a feature with a vocabulary; None for one without."""
    values = learned.vocabularies.get(name)
    return None if values is None else len(values) + FIRST_ID


def id_text(ids: pl.Expr) -> pl.Expr:
    """Ids as text; null where missing."""
    return pl.when(ids != MISSING_ID).then(ids.cast(pl.String))


def as_list(column: str, schema: Schema) -> pl.Expr:
    """A raw column of lists, those of one length too, as lists."""
    lists = pl.col(column)
    return lists.arr.to_list() if isinstance(schema[column], pl.Array) else lists


def list_length(column: str, schema: Schema) -> pl.Expr:
    """How many elements a raw column's lists have; null for no list."""
    return as_list(column, schema).list.len()
