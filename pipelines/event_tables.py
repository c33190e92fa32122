"""Events as a user declares them: where they are, whose they are, and what is computed of them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, model_validator

from feature_store.aggregates import Duration, Windows
from feature_store.columns import SchemaMismatch
from feature_store.features import NAME, FeatureSet, TimeUnit, nearest, source_of
from feature_store.features import Sequence as SequenceFeature
from feature_store.kinds import sources_of
from pipelines.tables import TableConfig


class _EventsConfig(Windows):
    name: str
    """Names the events in errors, in `history.events` and in `data.leakage.allow`."""

    @model_validator(mode="after")
    def _named(self) -> "_EventsConfig":
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"events {self.name!r}: a name is a letter followed by letters, digits, '_' and '-'"
            )
        return self


class EventRows(_EventsConfig):
    """The rows themselves are the events, at their own time: impressions and clicks of a user."""

    rows: Literal[True]


class EventTable(TableConfig, _EventsConfig):
    """Events in files of their own, one a row, in any order."""

    rows: Literal[False] = False
    time: str
    """Column with the event's time."""
    unit: TimeUnit | None = None
    """Of a time that is a number; `data.time_unit` if absent. Datetimes bring their own."""
    horizon: Duration | None = "1d"
    """How much later than the newest row an event may be; those after are rejected, as times from
    the future are mostly wrong ones. Null: any time."""

    @model_validator(mode="after")
    def _columns_are_there(self) -> "EventTable":
        read = {self.by: "by", self.time: "time", **self.reads()}
        for name, what in read.items():
            if name not in self.columns:
                raise ValueError(
                    f"events {self.name!r}: {what} reads {name!r}, which is not among the table's"
                    f" columns; {nearest(name, list(self.columns))}"
                )
        return self


def _where_from(value: Any) -> str:
    rows = value.get("rows") if isinstance(value, dict) else value.rows
    return "rows" if rows else "table"


EventsConfig = Annotated[
    Annotated[EventRows, Tag("rows")] | Annotated[EventTable, Tag("table")],
    Discriminator(_where_from),
]
"""Events, and what is computed of them."""


def check(events: Sequence[EventsConfig], known: Sequence[str]) -> None:
    """Check names: of the events, of their keys, and of the columns they add.

    Args:
        events: The events.
        known: Columns of the rows, with those of side tables.

    Raises:
        ValueError: Names what does not fit.
    """
    names = [config.name for config in events]
    taken = list(known)
    for config in events:
        if names.count(config.name) > 1:
            raise ValueError(f"events: two are named {config.name!r}; names must be unique")
        if config.by not in known:
            raise ValueError(
                f"events {config.name!r}: the key {config.by!r} is not a column of the rows;"
                f" {nearest(config.by, list(known))}"
            )
        for name in config.names:
            if name in taken:
                raise ValueError(
                    f"events {config.name!r}: the column {name!r} is already there; give it another"
                    " name"
                )
        taken += config.names


def needed_columns(
    events: Sequence[EventsConfig], feature_set: FeatureSet, wanted: Mapping[str, str]
) -> dict[str, str]:
    """Raw columns of the rows that are read to compute the wanted ones, and what needs each.

    Args:
        events: The events.
        feature_set: Its labels may tell which events count.
        wanted: Columns that features read.
    """
    labels = {label.name: source_of(label) for label in feature_set.labels}
    needed: dict[str, str] = {}
    for config in events:
        windows = config.only(list(wanted))
        if windows.aggregates or of_events(feature_set, config.name):
            needed[config.by] = f"data.events {config.name!r}"
        if isinstance(config, EventRows):
            for name, what in windows.reads().items():
                needed[labels.get(name, name)] = f"data.events {config.name!r}: {what}"
            for sequence in of_events(feature_set, config.name):
                item = source_of(feature_set.feature(sequence.of))
                needed[item] = f"the history of {sequence.name!r}"
    return needed


def behind(events: Sequence[EventsConfig], feature_set: FeatureSet) -> dict[str, str]:
    """The events of which features read something, by name, each with the column of its key."""
    read = sources_of(feature_set)
    return {
        config.name: config.by
        for config in events
        if of_events(feature_set, config.name) or not read.keys().isdisjoint(config.names)
    }


def of_events(feature_set: FeatureSet, name: str) -> list[SequenceFeature]:
    """The sequences whose history is made of these events."""
    return [
        feature
        for feature in feature_set.inputs
        if isinstance(feature, SequenceFeature)
        and feature.history is not None
        and feature.history.events == name
    ]


def check_histories(events: Sequence[EventsConfig], feature_set: FeatureSet) -> None:
    """Check that histories of events name events that are there, by the same key.

    Raises:
        SchemaMismatch: Names the sequence.
    """
    by_name = {config.name: config for config in events}
    for feature in feature_set.inputs:
        history = feature.history if isinstance(feature, SequenceFeature) else None
        if history is None or history.events is None:
            continue
        if history.events not in by_name:
            raise SchemaMismatch(
                f"sequence {feature.name!r}: history.events names {history.events!r}, which"
                f" data.events do not declare; {nearest(history.events, list(by_name))}"
            )
        if history.by != by_name[history.events].by:
            raise SchemaMismatch(
                f"sequence {feature.name!r}: history.by is {history.by!r}, but the events"
                f" {history.events!r} are known by {by_name[history.events].by!r}"
            )


def columns_read(config: EventTable, feature_set: FeatureSet) -> list[str]:
    """Columns of an event table that are read.

    Raises:
        SchemaMismatch: A history reads one that the table does not declare.
    """
    names = dict.fromkeys([config.by, config.time, *config.reads()])
    for sequence in of_events(feature_set, config.name):
        assert sequence.history is not None, "it is a history of these events"
        for name in (source_of(feature_set.feature(sequence.of)), sequence.history.where):
            if name is not None and name not in config.columns:
                raise SchemaMismatch(
                    f"the history of {sequence.name!r} reads {name!r} of the events"
                    f" {config.name!r}, whose table does not declare it;"
                    f" {nearest(name, list(config.columns))}"
                )
            names |= {} if name is None else {name: None}
    return list(names)
