"""Slices by value and by training frequency."""

import numpy as np
import pytest

from recsys.evaluation.metrics import MetricState
from recsys.evaluation.slices import (
    HEAD,
    MIDDLE,
    MISSING,
    TAIL,
    UNSEEN,
    Slicing,
    Tiers,
    slice_metrics,
    vocabulary_values,
)


def sliced(codes):
    random = np.random.default_rng(0)
    state = MetricState(("field",))
    labels = random.random(len(codes)) < 0.4
    state.update(random.normal(size=len(codes)), labels, slices={"field": np.asarray(codes)})
    return state.ranked(), labels


def test_tiers_are_thirds_of_the_training_rows():
    # 90 rows: one id with 30, two with 15, and thirty with 1.
    ids = np.array([7, 50, 40, *range(100, 130)])
    tiers = Tiers(ids, np.array([30, 15, 15, *[1] * 30]))
    np.testing.assert_array_equal(
        tiers.codes(np.array([40, 7, 50, 129, 999, 0, 1])),
        [MIDDLE, HEAD, MIDDLE, TAIL, UNSEEN, MISSING, UNSEEN],
    )
    assert tiers.names()[HEAD] == "head (≥ 30 rows)"


def test_rare_values_pooled_as_out_of_vocabulary_are_no_head():
    tiers = Tiers(np.array([0, 1, 2, 3]), np.array([500, 1000, 10, 1]))
    assert tiers.codes(np.array([1, 0])).tolist() == [UNSEEN, MISSING]
    assert tiers.codes(np.array([2, 3])).tolist() == [MIDDLE, TAIL]


def test_no_training_rows_leave_everything_unseen():
    empty = Tiers(np.empty(0, np.int64), np.empty(0))
    assert empty.codes(np.array([2, 3])).tolist() == [UNSEEN, UNSEEN]


def test_each_slice_has_the_metrics_of_its_rows():
    codes = np.array([2, 2, 3, 0] * 50)
    rows, labels = sliced(codes)
    slicing = Slicing("field", values=vocabulary_values(["red", "blue"]))
    slices = slice_metrics(rows, slicing, max_values=10)
    assert [s["value"] for s in slices] == ["red", "missing", "blue"]
    assert [s["rows"] for s in slices] == [100, 50, 50]
    assert slices[2]["click_rate"] == pytest.approx(labels[codes == 3].mean())


def test_the_lightest_values_are_joined_and_none_is_lost():
    rows, _ = sliced(np.repeat(np.arange(2, 12), np.arange(1, 11)))
    slices = slice_metrics(rows, Slicing("field"), max_values=4)
    assert [s["value"] for s in slices] == ["11", "10", "9", "7 other values"]
    assert sum(s["rows"] for s in slices) == len(rows)
