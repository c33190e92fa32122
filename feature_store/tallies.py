"""What is counted of encoded rows, column by column, in one pass and in bounded memory.

Ids of a vocabulary (or of any known number) are counted exactly, in two numbers each; the
vocabulary itself is larger. Hashed ids and numbers are counted by the summaries of
`feature_store.sketches`. Tallies of two sets of rows merge into that of both.

An *entry* is what is counted: the value of a row, each element of its list, and an empty list as
one missing entry.

Shapes: N rows, E entries, U distinct values, V ids, T tasks.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.features import (
    FIRST_ID,
    MISSING_ID,
    TIMESTAMP_COLUMN,
    UNSEEN_ID,
    IdField,
    Layout,
)
from feature_store.sketches import Array, HeavyHitters, HyperLogLog, NumberBins

BATCH_ROWS = 1 << 18
_INDICATOR = "__missing"
_COUNT_BY_PLACE = 1 << 21
"""Up to so many ids, counting into a place each is faster than finding the distinct ones first."""


@dataclass(frozen=True)
class Entries:
    """One column of some rows."""

    values_E: Array
    """int64 ids, or float32 numbers."""
    lengths_N: Array | None = None
    """Of lists; None where every row has one value."""
    missing_N: Array | None = None
    """Rows whose number was missing; None where nothing says so."""
    weights_E: Array | None = None
    """Of the elements of weighted lists."""

    def per_entry(self, rows_N: Array) -> Array:
        """What the rows have, once for every entry; the last axis is that of rows."""
        return rows_N if self.lengths_N is None else np.repeat(rows_N, self.lengths_N, axis=-1)


@dataclass(frozen=True)
class Rows:
    """Some encoded rows."""

    labels_TN: Array
    timestamps_N: Array
    columns: dict[str, Entries]

    def __len__(self) -> int:
        return len(self.timestamps_N)


class IdTally:
    """How often each id occurs, and with which labels.

    Args:
        cardinality: Ids are 0 .. cardinality - 1; None for hashes.
        num_tasks: Labels of a row.
    """

    def __init__(self, cardinality: int | None, num_tasks: int) -> None:
        self.cardinality = cardinality
        self.lengths = NumberBins(num_tasks)
        """Of lists; nothing in it for single ids."""
        self.weights = NumberBins(num_tasks)
        """Of their elements; nothing in it where they have none."""
        self.missing_rows = 0
        """Rows without a value: a missing id, or an empty list."""
        self.missing_T = np.zeros(num_tasks)
        self._rows_V = np.zeros(cardinality or 0, np.int64)
        self._positives_VT = np.zeros((cardinality or 0, num_tasks))
        self._hitters = HeavyHitters(num_tasks)
        self._distinct = HyperLogLog()
        self._entries = 0

    def add(self, entries: Entries, labels_TN: Array) -> None:
        """Take in the column of some rows with their labels."""
        ids_E, labels_TE = entries.values_E, entries.per_entry(labels_TN)
        if entries.lengths_N is None:
            missing_N = ids_E == MISSING_ID
            ids_E, labels_TE = ids_E[~missing_N], labels_TE[:, ~missing_N]
        else:
            missing_N = entries.lengths_N == 0
            self.lengths.add(entries.lengths_N.astype(np.float32), labels_TN)
        if entries.weights_E is not None:
            self.weights.add(entries.weights_E, labels_TE)
        self.missing_rows += int(missing_N.sum())
        self.missing_T += labels_TN[:, missing_N].sum(axis=1)
        self._entries += len(ids_E)
        if self.cardinality is not None and self.cardinality <= _COUNT_BY_PLACE:
            self._rows_V += np.bincount(ids_E, minlength=self.cardinality)
            for task, labels_E in enumerate(labels_TE):
                counted_V = np.bincount(ids_E, labels_E, minlength=self.cardinality)
                self._positives_VT[:, task] += counted_V
            return
        ids_U, rows_U, positives_UT = _distinct(ids_E, labels_TE)
        if self.cardinality is not None:
            self._rows_V[ids_U] += rows_U
            self._positives_VT[ids_U] += positives_UT
        else:
            self._hitters.add(ids_U, rows_U, positives_UT)
            self._distinct.add(ids_U)

    def merge(self, other: "IdTally") -> None:
        """Take in all that another one has counted."""
        self.lengths.merge(other.lengths)
        self.weights.merge(other.weights)
        self.missing_rows += other.missing_rows
        self.missing_T += other.missing_T
        self._entries += other._entries
        self._rows_V += other._rows_V
        self._positives_VT += other._positives_VT
        self._hitters.merge(other._hitters)
        self._distinct.merge(other._distinct)

    @property
    def error(self) -> int:
        """Entries that the count of an id may lack: hashed ids are not all kept."""
        return self._hitters.error

    @property
    def entries(self) -> int:
        """Values and missing ones, as the module says."""
        return self._entries + self.missing_rows

    @property
    def distinct(self) -> int:
        """Values that occur, without missing and unseen ones; an estimate for hashes."""
        if self.cardinality is None:
            return self._distinct.estimate()
        return int(np.count_nonzero(self._rows_V[FIRST_ID:]))

    @property
    def unseen(self) -> tuple[int, Array]:
        """Entries out of vocabulary, and their positives by task; hashes have none."""
        if self.cardinality is None or self.cardinality <= UNSEEN_ID:
            return 0, np.zeros_like(self.missing_T)
        return int(self._rows_V[UNSEEN_ID]), self._positives_VT[UNSEEN_ID]

    def values(self) -> tuple[Array, Array, Array]:
        """Ids that occur, without missing and unseen ones: ids, entries, positives (U, T)."""
        if self.cardinality is None:
            return self._hitters.ids_K, self._hitters.rows_K, self._hitters.positives_KT
        ids_U = np.flatnonzero(self._rows_V[FIRST_ID:]) + FIRST_ID
        return ids_U, self._rows_V[ids_U], self._positives_VT[ids_U]


class NumberTally:
    """How numbers spread, and with which labels."""

    def __init__(self, num_tasks: int) -> None:
        self.bins = NumberBins(num_tasks)
        self.missing_rows: int | None = None
        """None where the encoded rows do not say which numbers stand for missing ones."""
        self.missing_T = np.zeros(num_tasks)
        self._distinct = HyperLogLog()

    def add(self, entries: Entries, labels_TN: Array) -> None:
        """Take in the column of some rows with their labels."""
        numbers_N = entries.values_E
        if entries.missing_N is not None:
            missing_N = entries.missing_N
            self.missing_rows = (self.missing_rows or 0) + int(missing_N.sum())
            self.missing_T += labels_TN[:, missing_N].sum(axis=1)
            numbers_N, labels_TN = numbers_N[~missing_N], labels_TN[:, ~missing_N]
        self.bins.add(numbers_N, labels_TN)
        bits_N = (numbers_N + np.float32(0.0)).view(np.int32)
        self._distinct.add(bits_N.astype(np.int64))

    def merge(self, other: "NumberTally") -> None:
        """Take in all that another one has counted."""
        self.bins.merge(other.bins)
        self.missing_T += other.missing_T
        self._distinct.merge(other._distinct)
        if other.missing_rows is not None:
            self.missing_rows = (self.missing_rows or 0) + other.missing_rows

    @property
    def entries(self) -> int:
        """Rows."""
        return self.bins.rows + (self.missing_rows or 0)

    @property
    def distinct(self) -> int:
        """About how many numbers occur."""
        return self._distinct.estimate()


class Tally:
    """What is counted of some rows.

    Args:
        layout: What the rows look like.
    """

    def __init__(self, layout: Layout) -> None:
        tasks = len(layout.tasks)
        self.layout = layout
        self.rows = 0
        self.positives_T = np.zeros(tasks)
        self.ids = {field.name: IdTally(field.cardinality, tasks) for field in layout.ids}
        self.numbers = {name: NumberTally(tasks) for name in numbers_of(layout)}

    def add(self, rows: Rows) -> None:
        """Take in some rows."""
        self.rows += len(rows)
        self.positives_T += rows.labels_TN.sum(axis=1)
        for name, ids in self.ids.items():
            ids.add(rows.columns[name], rows.labels_TN)
        for name, numbers in self.numbers.items():
            numbers.add(rows.columns[name], rows.labels_TN)

    def merge(self, other: "Tally") -> None:
        """Take in all that another one of the same layout has counted."""
        self.rows += other.rows
        self.positives_T += other.positives_T
        for name, ids in self.ids.items():
            ids.merge(other.ids[name])
        for name, numbers in self.numbers.items():
            numbers.merge(other.numbers[name])


def tally(files: Sequence[Path], layout: Layout) -> Tally:
    """Count the rows of Parquet files."""
    counted = Tally(layout)
    for rows in read(files, layout):
        counted.add(rows)
    return counted


def merged(tallies: Sequence[Tally], layout: Layout) -> Tally:
    """The tally of all their rows together."""
    whole = Tally(layout)
    for each in tallies:
        whole.merge(each)
    return whole


def numbers_of(layout: Layout) -> tuple[str, ...]:
    """The float32 columns that are values, not the indicators of others."""
    indicators = {indicator_of(name, layout.dense) for name in layout.dense}
    return tuple(name for name in layout.dense if name not in indicators)


def read(files: Sequence[Path], layout: Layout) -> Iterator[Rows]:
    """The rows of Parquet files, so many at a time."""
    numbers = {name: indicator_of(name, layout.dense) for name in numbers_of(layout)}
    weights = [field.weights for field in layout.ids if field.weighted]
    ids = [field.name for field in layout.ids]
    wanted = [*ids, *weights, *layout.dense, *layout.tasks, TIMESTAMP_COLUMN]
    for file in files:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(BATCH_ROWS, columns=wanted):
                columns = {f.name: _ids(batch, f) for f in layout.ids}
                for name, indicator in numbers.items():
                    missing_N = None
                    if indicator is not None:
                        missing_N = batch.column(indicator).to_numpy() != 0.0
                    columns[name] = Entries(batch.column(name).to_numpy(), None, missing_N)
                labels = [batch.column(task).to_numpy() for task in layout.tasks]
                labels_TN = np.array(labels, np.float64).reshape(len(labels), batch.num_rows)
                yield Rows(labels_TN, batch.column(TIMESTAMP_COLUMN).to_numpy(), columns)


def indicator_of(name: str, dense: Collection[str]) -> str | None:
    """The column that says where a number was missing: its own, or that of the whole vector.

    Args:
        name: Of a float32 column.
        dense: Names of all of them.
    """
    for owner in (name, name.rpartition("__")[0]):
        if owner and f"{owner}{_INDICATOR}" in dense:
            return f"{owner}{_INDICATOR}"
    return None


def _ids(batch: pa.RecordBatch, field: IdField) -> Entries:
    column = batch.column(field.name)
    if field.shape == "single":
        return Entries(column.to_numpy())
    lengths_N = np.diff(column.offsets.to_numpy())
    weights_E = None
    if field.weighted:
        weights_E = batch.column(field.weights).flatten().to_numpy()
    return Entries(column.flatten().to_numpy(), lengths_N, weights_E=weights_E)


def _distinct(ids_E: Array, labels_TE: Array) -> tuple[Array, Array, Array]:
    """Distinct ids, their entries and their positives (U, T)."""
    tasks = [f"task {task}" for task in range(len(labels_TE))]
    frame = pl.DataFrame({"id": ids_E, **dict(zip(tasks, labels_TE, strict=True))})
    counted = frame.group_by("id").agg(pl.len().cast(pl.Int64), pl.col(tasks).sum())
    positives_UT = counted.select(tasks).to_numpy().reshape(counted.height, len(tasks))
    return counted["id"].to_numpy(), counted["len"].to_numpy(), positives_UT
