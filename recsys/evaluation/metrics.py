"""Exact metrics of click models as states that merge over workers.

Every metric is computed from the rows themselves, not from bins: 200 bins are wrong by 0.036 AUC
at a click rate of 0.5%. A row is kept in 8 bytes (logit, label and weight packed so that sorting
the packed numbers sorts the scores), plus 8 for its group and 8 for each slice. Sums run in that
sorted order (and by NumPy's own sum: a threaded dot product depends on the number of threads), so
results are bit-equal whatever the number of workers and the order of rows.

Scores are logits, in float32: log loss needs no clipping there, and probabilities near 0 or 1
would tie in float32 where logits still differ.

Definitions, with w a row's weight, y its label, p its predicted probability:

- auc: P(score of a clicked row > score of another) + P(equal) / 2, by weight.
- auc_error: its standard error (DeLong et al. 1988; linearised for weights).
- logloss: sum(w * loss) / sum(w), natural logarithm.
- ne: logloss / entropy of the click rate of the same rows (He et al. 2014); below 1 is better
  than knowing the click rate alone.
- calibration: sum(w * p) / sum(w * y); above 1 predicts too many clicks.
- gauc: AUC within each group, averaged by the groups' weight (impressions) over groups with both
  classes (Zhou et al. 2018). gauc_unweighted: the plain mean over the same groups. Beside them the
  shares of groups and of impressions that had to be dropped. Group 0 means "no group" and is
  dropped too.

A metric that the rows cannot define (one class, no rows, no groups) is NaN; `undefined` says why.

Shapes: N rows, K runs of equal score, G groups.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
NO_GROUP = 0


@dataclass(frozen=True)
class RankedRows:
    """Rows in rising order of score; what every metric is computed from."""

    logits_N: Array
    labels_N: Array
    """bool."""
    weights_N: Array
    """float64, positive."""
    groups_N: Array
    """int64; 0: no group."""
    slices: Mapping[str, Array]
    """int64 slice code of each row, by slice name."""

    def __len__(self) -> int:
        return len(self.logits_N)

    def where(self, chosen_N: Array) -> "RankedRows":
        """The chosen rows, still in order."""
        return RankedRows(
            self.logits_N[chosen_N],
            self.labels_N[chosen_N],
            self.weights_N[chosen_N],
            self.groups_N[chosen_N],
            {name: codes_N[chosen_N] for name, codes_N in self.slices.items()},
        )


class MetricState:
    """All scored rows of one task so far. Picklable; parts merge in any order.

    Args:
        slices: Names of the slice codes that every update brings.
    """

    def __init__(self, slices: tuple[str, ...] = ()) -> None:
        self.slices = slices
        self._parts: list[tuple[Array, ...]] = []

    def __len__(self) -> int:
        """Rows with a weight; padding never counts."""
        return sum(len(part[0]) for part in self._parts)

    def __getstate__(self) -> dict[str, Any]:
        return {"slices": self.slices, "_parts": [self._columns()]}

    def update(
        self,
        logits: Array,
        labels: Array,
        weights: Array | None = None,
        groups: Array | None = None,
        slices: Mapping[str, Array] | None = None,
    ) -> None:
        """Add rows, one entry of every array each. Rows of weight 0 are padding and are dropped.

        Args:
            logits: Scores before the logistic function; kept as float32.
            labels: 0 or 1.
            weights: Not negative; 1 if absent. Kept as float32.
            groups: int64 key of the row's group, 0 for none; 0 if absent.
            slices: int64 codes for each of the state's slice names.

        Raises:
            ValueError: Lengths differ, a logit is not finite, a label is neither 0 nor 1, a weight
                is negative or not finite, or the slices are not those of this state.
        """
        slices = slices or {}
        if set(slices) != set(self.slices):
            raise ValueError(f"expected the slices {self.slices}, found {tuple(slices)}")
        num_rows = len(logits)
        weights = np.ones(num_rows, np.float32) if weights is None else weights
        groups = np.full(num_rows, NO_GROUP) if groups is None else groups
        for name, column in {
            "labels": labels,
            "weights": weights,
            "groups": groups,
            **slices,
        }.items():
            if np.shape(column) != (num_rows,):
                raise ValueError(f"expected {num_rows:,} {name}, found shape {np.shape(column)}")
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError("a weight is negative, NaN or infinite; weights must be >= 0")
        weights = weights.astype(np.float32)  # before the test for 0: a tiny float64 becomes 0
        real = weights > 0
        codes = (slices[name][real].astype(np.int64) for name in self.slices)
        keys = _pack(logits[real], labels[real], weights[real])
        self._parts.append((keys, groups[real].astype(np.int64), *codes))

    def merge(self, other: "MetricState") -> None:
        """Add another state's rows to this one; ValueError if its slices are other ones."""
        if other.slices != self.slices:
            raise ValueError(f"cannot merge slices {other.slices} into {self.slices}")
        self._parts.extend(other._parts)

    def ranked(self) -> RankedRows:
        """The rows in rising order of score."""
        keys_N, groups_N, *slices = self._columns()
        order_N = np.argsort(keys_N)
        logits_N, labels_N, weights_N = _unpack(keys_N[order_N])
        codes = {name: c[order_N] for name, c in zip(self.slices, slices, strict=True)}
        return RankedRows(logits_N, labels_N, weights_N, groups_N[order_N], codes)

    def compute(self) -> dict[str, float]:
        """All metrics of the module's text, by name; see `summary`."""
        return summary(self.ranked())

    def _columns(self) -> tuple[Array, ...]:
        """The parts as one; kept, so that it is done once."""
        if not self._parts:
            types = (np.uint64, *(np.int64 for _ in range(1 + len(self.slices))))
            return tuple(np.empty(0, dtype) for dtype in types)
        if len(self._parts) > 1:
            self._parts = [tuple(np.concatenate(c) for c in zip(*self._parts, strict=True))]
        return self._parts[0]


def summary(rows: RankedRows) -> dict[str, float]:
    """Every metric of the rows: `plain_metrics`, and those within groups."""
    return plain_metrics(rows) | group_metrics(rows)


def plain_metrics(rows: RankedRows) -> dict[str, float]:
    """The metrics that need no groups: rows, weight, click_rate, mean_prediction, auc, ..."""
    weight = float(rows.weights_N.sum())
    clicks = float(rows.weights_N[rows.labels_N].sum())
    predicted = float((rows.weights_N * probability(rows.logits_N)).sum())
    lost = float((rows.weights_N * losses(rows.logits_N, rows.labels_N)).sum())
    value = _ratio(lost, weight)
    area, error = auc(rows)
    return {
        "rows": len(rows),
        "weight": weight,
        "click_rate": _ratio(clicks, weight),
        "mean_prediction": _ratio(predicted, weight),
        "auc": area,
        "auc_error": error,
        "logloss": value,
        "ne": _ratio(value, entropy(_ratio(clicks, weight))),
        "calibration": _ratio(predicted, clicks),
    }


def undefined(metrics: Mapping[str, float]) -> dict[str, str]:
    """Why each metric that is NaN could not be computed, by its name."""
    if metrics["rows"] == 0:
        why = "there are no rows with a positive weight"
    elif metrics["click_rate"] in (0, 1):
        why = f"every row has label {metrics['click_rate']:.0f}"
    else:
        why = "no group has rows of both labels"
        if metrics.get("groups") == 0:
            why = "no row has a group; name one in `features.group`"
    return {name: why for name, value in metrics.items() if math.isnan(value)}


def auc(rows: RankedRows) -> tuple[float, float]:
    """Area under the ROC curve and its standard error; NaN if a class is missing."""
    positives_N = np.where(rows.labels_N, rows.weights_N, 0.0)
    starts_K = run_starts(rows.logits_N)
    if len(starts_K) == 0:
        return math.nan, math.nan
    positives_K = np.add.reduceat(positives_N, starts_K)
    negatives_K = np.add.reduceat(rows.weights_N - positives_N, starts_K)
    positive, negative = float(positives_K.sum()), float(negatives_K.sum())
    if positive == 0 or negative == 0:
        return math.nan, math.nan
    # Share of the other class that a row of this run beats, ties counting half.
    below_K = (np.cumsum(negatives_K) - negatives_K / 2) / negative
    above_K = (positive - np.cumsum(positives_K) + positives_K / 2) / positive
    wins = float((positives_K * (np.cumsum(negatives_K) - negatives_K / 2)).sum())
    area = wins / (positive * negative)
    squares_K = np.add.reduceat(positives_N**2, starts_K)
    others_K = np.add.reduceat((rows.weights_N - positives_N) ** 2, starts_K)
    variance = float((squares_K * (below_K - area) ** 2).sum()) / positive**2
    variance += float((others_K * (above_K - area) ** 2).sum()) / negative**2
    return area, math.sqrt(variance)


def group_metrics(rows: RankedRows) -> dict[str, float]:
    """gauc, gauc_unweighted, groups, and the shares dropped because a class is missing."""
    grouped_N = rows.groups_N != NO_GROUP
    aucs_G, weights_G = group_aucs(rows if grouped_N.all() else rows.where(grouped_N))
    both_G = ~np.isnan(aucs_G)
    kept, total = float(weights_G[both_G].sum()), float(rows.weights_N.sum())
    return {
        "gauc": _ratio(float((weights_G * aucs_G)[both_G].sum()), kept),
        "gauc_unweighted": _ratio(float(aucs_G[both_G].sum()), int(both_G.sum())),
        "groups": len(aucs_G),
        "dropped_groups": _ratio(float((~both_G).sum()), len(aucs_G)),
        "dropped_impressions": _ratio(total - kept, total),
    }


def group_aucs(rows: RankedRows) -> tuple[Array, Array]:
    """AUC (NaN where a class is missing) and weight of each group, by rising group key."""
    order_N = np.argsort(rows.groups_N, kind="stable")  # stable: scores stay in rising order
    groups_N, logits_N = rows.groups_N[order_N], rows.logits_N[order_N]
    weights_N = rows.weights_N[order_N]
    if len(groups_N) == 0:
        return np.empty(0), np.empty(0)
    positives_N = np.where(rows.labels_N[order_N], weights_N, 0.0)
    starts_K = run_starts(groups_N, logits_N)
    positives_K = np.add.reduceat(positives_N, starts_K)
    negatives_K = np.add.reduceat(weights_N - positives_N, starts_K)
    groups_K = groups_N[starts_K]
    starts_G = run_starts(groups_K)
    positives_G = np.add.reduceat(positives_K, starts_G)
    negatives_G = np.add.reduceat(negatives_K, starts_G)
    before_K = np.cumsum(negatives_K) - negatives_K
    runs_G = np.diff(np.append(starts_G, len(groups_K)))
    within_K = before_K - np.repeat(before_K[starts_G], runs_G)
    wins_G = np.add.reduceat(positives_K * (within_K + negatives_K / 2), starts_G)
    pairs_G = positives_G * negatives_G
    aucs_G = np.divide(wins_G, pairs_G, out=np.full(len(pairs_G), np.nan), where=pairs_G > 0)
    return aucs_G, positives_G + negatives_G


def run_starts(*sorted_columns_N: Array) -> Array:
    """Where each run of rows begins that are equal in all columns."""
    num_rows = len(sorted_columns_N[0])
    if num_rows == 0:
        return np.empty(0, np.int64)
    changed_N = np.zeros(num_rows, bool)
    changed_N[0] = True
    for column_N in sorted_columns_N:
        changed_N[1:] |= column_N[1:] != column_N[:-1]
    return np.flatnonzero(changed_N)


def probability(logits_N: Array) -> Array:
    """The logistic function in float64, without overflow and exact to the last bits near 0."""
    tails_N = np.exp(-np.abs(logits_N.astype(np.float64)))
    return np.where(logits_N >= 0, 1.0, tails_N) / (1.0 + tails_N)


def losses(logits_N: Array, labels_N: Array) -> Array:
    """Log loss of each row from its logit, in float64; finite for every finite logit."""
    logits_N = logits_N.astype(np.float64)
    wrong_N = np.where(labels_N, -logits_N, logits_N)
    return np.maximum(wrong_N, 0.0) + np.log1p(np.exp(-np.abs(logits_N)))


def entropy(rate: float) -> float:
    """Log loss of always predicting the rate, in nats; 0 for one class, NaN for NaN."""
    if rate in (0.0, 1.0):
        return 0.0
    return -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)


def _ratio(part: float, whole: float) -> float:
    """A share, or NaN where there is nothing to divide by."""
    return part / whole if whole else math.nan


def _pack(logits_N: Array, labels_N: Array, weights_N: Array) -> Array:
    """Rows as uint64: 32 bits of logit that sort as the logit does, one of label, 31 of weight."""
    if not np.isfinite(logits_N).all():
        raise ValueError(
            f"{(~np.isfinite(logits_N)).sum():,} of {len(logits_N):,} scores are NaN or infinite:"
            " training has diverged; lower the learning rate or look at the numeric features"
        )
    if not ((labels_N == 0) | (labels_N == 1)).all():
        raise ValueError(f"labels must be 0 or 1, found {np.unique(labels_N)[:5].tolist()} ...")
    # + 0.0 makes -0.0 and 0.0 one score.
    bits_N = (logits_N.astype(np.float32) + np.float32(0)).view(np.uint32)
    rising_N = np.where(bits_N >> 31, ~bits_N, bits_N | np.uint32(1 << 31)).astype(np.uint64)
    weight_bits_N = weights_N.astype(np.float32).view(np.uint32).astype(np.uint64)
    return rising_N << 32 | (labels_N == 1).astype(np.uint64) << 31 | weight_bits_N


def _unpack(keys_N: Array) -> tuple[Array, Array, Array]:
    rising_N = (keys_N >> np.uint64(32)).astype(np.uint32)
    bits_N = np.where(rising_N >> 31, rising_N & np.uint32((1 << 31) - 1), ~rising_N)
    weight_bits_N = (keys_N & np.uint64((1 << 31) - 1)).astype(np.uint32)
    labels_N = (keys_N >> np.uint64(31) & np.uint64(1)).astype(bool)
    return bits_N.view(np.float32), labels_N, weight_bits_N.view(np.float32).astype(np.float64)
