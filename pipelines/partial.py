"""Statistics of the training rows, gathered part by part and put together on the driver.

What a part leaves (a *partial*) is exact or computed in one fixed order, and partials are put
together in the order of the parts, so that the result is the same bit for bit whoever gathered
them. Small partials are returned, large ones are files in a folder of the build: neither a worker
nor the driver holds more than a few columns of one part, and the distinct values of one vocabulary.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import polars as pl
import polars_hash  # noqa: F401 - registers the `nchash` namespace of expressions

from feature_store.declaration import MAX_DISTINCT
from pipelines.parts import Part
from pipelines.ranked import Run

_BLOCK = 4096
"""Numbers that are added up together; part of what makes sums the same everywhere."""
_COPIES = 3
"""Of the distinct texts of all parts, in memory while they are put together."""
_MOST_VALUES = 1 << 24
"""Numbers of a part that are in memory at once."""
_MOST_TEXTS = 1 << 23
"""Texts of a part, likewise."""
_TEXT, _ROWS, _HASH, _PLACE = "value", "len", "hash", "place"


@dataclass(frozen=True)
class Moments:
    """Of some numbers."""

    count: int
    mean: float
    """0.0 where there are none."""
    squares: float
    """Sum of the squared distances from the mean."""

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """The moments of float64 numbers, by sums in a fixed order."""
        if not len(values):
            return cls(0, 0.0, 0.0)
        mean = _sum(values) / len(values)
        return cls(len(values), mean, _sum(np.square(values - mean)))

    @staticmethod
    def merged(parts: Sequence["Moments"]) -> "Moments":
        """Those of all parts' numbers (Chan, Golub and LeVeque, 1979, eq. 2.1, for many parts)."""
        present = [part for part in parts if part.count]
        count = sum(part.count for part in present)
        if not count:
            return Moments(0, 0.0, 0.0)
        mean = sum(part.mean * (part.count / count) for part in present)
        apart = sum(part.count * (part.mean - mean) * (part.mean - mean) for part in present)
        return Moments(count, mean, apart + sum(part.squares for part in present))

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


@dataclass(frozen=True)
class Numbers:
    """What a part leaves of its numbers, by name."""

    moments: dict[str, Moments]
    runs: dict[str, Path]
    """Saved runs of distinct numbers; see `pipelines.ranked`."""


@dataclass(frozen=True)
class GatherNumbers:
    """Work: moments and runs of numbers of a part's rows."""

    moments: Mapping[str, pl.Expr]
    """float64 by name; null where there is none."""
    runs: Mapping[str, pl.Expr]
    folder: Path
    """Runs are put here."""

    def __call__(self, part: Part) -> Numbers:
        """Read the columns, some at a time, and gather."""
        found = Numbers({}, {})
        wanted = [("moments", name) for name in self.moments]
        wanted += [("runs", name) for name in self.runs]
        at_once = max(1, _MOST_VALUES // max(1, part.num_rows))
        for start in range(0, len(wanted), at_once):
            some = wanted[start : start + at_once]
            chosen = [
                (self.moments if what == "moments" else self.runs)[name].alias(f"{what} {name}")
                for what, name in some
            ]
            columns = part.frame.select(chosen).collect(engine="streaming")
            for what, name in some:
                values = columns.get_column(f"{what} {name}").drop_nulls()
                if what == "moments":
                    found.moments[name] = Moments.of(values.cast(pl.Float64).to_numpy())
                else:
                    stem = self.folder / f"{part.number:06d}-{uuid4().hex}"
                    found.runs[name] = Run.of(values).save(stem)
        return found


@dataclass(frozen=True)
class GatherTexts:
    """Work: how often each text is there in a part's rows, by name, in one file each."""

    texts: Mapping[str, pl.Expr]
    """Null and "" are not counted."""
    folder: Path

    def __call__(self, part: Part) -> dict[str, Path]:
        """Read the columns, some at a time, and count."""
        counted: dict[str, Path] = {}
        names = list(self.texts)
        # Which rows train is found out again for every read, so a column at a time takes longer.
        at_once = max(1, _MOST_TEXTS // max(1, part.num_rows))
        for start in range(0, len(names), at_once):
            # Each as one list: bags have more texts than there are rows.
            some = [
                self.texts[name].implode().alias(name) for name in names[start : start + at_once]
            ]
            for texts in part.frame.select(some).collect(engine="streaming"):
                counted[texts.name] = self._counted(texts.explode().alias(_TEXT), part.number)
        return counted

    def _counted(self, texts: pl.Series, number: int) -> Path:
        present = pl.col(_TEXT) != ""
        hashed = (
            texts.to_frame()
            .lazy()
            .select(
                pl.when(present).then(pl.col(_TEXT).nchash.xxhash64()).alias(_HASH),  # type: ignore[attr-defined]
                pl.lit(1, pl.Int64).alias(_ROWS),
            )
        )
        path = self.folder / f"{number:06d}-{uuid4().hex}.arrow"
        _added_up(texts, hashed).write_ipc(path, compat_level=pl.CompatLevel.newest())
        return path


@dataclass(frozen=True)
class Chosen:
    """A job of `MergeTexts`: a vocabulary."""

    name: str
    partials: Sequence[Path]
    min_count: int
    max_size: int | None
    max_distinct: int = MAX_DISTINCT
    """More texts are an error."""


@dataclass(frozen=True)
class MergeTexts:
    """Work: the texts of a vocabulary, most frequent first, ties in the order of their bytes."""

    folder: Path

    def __call__(self, job: Chosen) -> Path:
        """Put the partials together; gives an Arrow file.

        Raises:
            ValueError: They do not fit into memory, or are more than allowed.
        """
        _require_memory(job)
        every = pl.concat([pl.read_ipc(path) for path in job.partials])
        counts = every
        if len(job.partials) > 1:
            counts = _added_up(every.get_column(_TEXT), every.lazy().select(_HASH, _ROWS))
        if counts.height > job.max_distinct:
            raise ValueError(
                f"feature {job.name!r}: the training split has {counts.height:,} distinct values,"
                f" more than max_distinct ({job.max_distinct:,}); set encoding: hash, which counts"
                " none, or raise max_distinct where memory allows"
            )
        kept = counts.filter(pl.col(_ROWS) >= job.min_count)
        kept = kept.sort(_ROWS, _TEXT, descending=[True, False])
        if job.max_size is not None:
            kept = kept.head(job.max_size)
        path = self.folder / f"{uuid4().hex}.arrow"
        kept.select(_TEXT).write_ipc(path, compat_level=pl.CompatLevel.newest())
        return path


def memory_bytes() -> int:
    """What this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_texts(path: Path, name: str) -> pl.Series:
    """The texts that `MergeTexts` wrote."""
    return pl.read_ipc(path).get_column(_TEXT).alias(name)


def _added_up(texts: pl.Series, counts: pl.LazyFrame) -> pl.DataFrame:
    """One row a text: texts are told apart by their 64-bit hash, which is far quicker to group.

    Args:
        texts: With duplicates.
        counts: The hash of each, null for one that is not counted, and how often it was there.
    """
    grouped = (
        counts.with_row_index(_PLACE)
        .group_by(_HASH)
        .agg(pl.col(_ROWS).sum(), pl.col(_PLACE).min())
        .filter(pl.col(_HASH).is_not_null())
        .collect(engine="streaming")
    )
    return grouped.select(texts.gather(grouped.get_column(_PLACE)), _ROWS, _HASH)


def _require_memory(job: Chosen) -> None:
    needed = _COPIES * sum(path.stat().st_size for path in job.partials)
    if needed > memory_bytes():
        raise ValueError(
            f"feature {job.name!r}: its vocabulary would need about {needed / 1e9:.1f} GB of memory"
            f" to count, and there are {memory_bytes() / 1e9:.1f} GB; set encoding: hash, which"
            " needs none"
        )


def _sum(values: np.ndarray) -> float:
    """Sums of blocks, then their sum: NumPy's order, whatever the number of threads."""
    whole = len(values) // _BLOCK * _BLOCK
    with np.errstate(over="ignore"):
        blocks = values[:whole].reshape(-1, _BLOCK).sum(axis=1)
        return float(blocks.sum() + values[whole:].sum())
