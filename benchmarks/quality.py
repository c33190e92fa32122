"""Quality on MovieLens-100K: DIN beside the smoothed rates and beside a DNN without history.

    python -m benchmarks.quality [--quick]

The label is rating >= 4, the test split the last 10% of each user's ratings. Both models are those
of `examples/`, chosen on the validation split; every figure is a mean over seeds. `--quick` takes
one seed and two epochs: an indication that the code works, not of quality.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.results import Results
from pipelines.datasets import fetch
from recsys import run as stages
from recsys.experiment import load
from recsys.versions import import_quietly

EXAMPLES = Path(__file__).parent.parent / "examples"
SEEDS = (0, 1, 2)
MARGIN = 0.015
"""What DIN's AUC has to be above the baseline's."""
BASELINE = "user_item_rates"


class Score(NamedTuple):
    """A model's test metrics."""

    auc: float
    gauc: float
    logloss: float
    baseline_auc: float


def score(example: str, seed: int, folder: Path, overrides: list[str]) -> Score:
    """Train one example with one seed and measure it on the test split."""
    experiment = load(
        EXAMPLES / f"{example}.yaml",
        [
            f"data.store={folder / 'store'}",
            f"training.seed={seed}",
            "training.scaling.num_workers=1",
            *overrides,
        ],
    )
    report = stages.evaluate(stages.train(experiment, root=folder / "runs"))
    test = report.splits["test"]
    baseline = next(iter(test.baselines[BASELINE].values()))
    metrics = test.headline.metrics
    return Score(metrics["auc"], metrics["gauc"], metrics["logloss"], baseline.metrics["auc"])


def measure(results: Results, seeds: tuple[int, ...], overrides: list[str]) -> None:
    """Train both examples with every seed and record means and spreads."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        scores = {
            example: [score(example, seed, folder, overrides) for seed in seeds]
            for example in ("movielens_din", "movielens_dnn")
        }
    din, dnn = scores["movielens_din"], scores["movielens_dnn"]
    for example, found in scores.items():
        for metric in ("auc", "gauc", "logloss"):
            values = [getattr(s, metric) for s in found]
            results.record(f"{example} test {metric}, mean", statistics.mean(values), metric)
            if len(values) > 1:
                spread = statistics.stdev(values)
                results.record(f"{example} test {metric}, deviation", spread, metric)
    baseline = din[0].baseline_auc
    results.record("smoothed user and item rates, test auc", baseline, "auc")
    above = statistics.mean(s.auc for s in din) - baseline
    results.record(
        "DIN's auc above the smoothed user and item rates",
        above,
        "auc",
        target=MARGIN,
        met=above >= MARGIN,
        peer=BASELINE,
    )
    above = statistics.mean(s.gauc for s in din) - statistics.mean(s.gauc for s in dnn)
    results.record(
        "DIN's gauc above the DNN's without history",
        above,
        "gauc",
        target=0.0,
        met=above > 0,
        peer="movielens_dnn",
    )


def main() -> None:
    """Run from the project's root, where `data/` is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs")
    quick = parser.parse_args().quick
    import_quietly()
    fetch("movielens-100k", Path("data"))
    results = Results("quality", quick=quick, data="MovieLens-100K, label rating >= 4")
    measure(results, SEEDS[:1] if quick else SEEDS, ["training.epochs=2"] if quick else [])


if __name__ == "__main__":
    main()
