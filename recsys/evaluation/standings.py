"""Models side by side over seeds: who is ahead, by how much, and whether that is more than chance.

The order, and who is best, is decided by the validation split; the test split is shown and tested.
A difference counts as clear when two tests agree (`recsys.evaluation.significance`): the t-test of
its values paired by seed, which asks whether another training would show it too, and for every
seed the test paired by test row (DeLong for AUC, the difference of losses for log loss), which
asks whether other rows would. With one seed there is no word on training, so nothing is called
clear. The p are not corrected for the number of models that are compared.

Shapes: N rows of the test split.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from feature_store.document import read_json, write_json, write_text
from recsys.evaluation.metrics import Array
from recsys.evaluation.page_parts import (
    Figures,
    note_line,
    size_text,
    table_of_rows,
    whole_page,
)
from recsys.evaluation.plots import MODEL, MUTED, Figure, figure_layout, shortened
from recsys.evaluation.significance import PairedTest, delong, paired_losses, paired_t

JSON_FILE = "leaderboard.json"
MARKDOWN_FILE = "leaderboard.md"
HTML_FILE = "leaderboard.html"
CLEAR = 0.05
"""Largest p that is called clear, two-sided."""
_QUALITY = 9
"""Columns of the table before those of cost; side by side they are too wide for a page."""
LEAST_TOLERANCE = 0.001
"""Of a baseline: smaller losses are never a regression."""

Metric = Literal["auc", "logloss"]
Verdict = Literal["better", "worse", "not told apart", "one seed"]
_LABELS: dict[str, str] = {"auc": "AUC", "logloss": "log loss"}
_ROW_TESTS: dict[str, Callable[[Array, Array, Array, Array], PairedTest]] = {
    "auc": delong,
    "logloss": paired_losses,
}


@dataclass(frozen=True)
class Result:
    """One training of a leaderboard: an experiment with a seed."""

    experiment: str
    seed: int
    status: Literal["done", "failed"]
    message: str = ""
    """Why there is no result."""
    model: str = ""
    """Its kind."""
    valid: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the validation split."""
    test: Mapping[str, float] = field(default_factory=dict)
    parameters: int = 0
    """Of tables and all else."""
    served_bytes: int = 0
    """Of the whole model as it is served in float32."""
    kept: float | None = None
    """Share of the tables' rows that a selecting scheme kept; None: nothing was chosen from."""
    seconds: float = math.nan
    """Of training."""
    scores: str = ""
    """File with the test rows' scores."""


class Scores(NamedTuple):
    """Of the test split's rows, in the order of the source."""

    logits_N: Array
    labels_N: Array
    weights_N: Array

    def save(self, path: Path) -> None:
        """Write them down."""
        with path.open("wb") as file:
            np.savez(file, logits=self.logits_N, labels=self.labels_N, weights=self.weights_N)

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read what `save` wrote."""
        with np.load(path) as file:
            return cls(file["logits"], file["labels"], file["weights"])


@dataclass(frozen=True)
class Comparison:
    """An experiment's test metric beside the reference's, over the seeds that both have."""

    reference: str
    metric: Metric
    by_seed: PairedTest
    by_row: tuple[PairedTest, ...]
    """One a seed; empty where the two were not tested on the same rows."""

    @property
    def difference(self) -> float:
        """Mean over seeds; of log loss, too, below 0 where there is less of it."""
        return self.by_seed.difference

    @property
    def verdict(self) -> Verdict:
        """What both tests together say."""
        if math.isnan(self.seeds_p):
            return "one seed"
        # Without a test by row (other test rows) the seeds alone decide.
        if not self.seeds_p < CLEAR or self.rows_p >= CLEAR:
            return "not told apart"
        return "better" if (self.difference > 0) == (self.metric == "auc") else "worse"

    @property
    def seeds_p(self) -> float:
        """Of the t-test paired by seed; NaN for one seed."""
        return self.by_seed.p

    @property
    def rows_p(self) -> float:
        """The largest p over seeds of the test paired by row; NaN without such a test.

        A seed whose difference points the other way than their mean counts as 1.
        """
        found = [test.p if test.difference * self.difference >= 0 else 1.0 for test in self.by_row]
        return max(found, default=math.nan) if not any(map(math.isnan, found)) else math.nan


@dataclass(frozen=True)
class Standing:
    """An experiment over its seeds."""

    experiment: str
    model: str
    seeds: int
    """That are done."""
    valid: float
    """Mean of the metric."""
    valid_deviation: float
    """Over seeds; NaN for one."""
    test: float
    test_deviation: float
    parameters: int
    served_bytes: int
    kept: float | None
    """Share of the tables' rows that a selecting scheme kept, the mean; None without one."""
    seconds: float
    """Of one training, the mean."""
    comparison: Comparison | None
    """None: it is the reference."""


def standings(
    results: Sequence[Result],
    metric: Metric,
    baseline: str | None,
    scores: Callable[[Result], Scores],
) -> list[Standing]:
    """The experiments that have a result, the best on validation first.

    Args:
        results: of all trainings so far.
        metric: that decides.
        baseline: the experiment that others are compared with; None, or while it has no result:
            the best on validation.
        scores: a result's test rows.
    """
    groups: dict[str, dict[int, Result]] = {}
    for result in results:
        if result.status == "done":
            groups.setdefault(result.experiment, {})[result.seed] = result
    sign = -1.0 if metric == "auc" else 1.0
    order = sorted(
        groups, key=lambda name: sign * _mean(r.valid[metric] for r in groups[name].values())
    )
    if not order:
        return []
    reference = baseline if baseline in groups else order[0]
    return [
        _standing(
            groups[name],
            metric,
            None
            if name == reference
            else _comparison(groups[name], groups[reference], reference, metric, scores),
        )
        for name in order
    ]


def _standing(
    by_seed: Mapping[int, Result], metric: Metric, comparison: Comparison | None
) -> Standing:
    results = list(by_seed.values())
    valid, test = [r.valid[metric] for r in results], [r.test[metric] for r in results]
    kept = [r.kept for r in results if r.kept is not None]
    return Standing(
        experiment=results[0].experiment,
        model=results[0].model,
        seeds=len(results),
        valid=_mean(valid),
        valid_deviation=_deviation(valid),
        test=_mean(test),
        test_deviation=_deviation(test),
        parameters=max(r.parameters for r in results),
        served_bytes=max(r.served_bytes for r in results),
        kept=_mean(kept) if kept else None,
        seconds=_mean(r.seconds for r in results),
        comparison=comparison,
    )


def _comparison(
    mine: Mapping[int, Result],
    theirs: Mapping[int, Result],
    reference: str,
    metric: Metric,
    scores: Callable[[Result], Scores],
) -> Comparison:
    seeds = [seed for seed in mine if seed in theirs]
    by_seed = paired_t(
        [mine[seed].test[metric] for seed in seeds], [theirs[seed].test[metric] for seed in seeds]
    )
    by_row = []
    for seed in seeds:
        one, other = scores(mine[seed]), scores(theirs[seed])
        if np.array_equal(one.labels_N, other.labels_N):
            test = _ROW_TESTS[metric](one.logits_N, other.logits_N, one.labels_N, one.weights_N)
            by_row.append(test)
    return Comparison(reference, metric, by_seed, tuple(by_row))


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def write_baseline(
    found: Sequence[Standing], failed: Sequence[str], metric: Metric, path: Path
) -> None:
    """Write the means down for `regressions`, with the loss that later ones are allowed.

    The tolerance of a split is twice the standard error of the difference of two such means, and
    at least `LEAST_TOLERANCE`.

    Raises:
        ValueError: some training has no result.
    """
    if failed:
        raise ValueError(f"no baseline is written while trainings have no result: {failed[0]}")
    write_json(
        {
            "metric": metric,
            "experiments": {
                each.experiment: {
                    "seeds": each.seeds,
                    "valid": each.valid,
                    "test": each.test,
                    "tolerance": {
                        "valid": _tolerance(each.valid_deviation, each.seeds),
                        "test": _tolerance(each.test_deviation, each.seeds),
                    },
                }
                for each in found
            },
        },
        path,
    )


def _tolerance(deviation: float, seeds: int) -> float:
    if math.isnan(deviation):
        return LEAST_TOLERANCE
    return max(LEAST_TOLERANCE, 2 * deviation * math.sqrt(2 / seeds))


def read_baseline(path: Path, metric: Metric) -> dict[str, Any]:
    """What `write_baseline` wrote, or a person: `metric`, and by experiment means and tolerances.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no baseline, or one of another metric.
    """
    document = read_json(path)
    numbers = ("valid", "test")
    try:
        found = document["metric"]
        for each in document["experiments"].values():
            float(sum(each[split] + each["tolerance"][split] for split in numbers))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no baseline: expected metric, and experiments with valid, test and"
            f" tolerance {{valid, test}}; {error!r}. --write-baseline writes one"
        ) from error
    if found != metric:
        raise ValueError(f"{path} is a baseline of {found}, but the suite's metric is {metric}")
    return document


def regressions(
    found: Sequence[Standing], failed: Sequence[str], baseline: Mapping[str, Any]
) -> list[str]:
    """Experiments that fall behind a baseline on either split, each with its numbers.

    Args:
        found: the present standings.
        failed: `without_result` of the present results.
        baseline: as `read_baseline` gives it.
    """
    metric, told = baseline["metric"], []
    by_name = {each.experiment: each for each in found}
    for name, expected in baseline["experiments"].items():
        present = by_name.get(name)
        if present is None:
            told.append(f"{name}: has no result, the baseline has")
            continue
        incomplete = [text for text in failed if text.startswith(f"{name}, seed ")]
        told += [f"{name}: {text.removeprefix(f'{name}, ')}" for text in incomplete]
        for split, value in (("valid", present.valid), ("test", present.test)):
            lost = expected[split] - value if metric == "auc" else value - expected[split]
            if not lost <= expected["tolerance"][split]:  # NaN is a regression too
                told.append(
                    f"{name}: {split} {_LABELS[metric]} {value:.4f}, the baseline has"
                    f" {expected[split]:.4f} and allows {expected['tolerance'][split]:.4f}"
                    f" {'less' if metric == 'auc' else 'more'}"
                )
    return told


def without_result(results: Iterable[Result]) -> list[str]:
    """Each training that failed, with its reason."""
    return [
        f"{each.experiment}, seed {each.seed}, {each.status}: {each.message}"
        for each in results
        if each.status != "done"
    ]


def head(found: Sequence[Standing], metric: Metric) -> tuple[str, ...]:
    """The table's header."""
    name = _LABELS[metric]
    against = next((e.comparison.reference for e in found if e.comparison is not None), "the best")
    return (
        *("experiment", "model", "seeds", f"valid {name}", f"test {name}", f"against {against}"),
        *("p, seeds", "p, rows", "verdict", "parameters", "rows kept", "served", "seconds"),
    )


def rows_of(found: Sequence[Standing]) -> list[tuple[str, ...]]:
    """A line for every experiment, under `head`."""
    return [
        (
            each.experiment,
            each.model,
            str(each.seeds),
            _spread(each.valid, each.valid_deviation),
            _spread(each.test, each.test_deviation),
            *_compared(each.comparison),
            f"{each.parameters:,}",
            "all" if each.kept is None else f"{each.kept:.1%}",
            size_text(each.served_bytes),
            f"{each.seconds:.0f}",
        )
        for each in found
    ]


def _compared(found: Comparison | None) -> tuple[str, str, str, str]:
    if found is None:
        return ("", "", "", "reference")
    return (f"{found.difference:+.4f}", _p(found.seeds_p), _p(found.rows_p), found.verdict)


def _spread(value: float, deviation: float) -> str:
    return f"{value:.4f}" + ("" if math.isnan(deviation) else f" ± {deviation:.4f}")


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def notes(metric: Metric) -> tuple[str, ...]:
    """What the table's numbers are."""
    test = "DeLong's test of AUC" if metric == "auc" else "the difference of losses row by row"
    return (
        "Ordered by the validation split; the test split is shown. ± is the standard deviation"
        " over seeds.",
        f"p, seeds: t-test of the test {_LABELS[metric]} paired by seed. p, rows: {test}, the"
        " largest p of all seeds. A verdict needs both below 0.05; they are not corrected for the"
        " number of experiments.",
    )


def write_standings(
    results: Sequence[Result], found: Sequence[Standing], name: str, metric: Metric, folder: Path
) -> Path:
    """Write `leaderboard.json`, `.md` and `.html`, each whole or not at all.

    Args:
        results: of all trainings so far.
        found: their standings.
        name: of the suite.
        metric: that decides.
        folder: of the leaderboard.

    Returns:
        Path of the page.
    """
    document = {
        "name": name,
        "metric": metric,
        "standings": [_document(each) for each in found],
        "results": [asdict(each) for each in results],
    }
    write_json(document, folder / JSON_FILE)
    write_text(markdown(results, found, metric), folder / MARKDOWN_FILE)
    write_text(_page(results, found, name, metric), folder / HTML_FILE)
    return folder / HTML_FILE


def _document(standing: Standing) -> dict[str, Any]:
    values = asdict(standing)
    if standing.comparison is not None:
        values["comparison"] |= {
            "difference": standing.comparison.difference,
            "verdict": standing.comparison.verdict,
            "seeds_p": standing.comparison.seeds_p,
            "rows_p": standing.comparison.rows_p,
            "by_seed": standing.comparison.by_seed._asdict(),
            "by_row": [test._asdict() for test in standing.comparison.by_row],
        }
    return values


def markdown(results: Sequence[Result], found: Sequence[Standing], metric: Metric) -> str:
    """The table, what its numbers are, and what has no result, as Markdown."""
    header = head(found, metric)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows_of(found)]
    lines += ["", *notes(metric)]
    lines += ["", *(f"- {text}" for text in without_result(results))]
    return "\n".join(lines).rstrip() + "\n"


def _page(results: Sequence[Result], found: Sequence[Standing], name: str, metric: Metric) -> str:
    figures = Figures()
    missing = "".join(f"<li>{escape(text)}</li>" for text in without_result(results))
    title = f"Test {_LABELS[metric]}"
    drawn = figures.place(
        title, _figure(found, metric), "The best on validation on top. Bars: ± over seeds."
    )
    header, rows = head(found, metric), rows_of(found)
    quality = table_of_rows(header[:_QUALITY], [row[:_QUALITY] for row in rows])
    cost = table_of_rows(
        (header[0], *header[_QUALITY:]), [(row[0], *row[_QUALITY:]) for row in rows]
    )
    about = "".join(note_line(text) for text in notes(metric))
    sections = [
        f"<header><h1>{escape(name)}: leaderboard</h1></header>",
        f"<section>{drawn if found else note_line('No result yet.')}</section>",
        f"<section><h2>All experiments</h2>{about}{quality}</section>",
        f"<section><h2>What they cost</h2>{cost}</section>",
        f"<section><h2>Without a result</h2><ul>{missing}</ul></section>" if missing else "",
    ]
    return whole_page(f"{name}: leaderboard", sections, figures)


def _figure(found: Sequence[Standing], metric: Metric) -> Figure:
    drawn = list(found)[::-1]
    places = list(range(len(drawn)))
    reference = next((each for each in drawn if each.comparison is None), None)
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [each.test for each in drawn],
        "y": places,
        "marker": {"color": MODEL, "size": 9},
        "error_x": {
            "type": "data",
            "array": [0 if math.isnan(e.test_deviation) else e.test_deviation for e in drawn],
            "color": MODEL,
            "thickness": 1.2,
            "width": 0,
        },
        "hovertemplate": "%{x:.4f}<extra></extra>",
        "showlegend": False,
    }
    layout = figure_layout(f"test {_LABELS[metric]}", "")
    layout["yaxis"].update(
        tickvals=places,
        ticktext=[escape(shortened(each.experiment), quote=False) for each in drawn],
        range=[-0.6, len(drawn) - 0.4],
        showgrid=False,
    )
    layout["xaxis"].update(tickformat=".4~f", tickangle=0)
    layout["height"] = 110 + 28 * len(drawn)
    if reference is not None:
        layout["shapes"] = [
            {
                "type": "line",
                "x0": reference.test,
                "x1": reference.test,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": MUTED, "dash": "dot", "width": 1},
            }
        ]
    return {"data": [trace], "layout": layout}
