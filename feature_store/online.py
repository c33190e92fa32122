"""Rows completed from an online store: raw columns that a request does not bring, by its keys.

What comes out is raw rows, as a log would have them; `FittedFeatures.encode` makes of them what it
makes of any. Columns that a request brings win over stored ones. An unknown key gives missing
values, empty histories and windows without events; it is counted.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

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
    key_bytes,
)
from feature_store.packing import RowPacking
from feature_store.windows import KEY, TIME, nanoseconds, window_columns

CHECK_SECONDS = 1.0
"""How often a reader looks whether another version was published."""

_PLACE, _LIMIT = "__place", "__limit"
_PER_SECOND = 10**9


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

    Raises:
        OnlineStoreError: Nothing was published, or the store does not answer.
        FeaturesMismatch: The published version is not for this model.
    """

    def __init__(self, store: OnlineStore, fitted: FittedFeatures) -> None:
        self._store = store
        self._fitted = fitted
        self._version = store.open()
        require_compatible(self._version.published, fitted)
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
                require_compatible(version.published, self._fitted)
                self._version, self._problem = version, None
        except FeaturesMismatch as error:
            self._refused, self._problem = current, str(error)
        except OnlineStoreError as error:
            self._problem = str(error)


def described(published: Published) -> dict[str, Any]:
    """A version's name and the age of what it knows, as answers carry them."""
    age = (datetime.now(UTC) - published.snapshot.as_of).total_seconds()
    return {"version": published.label, "age_seconds": round(age, 3)}


def require_compatible(published: Published, fitted: FittedFeatures) -> None:
    """Check that stored columns are what a model's features read.

    The version need not be the one that the model was trained on: stored values are raw, and the
    model's own features encode them. Where both have the same fingerprint, all is well; else every
    stored column that the model reads must have the same type, and histories the same rule.

    Raises:
        FeaturesMismatch: Names the first column that does not fit.
    """
    if published.features_fingerprint == fitted.fingerprint:
        return
    stored = {
        name: kind
        for entity in published.snapshot.entities
        for name, kind in entity.columns.items()
    }
    read = {column.name: column.type for column in fitted.columns}
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
    asked = {
        entity.key: given.select(row_key(entity.key, given.schema[entity.key])).to_series()
        for entity in needed
    }
    distinct = {key: hashes.unique() for key, hashes in asked.items()}
    distinct = {key: hashes.filter(hashes != MISSING_ID) for key, hashes in distinct.items()}
    found = version.values(
        {key: key_bytes(hashes.reinterpret(signed=False)) for key, hashes in distinct.items()}
    )
    columns: dict[str, pl.Series] = {}
    misses: dict[str, int] = {}
    for entity in needed:
        pairs = zip(distinct[entity.key].to_list(), found[entity.key], strict=True)
        rows = [(key, row) for key, row in pairs if row is not None]
        has_none = (asked[entity.key] == MISSING_ID).any()
        misses[entity.key] = len(distinct[entity.key]) - len(rows) + int(has_none)
        known = _Known(
            entity,
            RowPacking(entity.stored).unpack([row for _, row in rows]),
            pl.Series([key for key, _ in rows], dtype=pl.Int64),
            asked[entity.key],
            snapshot.time,
        )
        columns |= known.columns(missing, given)
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
class _Known:
    """What is stored of one entity's keys that rows name."""

    entity: StoredEntity
    stored: pl.DataFrame
    """A row per key that was found."""
    keys: pl.Series
    """Their hashes."""
    asked: pl.Series
    """Per row, the hash of its key."""
    time: StoredTime | None

    def columns(self, missing: Sequence[str], given: pl.DataFrame) -> dict[str, pl.Series]:
        """The missing columns that this entity has, for every row."""
        place_of = {key: place for place, key in enumerate(self.keys.to_list())}
        places = pl.Series([place_of.get(k) for k in self.asked.to_list()], dtype=pl.UInt32)
        lists = {name for history in self.entity.histories for name in history.columns}
        found = {
            name: self.stored.get_column(name).gather(places)
            for name in missing
            if name in self.entity.columns and name not in lists
        }
        for history in self.entity.histories:
            if any(name in history.columns for name in missing):
                found |= self._past(history, places, given)
        for windows in self.entity.windows:
            if any(name in windows.windows.names for name in missing):
                found |= self._windows(windows, missing, given)
        return found

    def _past(
        self, history: StoredHistory, places: pl.Series, given: pl.DataFrame
    ) -> dict[str, pl.Series]:
        """A history's lists with what came strictly before the row's time, if rows bring it."""
        names = list(dict.fromkeys((*history.columns, history.times)))
        lists = self.stored.select(pl.col(names).gather(places))
        if self.time is not None and self.time.column in given.columns:
            if history.clock == "ns":
                limit, element = self._nanoseconds(given), pl.col(history.times)
            else:
                dtype = given.schema[self.time.column]
                limit, _ = time_number(self.time.column, dtype)
                element, _ = time_number(history.times, element_type(lists.schema[history.times]))
            limits = given.select(limit).to_series()
            lists = _before(limits, lists, element, history.times)
        # A build gives a list to every row, an empty one where there is no past.
        empty = [
            pl.col(name).fill_null(pl.lit([], dtype=lists.schema[name])) for name in history.columns
        ]
        filled = lists.select(empty)
        return {name: filled.get_column(name) for name in history.columns}

    def _windows(
        self, stored: StoredWindows, missing: Sequence[str], given: pl.DataFrame
    ) -> dict[str, pl.Series]:
        """Windows over the stored events as of the rows' time; of now if rows do not bring it."""
        windows = stored.windows.only(missing)
        lists = [pl.col(column).alias(name) for column, name in stored.lists.items()]
        events = self.stored.select(self.keys.alias(KEY), *lists)
        events = events.explode(list(stored.lists.values())).drop_nulls(TIME)
        if self.time is not None and self.time.column in given.columns:
            time = self._nanoseconds(given)
        else:
            time = pl.lit(round(datetime.now(UTC).timestamp() * _PER_SECOND), pl.Int64)
        queries = given.select(self.asked.alias(KEY), time.alias(TIME))
        found = window_columns(windows, queries, events)
        return {name: found.get_column(name) for name in found.columns}

    def _nanoseconds(self, given: pl.DataFrame) -> pl.Expr:
        assert self.time is not None, "rows without a time have no windows"
        return nanoseconds(self.time.column, given.schema[self.time.column], self.time.unit)


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


def _before(limits: pl.Series, lists: pl.DataFrame, element: pl.Expr, times: str) -> pl.DataFrame:
    """Lists without the elements whose time is not before the row's; empty for rows without one.

    Args:
        limits: The rows' times.
        lists: Aligned list columns.
        element: The time of an element, once lists are exploded.
        times: Column with the elements' times.
    """
    newest = lists.select(pl.col(times).list.last()).select(element).to_series()
    # Mostly all is past, and nothing needs to be taken apart.
    cut = newest.is_not_null() & ~(newest < limits).fill_null(False)
    if not cut.any():
        return lists
    placed = lists.with_columns(limits.alias(_LIMIT)).with_row_index(_PLACE)
    kept = (
        placed.filter(cut)
        .explode(lists.columns)
        .filter(element < pl.col(_LIMIT))
        .group_by(_PLACE, maintain_order=True)
        .agg(lists.columns)
    )
    whole = placed.filter(~cut).select(_PLACE, *lists.columns)
    both = placed.select(_PLACE).join(pl.concat([whole, kept]), on=_PLACE, how="left")
    return both.sort(_PLACE).select(lists.columns)
