"""Splits: shares, chronology, stability, and what they refuse."""

import math
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.shared_out import split

from feature_store.columns import SchemaMismatch
from feature_store.features import FeatureSet, Numeric
from pipelines.split import SplitConfig

FEATURES = FeatureSet(inputs=(Numeric(name="x"),), group="user", timestamp="time")
ORDER = {"train": 0, "valid": 1, "test": 2}


def log(users: list, times: list) -> pl.DataFrame:
    return pl.DataFrame({"user": users, "time": times}).with_row_index("__row")


def parts(raw: pl.DataFrame, features: FeatureSet = FEATURES, **config) -> list[str]:
    shared_out = split(raw.lazy(), SplitConfig(**config), features)
    assert shared_out.collect_schema()["split"] == pl.String
    found = shared_out.collect(engine="streaming")
    assert found.drop("split").equals(raw)
    return found["split"].to_list()


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=60),
    test=st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    valid=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_by_user_the_last_rows_of_each_are_test_and_those_before_valid(events, test, valid):
    raw = log(*map(list, zip(*events, strict=True)))
    found = parts(raw, by="user", test=test, valid=valid)
    for user in set(raw["user"]):
        own = sorted((time, row) for row, (who, time) in enumerate(events) if who == user)
        num_test = math.ceil(round(test * len(own), 6))
        num_valid = min(math.ceil(round(valid * len(own), 6)), len(own) - num_test)
        num_train = len(own) - num_test - num_valid
        expected = ["train"] * num_train + ["valid"] * num_valid + ["test"] * num_test
        assert [found[row] for _, row in own] == expected


def test_a_share_of_ten_in_thirty_is_three_rows():
    found = Counter(parts(log([1] * 30, list(range(30))), by="user", test=0.1, valid=0.1))
    assert found == {"train": 24, "valid": 3, "test": 3}


def test_no_test_row_of_a_user_precedes_a_train_row():
    rng = np.random.default_rng(0)
    raw = log(rng.integers(0, 50, 2000).tolist(), rng.integers(0, 500, 2000).tolist())
    found = raw.with_columns(split=pl.Series(parts(raw, by="user")))
    bounds = found.group_by("user", "split").agg(pl.col("time").min().alias("first"),
                                                 pl.col("time").max().alias("last"))  # fmt: skip
    for user in range(50):
        own = {row["split"]: row for row in bounds.filter(pl.col("user") == user).to_dicts()}
        assert own["train"]["last"] <= own["valid"]["first"]
        assert own["valid"]["last"] <= own["test"]["first"]


@settings(max_examples=80, deadline=None)
@given(
    times=st.lists(st.integers(0, 30), min_size=3, max_size=80).filter(lambda t: len(set(t)) > 2)
)
def test_in_time_an_instant_lies_in_one_split_and_splits_follow_each_other(times):
    raw = log([0] * len(times), times)
    found = parts(raw, by="time", test=0.2, valid=0.2)
    by_time = dict(zip(times, found, strict=True))
    assert found == [by_time[time] for time in times]
    order = [ORDER[by_time[time]] for time in sorted(by_time)]
    assert order == sorted(order)
    assert set(order) == {0, 1, 2}


def test_in_time_the_shares_are_right():
    times = np.random.default_rng(1).permutation(10_000).tolist()
    found = Counter(parts(log([0] * 10_000, times), by="time", test=0.2, valid=0.1))
    assert found == {"train": 7000, "valid": 1000, "test": 2000}


def test_in_time_a_cut_inside_an_instant_moves_to_its_nearer_end():
    raw = log([0] * 10, [0, 1, 2, 3, 4, 5, 6, 6, 6, 9])
    assert Counter(parts(raw, by="time", test=0.2, valid=0.0))["test"] == 1
    assert Counter(parts(raw, by="time", test=0.35, valid=0.0))["test"] == 4


@pytest.mark.parametrize("dtype", ["ms", "us", "ns"])
def test_dates_cut_as_numbers_do(dtype):
    seconds = np.random.default_rng(2).permutation(500).tolist()
    raw = log([0] * 500, seconds)
    dates = raw.with_columns(pl.from_epoch("time", "s").cast(pl.Datetime(dtype)))
    zoned = dates.with_columns(pl.col("time").dt.replace_time_zone("Asia/Tokyo"))
    days = raw.with_columns(pl.from_epoch("time", "d"))
    expected = parts(raw, by="time")
    assert parts(dates, by="time") == expected
    assert parts(zoned, by="time") == expected
    assert parts(days, by="time") == expected


@pytest.mark.parametrize("moment", [datetime(2020, 1, 3), datetime(2020, 1, 3, tzinfo=UTC)])
def test_explicit_times_begin_their_splits(moment):
    days = pl.date_range(datetime(2020, 1, 1), datetime(2020, 1, 5), eager=True)
    for column in (days, days.cast(pl.Datetime("ns")), days.cast(pl.Datetime("ms", "UTC"))):
        raw = pl.DataFrame({"user": 0, "time": column}).with_row_index("__row")
        found = parts(raw, by="time", valid_from=moment, test_from="2020-01-05T00:00:00")
        assert found == ["train", "train", "valid", "valid", "test"]
    raw = log([0] * 4, [1, 2, 3, 4])
    assert parts(raw, by="time", test_from=3) == ["train", "train", "test", "test"]
    assert parts(raw, by="time", valid_from=3) == ["train", "train", "valid", "valid"]


def test_at_random_the_shares_are_near_and_the_seed_decides():
    raw = log([0] * 50_000, [0] * 50_000)
    found = parts(raw, by="random", test=0.2, valid=0.1, seed=1)
    counts = Counter(found)
    assert counts["test"] / 50_000 == pytest.approx(0.2, abs=0.01)
    assert counts["valid"] / 50_000 == pytest.approx(0.1, abs=0.01)
    assert parts(raw, by="random", test=0.2, valid=0.1, seed=1) == found
    other = parts(raw, by="random", test=0.2, valid=0.1, seed=2)
    both = sum(a == b == "test" for a, b in zip(found, other, strict=True))
    assert both / 50_000 == pytest.approx(0.04, abs=0.01)


def test_at_random_a_row_keeps_its_split_whatever_stands_around_it():
    raw = log(list(range(1000)), list(range(1000)))
    expected = parts(raw, by="random")
    assert parts(raw.select("time", "user", "__row"), by="random") == expected
    assert parts(raw.with_columns(user=pl.lit("x")).reverse(), by="random") == expected[::-1]
    assert parts(raw[300:400], by="random") == expected[300:400]


def test_the_random_split_is_pinned():
    raw = log([0] * 12, [0] * 12)
    found = parts(raw, by="random", test=0.3, valid=0.3, seed=7)
    assert "".join(part[1] for part in found) == "eraraeerraaa"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"test": 0.6, "valid": 0.4}, "leave no training rows"),
        ({"test": -0.1}, "greater than or equal to 0"),
        ({"by": "user", "test_from": 3}, "need by: time"),
        ({"by": "time", "test": 0.2, "test_from": 3}, "test cannot be given beside"),
        ({"by": "time", "valid_from": 3, "test_from": 3}, "earlier than test_from"),
        ({"by": "time", "valid_from": 3, "test_from": datetime(2020, 1, 1)}, "same type"),
        ({"by": "tiem"}, "'time', 'user', 'random' or 'file'"),
        ({"by": "file"}, "belong together"),
        ({"files": {"train": "a.csv"}}, "belong together"),
        ({"by": "file", "files": {"valid": "b.csv"}}, "files.train\n  Field required"),
        ({"by": "file", "files": {"train": ""}}, "expected the name of a file or a pattern"),
        ({"by": "file", "files": {"train": "a"}, "test": 0.2, "seed": 1}, "seed and test cannot"),
        ({"by": "file", "files": {"train": "a"}, "valid_from": 3}, "valid_from cannot be given"),
    ],
)
def test_a_contradictory_configuration_is_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        SplitConfig(**config)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"by": "user", "valid": 0.0, "user": "u"},
        {"by": "time", "test_from": 3},
        {"by": "file", "files": {"train": ["a", "b/*"], "test": "c"}},
    ],
)
def test_a_dumped_configuration_loads_again(config):
    original = SplitConfig.model_validate(config)
    assert SplitConfig.model_validate(original.model_dump(mode="json")) == original
    assert SplitConfig.model_validate_json(original.model_dump_json()) == original


def by_file(names: list[str], rows_of_each: list[int], **files) -> list[str]:
    begins = np.cumsum([0, *rows_of_each]).tolist()
    raw = log([0] * begins[-1], [0] * begins[-1])
    places = [(Path(name), begin) for name, begin in zip(names, begins, strict=False)]
    config = SplitConfig(by="file", files=files)
    shared_out = split(raw.lazy(), config, FEATURES, places)
    found = shared_out.collect(engine="streaming")
    assert found.drop("split").equals(raw)
    return found["split"].to_list()


def test_by_file_the_rows_of_a_file_are_its_splits():
    names = ["d/test.csv", "d/train.csv", "d/valid.csv"]
    files = {"train": "train.csv", "valid": "valid.csv", "test": "test.csv"}
    assert by_file(names, [1, 3, 2], **files) == ["test"] + ["train"] * 3 + ["valid"] * 2
    names = ["log/1/a.csv", "log/1/b.csv", "log/2/a.csv"]
    assert by_file(names, [1, 2, 1], train="1/*", test=["2/*"]) == ["train"] * 3 + ["test"]
    assert by_file(["a.csv", "b.csv"], [2, 1], train="[ab].csv") == ["train"] * 3
    assert by_file(["a.csv", "b.csv"], [2, 0], train="a.*", test="b.*") == ["train"] * 2
    assert by_file(["/x/a.csv", "/y/a.csv"], [1, 1], train="/y/a.csv", valid="/x/*") == [
        "valid",
        "train",
    ]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from(list(ORDER)), st.integers(0, 4)), min_size=1).filter(
        lambda files: {name for name, _ in files} == set(ORDER)
    )
)
def test_by_file_any_order_of_files_will_do(rows):
    names = [f"{number}-{name}.csv" for number, (name, _) in enumerate(rows)]
    files = {name: f"*-{name}.csv" for name in ORDER}
    expected = [name for name, count in rows for _ in range(count)]
    assert by_file(names, [count for _, count in rows], **files) == expected


def test_a_split_by_file_that_does_not_fit_the_files_is_an_error():
    names = ["d/train.csv", "d/valid.csv", "d/test.csv"]
    with pytest.raises(ValueError, match=r"files\.test: 'tests.csv' fits none of the 3 files"):
        by_file(names, [1, 1, 1], train="train.csv", valid="valid.csv", test="tests.csv")
    with pytest.raises(ValueError, match=r"d/test\.csv fits none of \['train\.csv', 'valid"):
        by_file(names, [1, 1, 1], train="train.csv", valid="valid.csv")
    with pytest.raises(ValueError, match=r"d/valid\.csv fits the patterns of train and valid"):
        by_file(names, [1, 1, 1], train=["t*.csv", "v*.csv"], valid="valid.csv")
    assert by_file(names[:1], [1], train=["t*.csv", "train.*"]) == ["train"]


def test_a_split_in_time_that_leaves_a_part_empty_is_an_error():
    with pytest.raises(ValueError, match=r"no rows for train.*2 distinct times"):
        parts(log([0] * 4, [1, 1, 2, 2]), by="time", test=0.4, valid=0.4)
    with pytest.raises(ValueError, match=r"no rows for train.*1 distinct times"):
        parts(log([0] * 4, [7] * 4), by="time")
    with pytest.raises(ValueError, match="no rows for test"):
        parts(log([0] * 4, [1, 2, 3, 4]), by="time", test_from=9)


def test_rows_without_a_time_are_an_error_where_time_decides():
    for by in ("time", "user"):
        with pytest.raises(ValueError, match="1 of 3 rows have no timestamp"):
            parts(log([0, 0, 0], [1, None, 3]), by=by)
        for bad in (math.nan, math.inf):
            with pytest.raises(ValueError, match="1 of 3 rows have no timestamp"):
                parts(log([0, 0, 0], [1.0, bad, 3.0]), by=by)


def test_a_missing_column_is_named():
    bare = FeatureSet(inputs=(Numeric(name="x"),))
    raw = log([1, 2], [1, 2])
    with pytest.raises(ValueError, match=r"needs features\.timestamp"):
        parts(raw, bare, by="time")
    with pytest.raises(ValueError, match=r"set split\.user or features\.group"):
        parts(raw, bare.model_copy(update={"timestamp": "time"}), by="user")
    with pytest.raises(SchemaMismatch, match="'users', which is not there; did you mean 'user'"):
        parts(raw, by="user", user="users")
    with pytest.raises(SchemaMismatch, match="'time' has the type String"):
        parts(raw.with_columns(pl.col("time").cast(pl.String)), by="time")
    with pytest.raises(ValueError, match="does not fit the timestamp, which holds numbers"):
        parts(raw, by="time", test_from=datetime(2020, 1, 1))


def test_a_user_is_the_same_whatever_type_it_is_read_as():
    raw = log([3, 3, 1, 3, None, 1, None], [5, 4, 3, 2, 1, 0, -1])
    expected = parts(raw, by="user", test=0.3, valid=0.3)
    assert expected == ["test", "valid", "test", "train", "test", "valid", "valid"]
    for dtype in (pl.String, pl.Float64):
        cast = raw.with_columns(pl.col("user").cast(dtype))
        assert parts(cast, by="user", test=0.3, valid=0.3) == expected


def test_an_empty_log_has_empty_splits_by_user_and_at_random():
    raw = pl.DataFrame(schema={"__row": pl.UInt32, "user": pl.String, "time": pl.Int64})
    assert parts(raw, by="user") == parts(raw, by="random") == []
    with pytest.raises(ValueError, match="there are no rows"):
        parts(raw, by="time")
