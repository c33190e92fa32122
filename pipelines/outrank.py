"""OutRank: which features tell of the label more than chance would (Skrlj and Mramor, RecSys 2023).

The score of a feature X for a label Y is S = H_noise(Y|X) - H(Y|X), in nats: how much less is left
to ask about Y, once X is known, than a random feature with the same counts of values would leave.
Values that occur once tell nothing and are passed over in both terms. The authors draw the noise
(labels shifted along the rows); here it is its exact mean: the labels of a value that occurs c
times are hypergeometric, so

    H_noise(Y|X) = sum_v c_v / n * E[h(K / c_v)],   K ~ Hypergeometric(n, positives, c_v).

A feature without signal has S around 0, on either side, whatever its cardinality. A pair is scored
as one joint feature; what it tells together, its relation, is how far that is above the same pair
with the rows of either one shuffled, since a joint feature of a good and a random one is good too.
(The authors take the joint score itself.) `select` orders features by 3MR: relevance, less
redundancy, plus relation.

Shapes: n rows of a batch, V different values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, xlogy

from pipelines.information import LEAST_SHARE

Codes = npt.NDArray[np.int64]
_MOST_SUPPORT = 1 << 11
"""Up to so many rows of a value the chance term is summed over all outcomes; above, its expansion
for large counts is exact to far more digits than any score shows."""


def entropy_of_share(share: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """h(p) = -p log p - (1 - p) log(1 - p), in nats."""
    return -xlogy(share, share) - xlogy(1 - share, 1 - share)


@dataclass(frozen=True)
class Labels:
    """The 0/1 labels of a batch, and what chance does with them."""

    values: npt.NDArray[np.bool_]
    """(n,)"""

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self.values)

    @cached_property
    def positives(self) -> int:
        """Rows with label 1."""
        return int(self.values.sum())

    @cached_property
    def entropy(self) -> float:
        """H(Y)."""
        return float(entropy_of_share(np.array(self.positives / max(self.rows, 1))))

    @cached_property
    def _by_count(self) -> dict[int, tuple[float, float]]:
        return {}

    def chance(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """(2, V): mean and variance of h(K / c) for each count c, drawn without replacement.

        The variance is that about the tangent at the share of all rows: what is linear in K cancels
        over the values of a column, since all of them together have all positives.
        """
        found = self._by_count
        for count in counts.tolist():
            if count not in found:
                found[count] = self._chance(count)
        return np.array([found[count] for count in counts.tolist()]).reshape(-1, 2).T

    def _chance(self, count: int) -> tuple[float, float]:
        rows, positives = self.rows, self.positives
        share = positives / rows
        if count > _MOST_SUPPORT:
            # h(p + e) = h(p) + h'(p) e + h''(p) e^2 / 2 + ..., E[e] = 0, E[e^2] the variance.
            if not 0 < share < 1:
                return 0.0, 0.0
            variance = share * (1 - share) / count * (rows - count) / max(rows - 1, 1)
            bend = -1 / (share * (1 - share))
            mean = float(entropy_of_share(np.array(share))) + bend * variance / 2
            return mean, (bend * variance) ** 2 / 2
        least, most = max(0, count - (rows - positives)), min(count, positives)
        hits = np.arange(least, most + 1)
        log_share = (
            _log_choose(positives, hits)
            + _log_choose(rows - positives, count - hits)
            - _log_choose(rows, np.array(count))
        )
        odds, entropies = np.exp(log_share), entropy_of_share(hits / count)
        mean = float(odds @ entropies)
        bent = entropies - mean - self.slope * (hits / count - share)
        return mean, float(odds @ np.square(bent))

    @cached_property
    def slope(self) -> float:
        """h'(p) at the share p of all rows."""
        return math.log((self.rows - self.positives) / self.positives) if self.entropy else 0.0


def _log_choose(total: int, chosen: Codes) -> npt.NDArray[np.float64]:
    return gammaln(total + 1) - gammaln(chosen + 1) - gammaln(total - chosen + 1)


def compact(symbols: npt.NDArray[np.int64]) -> Codes:
    """Numbers 0 .. V - 1 for the symbols of a column: hashes, too, count from 0."""
    return np.unique(symbols, return_inverse=True)[1].astype(np.int64)


class Tally(NamedTuple):
    """How often each value of a column occurs."""

    counts: npt.NDArray[np.int64]
    """(V,) rows."""
    hits: npt.NDArray[np.int64]
    """(V,) rows with label 1."""

    @property
    def entropy(self) -> float:
        """H(X), in nats."""
        shares = self.counts / max(int(self.counts.sum()), 1)
        return float(-xlogy(shares, shares).sum())


def tally(codes: Codes, labels: Labels) -> Tally:
    """Of a compact column."""
    hits = np.bincount(codes, weights=labels.values).astype(np.int64)
    return Tally(np.bincount(codes), hits)


def joint_tally(first: Codes, second: Codes, labels: Labels) -> Tally:
    """Of two compact columns as one: exact, nothing collides.

    Sorted with the label in the lowest bit: for one pair of thousands that is several times as fast
    as making the joint column compact.
    """
    joint = first * (int(second.max(initial=0)) + 1) + second
    ordered = np.sort(2 * joint + labels.values)
    values = ordered >> 1
    begins = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    return Tally(np.diff(np.r_[begins, len(values)]), np.add.reduceat(ordered & 1, begins))


class Score(NamedTuple):
    """What a column tells of the label."""

    value: float
    """S, in nats."""
    noise: float
    """Standard deviation that S has where the column tells nothing."""


def score(found: Tally, labels: Labels) -> Score:
    """S of a column, and how far chance alone takes it from 0."""
    several = found.counts > 1
    counts, hits = found.counts[several], found.hits[several]
    distinct, places = np.unique(counts, return_inverse=True)
    mean, variance = labels.chance(distinct)[:, places]
    gains = counts * (mean - entropy_of_share(hits / counts))
    # Of rows whose values occur once the linear part does not cancel.
    rows, left = labels.rows, labels.rows - int(counts.sum())
    share = labels.positives / max(rows, 1)
    linear = labels.slope**2 * share * (1 - share) * left * (rows - left) / max(rows - 1, 1)
    bent = float((np.square(counts, dtype=np.float64) * variance).sum())
    return Score(float(gains.sum()) / rows, math.sqrt(linear + bent) / rows)


def redundancy(first: float, second: float, both: float, shuffled: float) -> float:
    """How much of the poorer column's entropy the other tells, beyond chance: 0 to 1.

    (I - E[I]) / (H - E[I]), E[I] from one shuffle; 0 where chance explains nearly all of H.

    Args:
        first: entropy of the one column.
        second: of the other.
        both: of the two as one.
        shuffled: of the two as one after the rows of one were shuffled.
    """
    by_chance, told = first + second - shuffled, first + second - both
    most = min(first, second) - by_chance
    if most <= LEAST_SHARE * min(first, second):
        return 0.0
    return float(np.clip((told - by_chance) / most, 0.0, 1.0))


@dataclass(frozen=True)
class Pair:
    """Two features, by their places in a ranking."""

    first: int
    second: int
    relation: float
    """Nats of the label's entropy that they tell together, above the same with either shuffled."""
    redundancy: float
    """Share of the poorer one's entropy that the other tells."""


def select(relevance: Sequence[float], pairs: Sequence[Pair]) -> list[int]:
    """The order in which 3MR takes the features, best first.

    The next is the one with the most relevance(f) - median redundancy(f, g) + median relation(f, g)
    over all chosen g, each of the three scaled to 0 .. 1 over features or pairs. Without a chosen
    one, relevance alone decides; ties go to the feature that was declared first.

    Args:
        relevance: score of each feature.
        pairs: of the features; those that were not measured count with neither.
    """
    size = len(relevance)
    worth = _scaled(np.asarray(relevance, np.float64))
    relation, redundant = np.full((size, size), np.nan), np.full((size, size), np.nan)
    related = _scaled(np.array([pair.relation for pair in pairs]))
    repeated = _scaled(np.array([pair.redundancy for pair in pairs]))
    for pair, relates, repeats in zip(pairs, related, repeated, strict=True):
        for a, b in ((pair.first, pair.second), (pair.second, pair.first)):
            relation[a, b], redundant[a, b] = relates, repeats
    chosen: list[int] = []
    while len(chosen) < size:
        left = [place for place in range(size) if place not in chosen]
        values = [
            worth[place] - _median(redundant[place, chosen]) + _median(relation[place, chosen])
            for place in left
        ]
        chosen.append(left[int(np.argmax(values))])
    return chosen


def _median(values: npt.NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else 0.0


def _scaled(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if not len(values):
        return values
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)
