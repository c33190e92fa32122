"""A log of clicks with items, built with what is known by key, and what serves it."""

import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from feature_store.features import (
    Bag,
    Categorical,
    DatePart,
    FeatureSet,
    History,
    Label,
    Numeric,
    Sequence,
)
from feature_store.online_store import (
    OnlineStore,
    OnlineVersion,
    Published,
    Rows,
    Snapshot,
    StoredEntity,
    key_bytes,
)
from feature_store.packing import RowPacking
from feature_store.store import Store
from feature_store.version import Version
from pipelines.build import build
from pipelines.sources import DataConfig

FEATURES = FeatureSet(
    inputs=(
        Categorical(name="user", source="user_id", side="user"),
        Categorical(name="item", source="item_id", side="item"),
        Categorical(name="country", side="user"),
        Numeric(name="price", side="item", standardize=True, indicator=True),
        Bag(name="genres", separator="|", side="item"),
        Categorical(name="maker_city", side="item"),
        Sequence(
            name="liked", of="item", max_length=3, history=History(by="user_id", where="clicked")
        ),
        Sequence(name="devices", of="device", max_length=2, history=History(by="user_id")),
        Categorical(name="device"),
        DatePart(name="hour", source="time", part="hour"),
    ),
    labels=(Label(name="clicked"),),
    timestamp="time",
)
WITH_EVENTS = FEATURES.model_copy(
    update={
        "inputs": (
            *FEATURES.inputs,
            Sequence(
                name="bought", of="item", max_length=4, gaps=True, weights="amount",
                history=History(by="user_id", where="clicked"),
            ),
            Sequence(
                name="viewed", of="item", max_length=3, gaps=8,
                history=History(by="user_id", events="views"),
            ),
            Numeric(name="clicks_1h", side="user"),
            Numeric(name="seen", side="user"),
            Numeric(name="since_click", side="user", indicator=True),
            Numeric(name="rate_6h", side="item"),
            Categorical(name="last_place", side="item"),
        )
    }
)  # fmt: skip
"""With windows over the rows by user and over views by item, and with weights and gaps."""

NUM_USERS, NUM_ITEMS = 25, 40
GENRES = ("drama", "Žánr", "war")
START = 1_600_000_000


def log(num_rows: int = 400, seed: int = 0) -> pl.DataFrame:
    """Random clicks; countries change from row to row, some items have no maker, some no price."""
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user_id": [f"ü{i}" for i in random.integers(0, NUM_USERS, num_rows)],
            "item_id": random.integers(0, NUM_ITEMS - 5, num_rows),
            "country": random.choice(["de", "fr", None], num_rows).tolist(),
            "device": random.choice(["phone", "tv", "pad"], num_rows).tolist(),
            "time": np.sort(random.integers(0, 40 * 3600, num_rows)) // 600 * 600 + START,
            "amount": random.integers(0, 9, num_rows) / 4,
            "clicked": random.integers(0, 2, num_rows),
        }
    )


def views(num_rows: int = 300, seed: int = 0) -> pl.DataFrame:
    """Views of items by users, of whom one has no row in the log, in no order of time."""
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user_id": [f"ü{i}" for i in random.integers(0, NUM_USERS + 1, num_rows)],
            "item_id": random.integers(0, NUM_ITEMS, num_rows),
            "place": random.choice(["top", "side", ""], num_rows).tolist(),
            "opened": random.integers(0, 2, num_rows),
            "at": random.integers(0, 40 * 3600, num_rows) + START,
        }
    )


EVENTS = (
    {
        "name": "clicks", "rows": True, "by": "user_id",
        "counters": [{"name": "clicks_1h", "window": "1h", "where": "clicked"}, {"name": "seen"}],
        "recency": [{"name": "since_click", "where": "clicked", "window": "1d"}],
    },
    {
        "name": "views", "path": "views.parquet", "by": "user_id", "time": "at",
        "columns": {"user_id": "string", "item_id": "int", "at": "int"},
    },
    {
        "name": "openings", "path": "views.parquet", "by": "item_id", "time": "at",
        "columns": {"item_id": "int", "at": "int", "place": "string", "opened": "int"},
        "rates": [{"name": "rate_6h", "window": "6h", "of": "opened", "prior": 0.1, "strength": 5}],
        "last": [{"name": "last_place", "of": "place", "window": "2d"}],
    },
)  # fmt: skip


def items(seed: int = 0) -> pl.DataFrame:
    """Items, the last of which nobody has seen yet."""
    random = np.random.default_rng(seed)
    prices = random.lognormal(size=NUM_ITEMS).round(2).tolist()
    return pl.DataFrame(
        {
            "item_id": range(NUM_ITEMS),
            "price": [None if i % 7 == 0 else price for i, price in enumerate(prices)],
            "genres": ["|".join(GENRES[: i % 4]) or None for i in range(NUM_ITEMS)],
            "maker": [f"m{i % 5}" for i in range(NUM_ITEMS)],
        }
    )


def makers() -> pl.DataFrame:
    """Makers of items; one that items name is not there."""
    return pl.DataFrame({"maker": [f"m{i}" for i in range(4)], "maker_city": list("abca")})


def config(folder: Path, rows: pl.DataFrame, **changes: Any) -> DataConfig:
    """The data in files of a folder."""
    folder.mkdir(exist_ok=True)
    rows.write_parquet(folder / "log.parquet")
    items().write_parquet(folder / "items.parquet")
    makers().write_parquet(folder / "makers.parquet")
    values = {
        "path": str(folder / "log.parquet"),
        "columns": {
            "user_id": "string", "item_id": "int", "country": "string", "device": "string",
            "time": "int", "amount": "float", "clicked": "int",
        },
        "joins": [
            {
                "path": str(folder / "items.parquet"), "on": "item_id",
                "columns": {
                    "item_id": "int", "price": "float", "genres": "string", "maker": "string",
                },
            },
            {
                "path": str(folder / "makers.parquet"), "on": "maker",
                "columns": {"maker": "string", "maker_city": "string"},
            },
        ],
        "split": {"by": "time"},
        "entities": ["user_id", "item_id"],
        **changes,
    }  # fmt: skip
    return DataConfig.model_validate(values)


def built(
    folder: Path, rows: pl.DataFrame, features: FeatureSet = FEATURES, **changes: Any
) -> Version:
    """A version of the feature table `clicks` in the folder's store."""
    data = config(folder, rows, **changes)
    return build("clicks", data, features, Store(folder / "store")).version


def events_in(folder: Path) -> list[dict[str, Any]]:
    """`EVENTS`, with their files in a folder."""
    folder.mkdir(exist_ok=True)
    views().write_parquet(folder / "views.parquet")
    return [
        {**config, "path": str(folder / config["path"])} if "path" in config else config
        for config in EVENTS
    ]


ENTITIES = ("user_id", "item_id")


def publication(number: int, num_keys: int = 300) -> Published:
    """Version `number` of a table in which every value is the number of its version."""
    entities = tuple(
        StoredEntity(
            key=key,
            type="string",
            columns={"value": "int", "past": "list<int>"},
            num_keys=num_keys,
            file="none",
        )
        for key in ENTITIES
    )
    now = datetime.now(UTC)
    return Published(
        id=f"version-{number}-{uuid.uuid4().hex}",
        name="clicks",
        number=number,
        features_fingerprint="f",
        published=now,
        snapshot=Snapshot(entities=entities, time=None, as_of=now),
    )


def keys_of(num_keys: int = 300) -> list[bytes]:
    """The bytes of some keys, in their order."""
    random = np.random.default_rng(7)
    return key_bytes(pl.Series(np.sort(random.integers(0, 2**64, num_keys, np.uint64))))


def rows_of(published: Published, batch_rows: int = 100) -> Iterator[Rows]:
    """All its rows, some at a time."""
    for entity in published.snapshot.entities:
        keys = keys_of(entity.num_keys)
        values = pl.DataFrame(
            {"value": [published.number] * len(keys), "past": [[published.number]] * len(keys)}
        )
        packed = RowPacking(entity.stored).pack(values)
        for start in range(0, len(keys), batch_rows):
            part = slice(start, start + batch_rows)
            yield Rows(entity.key, keys[part], packed[part])


def publish_number(store: OnlineStore, number: int, num_keys: int = 300) -> Published:
    """Write that version and switch to it; the one before goes at once."""
    made = publication(number, num_keys)
    with store.publishing():
        store.write(made, rows_of(made))
        store.switch(made)
        store.retire(0.0)
    return made


def numbers_in(version: OnlineVersion) -> set[int]:
    """The distinct values of all keys of a version, read in one request."""
    keys = keys_of(version.published.snapshot.entities[0].num_keys)
    found = version.values(dict.fromkeys(ENTITIES, keys))
    numbers: set[int] = set()
    for entity in version.published.snapshot.entities:
        rows = found[entity.key]
        assert None not in rows
        frame = RowPacking(entity.stored).unpack(rows)  # type: ignore[arg-type]
        numbers |= set(frame["value"]) | set(frame["past"].explode())
    return numbers


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The URL of a Redis server of this machine that ends with the block; skips where none is."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server (Debian: apt-get install redis-server)")
    path = folder / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--save", ""]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not _listens(path):
            assert process.poll() is None and time.monotonic() < deadline, "redis-server died"
            time.sleep(0.02)
        yield f"unix://{path}"
    finally:
        process.kill()
        process.wait()


def _listens(path: Path) -> bool:
    """Whether somebody answers at a socket: its file is there a little earlier."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
