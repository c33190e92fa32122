"""What was known of a row's user, item or other key just before: windows over events, histories.

Events come from files of their own, or are the rows themselves. Each row gets raw columns computed
from the events of its key that are strictly earlier (`feature_store.windows`), so neither the row
nor anything of the same instant or later enters. Both sides are cut into partitions by the key,
each of which fits in memory, whatever the log's size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from feature_store.aggregates import Windows, seconds_of
from feature_store.asof import STAMP, categorical_value, event_histories
from feature_store.columns import SchemaMismatch, require_columns
from feature_store.encoding import row_key
from feature_store.features import (
    MISSING_ID,
    ROW_COLUMN,
    FeatureSet,
    Label,
    TimeUnit,
    source_of,
)
from feature_store.features import Sequence as SequenceFeature
from feature_store.windows import (
    KEY,
    PER_SECOND,
    TIME,
    flag,
    nanoseconds,
    nanoseconds_in,
    normalized,
    window_columns,
)
from pipelines.event_tables import (
    EventRows,
    EventsConfig,
    EventTable,
    check_histories,
    columns_read,
    of_events,
)
from pipelines.leakage import Leak
from pipelines.reading import OnProgress, Table, read_table
from pipelines.rejection import Rejection, content_of, require_few
from pipelines.validity import time_of_rows

PARTITION_ROWS = 4_000_000
"""Events and rows that are sorted in memory at once, unless one key alone has more."""
SHOWN_REJECTED = 3
"""Events whose reasons are told where there are too many to go on."""

_PART, _PLACE = "__part", "__place"


@dataclass(frozen=True)
class Tables:
    """How event tables are read."""

    folder: Path
    """For staged files."""
    time_unit: TimeUnit = "s"
    """Of times that are numbers."""
    max_rejected: float = 0.0
    """Share of a table's rows that may be unusable."""
    limit: int | None = None
    """Read about so many of the first events only."""
    on_progress: OnProgress = lambda *_: None


@dataclass(frozen=True)
class Known:
    """Events as they were read, for whoever keeps them for later rows."""

    windows: Windows
    """Those of which features read the columns."""
    counted: pl.LazyFrame
    """From `normalized`."""
    sequences: tuple[SequenceFeature, ...]
    """Those whose history is made of these events."""
    values: pl.LazyFrame
    """`KEY`, `TIME` and per sequence `value <name>`, null where nothing enters."""


@dataclass(frozen=True)
class Gathered:
    """Rows with what was known just before them."""

    frame: pl.LazyFrame
    rejections: list[Rejection]
    """Events that cannot be used."""
    events: list[Known]
    """Those of which features read something."""


def gather(
    frame: pl.LazyFrame,
    events: Sequence[EventsConfig],
    feature_set: FeatureSet,
    wanted: Mapping[str, str],
    tables: Tables,
) -> Gathered:
    """The rows with the columns that features read of what happened before each.

    Args:
        frame: The usable rows; it must give the same rows in the same order whenever it is read.
        events: The events.
        feature_set: Names the rows' time, the labels and the sequences.
        wanted: Columns that features read; others are not computed.
        tables: How event tables are read.

    Raises:
        Leak: All events of a table lie after the rows.
        SchemaMismatch: A column is missing or of a type that cannot be read.
        TooManyRejected: More events cannot be used than allowed.
        ValueError: Rows without a declared time, or numbers too large to be summed.
    """
    check_histories(events, feature_set)
    rejections: list[Rejection] = []
    known: list[Known] = []
    rows = frame
    for config in events:
        windows = config.only(list(wanted))
        sequences = of_events(feature_set, config.name)
        if not windows.aggregates and not sequences:
            continue
        queries = _queries(frame, config, feature_set, tables.time_unit)
        happened = _happened(frame, queries, config, feature_set, tables)
        rejections += happened.rejections
        counted = normalized(happened.frame, windows, happened.time, happened.labels)
        values = _values(happened, config, sequences, feature_set)
        if any(sequence.gaps for sequence in sequences):
            values = values.with_columns(_stamp(frame, sequences, feature_set, tables.time_unit))
        known.append(Known(windows, counted, tuple(sequences), values))
        if windows.aggregates:
            folder = tables.folder / f"windows-{config.name}"
            columns = _windowed(windows, queries, counted, happened.num_events, folder)
            rows = pl.concat([rows, columns.lazy()], how="horizontal")
        if sequences:
            asked = queries.collect(engine="streaming")
            entering = values.collect(engine="streaming")
            rows = event_histories(rows, asked, entering, sequences)
    return Gathered(rows, rejections, known)


@dataclass(frozen=True)
class _Happened:
    """The usable events."""

    frame: pl.LazyFrame
    time: pl.Expr
    """From `nanoseconds`."""
    num_events: int | None
    """None: as many as there are rows."""
    labels: tuple[Label, ...] = ()
    """May tell which of the events count."""
    rejections: list[Rejection] = field(default_factory=list)


def _happened(
    frame: pl.LazyFrame,
    queries: pl.LazyFrame,
    config: EventsConfig,
    feature_set: FeatureSet,
    tables: Tables,
) -> _Happened:
    if isinstance(config, EventRows):
        time = _time_of_rows(frame, feature_set, tables.time_unit)
        return _Happened(frame, time, None, feature_set.labels)
    return _usable(config, queries, feature_set, tables)


def _queries(
    frame: pl.LazyFrame, config: EventsConfig, feature_set: FeatureSet, time_unit: TimeUnit
) -> pl.LazyFrame:
    """Key and time of every row, in their order."""
    schema = frame.collect_schema()
    require_columns(schema, {config.by: f"data.events {config.name!r}"})
    key = row_key(config.by, schema[config.by]).alias(KEY)
    return frame.select(key, _time_of_rows(frame, feature_set, time_unit).alias(TIME))


def _time_of_rows(frame: pl.LazyFrame, feature_set: FeatureSet, unit: TimeUnit) -> pl.Expr:
    name = time_of_rows(feature_set, "data.events")
    schema = frame.collect_schema()
    require_columns(schema, {name: "features.timestamp"})
    return nanoseconds(name, schema[name], unit)


def _usable(
    config: EventTable, queries: pl.LazyFrame, feature_set: FeatureSet, tables: Tables
) -> _Happened:
    """The events of a table that can be used, and those that cannot."""
    folder = tables.folder / f"events-{config.name}"
    folder.mkdir()
    names = columns_read(config, feature_set)
    table = read_table(config, names, folder, tables.limit, tables.on_progress)
    schema = table.frame.collect_schema()
    what = f"data.events {config.name!r}, time"
    time = nanoseconds(config.time, schema[config.time], config.unit or tables.time_unit, what)
    newest = None
    if tables.limit is None:  # of the first rows alone, none can be told to be too early or late
        newest = queries.select(pl.col(TIME).max()).collect(engine="streaming").item()
    no_key = row_key(config.by, schema[config.by]) == MISSING_ID
    late = pl.lit(False)
    if config.horizon is not None and newest is not None:
        last = min(newest + seconds_of(config.horizon) * PER_SECOND, 2**63 - 1)
        late = (time > last).fill_null(False)
    bad = {"no key": no_key, "no time": time.is_null() & ~no_key, "late": late & ~no_key}
    facts = table.frame.select(
        *(flag.sum().alias(what) for what, flag in bad.items()), time.min().alias("first")
    )
    found = facts.collect(engine="streaming").row(0, named=True)
    _require_a_past(config, feature_set, found["first"], newest)
    usable = ~pl.any_horizontal(bad.values())
    num_bad = sum(found[what] for what in bad)
    num_rejected = len(table.rejections) + num_bad
    too_many = num_rejected > tables.max_rejected * table.num_rows
    rejections = list(table.rejections)
    if num_bad:
        rejections += _rejected(table, config, bad, SHOWN_REJECTED if too_many else None)
    require_few(rejections, table.num_rows, tables.max_rejected, None, num_rejected)
    events = table.frame.filter(usable) if num_bad else table.frame
    return _Happened(events, time, table.num_rows - num_rejected, (), rejections)


def _require_a_past(
    config: EventTable, feature_set: FeatureSet, first: int | None, newest: int | None
) -> None:
    if first is None or newest is None or first < newest:
        return
    raise Leak(
        f"data.events {config.name!r}: all times in {config.path} ({config.time!r}) lie at or after"
        f" the newest row ({feature_set.timestamp!r}), so none of these events was known at any"
        " row; is it the right file, and are the units of both times right?"
    )


def _rejected(
    table: Table, config: EventTable, bad: Mapping[str, pl.Expr], limit: int | None
) -> list[Rejection]:
    reasons = {
        "no key": ("no key", f"the key {config.by!r} is missing"),
        "no time": ("no time", f"expected a time in {config.time!r}"),
        "late": (
            "from the future",
            f"the time in {config.time!r} is later than the newest row by more than the horizon of"
            f" {config.horizon}",
        ),
    }
    flagged = table.frame.with_columns(flag.alias(f"__{what}") for what, flag in bad.items())
    rows = flagged.filter(pl.any_horizontal(f"__{what}" for what in bad))
    rejections = []
    for row in (
        (rows if limit is None else rows.head(limit))
        .collect(engine="streaming")
        .iter_rows(named=True)
    ):
        kind, reason = next(reasons[what] for what in bad if row[f"__{what}"])
        rejections.append(
            Rejection(
                *table.places.of(row[ROW_COLUMN]),
                kind=f"events {config.name!r}: {kind}",
                reason=f"events {config.name!r}: {reason}",
                content=content_of(row),
            )
        )
    return rejections


def _windowed(
    windows: Windows,
    queries: pl.LazyFrame,
    events: pl.LazyFrame,
    num_events: int | None,
    folder: Path,
) -> pl.DataFrame:
    """One row per query, in their order."""
    placed = queries.with_row_index(_PLACE)
    num_rows = queries.select(pl.len()).collect(engine="streaming").item()
    num_both = num_rows + (num_rows if num_events is None else num_events)
    parts = max(1, -(-num_both // PARTITION_ROWS))
    found = [
        window_columns(windows, asked, happened).with_columns(asked.get_column(_PLACE))
        for asked, happened in _partitions(placed, events, parts, folder)
    ]
    return pl.concat(found).sort(_PLACE).drop(_PLACE)


def _partitions(
    queries: pl.LazyFrame, events: pl.LazyFrame, parts: int, folder: Path
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Queries and events by a hash of their key, both in their order."""
    if parts == 1:
        yield queries.collect(engine="streaming"), events.collect(engine="streaming")
        return
    sides = (_Side("queries", queries, folder), _Side("events", events, folder))
    for side in sides:
        side.write(parts)
    for part in range(parts):
        asked, happened = (side.read(part) for side in sides)
        yield asked, happened


@dataclass(frozen=True)
class _Side:
    """One side of a join, in one folder per part."""

    name: str
    rows: pl.LazyFrame
    folder: Path

    def write(self, parts: int) -> None:
        part = pl.col(KEY).reinterpret(signed=False) % parts
        target = pl.PartitionBy(self.folder / self.name, key=_PART, include_key=False)
        self.rows.with_columns(part.alias(_PART)).sink_parquet(
            target, compression="lz4", statistics=False, mkdir=True
        )

    def read(self, part: int) -> pl.DataFrame:
        files = sorted((self.folder / self.name / f"{_PART}={part}").glob("*.parquet"))
        if not files:
            return pl.DataFrame(schema=self.rows.collect_schema())
        return pl.read_parquet(files, hive_partitioning=False)


def _stamp(
    frame: pl.LazyFrame,
    sequences: Sequence[SequenceFeature],
    feature_set: FeatureSet,
    unit: TimeUnit,
) -> pl.Expr:
    """The events' times in the type of the rows', for gaps between the two."""
    timestamp = time_of_rows(feature_set, "data.events")
    if frame.collect_schema()[timestamp].is_temporal():
        return (pl.col(TIME) // 1000).cast(pl.Datetime("us")).alias(STAMP)
    for sequence in sequences:
        if sequence.gaps and sequence.time_unit != unit:
            raise SchemaMismatch(
                f"sequence {sequence.name!r} counts times in {sequence.time_unit}, data.time_unit"
                f" says {unit}; set both alike"
            )
    return (pl.col(TIME) / float(nanoseconds_in(unit))).alias(STAMP)


def _values(
    happened: _Happened,
    config: EventsConfig,
    sequences: Sequence[SequenceFeature],
    feature_set: FeatureSet,
) -> pl.LazyFrame:
    """What enters the histories, with its key and time."""
    schema = happened.frame.collect_schema()
    labels = {label.name: label for label in happened.labels}
    key = row_key(config.by, schema[config.by])
    enters_any = (key != MISSING_ID) & happened.time.is_not_null()
    if config.where is not None:
        enters_any &= flag(config.where, schema, labels).fill_null(False)
    chosen = [key.alias(KEY), happened.time.alias(TIME)]
    for sequence in sequences:
        assert sequence.history is not None, "only sequences with a history are gathered"
        item = source_of(feature_set.feature(sequence.of))
        value, enters = categorical_value(item, schema[item])
        if sequence.history.where is not None:
            enters &= flag(sequence.history.where, schema, labels).fill_null(False)
        chosen.append(pl.when(enters).then(value).alias(f"value {sequence.name}"))
    return happened.frame.filter(enters_any).select(chosen)
