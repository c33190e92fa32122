"""Summaries of a stream in memory that does not grow with it; two of them merge into one.

Statistics are gathered batch by batch and split by split, and the splits are looked at alone and
together. So every summary here merges: that of two halves is that of the whole. (Polars'
`approx_n_unique` is a HyperLogLog as well, but gives a number, and two numbers do not merge.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HASH_BITS = 14
"""Bits of a hash that choose its register: 16,384 registers, a standard error of 0.81%."""
HEAVY_HITTERS = 4096
NUMBER_BITS = 17
"""Leading bits of a float32 that choose its bin: the sign, 8 of the exponent, 8 of the fraction."""

_LOW_BITS = 32 - NUMBER_BITS
_HALF = 1 << (NUMBER_BITS - 1)
_HASH_TAIL = 64 - HASH_BITS


def mixed(values_N: Array) -> Array:
    """64 well-mixed bits of each integer: the finaliser of SplitMix64 (Steele et al. 2014)."""
    bits_N = values_N.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    bits_N = (bits_N ^ (bits_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits_N = (bits_N ^ (bits_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits_N ^ (bits_N >> np.uint64(31))


class HyperLogLog:
    """The number of distinct 64-bit integers, within about 0.8% (Flajolet et al. 2007).

    Estimated as in Ertl, "New cardinality estimation algorithms for HyperLogLog sketches" (2017),
    algorithm 6: without tables of biases, and as exact for few values as for many.
    """

    def __init__(self) -> None:
        self.ranks_M = np.zeros(1 << HASH_BITS, np.uint8)

    def add(self, values_N: Array) -> None:
        """Take in integers; those seen before change nothing."""
        bits_N = mixed(values_N)
        places_N = (bits_N >> np.uint64(_HASH_TAIL)).astype(np.intp)
        tails_N = bits_N & np.uint64((1 << _HASH_TAIL) - 1)
        # 50 bits are exact in a float64, and its exponent is the place of the first one.
        ranks_N = _HASH_TAIL + 1 - np.frexp(tails_N.astype(np.float64))[1]
        np.maximum.at(self.ranks_M, places_N, ranks_N.astype(np.uint8))

    def merge(self, other: "HyperLogLog") -> None:
        """Take in all that another one has seen."""
        np.maximum(self.ranks_M, other.ranks_M, out=self.ranks_M)

    def estimate(self) -> int:
        """About how many distinct integers were seen."""
        size = len(self.ranks_M)
        found = np.bincount(self.ranks_M, minlength=_HASH_TAIL + 2).tolist()
        total = size * _tau(1.0 - found[_HASH_TAIL + 1] / size)
        for rank in range(_HASH_TAIL, 0, -1):
            total = 0.5 * (total + found[rank])
        total += size * _sigma(found[0] / size)
        return round(size * size / (2.0 * math.log(2.0) * total)) if math.isfinite(total) else 0


def _sigma(share: float) -> float:
    """Ertl's sigma: the correction for registers that are still empty."""
    if share == 1.0:
        return math.inf
    total, weight = share, 1.0
    while True:
        share *= share
        before = total
        total += share * weight
        weight += weight
        if total == before:
            return total


def _tau(share: float) -> float:
    """Ertl's tau: the correction for registers that are full."""
    if share in (0.0, 1.0):
        return 0.0
    total, weight = 1.0 - share, 1.0
    while True:
        share = math.sqrt(share)
        before = total
        weight *= 0.5
        total -= (1.0 - share) ** 2 * weight
        if total == before:
            return total / 3.0


@dataclass
class HeavyHitters:
    """The most frequent of any number of values (Misra & Gries 1982).

    Merged as in Agarwal et al., "Mergeable summaries" (2012): of what two summaries hold, the
    count that comes after the last place is taken from all. No count is too large, none is too
    small by more than `error`, which is at most the number of rows over `HEAVY_HITTERS` + 1.
    """

    num_tasks: int
    error: int = 0
    """Rows that any count may lack."""
    ids_K: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rising."""
    rows_K: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows of each value that were counted."""
    positives_KT: Array = field(init=False)
    """How many of them have label 1, by task."""
    _left_K: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        self.positives_KT = np.zeros((0, self.num_tasks))

    def add(self, ids_U: Array, rows_U: Array, positives_UT: Array) -> None:
        """Take in distinct values with their numbers of rows."""
        batch = HeavyHitters(self.num_tasks)
        order_U = np.argsort(ids_U)
        batch.ids_K, batch.rows_K = ids_U[order_U], rows_U[order_U].astype(np.int64)
        batch.positives_KT, batch._left_K = positives_UT[order_U], batch.rows_K
        batch._cut()
        self.merge(batch)

    def merge(self, other: "HeavyHitters") -> None:
        """Take in all that another one has seen."""
        self.ids_K, places_B = np.unique(
            np.concatenate([self.ids_K, other.ids_K]), return_inverse=True
        )
        self.error += other.error
        self.rows_K = self._summed(places_B, self.rows_K, other.rows_K)
        self._left_K = self._summed(places_B, self._left_K, other._left_K)
        pairs_BT = np.concatenate([self.positives_KT, other.positives_KT])
        self.positives_KT = np.zeros((len(self.ids_K), self.num_tasks))
        np.add.at(self.positives_KT, places_B, pairs_BT)
        self._cut()

    def _summed(self, places_B: Array, mine: Array, others: Array) -> Array:
        summed_K = np.zeros(len(self.ids_K), np.int64)
        np.add.at(summed_K, places_B, np.concatenate([mine, others]))
        return summed_K

    def _cut(self) -> None:
        if len(self.ids_K) <= HEAVY_HITTERS:
            return
        paid = int(np.partition(self._left_K, -HEAVY_HITTERS - 1)[-HEAVY_HITTERS - 1])
        self.error += paid
        kept_K = self._left_K > paid
        self.ids_K, self.rows_K = self.ids_K[kept_K], self.rows_K[kept_K]
        self.positives_KT = self.positives_KT[kept_K]
        self._left_K = self._left_K[kept_K] - paid


class NumberBins:
    """How float32 numbers spread: counts of bins whose edges are fixed for all time.

    A bin holds the numbers that share their leading bits, so it is 1/256 of its numbers wide, and
    integers up to 512 have bins of their own. As the edges never move, counts of two streams add
    up exactly and in any order (cf. DDSketch, Masson et al. 2019, whose bins are as wide).
    """

    def __init__(self, num_tasks: int) -> None:
        self.rows_B = np.zeros(1 << NUMBER_BITS, np.int64)
        self.positives_TB = np.zeros((num_tasks, 1 << NUMBER_BITS))
        self.smallest, self.largest = math.inf, -math.inf

    def add(self, numbers_N: Array, labels_TN: Array) -> None:
        """Take in finite float32 numbers with the labels of their rows."""
        if not len(numbers_N):
            return
        bins_N = _bin_of(numbers_N)
        size = len(self.rows_B)
        self.rows_B += np.bincount(bins_N, minlength=size)
        for positives_B, labels_N in zip(self.positives_TB, labels_TN, strict=True):
            positives_B += np.bincount(bins_N, labels_N, minlength=size)
        self.smallest = min(self.smallest, float(numbers_N.min()))
        self.largest = max(self.largest, float(numbers_N.max()))

    def merge(self, other: "NumberBins") -> None:
        """Take in all that another one has seen."""
        self.rows_B += other.rows_B
        self.positives_TB += other.positives_TB
        self.smallest = min(self.smallest, other.smallest)
        self.largest = max(self.largest, other.largest)

    @property
    def rows(self) -> int:
        """Numbers seen."""
        return int(self.rows_B.sum())

    def occupied(self) -> "OccupiedBins":
        """Bins that are not empty, from low to high."""
        places_B = np.flatnonzero(self.rows_B)
        low_B = _number_at(places_B, 0).clip(self.smallest, self.largest)
        high_B = _number_at(places_B, (1 << _LOW_BITS) - 1).clip(self.smallest, self.largest)
        near_B = np.where(np.abs(low_B) <= np.abs(high_B), low_B, high_B)
        return OccupiedBins(
            low_B, high_B, near_B, self.rows_B[places_B], self.positives_TB[:, places_B]
        )

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """The smallest number with at least these shares of all at or below it.

        Right to 1/256 of the number. Smallest and largest are exact. Empty for no numbers.
        """
        if not self.rows:
            return []
        bins = self.occupied()
        upto_B = np.cumsum(bins.rows_B)
        places = np.searchsorted(upto_B, np.ceil(np.array(shares) * upto_B[-1]).clip(min=1))
        return [
            self.smallest if share == 0.0 else self.largest if share == 1.0 else number
            for share, number in zip(shares, bins.near_B[places].tolist(), strict=True)
        ]


@dataclass(frozen=True)
class OccupiedBins:
    """Bins of `NumberBins` that hold something."""

    low_B: Array
    """The least number of each bin."""
    high_B: Array
    """The greatest."""
    near_B: Array
    """The one nearest to zero, which stands for the bin: integers up to 512 are exact."""
    rows_B: Array
    positives_TB: Array

    def cut(self, num_parts: int) -> list[int]:
        """Bins that come last in each of so many parts of as many rows.

        There are fewer parts where one bin has more than a part's rows.
        """
        upto_B = np.cumsum(self.rows_B)
        if not len(upto_B):
            return []
        wanted = upto_B[-1] * np.arange(1, num_parts + 1) / num_parts
        return np.unique(np.searchsorted(upto_B, wanted - 1e-9 * upto_B[-1])).tolist()


def _bin_of(numbers_N: Array) -> Array:
    # Adding zero makes -0.0 a 0.0. Flipping the bits of negative numbers puts all in order.
    bits_N = (numbers_N.astype(np.float32) + np.float32(0.0)).view(np.int32)
    ordered_N = bits_N ^ ((bits_N >> 31) & np.int32(0x7FFFFFFF))
    return (ordered_N >> _LOW_BITS).astype(np.int64) + _HALF


def _number_at(bins_B: Array, low_bits: int) -> Array:
    """The number of a bin whose remaining bits, in order, are these."""
    ordered_B = (((bins_B - _HALF) << _LOW_BITS) | low_bits).astype(np.int32)
    bits_B = ordered_B ^ ((ordered_B >> 31) & np.int32(0x7FFFFFFF))
    return bits_B.view(np.float32).astype(np.float64)
