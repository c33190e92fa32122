"""Baselines against their formula, and on MovieLens-100K where it is there."""

import math
import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from recsys.evaluation import baselines
from recsys.evaluation.baselines import TrainingRates

RATINGS = Path(__file__).parents[2] / "data" / "movielens-100k" / "ml-100k.inter"


def logit(rate):
    return math.log(rate / (1 - rate))


def counted(users, items, labels, weights=None):
    rates = TrainingRates(1, ("user", "item"))
    weights = np.ones(len(users), np.float32) if weights is None else weights
    rates.update(
        np.asarray(labels, np.float32)[:, None],
        weights,
        {"user": np.asarray(users), "item": np.asarray(items)},
    )
    return rates


def score(rates, users, items, smoothing=5.0):
    ids = {"user": np.asarray(users), "item": np.asarray(items)}
    return rates.user_item_logits(ids, user="user", item="item", smoothing=smoothing)[:, 0]


def test_rates_are_smoothed_towards_the_global_rate_and_added_in_log_odds():
    rates = counted([2, 2, 2, 3], [-9, 5, 5, 5], [1, 1, 0, 0])
    assert rates.global_rate_T == pytest.approx([0.5])
    user, item = (2 + 5 * 0.5) / (3 + 5), (0 + 5 * 0.5 + 1) / (3 + 5)
    found = score(rates, [2, 2, 77, 77], [5, 88, 5, 88])
    expected = [logit(user) + logit(item), logit(user), logit(item), 0.0]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_weights_count_and_padding_does_not():
    weights = np.array([2, 1, 0], np.float32)
    rates = counted([2, 2, 2], [5, 5, 5], [1, 0, 1], weights)
    expected = counted([2, 2, 2], [5, 5, 5], [1, 1, 0])
    assert score(rates, [2], [5]) == pytest.approx(score(expected, [2], [5]))


def test_counts_are_equal_whatever_the_number_of_parts(monkeypatch):
    monkeypatch.setattr(baselines, "_ROWS_PER_FOLD", 50)
    random = np.random.default_rng(0)
    users, items = random.integers(-40, 40, 600), random.integers(0, 30, 600)
    labels = random.random(600) < 0.3
    whole, parts = counted(users, items, labels), TrainingRates(1, ("user", "item"))
    for rows in np.array_split(random.permutation(600), 7):
        part = counted(users[rows], items[rows], labels[rows])
        parts.merge(pickle.loads(pickle.dumps(part)))
    np.testing.assert_array_equal(score(parts, users, items), score(whole, users, items))
    ids, counts = np.unique(users, return_counts=True)
    np.testing.assert_array_equal(parts.by_field["user"].ids_V, ids)
    np.testing.assert_array_equal(parts.by_field["user"].counts_V, counts)


def test_one_class_in_training_still_gives_finite_logits():
    rates = counted([2, 3], [4, 4], [0, 0])
    assert np.isfinite(score(rates, [2, 9], [4, 9])).all()
    assert rates.global_rate_T == pytest.approx([0.5 / 3])


def test_tasks_are_counted_apart():
    rates = TrainingRates(2, ("user", "item"))
    ids = {"user": np.array([2, 2]), "item": np.array([3, 4])}
    rates.update(np.array([[1, 0], [0, 0]], np.float32), np.ones(2, np.float32), ids)
    assert rates.global_rate_T.tolist() == pytest.approx([0.5, 0.5 / 3])
    assert rates.user_item_logits(ids, user="user", item="item", smoothing=5).shape == (2, 2)


def test_no_training_rows_are_an_error():
    with pytest.raises(ValueError, match="no training rows"):
        TrainingRates(1).global_logits(3)


@pytest.mark.skipif(not RATINGS.exists(), reason="needs `recsys fetch movielens-100k`")
def test_movielens_reaches_the_documented_auc():
    ratings = pl.read_csv(
        RATINGS, separator="\t", new_columns=["user", "item", "rating", "time"]
    ).with_row_index()
    ratings = ratings.sort("user", "time", "index").with_columns(
        place=pl.int_range(pl.len()).over("user"), rows=pl.len().over("user")
    )
    held_out = (pl.col("rows") * 0.1).ceil()
    test = ratings.select(pl.col("place") >= pl.col("rows") - held_out).to_series().to_numpy()
    valid = ratings.select(pl.col("place") >= pl.col("rows") - 2 * held_out).to_series().to_numpy()
    labels = (ratings["rating"] >= 4).to_numpy()
    users, items = ratings["user"].to_numpy(), ratings["item"].to_numpy()
    for fitted, expected in ((~test, 0.7816), (~valid, 0.7697)):
        rates = counted(users[fitted], items[fitted], labels[fitted])
        found = roc_auc_score(labels[test], score(rates, users[test], items[test]))
        assert found == pytest.approx(expected, abs=5e-5)
