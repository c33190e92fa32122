"""What may be computed of a key's earlier events: the declaration, in the user's words.

`feature_store.windows` computes it.
"""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, model_validator

from feature_store.config import Config
from feature_store.names import NAME

_DURATION = re.compile(r"(\d+)(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_MAX_SECONDS = (2**63 - 1) // 10**9  # as int64 nanoseconds


def seconds_of(duration: str) -> int:
    """The seconds of a duration such as `90s`, `15m`, `1h`, `30d` or `2w`.

    Raises:
        ValueError: It is none, or longer than 292 years.
    """
    found = _DURATION.fullmatch(duration)
    if found is None:
        raise ValueError(
            f"expected a number and a unit (s, m, h, d or w), such as 1h or 30d; found {duration!r}"
        )
    seconds = int(found[1]) * _SECONDS[found[2]]
    if seconds > _MAX_SECONDS:
        raise ValueError(f"{duration} is longer than 292 years; leave it out for all time")
    return seconds


def _duration(duration: str) -> str:
    seconds_of(duration)
    return duration


def _length(duration: str) -> str:
    if not seconds_of(duration):
        raise ValueError("a window needs a length; leave it out for all time")
    return duration


Duration = Annotated[str, AfterValidator(_duration)]
"""A number and a unit: s, m(inutes), h, d or w; may be zero."""
Window = Annotated[str, AfterValidator(_length)]
"""A duration above zero."""


class Aggregate(Config):
    """The base of what is computed."""

    name: str
    """The raw column that is added to the rows."""
    window: Window | None = None
    """How far back events count, such as 1h or 30d; all time if absent."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Labels or columns that say yes or no of an event."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """All labels or columns of an event that are read."""
        return self.flags


class Counter(Aggregate):
    """How many events there were (int)."""

    where: str | None = None
    """Only those for which this label or column is 1 (or true)."""

    @property
    def flags(self) -> tuple[str, ...]:
        """`where`, if there is one."""
        return () if self.where is None else (self.where,)


class Sum(Aggregate):
    """The sum of a number of the events (float); 0.0 without any."""

    of: str
    """Column of numbers; missing, NaN and infinite ones add nothing."""
    decimals: Annotated[int, Field(ge=0, le=12)] = 6
    """Digits after the point that are kept: sums are exact in them, in whatever order."""

    @property
    def reads(self) -> tuple[str, ...]:
        """What is summed."""
        return (self.of,)


class Rate(Aggregate):
    """(hits + strength * prior) / (events + strength), as float; null where that is 0 / 0."""

    of: str
    """Label or column that is 1 (or true) for a hit; events without it do not count."""
    prior: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """The rate of a key without events."""
    strength: NonNegativeFloat = 0.0
    """How many events the prior weighs as much as."""

    @property
    def flags(self) -> tuple[str, ...]:
        """What tells a hit."""
        return (self.of,)


class Last(Aggregate):
    """The value of the latest event that has one; null without any.

    Of several at one instant, the last in the source.
    """

    of: str
    """Column of any type; null, NaN and the empty text are no values."""

    @property
    def reads(self) -> tuple[str, ...]:
        """What is kept."""
        return (self.of,)


class Recency(Aggregate):
    """Seconds since the latest event (float); null without any."""

    where: str | None = None
    """Only events for which this label or column is 1 (or true)."""

    @property
    def flags(self) -> tuple[str, ...]:
        """`where`, if there is one."""
        return () if self.where is None else (self.where,)


class Windows(Config):
    """What is known of a key's earlier events: one raw column per aggregate, added to the rows."""

    by: str
    """Column of the events and of the rows with the key; null, NaN and the empty text are none."""
    where: str | None = None
    """Only events for which this label or column is 1 (or true) count at all."""
    counters: tuple[Counter, ...] = ()
    sums: tuple[Sum, ...] = ()
    rates: tuple[Rate, ...] = ()
    last: tuple[Last, ...] = ()
    recency: tuple[Recency, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> "Windows":
        names = self.names
        for name in names:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} cannot name a column: a name is a letter followed by letters,"
                    " digits, '_' and '-'"
                )
            if names.count(name) > 1:
                raise ValueError(f"two columns are named {name!r}; names must be unique")
        return self

    @property
    def aggregates(self) -> tuple[Aggregate, ...]:
        """All of them, in the order of the columns that they give."""
        return (*self.counters, *self.sums, *self.rates, *self.last, *self.recency)

    @property
    def names(self) -> list[str]:
        """The columns that are added."""
        return [aggregate.name for aggregate in self.aggregates]

    @property
    def longest_seconds(self) -> int | None:
        """How far back any event counts; None for all time."""
        lengths = [aggregate.window for aggregate in self.aggregates]
        if None in lengths:
            return None
        return max((seconds_of(length) for length in lengths if length is not None), default=0)

    def only(self, names: Sequence[str]) -> "Windows":
        """The same with no other columns than these."""
        return Windows(
            by=self.by,
            where=self.where,
            counters=tuple(a for a in self.counters if a.name in names),
            sums=tuple(a for a in self.sums if a.name in names),
            rates=tuple(a for a in self.rates if a.name in names),
            last=tuple(a for a in self.last if a.name in names),
            recency=tuple(a for a in self.recency if a.name in names),
        )

    def reads(self) -> dict[str, str]:
        """Columns or labels of the events that are read, besides key and time, and for what."""
        flags = {name: f"where of the windows by {self.by!r}" for name in [self.where] if name}
        return flags | {name: f"the column {a.name!r}" for a in self.aggregates for name in a.reads}
