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

from feature_store.columns import canonical_text, element_type, time_number
from feature_store.encoding import FittedFeatures, row_key
from feature_store.features import Sequence as SequenceFeature
from feature_store.features import source_of
from feature_store.online_lmdb import LmdbStore
from feature_store.online_redis import SCHEMES, RedisStore
from feature_store.online_store import (
    KEY_COLUMN,
    OnlineStore,
    OnlineStoreError,
    OnlineVersion,
    Published,
    StoredEntity,
    StoredTime,
    StoredWindows,
    VersionGone,
    key_bytes,
    key_texts,
)
from feature_store.packing import RowPacking
from feature_store.windows import KEY, TIME, nanoseconds, window_columns

CHECK_SECONDS = 1.0
"""How often a reader looks whether another version was published."""

_ROW = "__place"


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
            _require_same_history(published, fitted, feature)


def _require_same_history(
    published: Published, fitted: FittedFeatures, feature: SequenceFeature
) -> None:
    assert feature.history is not None, "only sequences with a history are stored as such"
    labels = {label.name: label for label in fitted.feature_set.labels}
    where = feature.history.where
    expected = (
        source_of(fitted.feature_set.feature(feature.of)),
        feature.history.by,
        None if where is None else labels[where],
    )
    for entity in published.snapshot.entities:
        for history in entity.histories:
            if history.column != source_of(feature):
                continue
            found = (history.of, entity.key, history.where)
            if found != expected or history.max_length < feature.max_length:
                raise FeaturesMismatch(
                    f"{published.label} in the online store does not fit the model: the history"
                    f" {history.column!r} is of {feature.max_length} {expected[0]!r} by"
                    f" {expected[1]!r} where {expected[2]} in the model, and of"
                    f" {history.max_length} {found[0]!r} by {found[1]!r} where {found[2]} in the"
                    " store; publish a version built as the model's"
                )


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
    texts = {
        entity.key: given.select(
            canonical_text(pl.col(entity.key), given.schema[entity.key]).alias(KEY_COLUMN)
        ).to_series()
        for entity in needed
    }
    distinct = {key: key_texts(values) for key, values in texts.items()}
    found = version.values({key: key_bytes(keys) for key, keys in distinct.items()})
    columns: dict[str, pl.Series] = {}
    misses: dict[str, int] = {}
    for entity in needed:
        keys = distinct[entity.key].get_column(KEY_COLUMN).to_list()
        rows = [(text, row) for text, row in zip(keys, found[entity.key], strict=True) if row]
        asked = texts[entity.key]
        has_none = asked.is_null().any() or (asked == "").any()
        misses[entity.key] = len(keys) - len(rows) + int(has_none)
        stored = RowPacking(entity.stored).unpack([row for _, row in rows])
        place_of = {text: place for place, (text, _) in enumerate(rows)}
        places = pl.Series([place_of.get(t) for t in asked.to_list()], dtype=pl.UInt32)
        names = [name for name in missing if name in entity.columns]
        columns |= _stored_columns(entity, stored, places, names, given, snapshot.time)
        for windows in entity.windows:
            if any(name in windows.windows.names for name in missing):
                columns |= _window_columns(windows, entity, stored, rows, given, snapshot.time)
    result = []
    for name in wanted:
        if name in missing:
            series = columns[name].alias(name)
            if name in brought:
                series = given.get_column(name).zip_with(brought[name], series)
            result.append(series)
        else:
            result.append(given.get_column(name))
    return Completed(pl.DataFrame(result, height=given.height), version.published, misses)


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


def _stored_columns(
    entity: StoredEntity,
    stored: pl.DataFrame,
    places: pl.Series,
    names: Sequence[str],
    given: pl.DataFrame,
    time: StoredTime | None,
) -> dict[str, pl.Series]:
    """Stored columns for every row; histories hold what came strictly before the row's time."""
    lists = {name for h in entity.histories for name in (h.column, h.times)}
    rows = {name: stored.get_column(name).gather(places) for name in names if name not in lists}
    for history in entity.histories:
        if history.column not in names and history.times not in names:
            continue
        values = stored.get_column(history.column).gather(places)
        times = stored.get_column(history.times).gather(places)
        if time is not None and time.column in given.columns:
            values, times = _before(given.get_column(time.column), values, times)
        rows[history.column], rows[history.times] = values, times
    return rows


def _before(asked: pl.Series, values: pl.Series, times: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Lists cut to the elements whose time is before that of the row; none for a row without."""
    limit, _ = time_number("limit", asked.dtype)
    element, _ = time_number("times", element_type(times.dtype))
    newest = times.list.last().alias("times").to_frame().select(element).to_series()
    limits = asked.alias("limit").to_frame().select(limit).to_series()
    cut = ~(newest < limits).fill_null(False) & newest.is_not_null()
    if not cut.any():
        return values, times
    frame = pl.DataFrame({_ROW: range(len(values)), "limit": limits, "v": values, "times": times})
    kept = (
        frame.filter(cut)
        .explode("v", "times")
        .filter(element < pl.col("limit"))
        .group_by(_ROW, maintain_order=True)
        .agg("v", "times")
    )
    whole = frame.filter(~cut).select(_ROW, "v", "times")
    both = frame.select(_ROW).join(pl.concat([whole, kept]), on=_ROW, how="left").sort(_ROW)
    return both.get_column("v"), both.get_column("times")


def _window_columns(
    stored_windows: StoredWindows,
    entity: StoredEntity,
    stored: pl.DataFrame,
    rows: Sequence[tuple[str, Any]],
    given: pl.DataFrame,
    time: StoredTime | None,
) -> dict[str, pl.Series]:
    """Windows over the stored events, as of the rows' time; of now where the rows bring none."""
    key = pl.Series(entity.key, [text for text, _ in rows], dtype=pl.String).to_frame()
    events = stored.select(
        pl.col(column).alias(name) for column, name in stored_windows.lists.items()
    )
    hashed = key.select(row_key(entity.key, pl.String()).alias(KEY)).to_series()
    names = events.columns
    events = events.with_columns(hashed).explode(names).drop_nulls(TIME)
    asked = row_key(entity.key, given.schema[entity.key]).alias(KEY)
    if time is not None and time.column in given.columns:
        dtype = given.schema[time.column]
        asked_time = nanoseconds(time.column, dtype, stored_windows.unit).alias(TIME)
    else:
        asked_time = pl.lit(int(datetime.now(UTC).timestamp() * 10**9), pl.Int64).alias(TIME)
    queries = given.select(asked, asked_time)
    found = window_columns(stored_windows.windows, queries, events)
    return {name: found.get_column(name) for name in found.columns}
