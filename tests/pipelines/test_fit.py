"""Fitted statistics against plain Python and numpy."""

import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shared_out import split

from feature_store.asof import histories
from feature_store.columns import SchemaMismatch
from feature_store.features import (
    Bag,
    Categorical,
    FeatureSet,
    History,
    Numeric,
    Sequence,
)
from pipelines.fit import fit
from pipelines.split import SplitConfig


def fitted(raw: dict | pl.DataFrame, *features):
    return fit(pl.DataFrame(raw).lazy(), FeatureSet(inputs=features, timestamp="time"))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.none() | st.sampled_from(["", "a", "b", "c", "é", "10", "9"]), min_size=1),
    min_count=st.integers(1, 3),
    max_size=st.none() | st.integers(1, 4),
)
def test_a_vocabulary_is_by_falling_count_then_by_value(values, min_count, max_size):
    feature = Categorical(name="x", min_count=min_count, max_size=max_size)
    counts = Counter(value for value in values if value)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0].encode()))
    expected = [value for value, count in ranked if count >= min_count][:max_size]
    raw = pl.DataFrame({"x": pl.Series(values, dtype=pl.String)})
    assert fitted(raw, feature).vocabularies["x"].to_list() == expected


def test_a_bags_vocabulary_counts_every_value_in_text_and_in_lists():
    texts = {"x": ["b a", "b", "", None, "c  b"]}
    lists = {"x": [["b", "a"], ["b"], [], None, ["c", None, "b"]]}
    for raw in (texts, lists):
        assert fitted(raw, Bag(name="x")).vocabularies["x"].to_list() == ["b", "a", "c"]


def test_hashed_features_and_sequences_learn_no_vocabulary():
    raw = {"x": ["a"], "past": [["z"]]}
    found = fitted(raw, Categorical(name="x", encoding="hash"), Sequence(name="past", of="x"))
    assert found.vocabularies == {}
    found = fitted(raw, Categorical(name="x"), Sequence(name="past", of="x"))
    assert {name: list(values) for name, values in found.vocabularies.items()} == {"x": ["a"]}


def test_moments_are_those_of_the_finite_numbers_after_the_logarithm():
    values = np.random.default_rng(0).lognormal(3, 2, 10_000)
    raw = {"x": [*values, None, math.nan, math.inf], "y": [*-values, 0, 0, 0]}
    found = fitted(
        raw,
        Numeric(name="x", standardize=True),
        Numeric(name="y", standardize=True, log1p=True),
        Numeric(name="plain", source="x"),
    )
    assert found.moments["x"] == pytest.approx((values.mean(), values.std()), rel=1e-8)
    logarithms = np.append(-np.log1p(values), [0, 0, 0])
    assert found.moments["y"] == pytest.approx((logarithms.mean(), logarithms.std()), rel=1e-8)
    assert set(found.moments) == {"x", "y"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [([None, None], (0.0, 1.0)), ([3.0, 3.0, None], (3.0, 1.0)), ([math.nan], (0.0, 1.0))],
    ids=["nothing", "constant", "not a number"],
)
def test_a_column_without_spread_is_only_centred(values, expected):
    raw = {"x": pl.Series(values, dtype=pl.Float64)}
    assert fitted(raw, Numeric(name="x", standardize=True)).moments["x"] == expected


def test_a_number_that_no_float32_holds_does_not_spoil_the_moments():
    features = fitted(
        {"x": [1.0, 3.0, 1e300, -1e39], "label": [0, 1, 0, 1]}, Numeric(name="x", standardize=True)
    )
    assert features.moments["x"] == (2.0, 1.0)


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(st.none() | st.integers(-20, 20), max_size=60),
    num_buckets=st.integers(2, 8),
)
def test_boundaries_are_exact_quantiles_and_leave_no_bucket_empty(values, num_buckets):
    raw = pl.DataFrame({"x": pl.Series([*values, 1], dtype=pl.Int64)})
    found = fitted(raw, Numeric(name="x", num_buckets=num_buckets))
    present = sorted(value for value in [*values, 1] if value is not None)
    cuts = {present[len(present) * i // num_buckets] for i in range(1, num_buckets)}
    assert found.boundaries["x"] == sorted(cuts - {present[0]})
    ids = found.encode(raw.lazy()).collect()["x"]
    used = set(ids.to_list()) - {0}
    assert used == set(range(2, 3 + len(found.boundaries["x"])))


def test_distinct_numbers_fall_into_equal_buckets():
    raw = pl.DataFrame({"x": np.random.default_rng(1).permutation(1000).astype(float)})
    found = fitted(raw, Numeric(name="x", num_buckets=10, log1p=True))
    counts = found.encode(raw.lazy()).collect()["x"].value_counts().sort("x")
    assert counts.rows() == [(2 + i, 100) for i in range(10)]


def test_a_fit_is_the_same_whatever_the_order_of_the_rows_and_the_parts():
    rng = np.random.default_rng(2)
    raw = pl.DataFrame(
        {
            "price": rng.lognormal(0, 3, 200_000),
            "item": pl.Series(rng.zipf(1.3, 200_000) % 5000).cast(pl.String),
        }
    )
    features = (
        Numeric(name="price", standardize=True, log1p=True),
        Numeric(name="bucket", source="price", num_buckets=50),
        Categorical(name="item", max_size=1000),
    )
    shuffled = raw.sample(fraction=1.0, shuffle=True, seed=3)
    assert fitted(raw, *features).fingerprint == fitted(shuffled, *features).fingerprint


def test_columns_say_where_the_training_rows_have_nulls():
    raw = {"x": [1.0, None], "item": ["a", "b"], "unused": [None, None]}
    found = fitted(raw, Numeric(name="x"), Categorical(name="item"))
    assert [(c.name, c.type, c.nullable) for c in found.columns] == [
        ("x", "float", True),
        ("item", "string", False),
    ]


def test_training_rows_are_needed():
    raw = pl.DataFrame({"x": pl.Series([], dtype=pl.Float64)})
    with pytest.raises(ValueError, match="the training split has no rows"):
        fitted(raw, Numeric(name="x"))


@pytest.mark.parametrize(
    ("raw", "feature", "message"),
    [
        ({"prices": [1]}, Numeric(name="price"), "did you mean 'prices'"),
        ({"x": ["a"]}, Numeric(name="x", standardize=True), "needs a column of numbers"),
        ({"x": ["a"]}, Numeric(name="x"), "needs a column of numbers"),
        ({"x": [["a"]]}, Categorical(name="x"), "needs one value a row"),
        ({"x": [["a"]]}, Categorical(name="x", encoding="hash"), "needs one value a row"),
        ({"x": [1]}, Bag(name="x"), "needs lists or separated text"),
    ],
)
def test_a_column_that_cannot_be_encoded_is_refused_when_fitting(raw, feature, message):
    with pytest.raises(SchemaMismatch, match=message):
        fitted(raw, feature)


def test_a_history_has_to_be_gathered_before_fitting():
    past = Sequence(name="past", of="item", history=History(by="user"))
    with pytest.raises(SchemaMismatch, match="feature 'past' needs the column 'past'"):
        fitted({"item": [1], "user": [1], "time": [1]}, Categorical(name="item"), past)


def test_what_valid_and_test_rows_hold_changes_nothing_that_is_fitted():
    features = FeatureSet(
        inputs=(
            Numeric(name="price", standardize=True),
            Numeric(name="bucket", source="price", num_buckets=5),
            Categorical(name="item"),
            Sequence(name="past", of="item", history=History(by="user")),
        ),
        group="user",
        timestamp="time",
    )
    rng = np.random.default_rng(4)
    raw = pl.DataFrame(
        {
            "user": rng.integers(0, 20, 1000),
            "item": rng.integers(0, 50, 1000),
            "price": rng.normal(size=1000),
            "time": rng.permutation(1000),
        }
    ).with_row_index("__row")

    def fingerprint(rows: pl.DataFrame) -> str:
        shared_out = split(histories(rows.lazy(), features), SplitConfig(by="time"), features)
        return fit(shared_out.filter(pl.col("split") == "train"), features).fingerprint

    later = pl.col("time") >= 800
    changed = raw.with_columns(
        item=pl.when(later).then(999).otherwise("item"),
        price=pl.when(later).then(1e9).otherwise("price"),
    )
    assert fingerprint(changed) == fingerprint(raw)
    assert fingerprint(raw.with_columns(price=pl.col("price") + 1)) != fingerprint(raw)
