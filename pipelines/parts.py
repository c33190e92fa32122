"""The source in parts: what one job of a build reads.

A part is a file; small files that follow each other are one part, and a file of very many rows is
several. Parts depend on the files alone, never on who works them off, so that whatever is made of
them part by part is the same on one core and on a cluster.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from feature_store.features import ROW_COLUMN

FEWEST_ROWS = 1 << 17
"""Files are put together until they have so many rows, if they can be."""
MOST_ROWS = 1 << 21
"""Files with more are cut; bounds the memory of a job."""


@dataclass(frozen=True)
class Part:
    """Consecutive rows of the source."""

    number: int
    first_row: int
    """`__row` of the first one."""
    num_rows: int
    """With those that cannot be used."""
    frame: pl.LazyFrame
    """`__row` and raw columns; the same whenever it is read."""
    name: str
    """For messages: its first file."""

    def __str__(self) -> str:
        return f"rows {self.first_row:,} to {self.first_row + self.num_rows:,} ({self.name} ...)"

    def without(self, rows: pl.Series) -> "Part":
        """The part without the rows of some numbers, `__row`, sorted."""
        theirs = rows.filter(
            rows.is_between(self.first_row, self.first_row + self.num_rows, "left")
        )
        if theirs.is_empty():
            return self
        return self.with_frame(self.frame.filter(~pl.col(ROW_COLUMN).is_in(theirs.implode())))

    def with_frame(self, frame: pl.LazyFrame) -> "Part":
        """The same rows with other columns, or fewer of them."""
        return replace(self, frame=frame)


@dataclass(frozen=True)
class FileRows:
    """One file of the source, as it is read."""

    name: str
    frame: pl.LazyFrame
    """Rows with `__row`, 0-based within the file."""
    num_rows: int
    """`__row` is below."""
    staged: bool
    """`__row` is a column on disk, where rows may be left out; else it is counted in reading."""

    def cut(self, start: int, end: int) -> pl.LazyFrame:
        """The rows of a range."""
        if (start, end) == (0, self.num_rows):
            return self.frame
        if self.staged:
            return self.frame.filter(pl.col(ROW_COLUMN).is_between(start, end, closed="left"))
        return self.frame.slice(start, end - start)


def parts_of(files: Sequence[FileRows]) -> list[Part]:
    """The parts of the files of a source, in their order."""
    parts: list[Part] = []
    gathered: list[pl.LazyFrame] = []
    begin = first_row = 0
    name = ""
    for file in files:
        for start in range(0, max(file.num_rows, 1), MOST_ROWS):
            end = min(start + MOST_ROWS, file.num_rows)
            gathered.append(file.cut(start, end).with_columns(pl.col(ROW_COLUMN) + begin))
            name = name or file.name
            if begin + end - first_row >= FEWEST_ROWS:
                parts.append(_part(len(parts), first_row, begin + end, gathered, name))
                first_row, gathered, name = begin + end, [], ""
        begin += file.num_rows
    if gathered:
        parts.append(_part(len(parts), first_row, begin, gathered, name))
    return parts


def whole(parts: Sequence[Part]) -> pl.LazyFrame:
    """All rows of the parts, in their order."""
    frames = [part.frame for part in parts]
    return frames[0] if len(frames) == 1 else pl.concat(frames)


def _part(number: int, first: int, end: int, frames: list[pl.LazyFrame], name: str) -> Part:
    frame = frames[0] if len(frames) == 1 else pl.concat(frames)
    return Part(number, first, end - first, frame, name)
