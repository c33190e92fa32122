"""What an online store is: the latest raw values by key, one published version at a time.

A version is written beside the one that answers, and a pointer is moved to it in one step. Whoever
reads takes the version that the pointer names and stays with it, so all values of a request are of
one version; the version before goes when a grace has passed.

A key is known by the 64 bits of `feature_store.encoding.row_key`, by which the build tells whose a
row is, too; rows lie in the order of these bytes. Values are rows of `feature_store.packing`.
"""

import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import polars as pl
from pydantic import JsonValue

from feature_store.aggregates import Windows
from feature_store.columns import ColumnType
from feature_store.config import Config
from feature_store.features import Label, TimeUnit

FORMAT = 1
"""Raised with every change of what is kept of an entity or of how it is packed."""

HASH_COLUMN = "__hash"
"""Column of a snapshot's files: the hash of the key (UInt64)."""

_KEY_BYTES = 8

OnProgress = Callable[[str, int, int | None], None]
"""Called with what is done, how much of it, and of how much where that is known."""


class OnlineStoreError(ValueError):
    """An online store that cannot be read or written, or holds what was not asked for."""


class NothingPublished(OnlineStoreError):
    """An online store to which nothing was published."""


class PublishBusy(OnlineStoreError):
    """Another process is publishing to the same store."""


class VersionGone(RuntimeError):
    """The version was removed while it was read: another one answers now."""


class StoredHistory(Config):
    """The latest values of a sequence, with their times."""

    columns: tuple[str, ...]
    """Raw columns with lists of the same elements: values first, then times and weights."""
    times: str
    """Stored column with the times of the elements."""
    clock: Literal["raw", "ns"]
    """Whether times are as in the rows, or in ns since 1970."""
    of: str
    """Raw column whose values the list holds."""
    events: str | None
    """The events that it is gathered from; None: the rows."""
    where: Label | str | None
    """Rows or events for which this is 1 entered; all if absent."""
    max_length: int


class StoredWindows(Config):
    """Events of a key, from which windows are computed when a request comes."""

    windows: Windows
    unit: TimeUnit
    """Of the rows' time, where that is a number."""
    lists: dict[str, str]
    """Stored list column by column of the normalised events."""


class StoredEntity(Config):
    """What is kept of every key of one raw column."""

    key: str
    type: ColumnType
    """Of the raw key column."""
    columns: dict[str, ColumnType]
    """Raw columns that rows are completed with; histories and their times among them."""
    lists: dict[str, ColumnType] = {}
    """Columns that are kept for windows."""
    histories: tuple[StoredHistory, ...] = ()
    windows: tuple[StoredWindows, ...] = ()
    num_keys: int
    file: str
    """Parquet file in the snapshot's folder, in the order of the keys' bytes."""

    @property
    def stored(self) -> dict[str, ColumnType]:
        """All columns of a stored row."""
        return {**self.columns, **self.lists}


class StoredTime(Config):
    """The raw column with the time of a row."""

    column: str
    type: ColumnType
    unit: TimeUnit
    """Of a number; dates and datetimes bring their own."""


class Snapshot(Config):
    """What a version knows of its entities at the end of its data; `online/snapshot.json`."""

    format: int = FORMAT
    entities: tuple[StoredEntity, ...]
    time: StoredTime | None
    as_of: datetime
    """Time of the newest row (UTC); of the build where rows have no time, or a later one."""

    def entity(self, key: str) -> StoredEntity:
        """What is kept by a key column; KeyError for another."""
        for entity in self.entities:
            if entity.key == key:
                return entity
        raise KeyError(key)


class Published(Config):
    """One version in an online store."""

    id: str
    """Unique name of this publication."""
    name: str
    """The feature table."""
    number: int
    """The version's number in the feature store."""
    features_fingerprint: str
    """Of the fitted features of the version."""
    published: datetime
    snapshot: Snapshot

    @property
    def label(self) -> str:
        """The version as users write it."""
        return f"{self.name}@{self.number}"


@dataclass(frozen=True)
class Rows:
    """Some rows of one entity, to be written."""

    entity: str
    keys: list[bytes]
    """Rising, over all rows of the entity."""
    values: list[bytes]


class OnlineVersion(ABC):
    """A published version, as a reader holds it; safe to use from several threads."""

    published: Published

    @abstractmethod
    def values(self, wanted: dict[str, list[bytes]]) -> dict[str, list[bytes | None]]:
        """The rows under some keys, by entity and in their order; None under an unknown key.

        Raises:
            VersionGone: The version was removed; open the current one.
            OnlineStoreError: The store does not answer.
        """


class OnlineStore(ABC):
    """Where versions are published: a folder (LMDB) or a server (Redis)."""

    @abstractmethod
    def current_id(self) -> str:
        """The `Published.id` that the pointer names.

        Raises:
            NothingPublished: There is none.
            OnlineStoreError: The store does not answer.
        """

    @abstractmethod
    def open(self) -> OnlineVersion:
        """The version that the pointer names.

        Raises:
            NothingPublished: There is none.
            OnlineStoreError: The store does not answer, or holds another format.
        """

    @abstractmethod
    def publishing(self) -> AbstractContextManager[None]:
        """Hold the right to publish.

        Raises:
            PublishBusy: Another process has it.
        """

    @abstractmethod
    def write(self, published: Published, rows: Iterable[Rows]) -> None:
        """Write a version beside the current one; nobody reads it yet.

        What killed publications left is removed first. If the writing fails, nothing is left.

        Raises:
            OnlineStoreError: There is no room, or the store does not answer.
        """

    @abstractmethod
    def switch(self, published: Published) -> None:
        """Point to a written version, in one step."""

    @abstractmethod
    def retire(self, grace_seconds: float) -> None:
        """Remove all versions but the current one once the grace has passed."""


def window_rules(windows: Iterable[Windows]) -> dict[str, JsonValue]:
    """By column that windows add: all that decides its values, but for the events themselves."""
    return {
        aggregate.name: {
            "kind": type(aggregate).__name__,
            "by": each.by,
            "where_all": each.where,
            **aggregate.model_dump(mode="json"),
        }
        for each in windows
        for aggregate in each.aggregates
    }


def read_published(content: bytes, place: str) -> Published:
    """The record of a version in an online store.

    Raises:
        OnlineStoreError: It is damaged, or of another format.
    """
    try:
        found = json.loads(content)["snapshot"]["format"]
    except (ValueError, LookupError, TypeError) as error:
        raise OnlineStoreError(f"{place}: the record of the version is damaged: {error}") from error
    if found != FORMAT:
        raise OnlineStoreError(
            f"{place} is of format {found}, this program reads format {FORMAT}; build and publish"
            " again"
        )
    return Published.model_validate_json(content)


def key_bytes(hashes: pl.Series) -> list[bytes]:
    """The bytes by which keys are known: their hashes (UInt64), in the order of numbers."""
    joined = hashes.to_numpy().astype(">u8").tobytes()
    return [joined[start : start + _KEY_BYTES] for start in range(0, len(joined), _KEY_BYTES)]


def bucket_of(key: bytes, num_bits: int) -> int:
    """The leading bits of a key's hash, as a number."""
    (number,) = struct.unpack_from(">Q", key)
    return number >> (64 - num_bits) if num_bits else 0
