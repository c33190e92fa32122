"""What benchmarks share that train a suite of experiments over seeds."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import Results
from recsys.leaderboard import Leaderboard, Suite, leaderboard, load_suite

EXAMPLES = Path(__file__).parent.parent / "examples"


def suite(
    file: str, seeds: int, names: Sequence[str] | None = None, changed: Sequence[str] = ()
) -> Suite:
    """A suite of `examples/`, or some of its experiments.

    Args:
        file: its name there.
        seeds: of every experiment.
        names: of experiments; None: all.
        changed: overrides of every experiment, after its own.
    """
    whole = load_suite(EXAMPLES / file)
    entries = tuple(
        entry.model_copy(update={"set": (*entry.set, *changed)})
        for entry in whole.experiments
        if names is None or entry.name in names
    )
    baseline = whole.baseline if whole.baseline in [e.name for e in entries] else None
    update = {"experiments": entries, "seeds": seeds, "baseline": baseline}
    return whole.model_copy(update=update)


def summarized(results: Results, name: str, found: Sequence[dict[str, float]]) -> None:
    """Record means and deviations of AUC and log loss."""
    for metric in ("auc", "logloss"):
        values = [one[metric] for one in found]
        results.record(f"{name}, test {metric}", statistics.mean(values), metric)
        if len(values) > 1:
            deviation = statistics.stdev(values)
            results.record(f"{name}, test {metric}, deviation", deviation, metric)


def compared(results: Results, chosen: Suite, root: Path, prefix: str = "") -> Leaderboard:
    """Train every experiment with every seed and record where it stands.

    Args:
        results: that are added to.
        chosen: the suite.
        root: of its runs; finished trainings are kept there.
        prefix: of the names of figures.
    """
    found = leaderboard(chosen, root=root)
    for line in found.failed:
        print(line, file=sys.stderr)
    for standing in found.standings:
        name = f"{prefix}{standing.experiment}"
        mine = [r for r in found.results if r.experiment == standing.experiment]
        done = [r.test for r in mine if r.status == "done"]
        summarized(results, name, [dict(test) for test in done])
        if standing.kept is not None:
            results.record(f"{name}, rows kept", standing.kept, "share")
        results.record(f"{name}, one training", standing.seconds, "s")
    return found
