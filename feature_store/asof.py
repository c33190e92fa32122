"""Point in time: what was known of a user just before each event.

A history holds the rows of the same `by` value with a strictly earlier timestamp, so neither the
present row nor another of the same instant, let alone a later one, can enter it. Every row's past
is a slice of one array of events sorted by (by, timestamp, row): two integers a row say where it
lies, and the lists themselves are made batch by batch as the table streams through.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
import pyarrow as pa

from feature_store.columns import SchemaMismatch, require_columns, time_number
from feature_store.encoding import label_value, row_key
from feature_store.features import (
    MISSING_ID,
    ROW_COLUMN,
    FeatureSet,
    History,
    Label,
    Sequence,
    source_of,
)
from feature_store.kinds.lists import times_of, weights_of
from feature_store.windows import Past

Frame = TypeVar("Frame", pl.LazyFrame, pl.DataFrame)


def histories(raw: Frame, feature_set: FeatureSet) -> Frame:
    """The raw rows with one list column more per sequence that has a history.

    The column is named by the sequence's source, has the type of the `of` feature's raw column, is
    oldest first (ties in time in source order) and holds at most `max_length` of the most recent
    values. Rows without a value, `by` or timestamp enter no history; rows without a `by` or a
    timestamp have an empty one. Null, NaN and the empty text are no value and no `by`. A sequence
    with gaps gets the times of its values as a second list column, one with weights the weights.

    Args:
        raw: All rows of the log, with `__row`. A lazy frame must give the same rows in the same
            order whenever it is read: it is read once here, for the columns of the histories.
        feature_set: The declared features.

    Raises:
        SchemaMismatch: A column is missing or of a wrong type, or a history's column is already
            there.
    """
    sequences = [f for f in feature_set.inputs if isinstance(f, Sequence) and _is_of_log(f)]
    if not sequences:
        return raw
    log = _log(raw.lazy(), feature_set, sequences)
    orders = {by: _Order(log, by) for by in dict.fromkeys(_history(s).by for s in sequences)}
    slices = [_past(log, orders[_history(s).by], s) for s in sequences]
    result = _with_lists(raw.lazy(), slices)
    return result.collect() if isinstance(raw, pl.DataFrame) else result


def event_histories(
    raw: pl.LazyFrame, queries: pl.DataFrame, events: pl.DataFrame, sequences: Items[Sequence]
) -> pl.LazyFrame:
    """The raw rows with one list column more per sequence, gathered from a table of events.

    Otherwise as `histories`, of which this is the part where the past lies in another table.

    Args:
        raw: The rows.
        queries: `KEY` and `TIME` of each of them (see `feature_store.windows`).
        events: `KEY` and `TIME`, per sequence `value <name>`, null where nothing enters, and if any
            has gaps, `STAMP`.
        sequences: Those whose history is of these events.
    """
    past = Past(queries, events)
    found: list[_Slices] = []
    for sequence in sequences:
        present = events.get_column(f"value {sequence.name}").is_not_null()
        enters = present.gather(past.order).to_numpy()
        before = np.concatenate([[0], np.cumsum(enters)])
        end = before[past.end]
        begin = np.maximum(before[past.begin], end - sequence.max_length)
        values = _entered(sequence, events, past.order[enters])
        found.append(_Slices(values, begin, end - begin))
    return _with_lists(raw, found)


STAMP = "stamp"
"""The time of an event, in the type of the rows' raw time."""


@dataclass(frozen=True)
class _Slices:
    """What enters a history, sorted, and which slice of it each raw row gets."""

    values: dict[str, pl.Series]
    """By column that becomes a list."""
    begin: np.ndarray
    length: np.ndarray


def _entered(sequence: Sequence, log: pl.DataFrame, places: np.ndarray) -> dict[str, pl.Series]:
    """What becomes the lists, of the events in some places of the log."""
    columns = {source_of(sequence): f"value {sequence.name}"}
    if sequence.gaps:
        columns[times_of(sequence)] = STAMP
    if sequence.weights is not None:
        columns[weights_of(sequence)] = f"weight {sequence.name}"
    return {name: log.get_column(column).gather(places) for name, column in columns.items()}


def _with_lists(raw: pl.LazyFrame, slices: Items[_Slices]) -> pl.LazyFrame:
    """The rows with the lists that slices cut out."""
    bounds: dict[str, np.ndarray] = {}
    lists: list[pl.Expr] = []
    for number, cut in enumerate(slices):
        names = [f"__begin {number}", f"__length {number}"]
        bounds |= dict(zip(names, (cut.begin, cut.length), strict=True))
        for column, values in cut.values.items():
            # The one Python function on the way: numpy and Arrow on whole batches, never on rows.
            gathered = pl.map_batches(
                names, _gather(values), return_dtype=pl.List(values.dtype), is_elementwise=True
            )
            lists.append(gathered.alias(column))
    wide = pl.concat([raw, pl.DataFrame(bounds).lazy()], how="horizontal")
    return wide.with_columns(lists).drop(list(bounds))


class _Order:
    """The rows of a log by (by, time, row), and where each one's user and instant begin."""

    def __init__(self, log: pl.DataFrame, by: str) -> None:
        users = log.get_column(f"by {by}").to_numpy()
        times = log.get_column("time").fill_null(0).to_numpy()
        # Stable radix and merge sorts of whole columns: five times as quick as a sort of tuples.
        self.rows = np.lexsort((log.get_column(ROW_COLUMN).to_numpy(), times, users))
        new_user = _changes(users[self.rows])
        self.user_starts = _starts(new_user)
        self.instant_starts = _starts(new_user | _changes(times[self.rows]))
        timed = log.get_column("time").is_not_null().to_numpy()
        self.usable = (timed & (users != MISSING_ID))[self.rows]


def _past(log: pl.DataFrame, order: _Order, sequence: Sequence) -> _Slices:
    enters = log.get_column(f"enters {sequence.name}").gather(order.rows).to_numpy() & order.usable
    before = np.cumsum(enters) - enters
    end = before[order.instant_starts]
    begin = np.maximum(before[order.user_starts], end - sequence.max_length)
    length = np.where(order.usable, end - begin, 0)
    begin_by_row, length_by_row = np.empty_like(begin), np.empty_like(length)
    begin_by_row[order.rows], length_by_row[order.rows] = begin, length
    values = _entered(sequence, log, order.rows[enters])
    return _Slices(values, begin_by_row, length_by_row)


def _gather(values: pl.Series) -> Callable[[Items[pl.Series]], pl.Series]:
    """From begins and lengths to the list column of the values they cut out."""

    def lists(bounds: Items[pl.Series]) -> pl.Series:
        begin, length = (bound.to_numpy() for bound in bounds)
        offsets = np.concatenate([[0], np.cumsum(length)])
        index = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], length)
        flat = values.gather(index).to_arrow(compat_level=pl.CompatLevel.newest())
        cut = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat)
        return pl.Series(bounds[0].name, cut, dtype=pl.List(values.dtype))

    return lists


def _changes(values: np.ndarray) -> np.ndarray:
    """True where a value differs from the one before it, and at the first."""
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    return changes


def _starts(changes: np.ndarray) -> np.ndarray:
    """For every position, the last position at or before it where there was a change."""
    return np.maximum.accumulate(np.where(changes, np.arange(len(changes)), 0))


def _log(raw: pl.LazyFrame, feature_set: FeatureSet, sequences: Items[Sequence]) -> pl.DataFrame:
    """What histories need of the raw rows: `by`, time, values, and whether each may enter."""
    schema = raw.collect_schema()
    assert feature_set.timestamp is not None, "FeatureSet demands a timestamp for histories"
    _check(schema, feature_set, sequences)
    time, _ = time_number(feature_set.timestamp, schema[feature_set.timestamp])
    chosen = {ROW_COLUMN: pl.col(ROW_COLUMN), "time": time}
    if any(sequence.gaps for sequence in sequences):
        chosen[STAMP] = pl.col(feature_set.timestamp)
    for sequence in sequences:
        if sequence.weights is not None:
            chosen[f"weight {sequence.name}"] = pl.col(sequence.weights)
        by = _history(sequence).by
        value, enters = entering(sequence, feature_set, schema)
        chosen[f"by {by}"] = row_key(by, schema[by])
        chosen[f"value {sequence.name}"] = value
        chosen[f"enters {sequence.name}"] = enters
    expressions = [expression.alias(name) for name, expression in chosen.items()]
    return raw.select(expressions).collect(engine="streaming")


def entering(
    sequence: Sequence, feature_set: FeatureSet, schema: Mapping[str, pl.DataType]
) -> tuple[pl.Expr, pl.Expr]:
    """What a row would add to a history, and whether it does if it has a `by` and a time.

    Args:
        sequence: One with a history.
        feature_set: The declared features.
        schema: Names and types of the raw rows.
    """
    item = source_of(feature_set.feature(sequence.of))
    value, present = categorical_value(item, schema[item])
    label = _label(feature_set, sequence)
    if label is not None:
        present &= (label_value(label, schema[source_of(label)]) == 1.0).fill_null(False)
    return value, present


def categorical_value(name: str, dtype: pl.DataType) -> tuple[pl.Expr, pl.Expr]:
    """A categorical raw value, and whether there is one: not null, NaN or the empty text."""
    value = pl.col(name)
    if isinstance(dtype, pl.Categorical | pl.Enum):
        value = value.cast(pl.String)
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return value, (value != "").fill_null(False)
    if dtype.is_float():
        return value, value.is_finite().fill_null(False)
    return value, value.is_not_null()


def _check(
    schema: Mapping[str, pl.DataType], feature_set: FeatureSet, sequences: Items[Sequence]
) -> None:
    needed = {ROW_COLUMN: "the log", str(feature_set.timestamp): "features.timestamp"}
    for sequence in sequences:
        label = _label(feature_set, sequence)
        needed[_history(sequence).by] = f"history.by of the sequence {sequence.name!r}"
        needed[source_of(feature_set.feature(sequence.of))] = f"the sequence {sequence.name!r}"
        if sequence.weights is not None:
            needed[sequence.weights] = f"the weights of the sequence {sequence.name!r}"
        if label is not None:
            needed[source_of(label)] = f"history.where of the sequence {sequence.name!r}"
    require_columns(schema, needed)
    written: set[str] = set()
    for sequence in sequences:
        names = [source_of(sequence)]
        if sequence.gaps:
            names.append(times_of(sequence))
        if sequence.weights is not None:
            names.append(weights_of(sequence))
        for name in names:
            if name in schema or name in written:
                raise SchemaMismatch(
                    f"sequence {sequence.name!r} writes its history to the column {name!r}, which"
                    " is already there; give the sequence another source, or drop its history to"
                    " read that column"
                )
            written.add(name)


def _is_of_log(sequence: Sequence) -> bool:
    return sequence.history is not None and sequence.history.events is None


def _history(sequence: Sequence) -> History:
    assert sequence.history is not None, "only sequences with a history are gathered"
    return sequence.history


def _label(feature_set: FeatureSet, sequence: Sequence) -> Label | None:
    where = _history(sequence).where
    return next((label for label in feature_set.labels if label.name == where), None)
