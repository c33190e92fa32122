"""What a user sees while a command works: bars on a terminal, plain lines everywhere else.

Progress and errors go to stderr; results go to stdout, so that they can be piped.
"""

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0
FEW_STEPS = 20
"""A stage of fewer steps says nothing of its time left: its steps are of different kinds."""


class Reporter:
    """Takes `(stage, message, done, total)` from whatever works and shows it.

    On a terminal each stage is one line that moves; elsewhere (a log, CI) a line when a stage
    begins, when it ends, and every few seconds in between.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars = _bars(self._console) if self._console.is_terminal else None
        self._task: TaskID | None = None
        self._stage: str | None = None
        self._clock = _Clock(0)
        self._shown = 0.0
        self._last_line = ""

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(
        self, stage: str, message: str, done: int | None = None, total: int | None = None
    ) -> None:
        """Show where a stage stands; `total` None: nobody knows yet."""
        is_new = stage != self._stage
        if is_new:
            self._stage, self._clock = stage, _Clock(done or 0)
        left = self._clock.left(done, total)
        if self._bars is None:
            self._show_line([message, left], done, total, is_new=is_new)
        else:
            self._show_bar(self._bars, f"{message}  {left}", done, total, is_new=is_new)

    def _show_bar(
        self, bars: Progress, note: str, done: int | None, total: int | None, *, is_new: bool
    ) -> None:
        if is_new and self._task is not None:
            bars.stop_task(self._task)
        if is_new or self._task is None:
            assert self._stage is not None
            self._task = bars.add_task(self._stage, total=total, completed=done or 0, note=note)
            return
        bars.update(self._task, total=total, completed=done, note=note)

    def _show_line(
        self, notes: list[str], done: int | None, total: int | None, *, is_new: bool
    ) -> None:
        now = time.monotonic()
        is_over = done is not None and done == total
        if not (is_new or is_over or done is None) and now - self._shown < SECONDS_BETWEEN_LINES:
            return
        counted = "" if done is None else f"{done:,}" if total is None else f"{done:,}/{total:,}"
        line = "  ".join(part for part in (f"{self._stage:<9}", counted, *notes) if part)
        if line != self._last_line:
            self._console.print(Text(line), soft_wrap=True)
        self._last_line, self._shown = line, now


class _Clock:
    """How long a stage will still take, from its pace since it first moved."""

    def __init__(self, done: int) -> None:
        self._first = done
        self._moved: float | None = None

    def left(self, done: int | None, total: int | None) -> str:
        """`20 s left`; empty where nobody can tell: few large steps, or none yet."""
        if done is None or total is None or total < FEW_STEPS or done <= self._first:
            return ""
        now = time.monotonic()
        if self._moved is None:  # what came before is start-up, not pace
            self._first, self._moved = done, now
            return ""
        seconds = (total - done) * (now - self._moved) / (done - self._first)
        return f"{duration(seconds)} left" if done < total else ""


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        console=console,
    )


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def show_error(message: str) -> None:
    """A user's error: red, whole, and safe to copy (no box, no wrapping inside words)."""
    Console(stderr=True, highlight=False).print(Text(f"error: {message}", "red"), soft_wrap=True)


def show(text: str = "") -> None:
    """One line of a result."""
    Console(file=sys.stdout, highlight=False).print(Text(text), soft_wrap=True)


def show_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A small table of a result; columns of numbers are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(header):
        numeric = all(_is_number(row[index]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # A log has no width of its own: never cut a table to a terminal that is not there.
    width = None if sys.stdout.isatty() else 200
    console = Console(file=sys.stdout, highlight=False, width=width)
    console.print(table)
    console.print()


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.lstrip("+-").replace(",", "").split(" ")[0][:1].isdigit()


def size(num_bytes: int) -> str:
    """Bytes in the unit that fits: `1.5 MiB`."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{num_bytes} B" if unit == "B" else f"{value:.1f} {unit}"
