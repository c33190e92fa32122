"""Rows that cannot be used: kept aside with file, line and reason, never dropped in silence."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

_SHOWN = 3


class TooManyRejected(ValueError):
    """More rows were rejected than the configuration allows."""


@dataclass(frozen=True)
class Rejection:
    """One row that cannot be used."""

    file: str
    line: int
    """1-based, the header counts; for Parquet the 1-based row. A line break within quotes does not
    begin a new line."""
    kind: str
    """The reason without its particulars, for counting."""
    reason: str
    content: str
    """The line as it stands, or its values by column as JSON."""


def content_of(row: Mapping[str, Any]) -> str:
    """A row's raw values by column, as JSON."""
    values = {name: value for name, value in row.items() if not name.startswith("__")}
    return json.dumps(values, ensure_ascii=False, default=str)


def reasons(rejections: list[Rejection]) -> dict[str, int]:
    """How many rows were rejected for which kind of reason, the most frequent first."""
    return dict(Counter(rejection.kind for rejection in rejections).most_common())


def write(rejections: list[Rejection], path: Path) -> None:
    """Write a CSV file that a spreadsheet opens."""
    frame = pl.DataFrame(
        {
            name: [getattr(rejection, name) for rejection in rejections]
            for name in ("file", "line", "reason", "content")
        },
        schema={"file": pl.String, "line": pl.Int64, "reason": pl.String, "content": pl.String},
    )
    frame.write_csv(path)


def require_few(
    rejections: list[Rejection],
    num_rows: int,
    max_share: float,
    kept: Path | None,
    num_rejected: int | None = None,
) -> None:
    """Check the share of rejected rows; `num_rejected` is for lists that do not hold all of them.

    Raises:
        TooManyRejected: Names the first rows and the file that keeps all of them.
    """
    num_rejected = len(rejections) if num_rejected is None else num_rejected
    share = num_rejected / num_rows if num_rows else 0.0
    if share <= max_share:
        return
    shown = [f"  {r.file}:{r.line}: {r.reason}" for r in rejections[:_SHOWN]]
    more = num_rejected - len(shown)
    if more:
        shown.append(f"  and {more:,} more")
    where = f"; all of them, with their reasons, are in {kept}" if kept is not None else ""
    raise TooManyRejected(
        f"{num_rejected:,} of {num_rows:,} rows ({share:.2%}) cannot be used, more than"
        f" data.max_rejected = {max_share:.2%} allows{where}\n" + "\n".join(shown)
    )
