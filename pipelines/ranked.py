"""Order statistics of more numbers than memory holds: sorted runs on disk, asked for ranks.

Every part of the source leaves its distinct numbers, sorted, with how often each was there. How
many numbers lie below a value is a sum of binary searches, one a run; the number at a place is
found by halving the range of all numbers until one is left. Both are exact, and read a few pages
of each run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

_SIGN_FREE = np.int64(0x7FFF_FFFF_FFFF_FFFF)


@dataclass(frozen=True)
class Run:
    """Distinct numbers of one part."""

    values: np.ndarray
    """Strictly rising; int64 or float64 without NaN."""
    ends: np.ndarray
    """By value: how many numbers of the part are at most that; int64."""

    @classmethod
    def of(cls, numbers: pl.Series) -> "Run":
        """The run of numbers without nulls and NaN."""
        kind = np.float64 if numbers.dtype.is_float() else np.int64
        # -0.0 and 0.0 are one number, so they must be one value.
        values, counts = np.unique(numbers.to_numpy().astype(kind) + kind(0), return_counts=True)
        return cls(values, np.cumsum(counts, dtype=np.int64))

    def save(self, stem: Path) -> Path:
        """Write the run beside a path, which is returned and given to `load`."""
        np.save(stem.with_name(f"{stem.name}.values.npy"), self.values)
        np.save(stem.with_name(f"{stem.name}.ends.npy"), self.ends)
        return stem

    @classmethod
    def load(cls, stem: Path) -> "Run":
        """A saved run; it stays on disk."""
        names = (f"{stem.name}.values.npy", f"{stem.name}.ends.npy")
        values, ends = (np.load(stem.with_name(name), mmap_mode="r") for name in names)
        return cls(values, ends)


class Ranked:
    """All numbers of some runs, in order.

    Args:
        runs: Of one type of numbers.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = [run for run in runs if len(run.values)]

    def __len__(self) -> int:
        return sum(int(run.ends[-1]) for run in self._runs)

    @property
    def smallest(self) -> int | float:
        """The first of them; there must be one."""
        return min(run.values[0].item() for run in self._runs)

    @property
    def largest(self) -> int | float:
        """The last of them; there must be one."""
        return max(run.values[-1].item() for run in self._runs)

    def below(self, value: float) -> int:
        """How many are smaller than a value."""
        return self._rank(value, "left")

    def up_to(self, value: float) -> int:
        """How many are at most a value."""
        return self._rank(value, "right")

    def at(self, place: int) -> int | float:
        """The number at a place, 0-based.

        Raises:
            IndexError: There are not so many.
        """
        if not 0 <= place < len(self):
            raise IndexError(f"place {place} of {len(self)} numbers")
        is_float = self._runs[0].values.dtype == np.float64
        low, high = (_key(v) if is_float else int(v) for v in (self.smallest, self.largest))
        while low < high:
            middle = (low + high) // 2
            if self.up_to(_number(middle) if is_float else middle) > place:
                high = middle
            else:
                low = middle + 1
        return _number(low) if is_float else low

    def num_distinct(self) -> int:
        """How many different ones there are; holds them in memory."""
        return len(np.unique(np.concatenate([run.values for run in self._runs])))

    def _rank(self, value: float, side: str) -> int:
        rank = 0
        for run in self._runs:
            place = int(np.searchsorted(run.values, value, side))  # type: ignore[call-overload]
            rank += int(run.ends[place - 1]) if place else 0
        return rank


def _key(number: float) -> int:
    """A float's place among all floats: its bits, negative ones turned round."""
    bits = np.float64(number).view(np.int64)
    return int(bits if bits >= 0 else bits ^ _SIGN_FREE)


def _number(key: int) -> float:
    bits = np.int64(key)
    return float((bits if bits >= 0 else bits ^ _SIGN_FREE).view(np.float64))
