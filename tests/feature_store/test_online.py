"""Rows completed from an online store, for times of every type; a bundle is not needed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from support import online

from feature_store.online import NoKey, OnlineFeatures
from feature_store.online_lmdb import LmdbStore
from feature_store.publishing import publish, read_snapshot

START = datetime(2024, 2, 28, 22, 0, 0)
WANTED = ["country", "liked", "devices", "price"]


def in_type(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    """The log with its times in another type, an hour apart at least."""
    hours = (pl.col("time") - online.START) // 3600
    times = {
        "datetime": pl.lit(START) + pl.duration(hours=hours),
        "float": hours.cast(pl.Float64) + 0.5,
        "date": pl.lit(START.date()) + pl.duration(days=hours),
    }
    return rows.with_columns(times[kind].alias("time"))


FEATURES = online.FEATURES.model_copy(
    update={"inputs": tuple(f for f in online.FEATURES.inputs if f.name != "hour")}
)


@pytest.mark.parametrize("kind", ["datetime", "float", "date"])
def test_histories_end_strictly_before_the_rows_time(tmp_path: Path, kind: str) -> None:
    rows = in_type(online.log(150), kind)
    data = online.config(tmp_path, rows)
    columns = {**{n: c.model_dump() for n, c in data.columns.items()}, "time": kind}
    version = online.built(tmp_path, rows, FEATURES, columns=columns)
    store = LmdbStore(tmp_path / "online")
    publish(version, store, grace_seconds=0.0)
    features = OnlineFeatures(store, version.fitted)
    user = rows["user_id"][-1]
    mine = rows.filter((pl.col("user_id") == user) & (pl.col("clicked") == 1)).tail(3)
    newest = rows["time"].max()
    for time in [*mine["time"], newest, None]:
        given = pl.DataFrame(
            {"user_id": [user, "nobody"], "item_id": [1, 1], "time": [time, newest]},
            schema_overrides={"time": rows.schema["time"]},
        )
        found = features.complete(given, {}, WANTED)
        past = [] if time is None else mine.filter(pl.col("time") < time)["item_id"].to_list()
        assert found.rows["liked"].to_list() == [past, []]
        assert found.misses == {"user_id": 1, "item_id": 0}
    later = features.complete(given.drop("time"), {}, WANTED).rows
    assert later["liked"].to_list() == [mine["item_id"].to_list(), []]
    as_of = read_snapshot(version).as_of
    if kind == "datetime":
        assert as_of == newest.replace(tzinfo=UTC)
    if kind == "date":
        # Days to come: nothing is known later than now.
        assert as_of <= datetime.now(UTC) + timedelta(seconds=1)


def test_what_is_neither_brought_nor_stored_is_named(tmp_path: Path) -> None:
    version = online.built(tmp_path, online.log(100))
    store = LmdbStore(tmp_path / "online")
    publish(version, store, grace_seconds=0.0)
    features = OnlineFeatures(store, version.fitted)
    given = pl.DataFrame({"user_id": ["ü1"]})
    for wanted, key in (("device", None), ("price", "item_id")):
        with pytest.raises(NoKey) as caught:
            features.complete(given, {}, [wanted])
        assert (caught.value.column, caught.value.key) == (wanted, key)
    everything = features.complete(pl.DataFrame({"device": ["tv"]}), {}, ["device"])
    assert everything.misses == {} and everything.rows["device"].to_list() == ["tv"]
