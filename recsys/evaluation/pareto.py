"""Quality against memory: the results of a sweep over embedding schemes, and what to take.

A choice is made by the validation split alone; the test split only says what it is worth.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

from feature_store.document import write_json, write_text
from recsys.evaluation.page_parts import Figures, size_text, table_of_rows, whole_page
from recsys.evaluation.plots import Figure, figure_layout

JSON_FILE = "pareto.json"
MARKDOWN_FILE = "pareto.md"
HTML_FILE = "pareto.html"
UNCOMPRESSED = "full"
_SLACK = 1.005
"""A scheme keeps a budget if it is above it by no more than this ratio (rounding of sizes)."""


@dataclass(frozen=True)
class Cell:
    """One training of a sweep: a scheme at a budget with a seed."""

    scheme: str
    budget: str
    """As asked for; `100%` for uncompressed tables."""
    seed: int
    status: Literal["done", "unreachable", "failed"]
    message: str = ""
    """Why there is no result."""
    test_auc: float = math.nan
    test_logloss: float = math.nan
    valid_auc: float = math.nan
    serving_bytes: int = 0
    """Of all embeddings as they are served in float32, counted."""
    training_bytes: int = 0
    """Of embeddings and their optimizers' state."""
    full_bytes: int = 0
    """Of the uncompressed tables."""
    seconds: float = math.nan
    """Of all trainings of the scheme."""


@dataclass(frozen=True)
class Point:
    """A scheme at a budget, over its seeds."""

    scheme: str
    budget: str
    seeds: int
    test_auc: float
    deviation: float
    """Standard deviation of the test AUC over seeds; NaN for one."""
    test_logloss: float
    valid_auc: float
    serving_bytes: int
    training_bytes: int
    full_bytes: int
    seconds: float

    @property
    def share(self) -> float:
        """Of the uncompressed bytes."""
        return self.serving_bytes / self.full_bytes if self.full_bytes else math.nan


@dataclass(frozen=True)
class Advice:
    """What to take at a budget."""

    budget: str
    best: Point
    alike: tuple[str, ...]
    """Schemes whose validation AUC is within one standard error of the best one's."""
    behind_full: float | None
    """How much test AUC is lost against uncompressed tables; None without such a run."""

    def sentence(self) -> str:
        """The advice in words."""
        best = self.best
        spread = "" if math.isnan(best.deviation) else f" ± {best.deviation:.4f}"
        text = (
            f"At {self.budget} use {best.scheme}: test AUC {best.test_auc:.4f}{spread} in"
            f" {size_text(best.serving_bytes)} ({best.share:.2%} of the full tables)"
        )
        if self.behind_full is not None:
            word = "below" if self.behind_full > 0 else "above"
            text += f", {abs(self.behind_full):.4f} {word} uncompressed"
        if self.alike:
            text += f". Not told apart from it on validation: {', '.join(self.alike)}"
        return text + "."


def points(cells: Iterable[Cell]) -> list[Point]:
    """Means over seeds of the cells that are done, in the order of first appearance."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.status == "done":
            groups.setdefault((cell.scheme, cell.budget), []).append(cell)
    return [_point(group) for group in groups.values()]


def _point(group: Sequence[Cell]) -> Point:
    aucs = [cell.test_auc for cell in group]
    return Point(
        scheme=group[0].scheme,
        budget=group[0].budget,
        seeds=len(group),
        test_auc=statistics.fmean(aucs),
        deviation=statistics.stdev(aucs) if len(aucs) > 1 else math.nan,
        test_logloss=statistics.fmean(cell.test_logloss for cell in group),
        valid_auc=statistics.fmean(cell.valid_auc for cell in group),
        serving_bytes=max(cell.serving_bytes for cell in group),
        training_bytes=max(cell.training_bytes for cell in group),
        full_bytes=group[0].full_bytes,
        seconds=statistics.fmean(cell.seconds for cell in group),
    )


def advice(cells: Sequence[Cell]) -> list[Advice]:
    """For every budget that was asked for, the scheme within it that validates best."""
    found = points(cells)
    full = next((p for p in found if p.scheme == UNCOMPRESSED), None)
    budgets = list(dict.fromkeys(cell.budget for cell in cells if cell.scheme != UNCOMPRESSED))
    made = []
    for budget in budgets:
        allowed = [
            point
            for point in found
            if point.budget == budget and point.serving_bytes <= _bytes(budget, point) * _SLACK
        ]
        if not allowed:
            continue
        best = max(allowed, key=lambda point: point.valid_auc)
        error = best.deviation / math.sqrt(best.seeds)
        alike = tuple(
            point.scheme
            for point in allowed
            if point is not best and best.valid_auc - point.valid_auc <= error
        )
        made.append(
            Advice(budget, best, alike, None if full is None else full.test_auc - best.test_auc)
        )
    return made


def _bytes(budget: str, point: Point) -> float:
    if budget.endswith("%"):
        return float(budget[:-1]) / 100 * point.full_bytes
    return float(budget)


def write_pareto(cells: Sequence[Cell], name: str, folder: Path) -> Path:
    """Write `pareto.json`, `pareto.md` and `pareto.html`, each whole or not at all.

    Args:
        cells: of the sweep, finished or not.
        name: of the experiment.
        folder: of the sweep.

    Returns:
        Path of the page.
    """
    document: dict[str, Any] = {
        "experiment": name,
        "points": [asdict(point) | {"share": point.share} for point in points(cells)],
        "advice": [entry.sentence() for entry in advice(cells)],
        "cells": [asdict(cell) for cell in cells],
    }
    write_json(document, folder / JSON_FILE)
    write_text(markdown(cells), folder / MARKDOWN_FILE)
    write_text(_page(cells, name), folder / HTML_FILE)
    return folder / HTML_FILE


HEAD = ("scheme", "budget", "test AUC", "log loss", "served", "of full", "training", "seconds")


def rows_of(cells: Iterable[Cell]) -> list[tuple[str, ...]]:
    """A line for every scheme and budget, under `HEAD`."""
    return [
        (
            point.scheme,
            point.budget,
            f"{point.test_auc:.4f}"
            + ("" if math.isnan(point.deviation) else f" ± {point.deviation:.4f}"),
            f"{point.test_logloss:.4f}",
            size_text(point.serving_bytes),
            f"{point.share:.2%}",
            size_text(point.training_bytes),
            f"{point.seconds:.0f}",
        )
        for point in points(cells)
    ]


def markdown(cells: Sequence[Cell]) -> str:
    """The table, the advice and what has no result, as Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(row) + " |" for row in rows_of(cells)]
    lines += ["", *(f"- {entry.sentence()}" for entry in advice(cells))]
    lines += [f"- {text}" for text in without_result(cells)]
    return "\n".join(lines) + "\n"


def without_result(cells: Iterable[Cell]) -> list[str]:
    """Each scheme and budget that gave nothing, once, with its reason."""
    found: dict[tuple[str, str], str] = {}
    for cell in cells:
        if cell.status != "done":
            found.setdefault((cell.scheme, cell.budget), f"{cell.status}: {cell.message}")
    return [f"{scheme} at {budget} {why}" for (scheme, budget), why in found.items()]


def _page(cells: Sequence[Cell], name: str) -> str:
    figures = Figures()
    entries = advice(cells)
    told = "".join(f"<p>{escape(entry.sentence())}</p>" for entry in entries)
    missing = "".join(f"<li>{escape(text)}</li>" for text in without_result(cells))
    sections = [
        f"<header><h1>{escape(name)}: embedding schemes</h1></header>",
        f'<section class="verdict better"><h2>What to use</h2>{told or "<p>No result yet.</p>"}'
        "</section>",
        "<section><h2>Quality against memory</h2>",
        figures.place(
            "Test AUC against the bytes that are served",
            _figure(points(cells)),
            "Bars: standard deviation over seeds. A point further left is smaller.",
        ),
        "</section>",
        f"<section><h2>All results</h2>{table_of_rows(HEAD, rows_of(cells))}</section>",
        f"<section><h2>Without a result</h2><ul>{missing}</ul></section>" if missing else "",
    ]
    return whole_page(f"{name}: embedding schemes", sections, figures)


def _figure(found: Sequence[Point]) -> Figure:
    schemes = list(dict.fromkeys(point.scheme for point in found))
    traces: list[Figure] = []
    for place, scheme in enumerate(schemes):
        mine = sorted((p for p in found if p.scheme == scheme), key=lambda p: p.serving_bytes)
        # Golden-angle hues stay apart for any number of schemes, in light and dark.
        colour = f"hsl({(place * 137) % 360}, 62%, 50%)"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": scheme,
                "x": [point.serving_bytes for point in mine],
                "y": [point.test_auc for point in mine],
                "error_y": {
                    "type": "data",
                    "array": [0 if math.isnan(p.deviation) else p.deviation for p in mine],
                    "thickness": 1,
                    "color": colour,
                },
                "line": {"color": colour, "width": 1.5},
                "marker": {"color": colour, "size": 7},
                "customdata": [[point.budget, point.share] for point in mine],
                "hovertemplate": "%{y:.4f} at %{customdata[0]} (%{customdata[1]:.2%} of full)",
            }
        )
    layout = figure_layout("bytes of embeddings when served", "test AUC", legend=True)
    layout["xaxis"].update(type="log", tickformat="~s")
    layout["yaxis"].update(tickformat=".4~f")
    layout["height"] = 520
    return {"data": traces, "layout": layout}
