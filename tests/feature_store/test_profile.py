"""Profiles against counts by hand and by Polars over the raw rows; kept and read back."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support.versions import write

from feature_store import profile as profiles
from feature_store import tallies
from feature_store.features import (
    SPLIT_COLUMN,
    SPLITS,
    Bag,
    Categorical,
    DatePart,
    FeatureSet,
    Label,
    Numeric,
)
from feature_store.profile import PROFILE_FILE, Profile, load, profile, wilson

FEATURES = FeatureSet(
    inputs=(
        Categorical(name="user", encoding="hash"),
        Categorical(name="city", min_count=2),
        Bag(name="tags", separator="|"),
        Numeric(name="price", indicator=True, standardize=True, log1p=True),
        Numeric(name="age", num_buckets=3),
        Numeric(name="length"),
        DatePart(name="hour", source="time", part="hour"),
    ),
    labels=(Label(name="clicked"), Label(name="bought")),
    timestamp="time",
)
DAY = 86_400


def raw_rows(num_rows: int = 400, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": [f"u{i}" for i in random.integers(0, 90, num_rows)],
            "city": [
                ["Rome", "Oslo", "Bonn", "", None][i] for i in random.integers(0, 5, num_rows)
            ],
            "tags": ["|".join("abc"[: random.integers(0, 4)]) for _ in range(num_rows)],
            "price": [None if p < 0.1 else 10 * p for p in random.random(num_rows)],
            "age": random.integers(18, 60, num_rows),
            "length": random.integers(0, 300, num_rows),
            "time": 1_600_000_000 + random.integers(0, 5 * DAY, num_rows),
            "clicked": random.integers(0, 2, num_rows),
            "bought": random.integers(0, 5, num_rows) == 0,
            SPLIT_COLUMN: random.choice(SPLITS, num_rows),
        }
    )


@pytest.fixture(scope="module")
def raw() -> pl.DataFrame:
    return raw_rows()


@pytest.fixture(scope="module")
def found(raw: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return profile(write(tmp_path_factory.mktemp("store"), raw, FEATURES))


@pytest.mark.parametrize("split", SPLITS)
def test_values_are_counted_as_they_were_before_encoding(
    raw: pl.DataFrame, found: Profile, split: str
) -> None:
    rows = raw.filter(pl.col(SPLIT_COLUMN) == split)
    city = found.splits[split].feature("city")
    present = rows.filter(pl.col("city").is_not_null() & (pl.col("city") != ""))
    expected = present.group_by("city").agg(pl.len(), pl.col("clicked", "bought").mean())
    assert {value.value: value.rows for value in city.top} == dict(
        expected.select("city", "len").iter_rows()
    )
    for value in city.top:
        _, rows_of, clicked, bought = expected.row(by_predicate=pl.col("city") == value.value)
        assert [rate.task for rate in value.rates] == ["clicked", "bought"]
        assert [rate.rate for rate in value.rates] == pytest.approx([clicked, bought])
        assert value.share == pytest.approx(rows_of / rows.height)
    assert city.missing == pytest.approx(1 - present.height / rows.height)
    absent = rows.filter(pl.col("city").is_null() | (pl.col("city") == ""))
    assert city.missing_rates[0].rate == pytest.approx(absent["clicked"].mean())
    assert (city.distinct, city.distinct_estimated, city.unseen) == (3, False, 0.0)
    assert list(city.top) == sorted(city.top, key=lambda value: -value.rows)


def test_values_outside_the_vocabulary_are_unseen(tmp_path: Path) -> None:
    train = pl.DataFrame({"city": ["a"] * 6 + ["b"] * 2, SPLIT_COLUMN: "train"})
    test = pl.DataFrame({"city": ["a", "z", "y", None], SPLIT_COLUMN: "test"})
    raw = pl.concat([train, test]).with_columns(clicked=pl.Series([0, 1] * 6))
    features = FeatureSet(
        inputs=(Categorical(name="city", min_count=3),), labels=(Label(name="clicked"),)
    )
    splits = profile(write(tmp_path, raw, features)).splits
    assert list(splits) == ["train", "test"]  # no rows, no profile
    assert splits["train"].feature("city").unseen == pytest.approx(2 / 8)
    tested = splits["test"].feature("city")
    assert (tested.unseen, tested.missing) == (pytest.approx(2 / 4), pytest.approx(1 / 4))
    assert tested.unseen_rates[0].rows == 2


def test_lists_count_their_elements_and_their_lengths(raw: pl.DataFrame, found: Profile) -> None:
    rows = raw.filter(pl.col(SPLIT_COLUMN) == "train")
    tags = found.splits["train"].feature("tags")
    lists = rows["tags"].str.split("|").list.filter(pl.element() != "")
    elements = pl.DataFrame({"tag": lists, "clicked": rows["clicked"]}).explode(
        "tag", keep_nulls=False, empty_as_null=False
    )
    by_hand = elements.group_by("tag").agg(pl.len(), pl.col("clicked").mean())
    assert {v.value: (v.rows, pytest.approx(v.rates[0].rate)) for v in tags.top} == {
        tag: (count, rate) for tag, count, rate in by_hand.iter_rows()
    }
    empty = int((lists.list.len() == 0).sum())
    assert tags.missing == pytest.approx(empty / rows.height)
    assert tags.entries == elements.height + empty
    assert tags.lengths is not None
    assert tags.lengths.mean == pytest.approx(lists.list.len().mean())
    assert tags.lengths.quantiles["100"] == 3.0


def test_weights_of_lists_are_profiled(tmp_path: Path) -> None:
    raw = pl.DataFrame(
        {
            "tags": [["a", "b"], [], ["b"], ["a", "a"]],
            "strength": [[1.0, 2.0], [], [3.0], [4.0, 0.0]],
            "clicked": [0, 1, 0, 1],
            SPLIT_COLUMN: ["train"] * 4,
        }
    )
    features = FeatureSet(
        inputs=(Bag(name="tags", weights="strength"),), labels=(Label(name="clicked"),)
    )
    tags = profile(write(tmp_path, raw, features)).splits["train"].feature("tags")
    assert tags.weights is not None
    assert (tags.weights.mean, tags.weights.quantiles["100"]) == (2.0, 4.0)
    assert tags.missing == 0.25


def test_numbers_are_shown_before_their_standardisation(raw: pl.DataFrame, found: Profile) -> None:
    rows = raw.filter(pl.col(SPLIT_COLUMN) == "train")
    price = found.splits["train"].feature("price")
    known = rows["price"].drop_nulls().sort()
    assert price.missing == pytest.approx(rows["price"].null_count() / rows.height)
    assert price.numbers is not None
    for percent, value in price.numbers.quantiles.items():
        place = max(int(np.ceil(float(percent) / 100 * len(known))), 1) - 1
        assert value == pytest.approx(known[place], rel=0.03, abs=0.03)
    assert price.numbers.mean == pytest.approx(known.mean(), rel=0.01)
    assert price.distinct == pytest.approx(known.n_unique(), rel=0.03)
    assert sum(bucket.rows for bucket in price.numbers.buckets) == len(known)


def test_the_label_rate_by_bucket_is_that_of_its_rows(raw: pl.DataFrame, found: Profile) -> None:
    rows = raw.filter(pl.col(SPLIT_COLUMN) == "train")
    length = found.splits["train"].feature("length")
    assert length.missing is None  # without an indicator, encoded rows do not tell
    assert length.numbers is not None
    assert len(length.numbers.buckets) == profiles.NUM_BUCKETS
    for bucket in length.numbers.buckets:
        inside = rows.filter(pl.col("length").is_between(bucket.low, bucket.high))
        assert bucket.rows == inside.height
        assert bucket.rates[0].rate == pytest.approx(inside["clicked"].mean())


def test_what_the_build_noted_of_raw_numbers_is_their_missing_share(raw: pl.DataFrame) -> None:
    layout = tallies.Layout(ids=(), dense=("length",), tasks=())
    counted = tallies.Tally(layout)
    row = tallies.Rows(
        np.zeros((0, 4)), np.zeros(4), {"length": tallies.Entries(np.zeros(4, np.float32))}
    )
    counted.add(row)
    fitted = profiles.FittedFeatures(FEATURES, {}, {}, {}, ())
    told = profiles.split_summary(counted, fitted, {"length": 3})
    assert told.feature("length").missing == 0.75


def test_buckets_and_parts_of_times_have_names(found: Profile) -> None:
    age = found.splits["train"].feature("age")
    assert {value.value.count("–") for value in age.top} == {1}
    assert sum(value.rows for value in age.top) == found.splits["train"].rows
    hours = found.splits["train"].feature("hour").top
    assert {int(value.value) for value in hours} <= set(range(24))


def test_hashed_values_are_estimated(raw: pl.DataFrame, found: Profile) -> None:
    rows = raw.filter(pl.col(SPLIT_COLUMN) == "train")
    user = found.splits["train"].feature("user")
    assert user.distinct_estimated
    assert user.distinct == pytest.approx(rows["user"].n_unique(), rel=0.03)
    assert user.unseen is None
    counts = rows["user"].value_counts(sort=True)["count"]
    assert [value.rows for value in user.top] == counts.head(profiles.TOP_VALUES).to_list()
    assert (user.top_error, user.top[0].value[0], len(user.top[0].value)) == (0, "#", 17)


def test_files_and_batches_make_no_difference(
    raw: pl.DataFrame, found: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "BATCH_ROWS", 17)
    monkeypatch.setattr(tallies, "_COUNT_BY_PLACE", 2)
    assert profile(write(tmp_path, raw, FEATURES)) == found


def test_a_profile_is_kept_beside_its_version_and_read_back(
    raw: pl.DataFrame, found: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = write(tmp_path, raw, FEATURES)
    assert load(version.folder) is None
    assert profile(version) == found
    assert load(version.folder) == found

    def refuse(*_: object) -> None:
        raise AssertionError("counted again")

    monkeypatch.setattr(profiles, "tally", refuse)
    assert profile(version) == found


def test_a_damaged_profile_is_named(raw: pl.DataFrame, tmp_path: Path) -> None:
    version = write(tmp_path, raw, FEATURES)
    (version.folder / PROFILE_FILE).write_text("{")
    with pytest.raises(ValueError, match=PROFILE_FILE):
        profile(version)


@pytest.mark.parametrize(
    ("positives", "rows", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilsons_interval(positives: int, rows: int, low: float, high: float) -> None:
    # 81 of 263: the example of Newcombe (1998), table I, method 3
    assert wilson(positives, rows) == pytest.approx((low, high), abs=5e-5)
