"""Counts, sums, rates and last values of a key's events, as of strictly before each query's time.

An event counts for a query of the same key if it is earlier: one of the same instant does not, let
alone a later one. A window of a length w holds the events of [time - w, time). All is integer
arithmetic until the last step, so a value does not depend on which other keys or queries are
computed beside it: a build over a whole log and a server with one key's events get the same bits.

Both frames name the key `KEY` (int64, 0 where there is none) and the time `TIME` (int64, ns since
1970); `normalized` makes them, and the columns that aggregates read, of raw ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import polars as pl

from feature_store.aggregates import (
    Aggregate,
    Counter,
    Last,
    Rate,
    Recency,
    Sum,
    Windows,
    seconds_of,
)
from feature_store.columns import SchemaMismatch, require_columns, time_number
from feature_store.encoding import label_value, row_key
from feature_store.features import MISSING_ID, Label, TimeUnit

KEY = "__key"
TIME = "__time"

_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
PER_SECOND = _NANOSECONDS["s"]
"""Nanoseconds: times in `TIME` columns are in these."""
_FIRST, _LAST = -(2**63), 2**63 - 1
_LARGEST_FLOAT = float(2**63 - 1024)  # the last float64 that an int64 can hold


Data = TypeVar("Data", pl.LazyFrame, pl.DataFrame)
_Precedes = Callable[[np.ndarray, np.ndarray], np.ndarray]


def normalized(events: Data, windows: Windows, time: pl.Expr, labels: Sequence[Label] = ()) -> Data:
    """Raw events with `KEY`, `TIME` and what `window_columns` reads of them; the rest is dropped.

    Events without a key or a time, and those that `windows.where` leaves out, are left out here.

    Args:
        events: One event a row; ties in time count in the order of the rows.
        windows: What is to be computed.
        time: From `nanoseconds`.
        labels: `where` and a rate's `of` may name one of them instead of a column.

    Raises:
        SchemaMismatch: A column is missing or of a type that cannot be read.
    """
    schema = events.lazy().collect_schema()
    sources = {label.name: label for label in labels}
    needed = {name: what for name, what in windows.reads().items() if name not in sources}
    require_columns(schema, {windows.by: "the key of the events", **needed})
    columns = {KEY: row_key(windows.by, schema[windows.by]), TIME: time}
    for aggregate in windows.aggregates:
        for name in aggregate.flags:
            columns[f"is {name}"] = flag(name, schema, sources)
        if isinstance(aggregate, Sum):
            columns[f"number {aggregate.of}"] = _number(aggregate, schema[aggregate.of])
        if isinstance(aggregate, Last):
            columns[f"value {aggregate.of}"] = _value(aggregate.of, schema[aggregate.of])
    counted = [columns[KEY] != MISSING_ID, time.is_not_null()]
    if windows.where is not None:
        counted.append(flag(windows.where, schema, sources).fill_null(False))
    return events.filter(*counted).select(value.alias(name) for name, value in columns.items())


def nanoseconds_in(unit: TimeUnit) -> int:
    """How many of them make one of the unit."""
    return _NANOSECONDS[unit]


def nanoseconds(
    name: str, dtype: pl.DataType, unit: TimeUnit = "s", what: str = "features.timestamp"
) -> pl.Expr:
    """A raw time as int64 nanoseconds since 1970 (UTC); null, NaN and infinity stay null.

    Times outside the years 1677 to 2262 become the first or the last that an int64 can hold.

    Args:
        name: The raw column.
        dtype: Its type.
        unit: Of a number; datetimes and dates bring their own.
        what: Names it in errors.

    Raises:
        SchemaMismatch: The column holds neither times nor numbers.
    """
    number, own = time_number(name, dtype, what)
    factor = _NANOSECONDS[own or unit]
    if dtype.is_float() or dtype.is_decimal():
        scaled = (number * float(factor)).round()
        return scaled.clip(float(_FIRST), _LARGEST_FLOAT).cast(pl.Int64)
    limit = _LAST // factor
    return number.cast(pl.Int64, strict=False).clip(-limit, limit) * factor


def window_columns(windows: Windows, queries: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """One column per aggregate, one row per query, as of strictly before the query's time.

    A query without a key or a time, and one whose key has no events, gets counts and sums of 0,
    rates of the prior, and nulls.

    Args:
        windows: What to compute.
        queries: `KEY` and `TIME`, in any order.
        events: From `normalized`, in any order but for ties.

    Raises:
        ValueError: Numbers are too large to be summed to the declared decimals.
    """
    past = Past(queries, events)
    return pl.DataFrame([_column(a, past, events).alias(a.name) for a in windows.aggregates])


class Past:
    """For every query, which events of its key came before it: a slice of the sorted events.

    Args:
        queries: `KEY` and `TIME`.
        events: `KEY` and `TIME`, none of them missing.
        inclusive: Events of the query's own instant are among them too.
    """

    def __init__(
        self, queries: pl.DataFrame, events: pl.DataFrame, *, inclusive: bool = False
    ) -> None:
        keys, times = (events.get_column(name).to_numpy() for name in (KEY, TIME))
        self.order = np.lexsort((times, keys))
        """Places of the events, by key, time and place."""
        self.times = times[self.order]
        """Of the events in that order."""
        asked = queries.get_column(TIME)
        self.asked = asked.fill_null(_FIRST).to_numpy()
        first, end = _runs(keys[self.order], queries.get_column(KEY).to_numpy())
        end = np.where(asked.is_not_null().to_numpy(), end, first)
        self.begin = first
        """Per query, the first event of its key."""
        self.end = _search(self.times, first, end, self.asked, _not_after if inclusive else _before)
        """Per query, one past the last event that came before it."""
        self._since: dict[str | None, np.ndarray] = {None: first}

    def since(self, window: str | None) -> np.ndarray:
        """Per query, the first event that lies in the window."""
        if window not in self._since:
            length = seconds_of(str(window)) * PER_SECOND
            # Times so early that the window begins before the first of all.
            oldest = np.where(self.asked < _FIRST + length, _FIRST, self.asked - length)
            self._since[window] = _search(self.times, self.begin, self.end, oldest, _before)
        return self._since[window]

    def counted(self, enters: np.ndarray, window: str | None) -> np.ndarray:
        """Per query, the sum of an integer of the events in the window; `enters` is in `order`."""
        total = np.zeros(len(enters) + 1, np.int64)
        np.cumsum(enters, out=total[1:], dtype=np.int64)
        return total[self.end] - total[self.since(window)]

    def latest(self, enters: np.ndarray, window: str | None) -> pl.Series:
        """Per query, the place in `order` of the last event in the window that enters, or null."""
        places = np.full(len(enters) + 1, -1)
        np.maximum.accumulate(np.where(enters, np.arange(len(enters)), -1), out=places[1:])
        place = places[self.end]
        return pl.Series(place).set(pl.Series(place < self.since(window)), None)


def _column(aggregate: Aggregate, past: Past, events: pl.DataFrame) -> pl.Series:
    if isinstance(aggregate, Counter):
        return pl.Series(_count(aggregate, past, events))
    if isinstance(aggregate, Sum):
        return pl.Series(_total(aggregate, past, events))
    if isinstance(aggregate, Rate):
        hit = events.get_column(f"is {aggregate.of}").gather(past.order)
        hits = past.counted(hit.fill_null(False).to_numpy(), aggregate.window)
        seen = past.counted(hit.is_not_null().to_numpy(), aggregate.window)
        with np.errstate(invalid="ignore"):
            rate = (hits + aggregate.strength * aggregate.prior) / (seen + aggregate.strength)
        return pl.Series(rate).fill_nan(None)
    if isinstance(aggregate, Last):
        values = events.get_column(f"value {aggregate.of}").gather(past.order)
        return values.gather(past.latest(values.is_not_null().to_numpy(), aggregate.window))
    assert isinstance(aggregate, Recency), "there is no other kind of aggregate"
    place = past.latest(_enters(aggregate.where, past, events), aggregate.window)
    gone = pl.Series(past.asked) - pl.Series(past.times).gather(place)
    # Polars divides by a number as it multiplies by its reciprocal, sometimes: 15 s were not 15.0.
    seconds = pl.Series(gone.fill_null(0).to_numpy() / PER_SECOND)
    return seconds.set(gone.is_null(), None)


def _count(counter: Counter, past: Past, events: pl.DataFrame) -> np.ndarray:
    if counter.where is None:
        return past.end - past.since(counter.window)
    return past.counted(_enters(counter.where, past, events), counter.window)


def _total(total: Sum, past: Past, events: pl.DataFrame) -> np.ndarray:
    """In units of the last decimal: sums of floats would differ with the order of the events."""
    units_per_one = 10**total.decimals
    numbers = events.get_column(f"number {total.of}").gather(past.order).fill_null(0.0).to_numpy()
    units = np.rint(numbers * units_per_one)
    largest = np.abs(units).max(initial=0.0)
    if largest * np.max(past.end - past.begin, initial=1) >= 2**62:
        raise ValueError(
            f"the column {total.name!r} cannot sum {total.of!r} to {total.decimals} decimals: there"
            f" are numbers up to {largest / units_per_one:g}; set fewer decimals"
        )
    return past.counted(units.astype(np.int64), total.window) / units_per_one


def _enters(where: str | None, past: Past, events: pl.DataFrame) -> np.ndarray:
    if where is None:
        return np.ones(len(past.order), bool)
    return events.get_column(f"is {where}").fill_null(False).gather(past.order).to_numpy()


def _runs(sorted_keys: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per query, where the events of its key begin and end; an empty run where there are none."""
    if not len(sorted_keys):
        return np.zeros(len(asked), np.int64), np.zeros(len(asked), np.int64)
    starts = np.flatnonzero(np.diff(sorted_keys, prepend=sorted_keys[0]) != 0)
    starts = np.concatenate([[0], starts, [len(sorted_keys)]])
    keys = sorted_keys[starts[:-1]]
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    known = (keys[place] == asked) & (asked != MISSING_ID)
    return starts[place], np.where(known, starts[place + 1], starts[place])


def _before(event: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Whether an event was known at the query's time: of the same instant it was not."""
    return event < query


def _not_after(event: np.ndarray, query: np.ndarray) -> np.ndarray:
    return event <= query


def _search(
    times: np.ndarray, first: np.ndarray, end: np.ndarray, asked: np.ndarray, precedes: _Precedes
) -> np.ndarray:
    """Per query, the first place of its slice whose time does not precede what is asked.

    A binary search of all queries at once: as many steps as the longest slice has binary digits.
    """
    low, high = first, end
    longest = int(np.max(end - first, initial=0))
    for _ in range(longest.bit_length()):
        middle = (low + high) >> 1
        is_open = low < high
        goes_up = is_open & precedes(times[np.minimum(middle, len(times) - 1)], asked)
        low = np.where(goes_up, middle + 1, low)
        high = np.where(is_open & ~goes_up, middle, high)
    return low


def flag(name: str, schema: Mapping[str, pl.DataType], labels: Mapping[str, Label]) -> pl.Expr:
    """Whether a label or a column is 1 (or true); null where it is missing.

    Raises:
        SchemaMismatch: It is of a type that cannot tell.
    """
    if name in labels:
        label = labels[name]
        return label_value(label, schema[label.source or label.name]) == 1.0
    dtype = schema[name]
    if not (dtype.is_numeric() or isinstance(dtype, pl.Boolean)):
        raise SchemaMismatch(
            f"{name!r} has the type {dtype}, so it cannot tell which events count; expected a bool"
            " or a number that is 1 for them"
        )
    value = pl.col(name)
    return value if isinstance(dtype, pl.Boolean) else value == 1


def _number(total: Sum, dtype: pl.DataType) -> pl.Expr:
    if not (dtype.is_numeric() or isinstance(dtype, pl.Boolean)):
        raise SchemaMismatch(
            f"the column {total.name!r} sums {total.of!r}, which has the type {dtype}; expected a"
            " number"
        )
    value = pl.col(total.of).cast(pl.Float64)
    return pl.when(value.is_finite()).then(value)


def _value(name: str, dtype: pl.DataType) -> pl.Expr:
    """A raw value, null where it is NaN or the empty text."""
    value = pl.col(name)
    if isinstance(dtype, pl.String):
        return pl.when(value != "").then(value)
    return pl.when(value.is_not_nan()).then(value) if dtype.is_float() else value


def valid_at(queries: pl.DataFrame, rows: pl.DataFrame) -> pl.Series:
    """Per query, the place of the latest row of its key at or before its time; null without one.

    Args:
        queries: `KEY` and `TIME`.
        rows: `KEY` and `TIME` from which each is valid, none of them missing.
    """
    past = Past(queries, rows, inclusive=True)
    found = past.latest(np.ones(len(rows), bool), None)
    return pl.Series(past.order).gather(found)
