"""What a history is worth, and how it is read: DIN and others on Amazon's reviews.

    python -m benchmarks.histories [--quick] [--seeds N]

The suite of `examples/amazon_leaderboard.yaml` on Beauty and on Toys and Games: the last item of
every user is test, the one before it validation, with one drawn item beside each. The files lie in
`../shared/data/amazon` (or AMAZON=/where/they/are); trainings are kept below `build/histories`, so
a benchmark that is cut off goes on where it was. `--quick` takes one seed and one epoch of two.
"""

import argparse
import os
from pathlib import Path

from benchmarks.results import Results
from benchmarks.suites import compared, suite
from pipelines.datasets import fetch
from recsys.versions import import_quietly

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "histories"
AMAZON = Path(os.environ.get("AMAZON", ROOT.parent / "shared" / "data" / "amazon"))
DATASETS = ("amazon-beauty", "amazon-toys")
SEEDS = 3
PLAIN, DIN = "dnn, no history", "din"


def measure(results: Results, dataset: str, seeds: int, names: list[str] | None) -> None:
    """All experiments on one data set, and how far DIN is above the network without history."""
    fetch(dataset, WORK / "data", source=AMAZON)
    changed = [
        f"data.path={WORK / 'data' / dataset}/*.parquet",
        f"data.store={WORK / 'store' / dataset}",
    ]
    if names is not None:
        changed.append("training.epochs=1")
    chosen = suite("amazon_leaderboard.yaml", seeds, names, changed)
    chosen = chosen.model_copy(update={"name": dataset})
    found = compared(results, chosen, WORK / "runs", prefix=f"{dataset}, ")
    standings = {each.experiment: each for each in found.standings}
    if {PLAIN, DIN} <= set(standings):
        margin = standings[DIN].test - standings[PLAIN].test
        spread = max(standings[name].test_deviation for name in (PLAIN, DIN))
        results.record(
            f"{dataset}, DIN above the network without history, test auc",
            margin,
            "auc",
            target=spread,
            met=margin > spread,
        )


def main() -> None:
    """Run from anywhere."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed and epoch of two models")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    import_quietly()
    if not any(AMAZON.glob("*.txt")):
        parser.error(f"no review files in {AMAZON}; set AMAZON to their folder")
    results = Results("histories", quick=options.quick, data="Amazon reviews, leave last out")
    for dataset in DATASETS:
        names, seeds = ([PLAIN, DIN], 1) if options.quick else (None, options.seeds)
        measure(results, dataset, seeds, names)


if __name__ == "__main__":
    main()
