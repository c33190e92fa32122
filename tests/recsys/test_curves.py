"""Curves against direct computation."""

import numpy as np
import pytest
from sklearn.metrics import auc as trapezoid
from sklearn.metrics import roc_curve

from recsys.evaluation.curves import (
    calibration_curve,
    calibration_error,
    roc,
    score_histogram,
    wilson,
)
from recsys.evaluation.metrics import MetricState


def ranked(logits, labels, weights=None):
    state = MetricState()
    state.update(np.asarray(logits, np.float32), np.asarray(labels), weights)
    return state.ranked()


@pytest.fixture(scope="module")
def clicks():
    random = np.random.default_rng(0)
    logits = random.normal(-2, 1.5, 20_000).astype(np.float32)
    return logits, random.random(20_000) < 1 / (1 + np.exp(-logits))


def test_roc_points_are_those_of_scikit_learn_before_thinning():
    random = np.random.default_rng(2)
    logits, labels = random.integers(0, 9, 300), random.random(300) < 0.4
    expected_false, expected_true, _ = roc_curve(labels, logits, drop_intermediate=False)
    curve = roc(ranked(logits, labels))
    np.testing.assert_allclose(curve["false_positive_rate"], expected_false, atol=1e-12)
    np.testing.assert_allclose(curve["true_positive_rate"], expected_true, atol=1e-12)


def test_a_thinned_roc_keeps_its_ends_and_its_area(clicks):
    rows = ranked(*clicks)
    curve = roc(rows, max_points=200)
    false, true = curve["false_positive_rate"], curve["true_positive_rate"]
    assert 100 < len(false) <= 200
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    state = MetricState()
    state.update(*clicks)
    assert trapezoid(false, true) == pytest.approx(state.compute()["auc"], abs=1e-3)


def test_calibration_bins_have_equal_weight_and_true_means(clicks):
    logits, labels = clicks
    curve = calibration_curve(ranked(logits, labels), num_bins=10)
    assert [point["rows"] for point in curve] == [2000] * 10
    order = np.argsort(logits)
    for place, point in enumerate(curve):
        chosen = order[place * 2000 : (place + 1) * 2000]
        assert point["observed"] == pytest.approx(labels[chosen].mean())
        expected = (1 / (1 + np.exp(-logits[chosen].astype(float)))).mean()
        assert point["predicted"] == pytest.approx(expected)
        assert point["low"] < point["observed"] < point["high"]
    gaps = [abs(point["predicted"] - point["observed"]) for point in curve]
    assert calibration_error(curve) == pytest.approx(np.mean(gaps))


def test_equal_scores_share_a_bin_and_weights_count():
    rows = ranked([0, 0, 0, 5], [1, 0, 0, 1], np.array([2, 1, 1, 4], np.float32))
    low, high = calibration_curve(rows, num_bins=50)
    assert (low["rows"], low["weight"], low["observed"]) == (3, 4, 0.5)
    assert (high["rows"], high["weight"], high["observed"]) == (1, 4, 1)


def test_the_interval_is_wilsons():
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


def test_the_histogram_holds_every_row_of_each_class(clicks):
    logits, labels = clicks
    shares = score_histogram(ranked(logits, labels), num_bins=40)
    assert len(shares["edges"]) == 41
    for name, chosen in (("clicked", labels), ("not_clicked", ~labels)):
        assert sum(shares[name]) == pytest.approx(1)
        middle = shares["edges"][20]
        assert sum(shares[name][:20]) == pytest.approx((logits[chosen] < middle).mean(), abs=1e-9)


def test_one_class_one_score_and_no_rows_have_their_curves():
    one_class = ranked([1, 1], [0, 0])
    assert roc(one_class) == {"false_positive_rate": [], "true_positive_rate": []}
    assert score_histogram(one_class)["clicked"] == []
    assert sum(score_histogram(one_class)["not_clicked"]) == pytest.approx(1)
    empty = ranked([], [])
    assert calibration_curve(empty, num_bins=5) == []
    assert score_histogram(empty)["edges"] == []
