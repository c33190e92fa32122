"""The words follow from the numbers."""

import math

import pytest

from recsys.evaluation.verdict import verdict


def metrics(auc, *, logloss=0.5, calibration=1.0, error=0.005, gauc=0.7):
    return {
        "rows": 10_000,
        "auc": auc,
        "auc_error": error,
        "logloss": logloss,
        "calibration": calibration,
        "gauc": gauc,
        "dropped_impressions": 0.1,
    }


RIVALS = {
    "global_rate": metrics(0.5, logloss=0.69, gauc=0.5, error=0.0),
    "user_item_rates": metrics(0.78, logloss=0.55, gauc=0.69),
}


def judged(found):
    return verdict("test", found, {}, RIVALS)


@pytest.mark.parametrize(
    ("auc", "level"), [(0.80, "better"), (0.79, "unclear"), (0.77, "unclear"), (0.76, "worse")]
)
def test_only_what_exceeds_chance_is_called_a_difference(auc, level):
    # 1.96 * sqrt(2) * 0.005 = 0.0139
    found = judged(metrics(auc))
    assert found.level == level
    assert f"{auc - 0.78:+.4f}" in found.sentences[1]


def test_the_best_baseline_is_the_measure_of_each_metric():
    text = " ".join(judged(metrics(0.8, logloss=0.605, gauc=0.6)).sentences)
    assert "user and item rates, does so 78.0%" in text
    assert "0.6050, is 10.0% above that of the user and item rates, so its prob" in text
    assert "GAUC is 0.6000, not above that of the user and item rates (0.6900)" in text


@pytest.mark.parametrize(
    ("calibration", "words"),
    [(1.005, "right to within 1%"), (1.25, "25.0% too many"), (0.75, "25.0% too few")],
)
def test_calibration_is_said_in_clicks(calibration, words):
    assert words in " ".join(judged(metrics(0.8, calibration=calibration)).sentences)


def test_without_groups_nothing_is_said_of_them():
    assert "group" not in " ".join(judged(metrics(0.8, gauc=math.nan)).sentences)


def test_an_undefined_auc_is_no_verdict():
    found = verdict("test", metrics(math.nan), {"auc": "every row has label 1"}, RIVALS)
    assert found.level == "undefined"
    assert "every row has label 1" in found.sentences[0]
