"""Rows completed from an online store: raw columns that a request does not bring, by its keys.

What comes out is raw rows, as a log would have them; `FittedFeatures.encode` makes of them what it
makes of any. Columns that a request brings win over stored ones. An unknown key gives missing
values, empty histories and windows without events; it is counted.
"""

import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import JsonValue

from feature_store.columns import element_type, time_number
from feature_store.encoding import FittedFeatures, row_key
from feature_store.features import MISSING_ID, FeatureSet, Label, source_of
from feature_store.features import Sequence as SequenceFeature
from feature_store.online_lmdb import LmdbStore
from feature_store.online_redis import SCHEMES, RedisStore
from feature_store.online_store import (
    OnlineStore,
    OnlineStoreError,
    OnlineVersion,
    Published,
    StoredEntity,
    StoredHistory,
    StoredTime,
    StoredWindows,
    VersionGone,
    window_rules,
)
from feature_store.packing import RowPacking
from feature_store.windows import KEY, PER_SECOND, TIME, nanoseconds, window_columns

CHECK_SECONDS = 1.0
"""How often a reader looks whether another version was published."""

_PLACE, _LIMIT = "__place", "__limit"


class FeaturesMismatch(OnlineStoreError):
    """A published version that cannot complete the rows of a model."""


class NoKey(ValueError):
    """Rows that lack a column, and the key under which it is stored."""

    def __init__(self, column: str, key: str | None) -> None:
        self.column, self.key = column, key
        super().__init__(f"the column {column!r} is missing")


@dataclass(frozen=True)
class Completed:
    """Completed rows."""

    rows: pl.DataFrame
    """The wanted columns, in their order."""
    published: Published
    """The one version from which all stored values are."""
    misses: dict[str, int]
    """By key column that was looked up: distinct keys that are not stored; a missing key is one."""


def open_store(target: str) -> OnlineStore:
    """The online store in a folder, or in a Redis server (`redis://host:port/database`).

    Raises:
        ValueError: It is a URL of another kind.
    """
    if target.startswith(SCHEMES):
        return RedisStore(target)
    if "://" in target:
        raise ValueError(
            f"{target}: an online store is a folder or a URL that begins with {', '.join(SCHEMES)}"
        )
    return LmdbStore(Path(target))


class OnlineFeatures:
    """Completes rows for one model, from whatever version is published; for several threads.

    Args:
        store: Where versions are published.
        fitted: The model's features, which say what stored columns must be.
        windows: What the windows were in the model's data, from `online_store.window_rules`.

    Raises:
        OnlineStoreError: Nothing was published, or the store does not answer.
        FeaturesMismatch: The published version is not for this model.
    """

    def __init__(
        self,
        store: OnlineStore,
        fitted: FittedFeatures,
        windows: Mapping[str, JsonValue] | None = None,
    ) -> None:
        self._store = store
        self._fitted = fitted
        self._windows = windows or {}
        self._version = store.open()
        require_compatible(self._version.published, fitted, self._windows)
        self._checked = time.monotonic()
        self._refused = ""
        self._problem: str | None = None
        self._refreshing = threading.Lock()
        self._counting = threading.Lock()
        self._requests = 0
        self._misses = {entity.key: 0 for entity in self._version.published.snapshot.entities}

    @property
    def published(self) -> Published:
        """The version that answers."""
        return self._current().published

    def complete(
        self, given: pl.DataFrame, brought: Mapping[str, pl.Series], wanted: Sequence[str]
    ) -> Completed:
        """The wanted raw columns of some rows.

        Args:
            given: What the rows bring: keys, the time, raw columns.
            brought: For columns that some rows bring and others do not, which do.
            wanted: Raw columns of the result.

        Raises:
            NoKey: A column is neither brought nor stored, or it is stored by a key that is not
                brought.
            OnlineStoreError: The store does not answer.
        """
        version = self._current()
        try:
            completed = complete(version, given, brought, wanted)
        except VersionGone:
            completed = complete(self._replacement(version), given, brought, wanted)
        with self._counting:
            self._requests += 1
            for key, misses in completed.misses.items():
                self._misses[key] = self._misses.get(key, 0) + misses
        return completed

    def state(self) -> dict[str, Any]:
        """What answers now, and how it has fared; plain values for `/health`."""
        published = self.published
        with self._counting:
            requests, misses = self._requests, dict(self._misses)
        return {
            **described(published),
            "published": published.published.isoformat(timespec="seconds"),
            "as_of": published.snapshot.as_of.isoformat(timespec="seconds"),
            "keys": {entity.key: entity.num_keys for entity in published.snapshot.entities},
            "requests": requests,
            "misses": misses,
            "problem": self._problem,
        }

    def _current(self) -> OnlineVersion:
        if time.monotonic() - self._checked >= CHECK_SECONDS:
            with self._refreshing:
                if time.monotonic() - self._checked >= CHECK_SECONDS:
                    self._refresh()
        return self._version

    def _replacement(self, gone: OnlineVersion) -> OnlineVersion:
        """The version in whose favour one was removed.

        Raises:
            OnlineStoreError: There is none that this model can read.
        """
        with self._refreshing:
            if self._version is gone:
                self._refresh()
            if self._version is gone:
                raise OnlineStoreError(
                    self._problem or f"{gone.published.label} was removed from the online store"
                )
            return self._version

    def _refresh(self) -> None:
        """Take the version that is current now; a problem leaves the one that answers."""
        self._checked = time.monotonic()
        try:
            current = self._store.current_id()
            if current == self._version.published.id:
                self._problem = None
            elif current != self._refused:
                version = self._store.open()
                require_compatible(version.published, self._fitted, self._windows)
                self._version, self._problem = version, None
        except FeaturesMismatch as error:
            self._refused, self._problem = current, str(error)
        except OnlineStoreError as error:
            self._problem = str(error)


def described(published: Published) -> dict[str, Any]:
    """A version's name and the age of what it knows, as answers carry them."""
    age = (datetime.now(UTC) - published.snapshot.as_of).total_seconds()
    return {"version": published.label, "age_seconds": round(age, 3)}


def require_compatible(
    published: Published,
    fitted: FittedFeatures,
    windows: Mapping[str, JsonValue] | None = None,
) -> None:
    """Check that stored columns are what a model's features read.

    The version need not be the one that the model was trained on: stored values are raw, and the
    model's own features encode them. Where both have the same fingerprint, all is well; else every
    stored column that the model reads must have the same type, and histories the same rule. Windows
    must have the same in any case: fitted features do not know it.

    Args:
        published: The version.
        fitted: The model's features.
        windows: From `online_store.window_rules`, of the model's data; others are not checked.

    Raises:
        FeaturesMismatch: Names the first column that does not fit.
    """
    read = {column.name: column.type for column in fitted.columns}
    _require_same_windows(published, {n: rule for n, rule in (windows or {}).items() if n in read})
    if published.features_fingerprint == fitted.fingerprint:
        return
    stored = {
        name: kind
        for entity in published.snapshot.entities
        for name, kind in entity.columns.items()
    }
    if not read.keys() & stored.keys():
        raise FeaturesMismatch(
            f"{published.label} in the online store has none of the columns that the model reads"
            f" ({', '.join(read)}); publish a version of the feature table it was trained on"
        )
    for name, kind in read.items():
        if stored.get(name, kind) != kind:
            raise FeaturesMismatch(
                f"{published.label} in the online store does not fit the model: expected the column"
                f" {name!r} as {kind}, found {stored[name]}; publish a version built as the"
                " model's, or export a model of this one"
            )
    for feature in fitted.feature_set.inputs:
        if isinstance(feature, SequenceFeature) and feature.history is not None:
            _require_same_history(published, fitted.feature_set, feature)


def _require_same_windows(published: Published, expected: Mapping[str, JsonValue]) -> None:
    entities = published.snapshot.entities
    found = window_rules(stored.windows for entity in entities for stored in entity.windows)
    for name, rule in expected.items():
        if found.get(name, rule) != rule:
            raise FeaturesMismatch(
                f"{published.label} in the online store does not fit the model: expected the window"
                f" {name!r} as {rule}, found {found[name]}; publish a version built as the model's"
            )


def _require_same_history(
    published: Published, features: FeatureSet, feature: SequenceFeature
) -> None:
    assert feature.history is not None, "only sequences with a history are stored as such"
    labels = {label.name: label for label in features.labels}
    where: str | None = feature.history.where
    rule = labels.get(where, where) if where is not None else None
    of, events = source_of(features.feature(feature.of)), feature.history.events
    expected = (of, feature.history.by, events, rule)
    for entity in published.snapshot.entities:
        for history in entity.histories:
            if history.columns[0] != source_of(feature):
                continue
            found = (history.of, entity.key, history.events, history.where)
            if found != expected or history.max_length < feature.max_length:
                raise FeaturesMismatch(
                    f"{published.label} in the online store does not fit the model: the history"
                    f" {source_of(feature)!r} is {_told(feature.max_length, *expected)} in the"
                    f" model, and {_told(history.max_length, *found)} in the store; publish a"
                    " version built as the model's"
                )


def _told(length: int, of: str, by: str, events: str | None, where: Label | str | None) -> str:
    """A history's rule in words."""
    what = f"of the last {length} {of!r} by {by!r}"
    what += f" from the events {events!r}" if events is not None else ""
    if isinstance(where, Label):
        bound = "" if where.threshold is None else f" >= {where.threshold:g}"
        return f"{what} where {source_of(where)!r}{bound}"
    return what if where is None else f"{what} where {where!r}"


def complete(
    version: OnlineVersion,
    given: pl.DataFrame,
    brought: Mapping[str, pl.Series],
    wanted: Sequence[str],
) -> Completed:
    """See `OnlineFeatures.complete`; all stored values are of this version.

    Raises:
        VersionGone: It was removed meanwhile.
    """
    snapshot = version.published.snapshot
    missing = [name for name in wanted if name not in given.columns or name in brought]
    needed = _needed(snapshot.entities, given, missing, brought)
    # A request is small, and every query of Polars has its price: few of them, Python otherwise.
    asked = given.select(
        row_key(entity.key, given.schema[entity.key]).alias(entity.key) for entity in needed
    )
    distinct = {name: list(dict.fromkeys(asked.get_column(name))) for name in asked.columns}
    distinct = {n: [key for key in keys if key != MISSING_ID] for n, keys in distinct.items()}
    found = version.values({name: _key_bytes(keys) for name, keys in distinct.items()})
    times = _Times.of(given, snapshot.time)
    columns: dict[str, pl.Series] = {}
    misses: dict[str, int] = {}
    for entity in needed:
        keys = asked.get_column(entity.key)
        pairs = zip(distinct[entity.key], found[entity.key], strict=True)
        rows = [(key, row) for key, row in pairs if row is not None]
        misses[entity.key] = len(distinct[entity.key]) - len(rows) + int(MISSING_ID in keys)
        known = _Known(
            entity,
            RowPacking(entity.stored).unpack([row for _, row in rows]),
            [key for key, _ in rows],
            keys,
            times,
        )
        columns |= known.columns(missing)
    result = []
    for name in wanted:
        if name not in missing:
            series = given.get_column(name)
        elif name in brought:
            own, stored = given.get_column(name), columns[name].cast(given.schema[name])
            series = own.zip_with(brought[name], stored)
        else:
            series = columns[name]
        result.append(series.alias(name))
    return Completed(pl.DataFrame(result, height=given.height), version.published, misses)


@dataclass(frozen=True)
class _Times:
    """The times of the rows, where they bring them; None: now."""

    raw: pl.Series | None
    """As numbers that keep the order of the raw column, null where there is none."""
    ns: pl.Series
    """In ns since 1970; null where there is none."""

    @classmethod
    def of(cls, given: pl.DataFrame, time: StoredTime | None) -> "_Times":
        if time is None or time.column not in given.columns:
            now = round(datetime.now(UTC).timestamp() * PER_SECOND)
            return cls(None, pl.Series([now] * given.height, dtype=pl.Int64))
        dtype = given.schema[time.column]
        raw, _ = time_number(time.column, dtype)
        ns = nanoseconds(time.column, dtype, time.unit)
        return cls(*given.select(raw.alias("raw"), ns.alias("ns")).get_columns())

    def clock(self, history: StoredHistory) -> pl.Series | None:
        """The rows' times as a history's elements have them; None: nothing is to be left out."""
        if self.raw is None:
            return None
        return self.ns if history.clock == "ns" else self.raw


@dataclass(frozen=True)
class _Known:
    """What is stored of one entity's keys that rows name."""

    entity: StoredEntity
    stored: pl.DataFrame
    """A row per key that was found."""
    keys: list[int]
    """Their hashes."""
    asked: pl.Series
    """Per row, the hash of its key."""
    times: _Times

    def columns(self, missing: Sequence[str]) -> dict[str, pl.Series]:
        """The missing columns that this entity has, for every row."""
        histories = [h for h in self.entity.histories if not set(h.columns).isdisjoint(missing)]
        lists = {name for history in histories for name in history.columns}
        names = [name for name in missing if name in self.entity.columns and name not in lists]
        found: dict[str, pl.Series] = {}
        place_of = {key: place for place, key in enumerate(self.keys)}
        places = pl.Series([place_of.get(key) for key in self.asked], dtype=pl.UInt32)
        cut = self._cut(histories)
        gathered = [pl.col(name).gather(places) for name in names]
        gathered += [self._lists(n, places) for h in histories for n in h.columns if h not in cut]
        if gathered:
            rows = self.stored.select(gathered)
            found = dict(zip(rows.columns, rows.get_columns(), strict=True))
        for history in cut:
            found |= self._past(history, places)
        for windows in self.entity.windows:
            if not set(windows.windows.names).isdisjoint(missing):
                found |= self._windows(windows, missing)
        return found

    def _lists(self, name: str, places: pl.Series) -> pl.Expr:
        # A build gives a list to every row, an empty one where there is no past.
        empty = pl.lit([], dtype=self.stored.schema[name])
        return pl.col(name).gather(places).fill_null(empty)

    def _cut(self, histories: Sequence[StoredHistory]) -> list[StoredHistory]:
        """Those of which something is not yet past at the time of some row: mostly none."""
        if not histories or self.times.raw is None:
            return []
        newest = self.stored.select(
            _elements(h, self.stored, pl.col(h.times).list.last()).max().alias(str(place))
            for place, h in enumerate(histories)
        ).row(0)
        cut = []
        for history, last in zip(histories, newest, strict=True):
            limits = self.times.clock(history)
            assert limits is not None, "rows bring their times"
            first = None if limits.has_nulls() else limits.min()
            if last is not None and (first is None or last >= first):  # type: ignore[operator]
                cut.append(history)
        return cut

    def _past(self, history: StoredHistory, places: pl.Series) -> dict[str, pl.Series]:
        """A history's lists with what came strictly before the row's time; empty without one."""
        limits = self.times.clock(history)
        assert limits is not None, "rows bring their times"
        names = list(dict.fromkeys((*history.columns, history.times)))
        element = _elements(history, self.stored, pl.col(history.times))
        placed = self.stored.select(pl.col(names).gather(places))
        placed = placed.with_columns(limits.alias(_LIMIT)).with_row_index(_PLACE)
        kept = (
            placed.explode(names)
            .filter(element < pl.col(_LIMIT))
            .group_by(_PLACE, maintain_order=True)
            .agg(names)
        )
        whole = placed.select(_PLACE).join(kept, on=_PLACE, how="left", maintain_order="left")
        filled = whole.select(
            pl.col(name).fill_null(pl.lit([], dtype=self.stored.schema[name]))
            for name in history.columns
        )
        return dict(zip(filled.columns, filled.get_columns(), strict=True))

    def _windows(self, stored: StoredWindows, missing: Sequence[str]) -> dict[str, pl.Series]:
        """Windows over the stored events as of the rows' time."""
        lists = [pl.col(column).alias(name) for column, name in stored.lists.items()]
        keys = pl.Series(KEY, self.keys, dtype=pl.Int64)
        events = (
            self.stored.lazy()
            .select(keys, *lists)
            .explode(list(stored.lists.values()))
            .filter(pl.col(TIME).is_not_null())
            .collect()
        )
        queries = pl.DataFrame([self.asked.alias(KEY), self.times.ns.alias(TIME)])
        found = window_columns(stored.windows.only(missing), queries, events)
        return dict(zip(found.columns, found.get_columns(), strict=True))


def _elements(history: StoredHistory, stored: pl.DataFrame, time: pl.Expr) -> pl.Expr:
    """The time of an element as a number, as `_Times` has those of rows."""
    if isinstance(element_type(stored.schema[history.times]), pl.Date | pl.Datetime):
        return time.cast(pl.Datetime("us")).cast(pl.Int64)
    return time


def _key_bytes(keys: Sequence[int]) -> list[bytes]:
    """`online_store.key_bytes` of a few signed hashes."""
    return [struct.pack(">q", key) for key in keys]


def _needed(
    entities: Sequence[StoredEntity],
    given: pl.DataFrame,
    missing: Sequence[str],
    brought: Mapping[str, pl.Series],
) -> list[StoredEntity]:
    """The entities that complete the missing columns.

    Raises:
        NoKey: There is none for a column, or its key is not given.
    """
    needed: dict[str, StoredEntity] = {}
    for name in missing:
        entity = next((e for e in entities if name in _names(e)), None)
        if entity is None:
            raise NoKey(name, None)
        if entity.key not in given.columns or entity.key in brought:
            raise NoKey(name, entity.key)
        needed[entity.key] = entity
    return list(needed.values())


def _names(entity: StoredEntity) -> set[str]:
    return {*entity.columns, *(name for w in entity.windows for name in w.windows.names)}
