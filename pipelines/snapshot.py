"""What is known of every entity at the end of the data: the raw values that serving needs by key.

For each key column of `data.entities`, one row a key:

- columns of a side table joined on the key (and of tables joined on those): the table's row, also
  of keys that no row of the log has;
- other columns that features of the key's side read: as in the key's latest row;
- histories by the key after all rows and events, with the times of their elements;
- the events from which windows by the key are computed for rows to come.

Rows stream through: where there are many, they are put aside in parts by the hash of the key, and
memory holds one part after the other.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from feature_store.asof import STAMP, entering
from feature_store.columns import (
    ColumnType,
    RawColumn,
    column_type,
    polars_type,
    time_number,
)
from feature_store.encoding import row_key
from feature_store.features import MISSING_ID, ROW_COLUMN, FeatureSet, Side, TimeUnit, source_of
from feature_store.features import Sequence as SequenceFeature
from feature_store.kinds import kind_of
from feature_store.kinds.lists import times_of, weights_of
from feature_store.online_store import (
    HASH_COLUMN,
    OnProgress,
    Snapshot,
    StoredEntity,
    StoredHistory,
    StoredTime,
    StoredWindows,
)
from feature_store.publishing import SNAPSHOT_FILE
from feature_store.windows import KEY, PER_SECOND, TIME, nanoseconds
from pipelines.events import Known
from pipelines.sources import Source

PART_ROWS = 1 << 21
"""Rows in memory at a time, about."""

_ORDER, _PART = "__order", "__part"


@dataclass(frozen=True)
class _Plan:
    """What is kept by one key."""

    key: str
    latest: dict[str, ColumnType]
    """Columns of the key's latest row."""
    tables: tuple[tuple[str, pl.LazyFrame], ...]
    """Side tables that lead from the key to further columns, with the column each is joined on."""
    joined: dict[str, ColumnType]
    """Columns of those tables."""
    histories: tuple[SequenceFeature, ...]
    """Of the log."""
    events: tuple[Known, ...]


@dataclass
class _Columns:
    """What a stored row has."""

    visible: dict[str, ColumnType]
    """Rows are completed with these."""
    lists: dict[str, ColumnType] = field(default_factory=dict)
    """From these, windows and the past at a time are computed."""
    histories: list[StoredHistory] = field(default_factory=list)
    windows: list[StoredWindows] = field(default_factory=list)


def write_snapshot(
    folder: Path,
    source: Source,
    *,
    keys: Sequence[str],
    feature_set: FeatureSet,
    columns: Sequence[RawColumn],
    time_unit: TimeUnit = "s",
    on_progress: OnProgress = lambda *_: None,
) -> Snapshot:
    """Write `snapshot.json` and a Parquet file per key column.

    Args:
        folder: A new folder.
        source: All usable rows, side tables and events.
        keys: Raw key columns.
        feature_set: The features.
        columns: The raw columns that scoring needs.
        time_unit: Of times that are numbers.
        on_progress: Told of the stages.

    Raises:
        ValueError: Nothing would be kept by a key, or a key column holds lists.
    """
    folder.mkdir(parents=True)
    schema = source.frame.collect_schema()
    plans = _plans(keys, source, feature_set, {c.name: c.type for c in columns}, schema)
    newest = _newest(source.frame, feature_set, schema, time_unit)
    entities = []
    for number, plan in enumerate(plans):
        on_progress(f"keeping the latest of {plan.key}", number, len(plans))
        with tempfile.TemporaryDirectory(dir=folder) as work:
            entity = _Entity(plan, source, feature_set, newest, time_unit, Path(work))
            entities.append(entity.write(folder / f"entity-{number}.parquet"))
    time = None
    if feature_set.timestamp is not None:
        kind = column_type(feature_set.timestamp, schema[feature_set.timestamp])
        time = StoredTime(column=feature_set.timestamp, type=kind, unit=time_unit)
    snapshot = Snapshot(entities=tuple(entities), time=time, as_of=_as_of(newest))
    (folder / SNAPSHOT_FILE).write_text(snapshot.model_dump_json(indent=1) + "\n", "utf-8")
    return snapshot


def _plans(
    keys: Sequence[str],
    source: Source,
    feature_set: FeatureSet,
    needed: Mapping[str, ColumnType],
    schema: Mapping[str, pl.DataType],
) -> list[_Plan]:
    tables = {key: tuple(_reached(key, source.sides)) for key in keys}
    joined = {
        key: {
            name: needed[name]
            for on, table in tables[key]
            for name in table.collect_schema().names()
            if name in needed and name != on
        }
        for key in keys
    }
    histories = {key: _histories(feature_set, key) for key in keys}
    events = {key: tuple(k for k in source.events if k.windows.by == key) for key in keys}
    owners = {
        side: key for key in reversed(keys) for side in _sides_of(key, feature_set, joined[key])
    }
    taken = {*keys, *(name for names in joined.values() for name in names)}
    taken |= {name for known in source.events for name in known.windows.names}
    taken |= {name for f in feature_set.inputs for name in _gathered(f)}
    latest: dict[str, dict[str, ColumnType]] = {key: {} for key in keys}
    for feature in feature_set.inputs:
        for name in kind_of(feature).sources(feature, feature_set):
            is_of_row = name in schema and name not in taken and name != feature_set.timestamp
            if is_of_row and feature.side in owners and name in needed:
                latest[owners[feature.side]][name] = needed[name]
                taken.add(name)
    plans = []
    for key in keys:
        row_key(key, schema[key])  # refuses lists and what no feature can read
        plan = _Plan(key, latest[key], tables[key], joined[key], histories[key], events[key])
        if not (plan.latest or plan.joined or plan.histories or plan.events):
            raise ValueError(
                f"data.entities: nothing would be kept by {key!r}: no feature reads a side table"
                " joined on it, or a column of its side (`side: user` or `side: item` of features),"
                " and no history or window is by it; leave it out, or declare the features' side"
            )
        plans.append(plan)
    return plans


def _reached(
    key: str, sides: Sequence[tuple[str, pl.LazyFrame]]
) -> Iterator[tuple[str, pl.LazyFrame]]:
    """The side tables that are joined on the key, or on a column of such a table."""
    known = {key}
    for on, table in sides:
        if on in known:
            known |= set(table.collect_schema().names())
            yield on, table


def _histories(feature_set: FeatureSet, key: str) -> tuple[SequenceFeature, ...]:
    """Sequences that are gathered from the rows by a key."""
    return tuple(
        feature
        for feature in feature_set.inputs
        if isinstance(feature, SequenceFeature)
        and feature.history is not None
        and feature.history.by == key
        and feature.history.events is None
    )


def _gathered(feature: object) -> list[str]:
    """The raw columns that a build gathers for a sequence with a history."""
    if not isinstance(feature, SequenceFeature) or feature.history is None:
        return []
    times = [times_of(feature)] if feature.gaps else []
    weights = [weights_of(feature)] if feature.weights is not None else []
    return [source_of(feature), *times, *weights]


def _sides_of(key: str, feature_set: FeatureSet, joined: Mapping[str, object]) -> set[Side]:
    """Of which side an entity is: that of features that read its key, or a table joined on it."""
    by_key: set[Side] = set()
    by_table: set[Side] = set()
    by_history: set[Side] = set()
    for feature in feature_set.inputs:
        if feature.side == "context":
            continue
        sources = kind_of(feature).sources(feature, feature_set)
        if sources == (key,):
            by_key.add(feature.side)
        if any(name in joined for name in sources):
            by_table.add(feature.side)
        if isinstance(feature, SequenceFeature) and feature.history is not None:
            by_history |= {feature.side} if feature.history.by == key else set()
    return by_key or by_table or by_history


class _Entity:
    """The rows of one entity, put together part by part."""

    def __init__(
        self,
        plan: _Plan,
        source: Source,
        feature_set: FeatureSet,
        newest: int | None,
        time_unit: TimeUnit,
        work: Path,
    ) -> None:
        self.plan = plan
        self.feature_set = feature_set
        self.schema = source.frame.collect_schema()
        self.time_unit = time_unit
        self.columns = _Columns({**plan.latest, **plan.joined})
        num_rows = source.rows_in + sum(_height(known.counted) for known in plan.events)
        self.num_bits = max(0, (num_rows // PART_ROWS).bit_length())
        keyed = row_key(plan.key, self.schema[plan.key])
        self.log = _Parts(
            source.frame.select(keyed.alias(KEY), **self._chosen()), self.num_bits, work / "log"
        )
        self.tables = [
            _Parts(_by_key(table, on), self.num_bits, work / f"table-{number}")
            for number, (on, table) in enumerate(plan.tables)
            if on == plan.key
        ]
        self.gathered: list[tuple[_Parts, dict[str, pl.Expr]]] = []
        for number, known in enumerate(plan.events):
            kept = known.counted
            longest = known.windows.longest_seconds
            if longest is not None and newest is not None:
                # Rows to come are not older than the newest: what left their windows is not needed.
                kept = kept.filter(pl.col(TIME) >= newest - longest * PER_SECOND)
            if known.windows.names:
                events = _Parts(kept, self.num_bits, work / f"events-{number}")
                self.gathered.append((events, self._of_windows(number, known)))
            if known.sequences:
                values = _Parts(known.values, self.num_bits, work / f"values-{number}")
                self.gathered.append((values, self._of_sequences(known)))

    def write(self, path: Path) -> StoredEntity:
        """Write all parts into one file, in the order of the keys' bytes."""
        lists = self._of_log()
        stored = {**self.columns.visible, **self.columns.lists}
        types = {HASH_COLUMN: pl.UInt64()} | {n: polars_type(kind) for n, kind in stored.items()}
        schema = pl.DataFrame(schema=types).to_arrow().schema
        num_keys = 0
        with pq.ParquetWriter(path, schema, compression="lz4") as file:
            for part in range(1 << self.num_bits):
                rows = self._rows(part, lists).with_columns(_hash())
                rows = rows.select(pl.col(name).cast(dtype) for name, dtype in types.items())
                num_keys += rows.height
                file.write_table(rows.sort(HASH_COLUMN).to_arrow().cast(schema))
        return StoredEntity(
            key=self.plan.key,
            type=column_type(self.plan.key, self.schema[self.plan.key]),
            columns=self.columns.visible,
            lists=self.columns.lists,
            histories=tuple(self.columns.histories),
            windows=tuple(self.columns.windows),
            num_keys=num_keys,
            file=path.name,
        )

    def _chosen(self) -> dict[str, pl.Expr]:
        """What is needed of the log."""
        chosen = {name: pl.col(name) for name in (ROW_COLUMN, *self.plan.latest)}
        if self.feature_set.timestamp is not None:
            name = self.feature_set.timestamp
            chosen[_ORDER], _ = time_number(name, self.schema[name])
            chosen[STAMP] = pl.col(name)
        for sequence in self.plan.histories:
            value, enters = entering(sequence, self.feature_set, self.schema)
            chosen[f"value {sequence.name}"] = value
            # A time that is none (null, NaN) is null here, and such a row is in no history.
            chosen[f"enters {sequence.name}"] = enters & chosen[_ORDER].is_not_null()
            if sequence.weights is not None:
                chosen[f"weight {sequence.name}"] = pl.col(sequence.weights)
        return chosen

    def _rows(self, part: int, lists: Sequence[pl.Expr]) -> pl.DataFrame:
        """One row per key of a part."""
        plan = self.plan
        order = [_ORDER] if self.feature_set.timestamp is not None else []
        log = self.log.read(part).sort(KEY, *order, ROW_COLUMN, nulls_last=False)
        latest = [pl.col(name).last() for name in plan.latest]
        rows = log.group_by(KEY, maintain_order=True).agg(*latest, *lists)
        direct = iter(self.tables)
        for on, table in plan.tables:
            if on == plan.key:
                side = next(direct).read(part)
                side = side.drop([name for name in side.columns if name in rows.columns[1:]])
                rows = rows.join(side, on=KEY, how="full", coalesce=True)
            else:
                names = table.collect_schema().names()
                wanted = table.select(n for n in names if n not in rows.columns or n == on)
                known = wanted.join(rows.lazy().select(on).unique(), on=on, how="semi")
                rows = rows.join(known.collect(engine="streaming"), on=on, how="left")
        for events, gathered in self.gathered:
            happened = events.read(part).sort(KEY, TIME, maintain_order=True)
            found = happened.group_by(KEY, maintain_order=True).agg(**gathered)
            rows = rows.join(found, on=KEY, how="full", coalesce=True)
        return rows

    def _of_log(self) -> list[pl.Expr]:
        """The histories of the log, as lists."""
        lists = []
        for sequence in self.plan.histories:
            time = self.feature_set.timestamp
            assert time is not None, "histories demand it"
            kinds = {f"value {sequence.name}": self._type_of(sequence), STAMP: self._type(time)}
            if sequence.weights is not None:
                kinds[f"weight {sequence.name}"] = self._type(sequence.weights)
            for name, column in self._stored(sequence, kinds, STAMP).items():
                value = pl.col(column).filter(pl.col(f"enters {sequence.name}"))
                lists.append(value.tail(sequence.max_length).alias(name))
        return lists

    def _of_sequences(self, known: Known) -> dict[str, pl.Expr]:
        """The histories of a table of events, as lists."""
        lists = {}
        schema = known.values.collect_schema()
        for sequence in known.sequences:
            value = f"value {sequence.name}"
            kinds: dict[str, ColumnType] = {value: column_type(value, schema[value]), TIME: "int"}
            if sequence.gaps:
                kinds[STAMP] = column_type(STAMP, schema[STAMP])
            for name, column in self._stored(sequence, kinds, TIME).items():
                entered = pl.col(column).filter(pl.col(value).is_not_null())
                lists[name] = entered.tail(sequence.max_length)
        return lists

    def _stored(
        self, sequence: SequenceFeature, kinds: Mapping[str, ColumnType], clock: str
    ) -> dict[str, str]:
        """Take down a history; its stored lists, and of what column each is.

        Args:
            sequence: The sequence.
            kinds: Types of what it is gathered from.
            clock: Column of the time by which elements are left out that are not yet past.
        """
        assert sequence.history is not None, "only sequences with a history are gathered"
        lists = {source_of(sequence): f"value {sequence.name}"}
        if sequence.gaps:
            lists[times_of(sequence)] = STAMP
        if sequence.weights is not None:
            lists[weights_of(sequence)] = f"weight {sequence.name}"
        for name, column in lists.items():
            self.columns.visible[name] = f"list<{kinds[column]}>"  # type: ignore[assignment]
        times = (
            times_of(sequence) if sequence.gaps and clock == STAMP else f"__time {sequence.name}"
        )
        if times not in lists:
            self.columns.lists[times] = f"list<{kinds[clock]}>"  # type: ignore[assignment]
        where: str | None = sequence.history.where
        labels = {label.name: label for label in self.feature_set.labels}
        stored = StoredHistory(
            columns=tuple(lists),
            times=times,
            clock="raw" if clock == STAMP else "ns",
            of=source_of(self.feature_set.feature(sequence.of)),
            events=sequence.history.events,
            where=labels.get(where, where) if where is not None else None,
            max_length=sequence.max_length,
        )
        self.columns.histories.append(stored)
        return {**lists, times: clock}

    def _of_windows(self, number: int, known: Known) -> dict[str, pl.Expr]:
        """What windows are computed from, as lists."""
        schema = known.counted.collect_schema()
        names = {f"__events {number} {name}": name for name in schema.names() if name != KEY}
        for stored, name in names.items():
            kind = column_type(name, schema[name])
            self.columns.lists[stored] = f"list<{kind}>"  # type: ignore[assignment]
        windows = StoredWindows(windows=known.windows, unit=self.time_unit, lists=names)
        self.columns.windows.append(windows)
        return {stored: pl.col(name) for stored, name in names.items()}

    def _type(self, name: str) -> ColumnType:
        return column_type(name, self.schema[name])

    def _type_of(self, sequence: SequenceFeature) -> ColumnType:
        return self._type(source_of(self.feature_set.feature(sequence.of)))


class _Parts:
    """Rows that have a key, in parts by the leading bits of its hash.

    Args:
        frame: Rows with `KEY`.
        num_bits: 0: one part, which need not be put aside.
        folder: Where parts are put aside.
    """

    def __init__(self, frame: pl.LazyFrame, num_bits: int, folder: Path) -> None:
        self._frame = frame.filter(pl.col(KEY) != MISSING_ID)
        self._folder = folder if num_bits else None
        if num_bits:
            part = (_hash() // (1 << (64 - num_bits))).cast(pl.Int64).alias(_PART)
            target = pl.PartitionBy(folder, key=_PART, include_key=False)
            self._frame.with_columns(part).sink_parquet(target, compression="lz4", mkdir=True)

    def read(self, part: int) -> pl.DataFrame:
        """The rows of a part, in their order."""
        if self._folder is None:
            return self._frame.collect(engine="streaming")
        folder = self._folder / f"{_PART}={part}"
        if not folder.is_dir():
            return self._frame.clear().collect()
        return pl.scan_parquet(folder / "*.parquet", hive_partitioning=False).collect()


def _hash() -> pl.Expr:
    return pl.col(KEY).reinterpret(signed=False).alias(HASH_COLUMN)


def _by_key(table: pl.LazyFrame, on: str) -> pl.LazyFrame:
    key = row_key(on, table.collect_schema()[on])
    return table.select(key.alias(KEY), pl.exclude(on))


def _height(frame: pl.LazyFrame) -> int:
    return frame.select(pl.len()).collect(engine="streaming").item()


def _newest(
    frame: pl.LazyFrame,
    feature_set: FeatureSet,
    schema: Mapping[str, pl.DataType],
    time_unit: TimeUnit,
) -> int | None:
    """Time of the newest row, in ns since 1970."""
    if feature_set.timestamp is None:
        return None
    name = feature_set.timestamp
    value = nanoseconds(name, schema[name], time_unit)
    return frame.select(value.max()).collect(engine="streaming").item()


def _as_of(newest: int | None) -> datetime:
    """When the newest row was; where the rows do not tell it, now."""
    now = datetime.now(UTC)
    found = now if newest is None else datetime.fromtimestamp(newest // PER_SECOND, UTC)
    return min(found, now)
