"""Histories against a brute-force reference that looks at every pair of rows."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.asof import histories
from feature_store.columns import SchemaMismatch
from feature_store.features import Categorical, FeatureSet, History, Label, Sequence


def features(where: str | None = None, max_length: int = 3, timestamp: str = "time") -> FeatureSet:
    return FeatureSet(
        inputs=(
            Categorical(name="item"),
            Sequence(
                name="past",
                of="item",
                max_length=max_length,
                history=History(by="user", where=where),
            ),
        ),
        labels=(Label(name="liked", source="rating", threshold=4),),
        timestamp=timestamp,
    )


def log(rows: list[tuple]) -> pl.DataFrame:
    types = {"user": pl.String, "item": pl.Int64, "time": pl.Int64, "rating": pl.Float64}
    return pl.DataFrame(rows, schema=types, orient="row").with_row_index("__row")


def brute_force(raw: pl.DataFrame, where: bool, max_length: int) -> list[list]:
    rows = raw.to_dicts()
    pasts = []
    for present in rows:
        past = [
            row
            for row in rows
            if row["user"]
            and row["user"] == present["user"]
            and row["time"] is not None
            and present["time"] is not None
            and row["time"] < present["time"]
            and row["item"] is not None
            and (not where or (row["rating"] is not None and row["rating"] >= 4))
        ]
        past.sort(key=lambda row: (row["time"], row["__row"]))
        pasts.append([row["item"] for row in past][-max_length:])
    return pasts


maybe = st.none()
events = st.lists(
    st.tuples(
        maybe | st.sampled_from(["ann", "bob", ""]),
        maybe | st.integers(0, 5),
        maybe | st.integers(0, 6),
        maybe | st.sampled_from([1.0, 3.9, 4.0, 5.0]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(rows=events, where=st.booleans(), max_length=st.integers(1, 5))
def test_a_history_is_what_a_look_at_every_pair_of_rows_finds(rows, where, max_length):
    raw = log(rows)
    feature_set = features("liked" if where else None, max_length)
    expected = brute_force(raw, where, max_length)
    assert histories(raw, feature_set)["past"].to_list() == expected
    streamed = histories(raw.lazy(), feature_set).collect(engine="streaming")
    assert streamed["past"].to_list() == expected
    assert streamed.columns == [*raw.columns, "past"]
    assert streamed.drop("past").equals(raw)


def test_times_and_weights_lie_beside_the_values():
    feature_set = features("liked", max_length=2)
    past = feature_set.feature("past").model_copy(update={"gaps": True, "weights": "time"})
    feature_set = feature_set.model_copy(update={"inputs": (feature_set.inputs[0], past)})
    rows = [("ann", 7, 1, 5.0), ("ann", None, 2, 5.0), ("ann", 8, 3, 5.0), ("ann", 9, 4, 1.0)]
    found = histories(log([*rows, ("ann", 5, 5, 5.0), ("ann", 6, 6, 4.0)]), feature_set)
    assert found["past"].to_list()[-2:] == [[7, 8], [8, 5]]
    assert found["past__time"].to_list()[-2:] == [[1, 3], [3, 5]]
    assert found["past__weight"].to_list()[-2:] == [[1, 3], [3, 5]]
    assert found["past__time"].list.len().to_list() == found["past"].list.len().to_list()
    with pytest.raises(SchemaMismatch, match="writes its history to the column 'past__weight'"):
        histories(log(rows).with_columns(past__weight=1), feature_set)


def test_rows_of_the_same_instant_are_not_each_others_past():
    raw = log([("ann", 1, 10, 5.0), ("ann", 2, 10, 5.0), ("ann", 3, 11, 5.0), ("bob", 4, 99, 5.0)])
    assert histories(raw, features())["past"].to_list() == [[], [], [1, 2], []]


def test_a_history_longer_than_its_length_keeps_the_most_recent_oldest_first():
    raw = log([("ann", item, item, 5.0) for item in range(10)])
    assert histories(raw, features(max_length=3))["past"].to_list()[9] == [6, 7, 8]


def test_the_order_of_the_source_does_not_matter_but_for_ties():
    raw = log([("ann", item, item, 5.0) for item in range(8)])
    shuffled = raw.sample(fraction=1.0, shuffle=True, seed=1)
    past = histories(shuffled, features()).sort("__row")["past"]
    assert past.to_list() == histories(raw, features())["past"].to_list()


@pytest.mark.parametrize(
    "items", [["a", "", "c"], [1.5, float("nan"), 3.0]], ids=["empty text", "nan"]
)
def test_values_that_are_missing_take_no_place_in_a_history(items):
    raw = pl.DataFrame({"user": 7, "item": [*items, items[0]], "time": [1, 2, 3, 4], "rating": 5})
    raw = raw.with_row_index("__row")
    assert histories(raw, features(max_length=2))["past"].to_list()[3] == [items[0], items[2]]


def test_many_batches_give_what_one_gives():
    raw = pl.DataFrame({"i": range(200_000)}).select(
        __row="i",
        user=pl.col("i") * 7919 % 20_011,
        item=(pl.col("i") * 31 % 97).cast(pl.String),
        time=pl.col("i") * 104_729 % 1000,
        rating=pl.lit(5.0),
    )
    lazy = histories(raw.lazy(), features(max_length=4)).collect(engine="streaming")
    expected = (
        raw.join(raw, on="user", suffix="_past")
        .filter(pl.col("time_past") < pl.col("time"))
        .sort("__row", "time_past", "__row_past")
        .group_by("__row", maintain_order=True)
        .agg(pl.col("item_past").tail(4))
    )
    joined = lazy.filter(pl.col("past").list.len() > 0).select("__row", item_past="past")
    assert joined.equals(expected)


def test_two_sequences_have_their_own_by_label_and_length():
    raw = log([("ann", 1, 1, 5.0), ("bob", 2, 2, 1.0), ("ann", 1, 3, 1.0), ("ann", 3, 4, 1.0)])
    feature_set = FeatureSet(
        inputs=(
            Categorical(name="item"),
            Categorical(name="who", source="user"),
            Sequence(name="liked_items", of="item", history=History(by="user", where="liked")),
            Sequence(name="viewers", of="who", history=History(by="item"), max_length=1),
        ),
        labels=(Label(name="liked", source="rating", threshold=4),),
        timestamp="time",
    )
    found = histories(raw, feature_set)
    assert found["liked_items"].to_list() == [[], [], [1], [1]]
    assert found["viewers"].to_list() == [[], [], ["ann"], []]


def test_a_feature_set_without_histories_leaves_the_rows_alone():
    raw = pl.DataFrame({"item": [1, 2]})
    assert histories(raw, FeatureSet(inputs=(Categorical(name="item"),))) is raw


def test_a_missing_column_is_named_with_the_nearest_there_is():
    raw = log([("ann", 1, 1, 5.0)]).rename({"user": "user_id"})
    with pytest.raises(SchemaMismatch, match=r"history\.by of .* 'user'.*did you mean 'user_id'"):
        histories(raw, features())


def test_a_history_never_overwrites_a_raw_column():
    raw = log([("ann", 1, 1, 5.0)]).with_columns(past=pl.lit("taken"))
    with pytest.raises(SchemaMismatch, match="'past', which is already there"):
        histories(raw, features())


@pytest.mark.parametrize("dtype", [pl.Datetime("ns"), pl.Datetime("ms", "Asia/Tokyo"), pl.Float64])
def test_any_type_of_time_orders_a_history(dtype):
    raw = log([("ann", 3, 30, 5.0), ("ann", 1, 10, 5.0), ("ann", 2, 20, 5.0)])
    raw = raw.with_columns(pl.col("time").cast(dtype))
    assert histories(raw, features())["past"].to_list() == [[1, 2], [], [1]]


def test_a_row_without_a_time_has_no_history_and_enters_none():
    raw = log([("ann", 1, 1, 5.0), ("ann", 2, 2, 5.0), ("ann", 3, 0, 5.0)])
    raw = raw.with_columns(time=pl.Series([0.0, float("nan"), float("inf")]))
    raw = pl.concat([raw, raw[:1].with_columns(time=pl.lit(9.0), __row=pl.lit(3, pl.UInt32))])
    assert histories(raw, features())["past"].to_list() == [[], [], [], [1]]
