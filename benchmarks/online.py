"""Publishing keys, and requests of 100 candidates completed from the online store.

    python -m benchmarks.online [--quick]

A MovieLens-shaped synthetic log: users with age and country, items with genres, year and price in a
side table, and histories of the last 50 clicks. It is built with `data.entities` and published into
LMDB. A request names a user, its context and 100 items; it is measured in process, from the parsed
JSON to encoded columns, one at a time, for users and items drawn as the log draws them. Once more
with windows: clicks of the user in an hour and a day, and the item's rate of a day.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.results import Results
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
from feature_store.online import OnlineFeatures
from feature_store.online_lmdb import LmdbStore
from feature_store.publishing import publish
from feature_store.store import Store
from feature_store.version import Version
from pipelines.build import build
from pipelines.sources import DataConfig
from recsys.export.completion import Completion
from recsys.export.signature import Signature

ROWS, QUICK_ROWS = 4_000_000, 200_000
USERS, QUICK_USERS = 400_000, 20_000
ITEMS, QUICK_ITEMS = 100_000, 10_000
REQUESTS, QUICK_REQUESTS = 2_000, 300
CANDIDATES, DAYS, START = 100, 60, 1_700_000_000
MAX_P99_MS, MIN_KEYS_PER_SECOND = 10.0, 200_000.0

INPUTS = (
    Categorical(name="user", source="user_id", side="user"),
    Categorical(name="item", source="item_id", side="item"),
    Numeric(name="age", side="user", num_buckets=10),
    Categorical(name="country", side="user"),
    Bag(name="genres", separator="|", side="item"),
    Numeric(name="year", side="item", num_buckets=20),
    Numeric(name="price", side="item", log1p=True, standardize=True, indicator=True),
    Sequence(
        name="clicks", of="item", max_length=50, history=History(by="user_id", where="clicked")
    ),
    Categorical(name="device"),
    DatePart(name="hour", source="time", part="hour"),
)
WINDOWS = tuple(
    Numeric(name=name, log1p=True) for name in ("clicks_1h", "clicks_1d", "item_rate_1d")
)
EVENTS = (
    {
        "name": "of_user", "rows": True, "by": "user_id",
        "counters": [
            {"name": "clicks_1h", "window": "1h", "where": "clicked"},
            {"name": "clicks_1d", "window": "1d", "where": "clicked"},
        ],
    },
    {
        "name": "of_item", "rows": True, "by": "item_id",
        "rates": [{"name": "item_rate_1d", "window": "1d", "of": "clicked", "strength": 10}],
    },
)  # fmt: skip


def drawn(random: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Ids below `count`, the small ones more often: the popularity of films, about."""
    return (count * random.random(size) ** 2.5).astype(np.int64)


def write_data(folder: Path, rows: int, users: int, items: int) -> None:
    """The log and the items, as Parquet."""
    random = np.random.default_rng(0)
    user = drawn(random, users, rows)
    countries = np.array(["de", "fr", "us", "br", "in"])
    log = pl.DataFrame(
        {
            "user_id": user,
            "item_id": drawn(random, items, rows),
            "age": user % 80,
            "country": countries[user % 5],
            "device": random.choice(["phone", "tv", "web"], rows),
            "time": np.sort(random.integers(0, DAYS * 86_400, rows)) + START,
            "clicked": random.integers(0, 2, rows),
        }
    )
    log.write_parquet(folder / "log.parquet")
    genres = ["drama", "comedy", "war", "drama|war", "comedy|romance|drama"]
    item = np.arange(items)
    pl.DataFrame(
        {
            "item_id": item,
            "genres": np.array(genres)[item % 5],
            "year": 1920 + item % 105,
            "price": random.lognormal(size=items).round(2),
        }
    ).write_parquet(folder / "items.parquet")


def built(folder: Path, name: str, features: FeatureSet, events: tuple[Any, ...]) -> Version:
    """A version of the log."""
    data = DataConfig.model_validate(
        {
            "path": str(folder / "log.parquet"),
            "columns": {
                "user_id": "int", "item_id": "int", "age": "int", "country": "string",
                "device": "string", "time": "int", "clicked": "int",
            },
            "joins": [
                {
                    "path": str(folder / "items.parquet"), "on": "item_id",
                    "columns": {
                        "item_id": "int", "genres": "string", "year": "int", "price": "float",
                    },
                }
            ],
            "events": list(events),
            "entities": ["user_id", "item_id"],
            "split": {"by": "time"},
        }
    )  # fmt: skip
    return build(name, data, features, Store(folder / "store")).version


def latencies(version: Version, store: LmdbStore, count: int, users: int, items: int) -> np.ndarray:
    """Milliseconds of requests, from their JSON to encoded columns."""
    random = np.random.default_rng(1)
    fitted = version.fitted
    signature = Signature.of(fitted, version.raw_sample())
    completion = Completion(OnlineFeatures(store, fitted), signature)
    taken = []
    for user in drawn(random, users, count + 20).tolist():
        candidates = drawn(random, items, CANDIDATES).tolist()
        context = {"user_id": user, "device": "tv", "time": START + DAYS * 86_400}
        begin = time.perf_counter()
        completed = completion.raw({"context": context, "candidates": candidates}, CANDIDATES)
        encoded = fitted.encode(completed.rows.lazy()).collect()
        taken.append((time.perf_counter() - begin) * 1e3)
        assert encoded.height == CANDIDATES
    return np.array(taken[20:])  # the first ones compile plans and touch pages


def measure(folder: Path, sizes: tuple[int, int, int, int], results: Results) -> None:
    """Build, publish and ask, without windows and with them."""
    rows, users, items, requests = sizes
    write_data(folder, rows, users, items)
    labels = (Label(name="clicked"),)
    for what, inputs, events in (
        ("", INPUTS, ()),
        (", with windows", (*INPUTS, *WINDOWS), EVENTS),
    ):
        features = FeatureSet(inputs=inputs, labels=labels, timestamp="time")
        begin = time.perf_counter()
        version = built(folder, f"log{len(events)}", features, events)
        results.record(f"build{what}", rows / (time.perf_counter() - begin), "rows/s")
        store = LmdbStore(folder / f"online-{len(events)}")
        published = publish(version, store, grace_seconds=0.0)
        keys = sum(published.num_keys.values())
        rate = keys / published.seconds
        target = None if what else MIN_KEYS_PER_SECOND
        results.record(
            f"publish {keys:,} keys{what}", rate, "keys/s", target=target,
            met=None if target is None else rate >= target,
        )  # fmt: skip
        taken = latencies(version, store, requests, users, items)
        results.record(f"request{what}, p50", float(np.percentile(taken, 50)), "ms")
        p99 = float(np.percentile(taken, 99))
        most = None if what else MAX_P99_MS
        results.record(
            f"request{what}, p99", p99, "ms", target=most, met=None if most is None else p99 <= most
        )


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="an indication within a minute")
    quick = parser.parse_args().quick
    full = (ROWS, USERS, ITEMS, REQUESTS)
    sizes = (QUICK_ROWS, QUICK_USERS, QUICK_ITEMS, QUICK_REQUESTS) if quick else full
    data = f"synthetic clicks, {sizes[0]:,} rows, {sizes[1]:,} users, {sizes[2]:,} items"
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), sizes, Results("online", quick=quick, data=data))


if __name__ == "__main__":
    main()
