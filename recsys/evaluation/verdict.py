"""What the numbers say, in plain words."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from recsys.evaluation.baselines import GLOBAL_RATE, USER_ITEM_RATES
from recsys.evaluation.curves import CONFIDENCE

NAMES = {GLOBAL_RATE: "global rate", USER_ITEM_RATES: "user and item rates"}
"""Words for the baselines."""

Metrics = Mapping[str, float]
_MISLEADING = 0.1
"""Share of clicks too many or too few beyond which probabilities should not be used as such."""


Level = Literal["better", "unclear", "worse", "undefined"]


HEADLINES: dict[Level, str] = {
    "better": "Better than the baselines",
    "unclear": "No clear difference from the best baseline",
    "worse": "Worse than the best baseline",
    "undefined": "The model cannot be judged",
}


class Verdict(NamedTuple):
    """A headline and the sentences that carry it."""

    level: Level
    headline: str
    sentences: tuple[str, ...]


def verdict(
    split: str, metrics: Metrics, undefined: Mapping[str, str], baselines: Mapping[str, Metrics]
) -> Verdict:
    """The model beside its best baseline on one split.

    A difference in AUC counts as clear when it exceeds the 95% interval of two *independent* AUCs.
    Both are measured on the same rows, where the true interval is narrower: the word is cautious.
    """
    if "auc" in undefined:
        return Verdict(
            "undefined",
            HEADLINES["undefined"],
            (f"On the {split} split {undefined['auc']}: AUC is not defined.",),
        )
    best = max(baselines, key=lambda name: baselines[name]["auc"])
    rival = baselines[best]
    gain = metrics["auc"] - rival["auc"]
    interval = CONFIDENCE * math.hypot(metrics["auc_error"], rival["auc_error"])
    sentences = [
        f"On {metrics['rows']:,.0f} {split} rows the model puts a clicked row above another one"
        f" {metrics['auc']:.1%} of the time (AUC {metrics['auc']:.4f}). The best baseline,"
        f" {NAMES.get(best, best)}, does so {rival['auc']:.1%} of the time ({rival['auc']:.4f})."
    ]
    level: Level = "better" if gain > 0 else "worse"
    if abs(gain) <= interval:
        level = "unclear"
    chance = "within what chance explains" if level == "unclear" else "more than chance explains"
    sentences.append(f"The difference, {gain:+.4f}, is {chance} (±{interval:.4f}).")
    sentences += [_probabilities(metrics, baselines), _calibration(metrics)]
    if not math.isnan(metrics["gauc"]):
        sentences.append(_groups(metrics, baselines))
    return Verdict(level, HEADLINES[level], tuple(sentences))


def _probabilities(metrics: Metrics, baselines: Mapping[str, Metrics]) -> str:
    best = min(baselines, key=lambda name: baselines[name]["logloss"])
    change = metrics["logloss"] / baselines[best]["logloss"] - 1
    side = "below" if change <= 0 else "above"
    judgement = "" if change <= 0 else ", so its probabilities are worse"
    return (
        f"Its log loss, {metrics['logloss']:.4f}, is {abs(change):.1%} {side} that of the"
        f" {NAMES.get(best, best)}{judgement}."
    )


def _calibration(metrics: Metrics) -> str:
    excess = metrics["calibration"] - 1
    if abs(excess) < 0.01:
        return "The number of clicks it predicts is right to within 1%."
    words = f"It predicts {abs(excess):.1%} too {'many' if excess > 0 else 'few'} clicks"
    if abs(excess) < _MISLEADING:
        return words + "."
    return words + ": its order may be used, its probabilities want recalibration first."


def _groups(metrics: Metrics, baselines: Mapping[str, Metrics]) -> str:
    best = max(baselines, key=lambda name: baselines[name]["gauc"])
    rival = baselines[best]["gauc"]
    side = "above" if metrics["gauc"] > rival else "not above"
    return (
        f"Within one group its GAUC is {metrics['gauc']:.4f}, {side} that of the"
        f" {NAMES.get(best, best)} ({rival:.4f}); {metrics['dropped_impressions']:.1%} of the rows"
        " are in no group or in one with a single class, and do not count here."
    )
