"""What is known of every entity at the end of the data: the raw values that serving needs by key.

For each key column of `data.entities`, one row a key:

- columns of a side table joined on the key (and of tables joined on those): the table's row, also
  of keys that no row of the log has;
- other columns that features of the key's side read: as in the key's latest row;
- histories by the key after all rows, with the times of their elements.

Rows stream through: where there are many, they are put aside in parts by the hash of the key, and
memory holds one part after the other.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import polars_hash  # noqa: F401 - registers the `nchash` namespace of expressions
import pyarrow.parquet as pq

from feature_store.asof import entering
from feature_store.columns import (
    ColumnType,
    RawColumn,
    canonical_text,
    column_type,
    is_list,
    polars_type,
    time_number,
)
from feature_store.features import (
    ROW_COLUMN,
    DatePart,
    FeatureSet,
    Side,
    TimeUnit,
    source_of,
)
from feature_store.features import (
    Sequence as SequenceFeature,
)
from feature_store.kinds import kind_of
from feature_store.online_store import (
    HASH_COLUMN,
    KEY_COLUMN,
    OnProgress,
    Snapshot,
    StoredEntity,
    StoredHistory,
    StoredTime,
)
from feature_store.publishing import SNAPSHOT_FILE

PART_ROWS = 1 << 21
"""Rows in memory at a time, about."""

TIMES_SUFFIX = "__time"
"""Of the raw column with the times of a history's elements."""

_TIME, _PART = "__time", "__part"
_SECONDS: dict[TimeUnit, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


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


def write_snapshot(
    folder: Path,
    raw: pl.LazyFrame,
    num_rows: int,
    *,
    keys: Sequence[str],
    sides: Sequence[tuple[str, pl.LazyFrame]],
    feature_set: FeatureSet,
    columns: Sequence[RawColumn],
    on_progress: OnProgress = lambda *_: None,
) -> Snapshot:
    """Write `snapshot.json` and a Parquet file per key column.

    Args:
        folder: A new folder.
        raw: All usable rows with `__row`, side tables joined, before histories.
        num_rows: How many they are, about.
        keys: Raw key columns.
        sides: The side tables in the order of their joins, each with the column it is joined on.
        feature_set: The features.
        columns: The raw columns that scoring needs.
        on_progress: Told of the stages.

    Raises:
        ValueError: Nothing would be kept by a key, or a key column holds lists.
    """
    folder.mkdir(parents=True)
    schema = raw.collect_schema()
    plans = _plans(keys, sides, feature_set, {c.name: c.type for c in columns}, schema)
    entities = []
    for number, plan in enumerate(plans):
        on_progress(f"keeping the latest of {plan.key}", number, len(plans))
        file = f"entity-{number}.parquet"
        with tempfile.TemporaryDirectory(dir=folder) as work:
            parts = _Parts(plan, raw, num_rows, feature_set, Path(work))
            entities.append(parts.write(folder / file))
    time = _stored_time(feature_set, schema)
    snapshot = Snapshot(entities=tuple(entities), time=time, as_of=_as_of(raw, time))
    (folder / SNAPSHOT_FILE).write_text(snapshot.model_dump_json(indent=1) + "\n", "utf-8")
    return snapshot


def _plans(
    keys: Sequence[str],
    sides: Sequence[tuple[str, pl.LazyFrame]],
    feature_set: FeatureSet,
    needed: Mapping[str, ColumnType],
    schema: Mapping[str, pl.DataType],
) -> list[_Plan]:
    tables = {key: tuple(_reached(key, sides)) for key in keys}
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
    gathered = {source_of(s) for f in histories.values() for s in f}
    gathered |= {f"{source_of(s)}{TIMES_SUFFIX}" for f in histories.values() for s in f}
    taken = {*keys, *gathered, *(name for names in joined.values() for name in names)}
    owners = {
        side: key for key in reversed(keys) for side in _sides_of(key, feature_set, joined[key])
    }
    latest: dict[str, dict[str, ColumnType]] = {key: {} for key in keys}
    for feature in feature_set.inputs:
        for name in kind_of(feature).sources(feature, feature_set):
            is_of_row = name in schema and name not in taken and name != feature_set.timestamp
            if is_of_row and feature.side in owners and name in needed:
                latest[owners[feature.side]][name] = needed[name]
                taken.add(name)
    for key in keys:
        if is_list(schema[key]):
            raise ValueError(f"data.entities: {key!r} holds lists, so it cannot be a key")
        if not (latest[key] or joined[key] or histories[key]):
            raise ValueError(
                f"data.entities: nothing would be kept by {key!r}: no feature reads a side table"
                " joined on it, or a column of its side (`side: user` or `side: item` of features),"
                " and no history is by it; leave it out, or declare the features' side"
            )
    return [_Plan(key, latest[key], tables[key], joined[key], histories[key]) for key in keys]


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
    return tuple(
        feature
        for feature in feature_set.inputs
        if isinstance(feature, SequenceFeature)
        and feature.history is not None
        and feature.history.by == key
    )


def _sides_of(key: str, feature_set: FeatureSet, joined: Mapping[str, object]) -> set[Side]:
    """Of which side an entity is: that of features that read its key, or a table joined on it."""
    by_key: set[Side] = set()
    by_table: set[Side] = set()
    for feature in feature_set.inputs:
        sources = kind_of(feature).sources(feature, feature_set)
        if feature.side != "context" and sources == (key,):
            by_key.add(feature.side)
        if feature.side != "context" and any(name in joined for name in sources):
            by_table.add(feature.side)
    if by_key or by_table:
        return by_key or by_table
    return {"user"} if _histories(feature_set, key) else set()


class _Parts:
    """The rows of one entity, put together part by part."""

    def __init__(
        self, plan: _Plan, raw: pl.LazyFrame, num_rows: int, feature_set: FeatureSet, work: Path
    ) -> None:
        self.plan = plan
        self.feature_set = feature_set
        self.schema = raw.collect_schema()
        self.time = feature_set.timestamp
        self.num_bits = max(0, (num_rows // PART_ROWS).bit_length())
        chosen = self._chosen()
        self.log = _keyed(raw, plan.key, self.num_bits).select(
            KEY_COLUMN, HASH_COLUMN, _PART, *(value.alias(name) for name, value in chosen.items())
        )
        if self.num_bits:
            target = pl.PartitionBy(work, key=_PART, include_key=False)
            self.log.sink_parquet(target, compression="lz4", mkdir=True)
        self.work = work

    def write(self, path: Path) -> StoredEntity:
        """Write all parts into one file, in the order of the keys' bytes."""
        columns = {**self.plan.latest, **self.plan.joined}
        time = None if self.time is None else column_type(self.time, self.schema[self.time])
        stored = []
        for sequence in self.plan.histories:
            history = self._stored_history(sequence)
            stored.append(history)
            columns[history.column] = self._list_type(history.of)
            columns[history.times] = f"list<{time}>"  # type: ignore[assignment]
        types = {KEY_COLUMN: pl.String(), HASH_COLUMN: pl.UInt64()}
        types |= {name: polars_type(kind) for name, kind in columns.items()}
        schema = pl.DataFrame(schema=types).to_arrow().schema
        num_keys = 0
        with pq.ParquetWriter(path, schema, compression="lz4") as file:
            for part in range(1 << self.num_bits):
                rows = self._rows(part)
                rows = rows.select(pl.col(name).cast(dtype) for name, dtype in types.items())
                rows = rows.sort(HASH_COLUMN, KEY_COLUMN)
                num_keys += rows.height
                file.write_table(rows.to_arrow().cast(schema))
        return StoredEntity(
            key=self.plan.key,
            type=column_type(self.plan.key, self.schema[self.plan.key]),
            columns=columns,
            histories=tuple(stored),
            num_keys=num_keys,
            file=path.name,
        )

    def _chosen(self) -> dict[str, pl.Expr]:
        """What is needed of the log."""
        chosen = {name: pl.col(name) for name in (self.plan.key, ROW_COLUMN, *self.plan.latest)}
        if self.time is not None:
            chosen[_TIME], _ = time_number(self.time, self.schema[self.time])
            chosen["raw time"] = pl.col(self.time)
        for sequence in self.plan.histories:
            value, enters = entering(sequence, self.feature_set, self.schema)
            chosen[f"value {sequence.name}"] = value
            # A time that is none (null, NaN) is null here, and such a row is in no history.
            chosen[f"enters {sequence.name}"] = enters & chosen[_TIME].is_not_null()
        return chosen

    def _part(self, part: int) -> pl.DataFrame:
        if not self.num_bits:
            return self.log.drop(_PART).collect(engine="streaming")
        folder = self.work / f"{_PART}={part}"
        if not folder.is_dir():
            return self.log.drop(_PART).clear().collect()
        return pl.scan_parquet(folder / "*.parquet", hive_partitioning=False).collect()

    def _rows(self, part: int) -> pl.DataFrame:
        """One row per key of a part."""
        plan = self.plan
        order = [KEY_COLUMN] if self.time is None else [KEY_COLUMN, _TIME]
        log = self._part(part).sort(*order, ROW_COLUMN, nulls_last=False)
        lists = []
        for sequence in plan.histories:
            history = self._stored_history(sequence)
            entered = pl.col(f"enters {sequence.name}")
            for name, value in (
                (history.column, pl.col(f"value {sequence.name}")),
                (history.times, pl.col("raw time")),
            ):
                lists.append(value.filter(entered).tail(sequence.max_length).alias(name))
        latest = [pl.col(name).last() for name in (plan.key, *plan.latest)]
        rows = log.group_by(KEY_COLUMN, HASH_COLUMN, maintain_order=True).agg(*latest, *lists)
        for on, table in plan.tables:
            wanted = [n for n in table.collect_schema().names() if n not in rows.columns or n == on]
            if on == plan.key:
                side = _keyed(table.select(wanted), on, self.num_bits).filter(pl.col(_PART) == part)
                rows = rows.join(
                    side.drop(_PART).collect(engine="streaming"),
                    on=[KEY_COLUMN, HASH_COLUMN], how="full", coalesce=True,
                ).with_columns(pl.coalesce(on, f"{on}_right")).drop(f"{on}_right")  # fmt: skip
            else:
                known = table.select(wanted).join(
                    rows.lazy().select(on).unique(), on=on, how="semi"
                )
                rows = rows.join(known.collect(engine="streaming"), on=on, how="left")
        return rows

    def _stored_history(self, sequence: SequenceFeature) -> StoredHistory:
        assert sequence.history is not None, "only sequences with a history are gathered"
        where = sequence.history.where
        return StoredHistory(
            column=source_of(sequence),
            times=f"{source_of(sequence)}{TIMES_SUFFIX}",
            of=source_of(self.feature_set.feature(sequence.of)),
            where=next((lb for lb in self.feature_set.labels if lb.name == where), None),
            max_length=sequence.max_length,
        )

    def _list_type(self, of: str) -> ColumnType:
        return f"list<{column_type(of, self.schema[of])}>"  # type: ignore[return-value]


def _keyed(frame: pl.LazyFrame, key: str, num_bits: int) -> pl.LazyFrame:
    """The rows that have a key, with its text, its hash, and the part that they fall to."""
    text = canonical_text(pl.col(key), frame.collect_schema()[key])
    named = frame.with_columns(text.alias(KEY_COLUMN)).filter(pl.col(KEY_COLUMN) != "")
    hashed = pl.col(KEY_COLUMN).nchash.xxhash64()  # type: ignore[attr-defined]
    part = pl.col(HASH_COLUMN) // (1 << (64 - num_bits)) if num_bits else pl.lit(0)
    return named.with_columns(hashed.alias(HASH_COLUMN)).with_columns(
        part.cast(pl.Int64).alias(_PART)
    )


def _stored_time(feature_set: FeatureSet, schema: Mapping[str, pl.DataType]) -> StoredTime | None:
    name = feature_set.timestamp
    if name is None:
        return None
    kind = column_type(name, schema[name])
    units = [f.unit for f in feature_set.inputs if isinstance(f, DatePart) and f.source == name]
    unit = units[0] if units and kind in ("int", "float") else None
    return StoredTime(column=name, type=kind, unit=unit)


def _as_of(raw: pl.LazyFrame, time: StoredTime | None) -> datetime:
    """When the newest row was, as far as the rows tell."""
    now = datetime.now(UTC)
    if time is None or (time.unit is None and time.type not in ("date", "datetime")):
        return now
    value, own = time_number(time.column, raw.collect_schema()[time.column])
    newest = raw.select(value.max()).collect(engine="streaming").item()
    if newest is None:
        return now
    unit: TimeUnit = own or time.unit  # type: ignore[assignment]
    try:
        return datetime.fromtimestamp(newest * _SECONDS[unit], UTC)
    except (ValueError, OverflowError, OSError):  # a number that is no time
        return now
