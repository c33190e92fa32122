"""The declared features that are ids: one a row, or several."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from feature_store.config import Config
from feature_store.declaration import (
    MAX_DISTINCT,
    Encoding,
    Input,
    Neighbours,
    Part,
    Side,
    TimeUnit,
)
from feature_store.names import nearest


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
    max_distinct: PositiveInt = MAX_DISTINCT
    """A training split with more distinct values is an error: they are all counted in memory before
    any is left out. Hash them instead, or raise this where memory allows (about 100 bytes each)."""


_OF_OWN_IDS = ("encoding", "min_count", "max_size", "max_distinct")
"""Settings of a bag that are of its own ids."""


class Bag(Input):
    """Any number of ids a row, without order (genres, tags); duplicates are kept."""

    kind: Literal["bag"] = "bag"
    name: str
    of: str | None = None
    """A categorical feature whose ids (vocabulary or hash, and embedding table) it shares, instead
    of having its own."""
    source: str | None = None
    side: Side = "context"
    encoding: Encoding = "vocabulary"
    min_count: PositiveInt = 1
    max_size: PositiveInt | None = None
    max_distinct: PositiveInt = MAX_DISTINCT
    separator: str = " "
    """Splits a text column; a list column is taken as it is."""
    max_length: PositiveInt | None = None
    """Keep only the first so many ids."""
    weights: str | None = None
    """Raw column with a list of numbers, one for each value of the source, not negative: a sum over
    the bag is then weighted, a mean divides by the sum of the weights (0 where that is 0)."""

    @model_validator(mode="after")
    def _own_ids_or_shared(self) -> "Bag":
        # By value: what was saved names every setting, also those that were never set.
        fields = {name: type(self).model_fields[name].default for name in _OF_OWN_IDS}
        own = {name for name, default in fields.items() if getattr(self, name) != default}
        if self.of is not None and own:
            raise ValueError(
                f"bag {self.name!r} shares the ids of {self.of!r}; set {', '.join(sorted(own))}"
                " there"
            )
        return self

    def check(self, neighbours: Neighbours) -> None:
        """`of` must be a categorical feature, and its columns of no other's name."""
        _check_columns(self, ["__weight"] if self.weights is not None else [], neighbours)
        categorical = neighbours.of_kind(Categorical)
        if self.of is not None and self.of not in categorical:
            raise ValueError(
                f"bag {self.name!r} is of {self.of!r}, which is not a categorical feature;"
                f" {nearest(self.of, categorical)}"
            )


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
    weights: str | None = None
    """Raw column with a list of numbers, one for each value of the source, not negative; each
    position's vector is multiplied by its own. With `history` it is the column of the log that
    holds one number a row, and a raw row to be scored has the list under `<source>__weight`."""
    gaps: bool | Annotated[int, Field(ge=2, le=64)] = False
    """Add the ids `<name>__gap`: how long before the row each value was, in so many buckets, whose
    bounds double: under 1 second, under 3, under 7 ... (true: 32 buckets, up to 34 years). Needs
    features.timestamp, also in a row to be scored, and the times under `<source>__time`: a history
    gathers them, else it is a raw column."""
    time_unit: TimeUnit = "s"
    """Unit of times that are numbers, for gaps."""

    def check(self, neighbours: Neighbours) -> None:
        """`of` must be a categorical feature, and a history needs a time and known labels."""
        categorical = neighbours.of_kind(Categorical)
        if self.of not in categorical:
            raise ValueError(
                f"sequence {self.name!r} is a history of {self.of!r}, which is not a"
                f" categorical feature; {nearest(self.of, categorical)}"
            )
        suffixes = ["__weight"] * (self.weights is not None) + ["__gap"] * bool(self.gaps)
        _check_columns(self, suffixes, neighbours)
        if self.gaps and neighbours.timestamp is None:
            raise ValueError(f"sequence {self.name!r} has gaps, so features.timestamp is needed")
        if self.history is None:
            return
        if neighbours.timestamp is None:
            raise ValueError(
                f"sequence {self.name!r} has a history, so features.timestamp is needed"
            )
        if self.weights is not None and self.history.events is not None:
            raise ValueError(
                f"sequence {self.name!r}: weights of a history from {self.history.events!r} are not"
                " known; drop them, or the history's events"
            )
        where = self.history.where
        of_log = self.history.events is None
        if of_log and where is not None and where not in neighbours.labels:
            raise ValueError(
                f"sequence {self.name!r}: history.where names the label {where!r};"
                f" {nearest(where, list(neighbours.labels))}"
            )


def _check_columns(feature: Bag | Sequence, suffixes: list[str], neighbours: Neighbours) -> None:
    for suffix in suffixes:
        if (taken := f"{feature.name}{suffix}") in (*neighbours.features, *neighbours.labels):
            raise ValueError(
                f"{feature.kind} {feature.name!r} has a column {taken!r}, which is the name of"
                " another feature or label; rename one of them"
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


class Cross(Input):
    """A combination of the values of two or more features, as an id of its own.

    Parts are categorical features, date parts, numbers with buckets, and at most one bag: the
    cross of a bag is a bag, of each of its values with the other parts. What is combined is the raw
    value (of a number: its bucket), so the parts' own vocabularies do not matter. A cross is
    missing where any part is: half a combination is no combination.
    """

    kind: Literal["cross"] = "cross"
    name: str
    of: Annotated[tuple[str, ...], Field(min_length=2)]
    """Names of features."""
    side: Side = "context"
    encoding: Encoding = "vocabulary"
    min_count: PositiveInt = 1
    max_size: PositiveInt | None = None
    max_distinct: PositiveInt = MAX_DISTINCT
    num_buckets: PositiveInt | None = None
    """Of encoding 'hash': so many ids besides those of missing and unseen values; None: the 64-bit
    hash itself, of which embeddings make rows."""

    @model_validator(mode="after")
    def _buckets_of_hashes(self) -> "Cross":
        if self.num_buckets is not None and self.encoding != "hash":
            raise ValueError(
                f"cross {self.name!r}: num_buckets is for encoding 'hash'; for a vocabulary set"
                " max_size"
            )
        return self

    def check(self, neighbours: Neighbours) -> None:
        """Parts must be known, have ids, and differ; at most one of them may be a bag."""
        for part in self.of:
            if part not in neighbours.features:
                known = neighbours.of_kind(Categorical, DatePart, Bag)
                raise ValueError(
                    f"cross {self.name!r} is of {part!r}, which is no feature;"
                    f" {nearest(part, known)}"
                )
            if self.of.count(part) > 1:
                raise ValueError(f"cross {self.name!r} names {part!r} twice")
            feature = neighbours.features[part]
            if feature.kind == "numeric" and feature.num_buckets is None:
                raise ValueError(
                    f"cross {self.name!r} is of the number {part!r}, of which no two need be equal;"
                    f" set num_buckets on {part!r}, or cross a feature that has it"
                )
            if feature.kind not in ("numeric", "categorical", "date_part", "bag"):
                raise ValueError(
                    f"cross {self.name!r} is of {part!r}, a {feature.kind}; expected categorical"
                    " features, date parts, numbers with num_buckets or one bag"
                )
        bags = [part for part in self.of if neighbours.features[part].kind == "bag"]
        if len(bags) > 1:
            raise ValueError(
                f"cross {self.name!r} is of the bags {' and '.join(map(repr, bags))}; cross at most"
                " one bag, or join the values in the source"
            )


class Text(Input):
    """A text as the bag of its hashed n-grams, of words or of characters.

    The text is brought to Unicode's normal form NFC (so that an accented letter is one, however it
    was typed) and to lower case. Words are runs of letters, digits, marks and '_'. Characters are
    code points, and every run of white space counts as one space. An empty or missing text is an
    empty bag; no n-gram is ever unseen. The n-grams of a size stand in the order of the text,
    sizes in the order declared; one that occurs twice is there twice.
    """

    kind: Literal["text"] = "text"
    name: str
    source: str | None = None
    """Raw column of text."""
    side: Side = "context"
    unit: Literal["word", "character"] = "word"
    ngrams: Annotated[tuple[Annotated[int, Field(ge=1, le=8)], ...], Field(min_length=1)] = (1,)
    """Sizes of the n-grams: [1, 2] for single words and pairs of neighbours."""
    lowercase: bool = True
    num_buckets: PositiveInt | None = None
    """So many ids besides those of missing and unseen values; None: the 64-bit hash itself, of
    which embeddings make rows."""
    max_length: PositiveInt | None = None
    """Keep only the first so many n-grams."""
