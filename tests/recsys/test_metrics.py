"""Metrics against their O(n^2) definitions and scikit-learn, whole and in parts."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from recsys.evaluation.metrics import MetricState, losses, probability, undefined


def pairwise_auc(scores, labels, weights):
    """The definition: every clicked row against every other, ties half."""
    wins = pairs = 0.0
    for score, weight in zip(scores[labels], weights[labels], strict=True):
        beaten = (score > scores[~labels]) + 0.5 * (score == scores[~labels])
        wins += weight * (beaten * weights[~labels]).sum()
        pairs += weight * weights[~labels].sum()
    return wins / pairs if pairs else math.nan


def log_of_rows(num_rows=400, click_rate=0.3, seed=0, decimals=1):
    """Logits with many ties, weights, groups of which some have one class only."""
    random = np.random.default_rng(seed)
    labels = random.random(num_rows) < click_rate
    logits = (random.normal(size=num_rows) + labels).round(decimals).astype(np.float32)
    weights = random.choice([0.5, 1.0, 3.0, 0.1], num_rows).astype(np.float32)
    groups = random.integers(0, num_rows // 8, num_rows)
    return logits, labels, weights, groups


def metrics_of(logits, labels, weights=None, groups=None):
    state = MetricState()
    state.update(logits, labels, weights, groups)
    return state.compute()


@pytest.mark.parametrize("weighted", [False, True])
def test_auc_is_its_definition_with_ties(weighted):
    logits, labels, weights, _ = log_of_rows()
    weights = weights if weighted else np.ones_like(weights)
    found = metrics_of(logits, labels, weights)["auc"]
    assert found == pytest.approx(pairwise_auc(logits, labels, weights.astype(float)), abs=1e-12)


@pytest.mark.parametrize("click_rate", [0.5, 0.03, 0.005, 0.001])
def test_auc_and_log_loss_agree_with_scikit_learn_at_any_click_rate(click_rate):
    logits, labels, weights, _ = log_of_rows(50_000, click_rate, decimals=3)
    found = metrics_of(logits - 5, labels, weights)
    assert found["auc"] == pytest.approx(
        roc_auc_score(labels, logits, sample_weight=weights), abs=1e-12
    )
    p = 1 / (1 + np.exp(-(logits - 5).astype(np.float64)))
    expected = log_loss(labels, np.stack([1 - p, p], 1), sample_weight=weights)
    assert found["logloss"] == pytest.approx(expected, rel=1e-9)
    rate = np.average(labels, weights=weights)
    entropy = log_loss(labels, np.full(len(p), rate), sample_weight=weights)
    assert found["ne"] == pytest.approx(expected / entropy, rel=1e-9)
    assert found["calibration"] == pytest.approx((weights * p).sum() / weights[labels].sum())


def test_gauc_is_the_mean_of_group_aucs_by_impressions():
    logits, labels, weights, groups = log_of_rows()
    weights = weights.astype(float)
    aucs, shares = [], []
    for group in np.unique(groups[groups > 0]):
        chosen = groups == group
        aucs.append(pairwise_auc(logits[chosen], labels[chosen], weights[chosen]))
        shares.append(weights[chosen].sum())
    aucs, shares = np.array(aucs), np.array(shares)
    both = ~np.isnan(aucs)
    assert 0 < both.sum() < len(both)  # else the data tests nothing
    found = metrics_of(logits, labels, weights, groups)
    assert found["gauc"] == pytest.approx(np.average(aucs[both], weights=shares[both]), abs=1e-12)
    assert found["gauc_unweighted"] == pytest.approx(aucs[both].mean(), abs=1e-12)
    assert found["groups"] == len(aucs)
    assert found["dropped_groups"] == pytest.approx((~both).mean())
    assert found["dropped_impressions"] == pytest.approx(1 - shares[both].sum() / weights.sum())


def test_auc_error_covers_what_resampling_shows():
    logits, labels, _, _ = log_of_rows(600, decimals=2)
    random = np.random.default_rng(1)
    resampled = [
        roc_auc_score(labels[rows], logits[rows])
        for rows in (random.integers(0, 600, 600) for _ in range(400))
    ]
    assert metrics_of(logits, labels)["auc_error"] == pytest.approx(np.std(resampled), rel=0.15)


@given(st.integers(1, 6), st.integers(0, 1000))
def test_metrics_are_bit_equal_whatever_the_number_of_parts(num_parts, seed):
    columns = log_of_rows(120, seed=seed)
    slices = {"place": np.arange(120) % 3}
    whole = MetricState(("place",))
    whole.update(*columns, slices=slices)
    random = np.random.default_rng(seed)
    part_of = random.integers(0, num_parts, 120)
    merged = MetricState(("place",))
    for part in range(num_parts):
        state = MetricState(("place",))
        rows = random.permutation(np.flatnonzero(part_of == part))
        for batch in np.array_split(rows, 2):
            state.update(*(c[batch] for c in columns), slices={"place": slices["place"][batch]})
        merged.merge(pickle.loads(pickle.dumps(state)))
    expected, found = whole.compute(), merged.compute()
    np.testing.assert_array_equal(list(found.values()), list(expected.values()))


def test_padding_never_counts_whatever_it_holds():
    logits, labels, weights, groups = log_of_rows(100)
    padded = MetricState()
    padded.update(
        np.append(logits, [np.nan, np.inf, 3]).astype(np.float32),
        np.append(labels, [np.nan, 7, 1]),
        np.append(weights, [0, 0, 0]).astype(np.float32),
        np.append(groups, [1, 2, 999_999]),
    )
    assert len(padded) == 100
    assert padded.compute() == metrics_of(logits, labels, weights, groups)


def test_one_class_has_no_auc_and_says_why():
    metrics = metrics_of(np.array([0.1, 2.0]), np.zeros(2), groups=np.ones(2))
    assert all(math.isnan(metrics[name]) for name in ("auc", "auc_error", "ne", "gauc"))
    assert math.isfinite(metrics["logloss"])
    assert undefined(metrics)["auc"] == "every row has label 0"
    assert "logloss" not in undefined(metrics)


def test_no_rows_leave_every_mean_undefined():
    metrics = MetricState().compute()
    assert metrics["rows"] == 0
    assert undefined(metrics)["logloss"] == "there are no rows with a positive weight"


def test_rows_without_a_group_are_dropped_from_gauc_not_from_auc():
    logits, labels = np.array([1.0, 2.0, 3.0, 0.0]), np.array([0, 1, 0, 1])
    metrics = metrics_of(logits, labels, groups=np.array([5, 5, 0, 0]))
    assert (metrics["gauc"], metrics["auc"]) == (1.0, 0.25)
    assert (metrics["groups"], metrics["dropped_impressions"]) == (1, 0.5)
    nothing = metrics_of(logits, labels)
    assert undefined(nothing)["gauc"].startswith("no row has a group")


def test_negative_zero_ties_with_zero_and_order_survives_packing():
    logits = np.array([-0.0, 0.0, -1e-38, 3e38, -3e38, 1e-45], np.float32)
    state = MetricState()
    weights = np.array([1, 2, 3, 4, 5, 6], np.float32) / 7
    state.update(logits, np.array([1, 0, 1, 0, 1, 0]), weights)
    ranked = state.ranked()
    np.testing.assert_array_equal(ranked.logits_N, np.sort(logits))
    np.testing.assert_array_equal(ranked.weights_N[[0, -1]], weights[[4, 3]].astype(float))
    assert metrics_of(np.array([-0.0, 0.0]), np.array([0, 1]))["auc"] == 0.5


def test_log_loss_and_probability_are_stable_at_extreme_logits():
    logits = np.array([-3e38, -745, -40, 0, 40, 745, 3e38], np.float32)
    np.testing.assert_allclose(losses(logits, logits < 0)[2:5], [40, math.log(2), 40], rtol=1e-12)
    assert np.isfinite(losses(logits, logits < 0)).all()
    assert probability(logits)[2] == pytest.approx(math.exp(-40), rel=1e-12)
    np.testing.assert_array_equal(probability(logits)[[0, 3, 6]], [0, 0.5, 1])


@pytest.mark.parametrize(
    ("logits", "labels", "weights", "message"),
    [
        ([np.nan, 1], [0, 1], [1, 1], "1 of 2 scores are NaN"),
        ([0, 1], [0, 2], [1, 1], "labels must be 0 or 1"),
        ([0, 1], [0, 1], [1, -1], "weight"),
        ([0, 1], [0, 1], [1, np.nan], "weight"),
        ([0, 1], [0, 1, 1], [1, 1], "expected 2 labels"),
    ],
)
def test_bad_rows_are_refused(logits, labels, weights, message):
    with pytest.raises(ValueError, match=message):
        metrics_of(*(np.array(c, dtype=float) for c in (logits, labels, weights)))
