"""Metrics by slice: where a model is good and where it is not.

A field with few values is cut by value. A field with many (users, items) is cut by how often its
ids occurred in training, into thirds of the training rows: `head` holds the most frequent ids that
together made a third of them, `tail` the rarest, `unseen` those that never occurred or fell out
of the vocabulary.

Shapes: N rows, V ids.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from feature_store.features import MISSING_ID, UNSEEN_ID
from recsys.evaluation.metrics import Array, RankedRows, plain_metrics

HEAD, MIDDLE, TAIL, UNSEEN, MISSING = range(5)


class Tiers:
    """Sorts ids by their number of training rows into head, middle, tail and unseen.

    Ids of equal count share a tier, so thirds are as near as whole counts allow. The ids for a
    missing and for an out-of-vocabulary value pool many values: they are slices of their own.

    Args:
        ids_V: Distinct int64 ids of the training split.
        counts_V: Training rows of each.
    """

    def __init__(self, ids_V: Array, counts_V: Array) -> None:
        order_V = np.argsort(ids_V)
        order_V = order_V[~np.isin(ids_V[order_V], (MISSING_ID, UNSEEN_ID))]
        self._ids_V, self._counts_V = ids_V[order_V], counts_V[order_V]
        counts, inverse_V = np.unique(self._counts_V, return_inverse=True)
        mass = np.bincount(inverse_V, weights=self._counts_V, minlength=len(counts))
        # Share of the rows whose ids are at least as frequent; the middle of each count's own.
        depth = (np.cumsum(mass[::-1])[::-1] - mass / 2) / max(mass.sum(), 1.0)
        self.head_from = _smallest(counts[depth <= 1 / 3])
        self.middle_from = _smallest(counts[depth <= 2 / 3])

    def codes(self, ids_N: Array) -> Array:
        """HEAD, MIDDLE, TAIL, UNSEEN or MISSING for each id, as int64."""
        counts_N = np.zeros(len(ids_N))
        if len(self._ids_V):
            places_N = np.searchsorted(self._ids_V, ids_N).clip(max=len(self._ids_V) - 1)
            known_N = self._ids_V[places_N] == ids_N
            counts_N[known_N] = self._counts_V[places_N[known_N]]
        tiers_N = np.full(len(ids_N), UNSEEN, np.int64)
        tiers_N[counts_N > 0] = TAIL
        tiers_N[counts_N >= self.middle_from] = MIDDLE
        tiers_N[counts_N >= self.head_from] = HEAD
        tiers_N[ids_N == MISSING_ID] = MISSING
        return tiers_N

    def names(self) -> dict[int, str]:
        """Words for each code, with the training rows that bound it."""
        return {
            HEAD: f"head (≥ {self.head_from:,.0f} rows)",
            MIDDLE: f"middle (≥ {self.middle_from:,.0f} rows)",
            TAIL: "tail",
            UNSEEN: "unseen in training",
            MISSING: "missing",
        }


class Slicing:
    """How one field is cut.

    Args:
        field: Name of a field with one id a row.
        tiers: For a field with many values; by value if absent.
        values: Words for ids, where they are known.
    """

    def __init__(
        self, field: str, *, tiers: Tiers | None = None, values: Mapping[int, str] | None = None
    ) -> None:
        self.field = field
        self.tiers = tiers
        self.values = {MISSING_ID: "missing", **(values or {})}

    def codes(self, ids_N: Array) -> Array:
        """The slice of each row: the id itself, or its tier."""
        return self.tiers.codes(ids_N) if self.tiers else ids_N.astype(np.int64)

    def name(self, code: int) -> str:
        """Words for a code of `codes`."""
        return (self.tiers.names() if self.tiers else self.values).get(code, str(code))


def vocabulary_values(vocabulary: list[str]) -> dict[int, str]:
    """Words for the ids of a vocabulary that lists its values from id 2 on."""
    return {
        MISSING_ID: "missing",
        UNSEEN_ID: "unseen in training",
        **{UNSEEN_ID + 1 + place: value for place, value in enumerate(vocabulary)},
    }


def slice_metrics(rows: RankedRows, slicing: Slicing, *, max_values: int) -> list[dict[str, Any]]:
    """`plain_metrics` of each slice with its `value`; heaviest first, tiers from head to unseen.

    Beyond `max_values`, the lightest values are joined in one last slice that says how many it
    joins.
    """
    codes_N = rows.slices[slicing.field]
    codes, inverse_N = np.unique(codes_N, return_inverse=True)
    weights = np.bincount(inverse_N, weights=rows.weights_N, minlength=len(codes))
    order = np.arange(len(codes)) if slicing.tiers else np.argsort(-weights, kind="stable")
    shown = order if len(order) <= max_values else order[: max_values - 1]
    slices = [
        {"value": slicing.name(int(codes[i])), **plain_metrics(rows.where(inverse_N == i))}
        for i in shown
    ]
    rest = order[len(shown) :]
    if len(rest):
        joined = rows.where(np.isin(inverse_N, rest))
        slices.append({"value": f"{len(rest):,} other values", **plain_metrics(joined)})
    return slices


def _smallest(counts: Array) -> float:
    return float(counts.min()) if len(counts) else math.inf
