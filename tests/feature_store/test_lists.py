"""Bags and sequences with weights, gaps and shared ids, against a loop over plain values."""

import math
from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.columns import SchemaMismatch
from feature_store.encoding import FittedFeatures, check_columns
from feature_store.features import Bag, Categorical, FeatureSet, IdField, Sequence
from feature_store.kinds import columns_of, faults_of
from pipelines.fit import fit

NOW = datetime(2024, 2, 29, 12)
FEATURES = FeatureSet(
    inputs=(
        Categorical(name="item", min_count=2),
        Bag(name="tags", weights="strength", max_length=3),
        Bag(name="likes", of="item", separator="|"),
        Sequence(name="past", of="item", source="seen", max_length=2, weights="how", gaps=True),
        Sequence(name="bought", of="item"),
    ),
    timestamp="at",
)
SCHEMA = {
    "item": pl.String(),
    "tags": pl.List(pl.String),
    "strength": pl.List(pl.Float64),
    "likes": pl.String(),
    "seen": pl.List(pl.String),
    "how": pl.List(pl.Float64),
    "seen__time": pl.List(pl.Datetime("us")),
    "at": pl.Datetime("us"),
    "bought": pl.List(pl.String),
}


def raw(*rows: dict) -> pl.DataFrame:
    whole = [dict.fromkeys(SCHEMA) | row for row in rows]
    return pl.DataFrame(whole, schema=SCHEMA)


TRAIN = raw(
    *({"item": item, "tags": ["x", "y", "x"], "strength": [1.0, 1.0, 1.0]} for item in "abab"),
    {"item": "rare"},
)
FITTED = fit(TRAIN.lazy(), FEATURES)
ITEMS, TAGS = {"a": 2, "b": 3}, {"x": 2, "y": 3}


def encode(frame: pl.DataFrame) -> list[dict]:
    return FITTED.encode(frame.lazy()).collect().to_dicts()


def test_weights_and_gaps_stay_with_the_values_that_are_kept():
    row = {
        "tags": ["y", None, "x", "", "new", "x"],
        "strength": [0.5, 9.0, 1.5, 9.0, 2.5, 9.0],
        "likes": "b||a|rare",
        "seen": ["a", "", "b", "rare"],
        "how": [9.0, 9.0, 0.0, 0.25],
        "at": NOW,
        "seen__time": [NOW - timedelta(days=2), NOW, NOW - timedelta(hours=1), None],
    }
    (found,) = encode(raw(row))
    assert found["tags"] == [3, 2, 1]
    assert found["tags__weight"] == [0.5, 1.5, 2.5]
    assert found["likes"] == [3, 2, 1]
    assert found["past"] == [3, 1]
    assert found["past__weight"] == [0.0, 0.25]
    # An hour is 2^11 - 1 seconds and more, under 2^12 - 1; a time that is missing is unknown.
    assert found["past__gap"] == [2 + 11, 1]
    assert found["bought"] == []


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0, 0), (0.999, 0), (1, 1), (2.999, 1), (3, 2), (6, 2), (7, 3), (3600, 11), (2**31 - 2, 30),
     (2**31 - 1, 31), (2**36, 31)],
)  # fmt: skip
def test_bounds_of_gaps_double(seconds, bucket):
    then = NOW - timedelta(seconds=seconds) if seconds < 2**33 else datetime(1, 1, 1)
    (found,) = encode(raw({"seen": ["a"], "how": [1.0], "at": NOW, "seen__time": [then]}))
    assert found["past__gap"] == [2 + bucket]


@pytest.mark.parametrize(
    ("now", "then"), [(NOW, NOW + timedelta(microseconds=1)), (None, NOW), (NOW, None)]
)
def test_gaps_that_are_not_known_have_the_id_of_unseen_values(now, then):
    (found,) = encode(raw({"seen": ["a"], "how": [1.0], "at": now, "seen__time": [then]}))
    assert found["past__gap"] == [1]


def test_gaps_of_numbers_follow_their_unit():
    features = FeatureSet(
        inputs=(
            Categorical(name="item"),
            Sequence(name="past", of="item", gaps=8, time_unit="ms"),
        ),
        timestamp="at",
    )
    frame = pl.DataFrame(
        {
            "item": ["a"],
            "past": [["a", "a", "a"]],
            "past__time": [[1_000, 9_000, 11_000]],
            "at": [10_000],
        }
    )
    fitted = fit(frame.lazy(), features)
    found = fitted.encode(frame.lazy()).collect()
    # 9 seconds, 1 second, and a second after the row.
    assert found["past__gap"].to_list() == [[2 + 3, 2 + 1, 1]]
    assert fitted.layout.id_field("past__gap").cardinality == 2 + 8


def _as_stated(row: dict) -> dict:
    """What the features declare, by a loop over values."""
    tags = [
        (TAGS.get(tag, 1), weight)
        for tag, weight in zip(row["tags"] or [], row["strength"] or [], strict=True)
        if tag
    ][:3]
    times = row["seen__time"] or []
    past = []
    for item, weight, time in zip(row["seen"] or [], row["how"] or [], times, strict=True):
        gap = 1
        if row["at"] is not None and time is not None and time <= row["at"]:
            seconds = (row["at"] - time) / timedelta(seconds=1)
            gap = 2 + min(31, int(math.log2(seconds + 1)))
        if item:
            past.append((ITEMS.get(item, 1), weight, gap))
    past = past[-2:]
    return {
        "item": (ITEMS.get(row["item"], 1) if row["item"] else 0),
        "tags": [tag for tag, _ in tags],
        "tags__weight": [weight for _, weight in tags],
        "likes": [ITEMS.get(like, 1) for like in (row["likes"] or "").split("|") if like],
        "past": [item for item, _, _ in past],
        "past__weight": [weight for _, weight, _ in past],
        "past__gap": [gap for _, _, gap in past],
        "bought": [ITEMS.get(item, 1) for item in row["bought"] or [] if item],
    }


WORDS = st.none() | st.sampled_from(["", "a", "b", "x", "y", "rare", "é", "a|b"])
WEIGHTS = st.sampled_from([0.0, 0.25, 1.0, 3.5])
TIMES = st.none() | st.integers(-5, 10**6).map(lambda s: NOW - timedelta(seconds=s))


@st.composite
def any_row(draw) -> dict:
    tags = draw(st.none() | st.lists(WORDS, max_size=5))
    seen = draw(st.none() | st.lists(WORDS, max_size=5))
    return {
        "item": draw(WORDS),
        "tags": tags,
        "strength": None if tags is None else [draw(WEIGHTS) for _ in tags],
        "likes": draw(st.none() | st.lists(WORDS.map(lambda w: w or ""), max_size=3).map("|".join)),
        "seen": seen,
        "how": None if seen is None else [draw(WEIGHTS) for _ in seen],
        "seen__time": None if seen is None else [draw(TIMES) for _ in seen],
        "at": draw(st.none() | st.just(NOW)),
        "bought": draw(st.none() | st.lists(WORDS, max_size=4)),
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(any_row(), min_size=1, max_size=5))
def test_rows_are_encoded_as_stated_alone_and_in_company(rows):
    found = encode(raw(*rows))
    assert found == [_as_stated(row) for row in rows]
    assert found == [encode(raw(row))[0] for row in rows]
    flags = raw(*rows).select(f.is_bad.alias(str(n)) for n, f in enumerate(FAULTS))
    assert not any(map(any, flags.iter_rows()))


FAULTS = faults_of(FEATURES, SCHEMA)


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ({"tags": ["x"], "strength": [1.0, 2.0]}, "strength", "as many as there are values"),
        ({"tags": ["x"]}, "strength", "as many as there are values in 'tags'"),
        ({"tags": [None], "strength": [-1.0]}, "strength", "finite numbers that are not negative"),
        ({"tags": ["x"], "strength": [math.nan]}, "strength", "finite numbers"),
        ({"tags": ["x"], "strength": [math.inf]}, "strength", "finite numbers"),
        ({"tags": ["x"], "strength": [1e300]}, "strength", "finite numbers"),
        ({"tags": ["x"], "strength": [None]}, "strength", "finite numbers"),
        ({"seen": ["a"], "how": [1.0], "seen__time": []}, "seen__time", "as many as there are"),
    ],
)
def test_lists_that_do_not_fit_each_other_are_faults_of_their_row(row, column, expected):
    frame = raw(row, {})
    bad = [f for f in FAULTS if frame.select(f.is_bad).to_series().to_list() == [True, False]]
    assert [f.column for f in bad] == [column]
    assert expected in bad[0].expected


def test_faulty_rows_still_have_as_many_weights_as_ids():
    """Whoever encodes them without looking must not shift the weights of later rows."""
    rows = ({"tags": ["x", "y"], "strength": [-1.0]}, {"tags": ["x"], "strength": [2.0, 3.0]})
    assert [row["tags__weight"] for row in encode(raw(*rows))] == [[0.0, 0.0], [2.0]]


@pytest.mark.parametrize(
    ("column", "dtype", "message"),
    [
        ("strength", pl.String(), "weights 'strength' have the type String; expected lists"),
        ("strength", pl.List(pl.String), "declare the column as list<float>"),
        ("how", pl.Float64(), "sequence 'past': its weights 'how'"),
        ("seen__time", pl.List(pl.Int64), "needs 'seen__time' as lists of times like 'at'"),
        ("seen__time", pl.Datetime("us"), "needs 'seen__time' as lists of times"),
    ],
)
def test_columns_of_other_types_are_refused(column, dtype, message):
    with pytest.raises(SchemaMismatch, match=message):
        check_columns(FEATURES, SCHEMA | {column: dtype})


@pytest.mark.parametrize(
    ("inputs", "timestamp", "message"),
    [
        ((Bag(name="b", of="nothing"),), None, "bag 'b' is of 'nothing', which is not a categ"),
        ((Categorical(name="c"), Sequence(name="s", of="c", gaps=True)), None, "has gaps, so"),
        (
            (Bag(name="b", weights="w"), Categorical(name="b__weight")),
            None,
            "bag 'b' has a column 'b__weight', which is the name of another feature",
        ),
    ],
)
def test_declarations_that_refer_to_nothing_are_refused(inputs, timestamp, message):
    with pytest.raises(ValueError, match=message):
        FeatureSet(inputs=inputs, timestamp=timestamp)


def test_a_bag_that_shares_ids_has_no_vocabulary_of_its_own():
    with pytest.raises(ValueError, match="shares the ids of 'item'; set min_count there"):
        Bag(name="likes", of="item", min_count=3)
    assert set(FITTED.vocabularies) == {"item", "tags"}


def test_sequences_and_bags_of_one_feature_share_its_space():
    spaces = {field.name: field.space for field in FITTED.layout.ids}
    shared = {name for name, space in spaces.items() if space == "item"}
    assert shared == {"item", "likes", "past", "bought"}
    assert FITTED.layout.id_field("past__gap") == IdField(
        name="past__gap",
        shape="sequence",
        side="user",
        space="past__gap",
        cardinality=34,
        max_length=2,
        gaps_of="past",
    )


def test_every_encoded_column_belongs_to_a_feature(tmp_path):
    columns = [name for f in FEATURES.inputs for name in columns_of(f, FEATURES)]
    assert FITTED.encode(TRAIN.lazy()).collect_schema().names() == columns
    FITTED.save(tmp_path)
    assert FittedFeatures.load(tmp_path).layout == FITTED.layout
