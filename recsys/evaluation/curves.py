"""What a plot shows of scored rows: ROC, calibration, scores by class.

Shapes: N rows, K runs of equal score, P points, C bins.
"""

import math
from typing import Any

import numpy as np

from recsys.evaluation.metrics import Array, RankedRows, probability, run_starts

CONFIDENCE = 1.959964  # normal quantile of a two-sided 95% interval


def roc(rows: RankedRows, *, max_points: int = 300) -> dict[str, list[float]]:
    """False and true positive rates from the strictest threshold to the loosest.

    Exact points, thinned along the curve; the first is (0, 0), the last (1, 1). Empty lists where
    a class is missing.

    Returns:
        `false_positive_rate` and `true_positive_rate`, each at most `max_points` long.
    """
    starts_K = run_starts(rows.logits_N)
    positives_N = np.where(rows.labels_N, rows.weights_N, 0.0)
    positive, weight = positives_N.sum(), rows.weights_N.sum()
    if positive in (0, weight):
        return {"false_positive_rate": [], "true_positive_rate": []}
    hits_K = np.add.reduceat(positives_N, starts_K)[::-1]
    alarms_K = np.add.reduceat(rows.weights_N - positives_N, starts_K)[::-1]
    true_P = np.append(0.0, np.cumsum(hits_K)) / positive
    false_P = np.append(0.0, np.cumsum(alarms_K)) / (weight - positive)
    true_P[-1] = false_P[-1] = 1.0  # rounding of the sums aside
    if len(true_P) > max_points:
        along_P = true_P + false_P  # rises strictly from 0 to 2
        chosen = np.searchsorted(along_P, np.linspace(0, 2, max_points))
        kept_P = np.unique(np.clip(chosen, 0, len(along_P) - 1))
        true_P, false_P = true_P[kept_P], false_P[kept_P]
    return {"false_positive_rate": false_P.tolist(), "true_positive_rate": true_P.tolist()}


def calibration_curve(rows: RankedRows, *, num_bins: int) -> list[dict[str, float]]:
    """Predicted against observed click rate in bins of equal weight, from low to high scores.

    Rows of equal score share a bin, so there may be fewer bins than asked for.

    Returns:
        Per bin `rows`, `weight`, `predicted` (mean), `observed` (click rate), and `low`, `high`:
        the 95% interval of the observed rate (Wilson 1927, with the effective number of rows).
    """
    if len(rows) == 0:
        return []
    starts_K = run_starts(rows.logits_N)
    weights_K = np.add.reduceat(rows.weights_N, starts_K)
    middle_K = (np.cumsum(weights_K) - weights_K / 2) / weights_K.sum()
    bins_K = np.minimum((middle_K * num_bins).astype(np.int64), num_bins - 1)
    starts_C = starts_K[run_starts(bins_K)]
    weights_C = np.add.reduceat(rows.weights_N, starts_C)
    clicks_C = np.add.reduceat(np.where(rows.labels_N, rows.weights_N, 0.0), starts_C)
    sums_C = np.add.reduceat(rows.weights_N * probability(rows.logits_N), starts_C)
    effective_C = weights_C**2 / np.add.reduceat(rows.weights_N**2, starts_C)
    rows_C = np.diff(np.append(starts_C, len(rows)))
    curve = []
    for i, weight in enumerate(weights_C.tolist()):
        observed = float(clicks_C[i]) / weight
        low, high = wilson(observed, float(effective_C[i]))
        curve.append(
            {
                "rows": int(rows_C[i]),
                "weight": weight,
                "predicted": float(sums_C[i]) / weight,
                "observed": observed,
                "low": low,
                "high": high,
            }
        )
    return curve


def calibration_error(curve: list[dict[str, float]]) -> float:
    """Mean |predicted - observed| over the bins, by weight (ECE); NaN without bins."""
    weight = sum(point["weight"] for point in curve)
    gaps = sum(point["weight"] * abs(point["predicted"] - point["observed"]) for point in curve)
    return gaps / weight if weight else math.nan


def wilson(rate: float, num_rows: float) -> tuple[float, float]:
    """95% interval of a rate seen in so many rows."""
    spread = CONFIDENCE**2 / num_rows
    center = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(rate * (1 - rate) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)


def score_histogram(rows: RankedRows, *, num_bins: int = 50) -> dict[str, Any]:
    """How each class's scores spread, on the scale of logits (log odds).

    Bins are equally wide between the 0.1% and the 99.9% quantile of all rows; the few rows beyond
    are in the outermost bins. On this scale one picture serves click rates from 50% to 0.1%.

    Returns:
        `edges` (C + 1 logits), `clicked` and `not_clicked` (C shares of the class's weight; empty
        where the class is missing).
    """
    if len(rows) == 0:
        return {"edges": [], "clicked": [], "not_clicked": []}
    # Rows are sorted: quantiles are positions.
    tail = (len(rows) - 1) // 1000
    low, high = float(rows.logits_N[tail]), float(rows.logits_N[-1 - tail])
    if high - low < 1e-6 * max(1.0, abs(low)):  # one score for all rows
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, num_bins + 1)
    inside_N = np.clip(rows.logits_N, low, high)
    shares: dict[str, Any] = {"edges": edges.tolist()}
    for name, chosen_N in (("clicked", rows.labels_N), ("not_clicked", ~rows.labels_N)):
        weights = rows.weights_N[chosen_N]
        counts = _counts(inside_N[chosen_N], edges, weights)
        shares[name] = (counts / weights.sum()).tolist() if len(weights) else []
    return shares


def _counts(values: Array, edges: Array, weights: Array) -> Array:
    counts, _ = np.histogram(values, bins=edges, weights=weights)
    return counts
