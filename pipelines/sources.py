"""Raw files to one lazy table of usable rows, under the schema the user declares.

Text is staged as typed Parquet, Parquet is read where it lies; side tables are joined; then rows
that no training can use (a label that is neither 0 nor 1, no timestamp, a negative weight) are
kept aside. Missing, NaN and infinite numbers are *not* rejected: a feature has a default for them.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from pydantic import Field, field_validator, model_validator

from feature_store.columns import SchemaMismatch
from feature_store.features import ROW_COLUMN, FeatureSet, TimeUnit, nearest, source_of
from feature_store.kinds import kind_of
from pipelines import event_tables, events
from pipelines.checks import Checks
from pipelines.downsampling import DownsamplingConfig
from pipelines.event_tables import EventsConfig, EventTable
from pipelines.events import Known, Tables
from pipelines.files import AnyFile
from pipelines.joins import joined
from pipelines.leakage import LeakageConfig
from pipelines.mapping import Mapper, in_process
from pipelines.parts import Part, parts_of
from pipelines.reading import OnProgress, open_table
from pipelines.rejection import Rejection, require_few
from pipelines.split import SplitConfig, splits_of
from pipelines.tables import ColumnConfig, TableConfig, source_files
from pipelines.usable import unusable
from pipelines.validity import Validity, joined_as_of

__all__ = ["ColumnConfig", "DataConfig", "JoinConfig", "OnProgress", "Source", "preview", "read"]


class JoinConfig(TableConfig):
    """A side table with one row per key, such as the items; rows without a partner get nulls."""

    on: str
    """Column of both tables that holds the key."""
    as_of: str | None = None
    """Column with the time from which a row is valid: a key may then have many rows, of which the
    latest at or before the row's time is its partner, never a later one."""
    unit: TimeUnit | None = None
    """Of an `as_of` that is a number; `data.time_unit` if absent."""

    @model_validator(mode="after")
    def _has_key(self) -> "JoinConfig":
        for key, name in (("on: the key", self.on), ("as_of:", self.as_of)):
            if name is not None and name not in self.columns:
                raise ValueError(
                    f"{key} {name!r} is not among the table's columns;"
                    f" {nearest(name, list(self.columns))}"
                )
        return self


class DataConfig(TableConfig):
    """Where the raw rows come from, how they are shared out, and where versions rest."""

    joins: tuple[JoinConfig, ...] = ()
    """Side tables, joined in this order."""
    events: tuple[EventsConfig, ...] = ()
    """Events before each row, and what is computed of them as of its time."""
    time_unit: TimeUnit = "s"
    """Of features.timestamp, where that is a number and a duration is to be compared with it."""
    split: SplitConfig = SplitConfig()
    entities: tuple[str, ...] = ()
    """Raw columns that are the keys of entities (`[user_id, item_id]`): the version keeps what is
    known of each at the end of the data, for `recsys features publish`."""
    negative_downsampling: DownsamplingConfig | None = None
    """Leave most negatives out of the training split, and correct probabilities for it."""
    max_rejected: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """Share of the rows of any table that may be unusable before the build is an error."""
    leakage: LeakageConfig = LeakageConfig()
    """When a build is refused because a feature knows what it cannot."""
    checks: Checks = {}
    """Limits of what features and labels may hold and of how far they may drift, by name."""
    store: Path = Path("store")
    """Folder of the feature store; on disk, no URL."""
    owner: str | None = None
    """Who answers for the feature table; kept with the next version that is built."""
    description: str | None = None
    """What the feature table is, in a sentence; kept likewise."""

    @field_validator("store", mode="before")
    @classmethod
    def _on_disk(cls, store: Any) -> Any:
        if "://" in str(store):
            raise ValueError(
                f"store: {store} is a URL; a store is a folder on disk, since its versions appear"
                " by renaming files: mount it, or copy the store when it is built"
            )
        return store

    @model_validator(mode="after")
    def _joins_fit(self) -> "DataConfig":
        known = list(self.columns)
        types = {name: column.type for name, column in self.columns.items()}
        for join in self.joins:
            if join.on not in known:
                raise ValueError(
                    f"joins: the key {join.on!r} of {join.path} is not a column of the rows;"
                    f" {nearest(join.on, known)}"
                )
            if types[join.on] != join.columns[join.on].type:
                raise ValueError(
                    f"joins: the key {join.on!r} of {join.path} is declared as"
                    f" {join.columns[join.on].type}, in the rows as {types[join.on]}; declare the"
                    " same type"
                )
            for name in join.columns:
                if name != join.on and name in known:
                    raise ValueError(
                        f"joins: the column {name!r} of {join.path} is already there; give it"
                        " another name (`column` then names it in the file)"
                    )
            known += [name for name in join.columns if name != join.on]
            types |= {name: column.type for name, column in join.columns.items()}
        event_tables.check(self.events, known)
        for key in self.entities:
            if key not in self.columns:
                raise ValueError(
                    f"entities: the key {key!r} is not a column of the rows;"
                    f" {nearest(key, list(self.columns))}"
                )
            if self.entities.count(key) > 1:
                raise ValueError(f"entities: the key {key!r} is named more than once")
        return self

    @property
    def tables(self) -> tuple[TableConfig, ...]:
        """The rows, the side tables and the events that have files."""
        return (self, *self.joins, *(e for e in self.events if isinstance(e, EventTable)))

    @property
    def all_columns(self) -> list[str]:
        """Names of the rows' columns, with those of side tables and those computed of events."""
        joined = [name for join in self.joins for name in join.columns]
        return [*self.columns, *joined, *(name for config in self.events for name in config.names)]


@dataclass(frozen=True)
class Source:
    """Usable rows, and what became of the others."""

    frame: pl.LazyFrame
    """`__row` and the needed columns, in the order of the files; the same whenever it is read."""
    parts: list[Part]
    """The same rows in parts, with the columns of the main files only."""
    rows_in: int
    """Rows of the main files."""
    rejections: list[Rejection]
    """Rows of the main files that cannot be used."""
    side_rejections: list[Rejection] = field(default_factory=list)
    """Rows of side tables that cannot be used."""
    unmatched: dict[str, int] = field(default_factory=dict)
    """By side table: rows without a partner in it."""
    files: list[tuple[AnyFile, int]] = field(default_factory=list)
    """The main files that were read, each with the `__row` where it begins."""
    sides: list[tuple[str, pl.LazyFrame]] = field(default_factory=list)
    """The side tables as they were joined, each with the column that it is joined on; of those with
    times, the rows that are valid at the newest row's."""
    events: list[Known] = field(default_factory=list)
    """Events of which features read something."""


@dataclass(frozen=True)
class Preview:
    """The first rows, as a build would see them."""

    rows: pl.DataFrame
    rows_read: int
    rows_rejected: int


def read(
    config: DataConfig,
    feature_set: FeatureSet,
    folder: Path,
    *,
    limit: int | None = None,
    on_progress: OnProgress = lambda *_: None,
    mapper: Mapper = in_process,
) -> Source:
    """The usable rows of the configured files, with the columns that the features need.

    Args:
        config: The data.
        feature_set: Decides which columns are read and what makes a row usable.
        folder: For staged files; must stay as long as the frame is used.
        limit: Read about so many of the first rows only.
        on_progress: Told of rows of text that were read.
        mapper: Works off the files of text.

    Raises:
        FileNotFoundError: There is no such file.
        SchemaMismatch: A file does not have the declared columns, in a type that can be read.
        TooManyRejected: A side table has more unusable rows than allowed.
        ValueError: A file or a table is empty or damaged, a side table repeats a key, or a file
            belongs to no split or to two.
    """
    needed = _needed(config, feature_set)
    if config.split.files is not None:
        splits_of(source_files(config), config.split.files)
    mine = [name for name in config.columns if name in needed]
    main = open_table(config, mine)
    theirs = [
        [n for n in join.columns if n in needed or n in (join.on, join.as_of)]
        for join in config.joins
    ]
    opened = [open_table(join, names) for join, names in zip(config.joins, theirs, strict=True)]
    table = main.read(folder, limit, on_progress, mapper)
    if table.num_rows == 0:
        raise ValueError(f"{config.path}: there are no rows, only a header")
    frame = table.frame
    parts = parts_of(table.files)
    side_rejections: list[Rejection] = []
    unmatched: dict[str, int] = {}
    sides: list[tuple[str, pl.LazyFrame]] = []
    for number, join in enumerate(config.joins):
        side_folder = folder / f"join-{number}"
        side_folder.mkdir()
        side = opened[number].read(side_folder, None, on_progress)
        require_few(side.rejections, side.num_rows, config.max_rejected, None)
        side_rejections += side.rejections
        if join.as_of is None:
            frame, num_found, keyless = joined(frame, side, join.on, str(join.path))
            require_few([*side.rejections, *keyless], side.num_rows, config.max_rejected, None)
            side_rejections += keyless
            unmatched[str(join.path)] = table.num_rows - num_found
            sides.append((join.on, side.frame.drop(ROW_COLUMN).drop_nulls(join.on)))
        else:
            units = (join.unit or config.time_unit, config.time_unit)
            validity = Validity(str(join.path), join.on, join.as_of, *units)
            found = joined_as_of(frame, side, validity, feature_set, all_rows=limit is None)
            rejected = [*side.rejections, *found.rejections]
            require_few(rejected, side.num_rows, config.max_rejected, None)
            side_rejections += found.rejections
            unmatched[str(join.path)] = table.num_rows - found.num_found
            frame = found.frame
            sides.append((join.on, found.latest))
    late = unusable(frame, feature_set, table.places.of)
    if late:
        rows = pl.Series(sorted(late), dtype=pl.Int64)
        frame = frame.filter(~pl.col(ROW_COLUMN).is_in(rows.implode()))
        parts = [part.without(rows) for part in parts]
    rejections = sorted([*table.rejections, *late.values()], key=lambda r: (r.file, r.line))
    gathered = events.gather(
        frame,
        config.events,
        feature_set,
        _wanted(config, feature_set),
        Tables(folder, config.time_unit, config.max_rejected, limit, on_progress),
    )
    frame = gathered.frame
    side_rejections += gathered.rejections
    files = table.places.begins()
    return Source(
        frame,
        parts,
        table.num_rows,
        rejections,
        side_rejections,
        unmatched,
        files,
        sides,
        gathered.events,
    )


def preview(config: DataConfig, feature_set: FeatureSet, num_rows: int = 1000) -> Preview:
    """The first usable rows in the declared types; raises what `read` raises."""
    with tempfile.TemporaryDirectory() as folder:
        source = read(config, feature_set, Path(folder), limit=num_rows)
        rows = source.frame.head(num_rows).collect()
    return Preview(rows, source.rows_in, len(source.rejections))


def _needed(config: DataConfig, feature_set: FeatureSet) -> dict[str, str]:
    """Raw columns to read, and what needs each."""
    wanted = _wanted(config, feature_set)
    added = {name for each in config.events for name in each.names}
    needed = {name: what for name, what in wanted.items() if name not in added}
    needed |= event_tables.needed_columns(config.events, feature_set, wanted)
    known = [name for name in config.all_columns if name not in added]
    for name in feature_set.derived:
        if name in config.all_columns:
            raise SchemaMismatch(
                f"features.derived.{name}: the data have a column of that name; give the derived"
                " one another"
            )
    for name, what in needed.items():
        if name not in known:
            raise SchemaMismatch(
                f"{what} reads the column {name!r}, which the data do not declare;"
                f" {nearest(name, known)}"
            )
    return needed


def _wanted(config: DataConfig, feature_set: FeatureSet) -> dict[str, str]:
    """Columns of the rows that are used, and what needs each; those computed of events too."""
    needed: dict[str, str] = {join.on: f"the join with {join.path}" for join in config.joins}
    needed |= dict.fromkeys(config.entities, "data.entities")
    for feature in feature_set.inputs:
        needed |= kind_of(feature).logged(feature, feature_set)
    for label in feature_set.labels:
        needed[source_of(label)] = f"the label {label.name!r}"
    for what in ("weight", "group", "timestamp"):
        if (name := getattr(feature_set, what)) is not None:
            needed[name] = f"features.{what}"
    if config.split.by == "user" and config.split.user is not None:
        needed[config.split.user] = "data.split.user"
    return needed
