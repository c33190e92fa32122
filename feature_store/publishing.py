"""From a version of the feature store to an online store: all keys, then the switch."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from feature_store.online_store import (
    FORMAT,
    HASH_COLUMN,
    OnlineStore,
    OnlineStoreError,
    OnProgress,
    Published,
    Rows,
    Snapshot,
    StoredEntity,
    key_bytes,
)
from feature_store.packing import RowPacking
from feature_store.version import Version

SNAPSHOT_FOLDER, SNAPSHOT_FILE = "online", "snapshot.json"
GRACE_SECONDS = 10.0
"""How long the version before is kept after the switch: many times what a request takes."""

_BATCH_ROWS = 32_768


@dataclass(frozen=True)
class PublishResult:
    """What was published."""

    published: Published
    num_keys: dict[str, int]
    """By entity."""
    seconds: float
    """Until the switch."""


def read_snapshot(version: Version) -> Snapshot:
    """What a version knows of its entities at the end of its data.

    Raises:
        OnlineStoreError: It was built without data.entities, or by another release.
    """
    path = version.folder / SNAPSHOT_FOLDER / SNAPSHOT_FILE
    if not path.is_file():
        raise OnlineStoreError(
            f"version {version.number} of {version.name!r} keeps nothing by key: it was built"
            " without data.entities; name the key columns there (entities: [user_id, item_id]) and"
            " build again"
        )
    try:
        return Snapshot.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise OnlineStoreError(
            f"{path} is damaged or of another format than {FORMAT}; build the version again"
        ) from error


def publish(
    version: Version,
    store: OnlineStore,
    *,
    grace_seconds: float = GRACE_SECONDS,
    on_progress: OnProgress = lambda *_: None,
) -> PublishResult:
    """Write a version's entities into an online store, switch to them, remove what was before.

    Args:
        version: Built with `data.entities`.
        store: Where it goes; it holds one feature table.
        grace_seconds: How long readers of the version before may still need it.
        on_progress: Told of keys that were written.

    Raises:
        OnlineStoreError: The version keeps nothing by key, the store holds another feature table,
            a file is damaged, or the store cannot be written. What answered before still does.
        PublishBusy: Another process publishes to the store.
    """
    start = time.perf_counter()
    snapshot = read_snapshot(version)
    published = Published(
        id=uuid.uuid4().hex,
        name=version.name,
        number=version.number,
        features_fingerprint=version.fitted.fingerprint,
        published=datetime.now(UTC),
        snapshot=snapshot,
    )
    with store.publishing():
        _require_same_table(published, store)
        rows = _rows(version.folder / SNAPSHOT_FOLDER, snapshot, on_progress)
        store.write(published, rows)
        store.switch(published)
        seconds = time.perf_counter() - start
        on_progress("removing the version before", 0, None)
        store.retire(grace_seconds)
    num_keys = {entity.key: entity.num_keys for entity in snapshot.entities}
    return PublishResult(published, num_keys, seconds)


def _require_same_table(published: Published, store: OnlineStore) -> None:
    try:
        found = store.open().published
    except OnlineStoreError:  # empty, damaged or of an older format: it is replaced
        return
    if found.name != published.name:
        raise OnlineStoreError(
            f"the online store holds the feature table {found.name!r} ({found.label}), and"
            f" {published.label} is of another; publish to a folder or a database of its own"
        )


def _rows(folder: Path, snapshot: Snapshot, on_progress: OnProgress) -> Iterator[Rows]:
    total, done = sum(entity.num_keys for entity in snapshot.entities), 0
    for entity in snapshot.entities:
        for rows in _rows_of(folder / entity.file, entity):
            yield rows
            done += len(rows.keys)
            on_progress("publishing keys", done, total)


def _rows_of(path: Path, entity: StoredEntity) -> Iterator[Rows]:
    packing, count = RowPacking(entity.stored), 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                frame = pl.from_arrow(batch)
                assert isinstance(frame, pl.DataFrame)
                count += frame.height
                yield Rows(
                    entity.key, key_bytes(frame.get_column(HASH_COLUMN)), packing.pack(frame)
                )
    except (OSError, pa.ArrowInvalid) as error:
        raise OnlineStoreError(f"{path} is damaged: {error}; build the version again") from error
    if count != entity.num_keys:
        raise OnlineStoreError(
            f"{path}: expected {entity.num_keys} keys, found {count}; build the version again"
        )
