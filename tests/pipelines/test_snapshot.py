"""What a build keeps by key, against loops over the rows."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from support import online

from feature_store.encoding import row_key
from feature_store.features import Categorical, FeatureSet
from feature_store.online_store import HASH_COLUMN, key_bytes
from feature_store.publishing import read_snapshot
from feature_store.version import Version
from pipelines import snapshot as snapshots
from pipelines.build import build


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return online.log()


@pytest.fixture(scope="module")
def version(tmp_path_factory, rows) -> Version:
    return online.built(tmp_path_factory.mktemp("snapshot"), rows)


def hash_of(key: Any) -> int:
    values = pl.DataFrame({"key": [key]})
    return values.select(row_key("key", values.schema["key"]).reinterpret(signed=False)).item()


def stored(version: Version, key: str) -> dict[int, dict[str, Any]]:
    """What is kept, by the hash of the key."""
    entity = read_snapshot(version).entity(key)
    frame = pl.read_parquet(version.folder / "online" / entity.file)
    assert frame.height == entity.num_keys
    assert frame.columns == [HASH_COLUMN, *entity.stored]
    keys = key_bytes(frame.get_column(HASH_COLUMN))
    assert keys == sorted(set(keys))
    return {row.pop(HASH_COLUMN): row for row in frame.iter_rows(named=True)}


def test_a_user_has_the_latest_values_and_the_whole_past(version, rows) -> None:
    found = stored(version, "user_id")
    by_user: dict[str, list[dict[str, Any]]] = {}
    for row in rows.iter_rows(named=True):  # in the order of time, ties in that of the rows
        by_user.setdefault(row["user_id"], []).append(row)
    assert found.keys() == {hash_of(user) for user in by_user}
    for user, past in by_user.items():
        liked = [row for row in past if row["clicked"]][-3:]
        assert found[hash_of(user)] == {
            "country": past[-1]["country"],
            "liked": [row["item_id"] for row in liked],
            "__time liked": [row["time"] for row in liked],
            "devices": [row["device"] for row in past[-2:]],
            "__time devices": [row["time"] for row in past[-2:]],
        }


def test_an_item_has_the_columns_of_its_tables_even_if_nobody_saw_it(version) -> None:
    cities = dict(online.makers().iter_rows())
    expected = {
        hash_of(row["item_id"]): {
            "price": row["price"],
            "genres": row["genres"],
            "maker_city": cities.get(row["maker"]),
        }
        for row in online.items().iter_rows(named=True)
    }
    assert stored(version, "item_id") == expected


def test_the_newest_row_tells_the_time(version, rows) -> None:
    snapshot = read_snapshot(version)
    assert snapshot.as_of.timestamp() == rows["time"].max()
    assert snapshot.time is not None
    assert (snapshot.time.column, snapshot.time.unit) == ("time", "s")


def test_many_rows_are_kept_in_parts_with_the_same_result(
    tmp_path: Path, version, rows, monkeypatch
) -> None:
    monkeypatch.setattr(snapshots, "PART_ROWS", 50)
    parts = online.built(tmp_path / "parts", rows)
    for entity in read_snapshot(version).entities:
        one, many = (
            pl.read_parquet(built.folder / "online" / entity.file) for built in (version, parts)
        )
        assert_frame_equal(many, one)
    left = {path.name for path in (parts.folder / "online").iterdir()}
    assert left == {"snapshot.json", "entity-0.parquet", "entity-1.parquet"}


def test_rows_without_a_key_or_a_time_are_in_nothing(tmp_path: Path, rows) -> None:
    some = rows.head(60).with_columns(
        user_id=pl.when(pl.int_range(60) % 5 == 0).then(pl.lit("")).otherwise("user_id")
    )
    found = stored(online.built(tmp_path / "some", some), "user_id")
    assert found.keys() == {hash_of(user) for user in set(some["user_id"]) - {""}}


def test_a_version_without_entities_keeps_nothing_by_key(tmp_path: Path, rows) -> None:
    version = online.built(tmp_path / "none", rows.head(100), entities=[])
    assert not (version.folder / "online").exists()
    with pytest.raises(ValueError, match=r"built without data\.entities; name the key columns"):
        read_snapshot(version)


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        (["user"], r"entities: the key 'user' is not a column of the rows; did you mean 'user_id'"),
        (["user_id", "user_id"], "the key 'user_id' is named more than once"),
    ],
)
def test_a_key_that_is_no_column_is_refused(tmp_path: Path, rows, entities, message) -> None:
    with pytest.raises(ValueError, match=message):
        online.config(tmp_path / "data", rows.head(1), entities=entities)


def test_a_key_by_which_nothing_is_kept_is_refused(tmp_path: Path, rows) -> None:
    data = online.config(tmp_path / "data", rows.head(100), entities=["device"])
    features = FeatureSet(
        inputs=(Categorical(name="country", side="user"), Categorical(name="device")),
        labels=online.FEATURES.labels,
        timestamp="time",
    )
    store = online.Store(tmp_path / "store")
    with pytest.raises(ValueError, match="nothing would be kept by 'device'"):
        build("clicks", data, features, store)
    assert store.names() == []
