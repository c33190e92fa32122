"""Models on Frappe over seeds, and a network of FuxiCTR's beside ours in the same run.

    python -m benchmarks.frappe [--quick] [--seeds N] [--models A,B]

The models are those of `examples/leaderboard.yaml`, every figure a mean over seeds of the test file
(`../shared/data/frappe`, or FRAPPE=/where/it/is), each model chosen on the validation file. Their
trainings are kept below `build/frappe`, so a benchmark that is cut off goes on where it was. Then
our DNN, its weights averaged, and FuxiCTR's train by turns, each in a process of its own with all
cores: seconds until early stopping ends them, and until ours is as good on validation as theirs
ever is. `--quick` takes one seed of the DNN, with averaged weights and without.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import Results
from benchmarks.suites import EXAMPLES, compared, suite, summarized
from benchmarks.training import (
    CORES,
    in_fresh_process,
    install_peers,
    peer_python,
    peers_ready,
)
from recsys import run as stages
from recsys.experiment import load
from recsys.leaderboard import Leaderboard
from recsys.training.log import read_metrics
from recsys.versions import import_quietly

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "frappe"
FRAPPE = Path(os.environ.get("FRAPPE", ROOT.parent / "shared" / "data" / "frappe"))
SEEDS = 5
FUXICTR = "FuxiCTR's DNN"
OURS = "our DNN, all cores"
REACHED = f"{OURS}, until its validation auc is that of {FUXICTR}"
LEAST_BEST = 0.9860
"""Test AUC that the best of our models has to reach."""
MOST_TIME = 0.5
"""Of FuxiCTR's, for our DNN."""


def overrides(folder: Path) -> tuple[str, ...]:
    """Where the data lie."""
    return (f"data.path={FRAPPE}/*.parquet", f"data.store={folder / 'store'}")


def train_once(seed: int) -> dict[str, Any]:
    """Our DNN with averaged weights, on one worker with all cores.

    Returns:
        Test metrics, the seconds of the whole training, and by validation the seconds until then
        and its AUC.
    """
    with tempfile.TemporaryDirectory() as folder:
        changed = (f"training.seed={seed}", "training.scaling.num_workers=1")
        averaged = "training.ema={decay: 0.99}"
        experiment = load(EXAMPLES / "frappe_dnn.yaml", [*overrides(WORK), *changed, averaged])
        stages.build_features(experiment)
        begun, started = time.time(), time.perf_counter()
        run_dir = stages.train(experiment, root=Path(folder))
        seconds = time.perf_counter() - started
        reached = [
            (line["time"] - begun, line["auc"])
            for line in read_metrics(run_dir)
            if line["split"] == "valid"
        ]
        metrics = stages.evaluate(run_dir).splits["test"].headline.metrics
    return {
        "auc": metrics["auc"],
        "logloss": metrics["logloss"],
        "seconds": seconds,
        "reached": reached,
    }


def beside_fuxictr(results: Results, seeds: int) -> None:
    """Train both networks by turns and record quality and time."""
    ours, theirs = [], []
    for seed in range(seeds):
        script = Path(__file__).parent / "peers" / "fuxictr_dnn.py"
        options = ["--data", str(FRAPPE), "--seed", str(seed), "--threads", str(CORES)]
        program = [str(peer_python()), "-W", "ignore", str(script), *options]
        theirs.append(in_fresh_process(program))
        program = [sys.executable, "-W", "ignore", "-m", "benchmarks.frappe", "--one", str(seed)]
        ours.append(in_fresh_process(program))
    summarized(results, FUXICTR, theirs)
    summarized(results, OURS, ours)
    seconds = [one["seconds"] for one in theirs]
    results.record(f"{FUXICTR}, training", statistics.median(seconds), "s")
    whole = [mine["seconds"] for mine in ours]
    # A validation AUC that is never reached takes for ever.
    same = [
        next((then for then, auc in mine["reached"] if auc >= other["valid_auc"]), float("inf"))
        for mine, other in zip(ours, theirs, strict=True)
    ]
    for name, mine in ((f"{OURS}, training until early stopping", whole), (REACHED, same)):
        ratio = statistics.median(a / b for a, b in zip(mine, seconds, strict=True))
        asked = MOST_TIME if name == REACHED else None
        results.record(
            name,
            statistics.median(mine),
            "s",
            target=asked,
            met=None if asked is None else ratio <= asked,
            peer=FUXICTR,
            ratio=ratio,
        )


def best_of_all(results: Results, found: Leaderboard) -> None:
    """Record how the experiment does on test that is best on validation."""
    best = found.standings[0]
    results.record(
        f"best on validation, {best.experiment}, test auc",
        best.test,
        "auc",
        target=LEAST_BEST,
        met=best.test >= LEAST_BEST,
    )


def main() -> None:
    """Run from anywhere; what was trained is kept below `build/frappe`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed of the DNN")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--models", help="names of the example, by comma; all if absent")
    parser.add_argument("--one", type=int, metavar="SEED", help=argparse.SUPPRESS)
    options = parser.parse_args()
    import_quietly()
    if options.one is not None:
        print(json.dumps(train_once(options.one)))
        return
    if not any(FRAPPE.glob("*.parquet")):
        parser.error(f"no Parquet files in {FRAPPE}; set FRAPPE to their folder")
    names = options.models.split(",") if options.models else None
    seeds = options.seeds
    if options.quick:
        names, seeds = ["dnn as it is", "dnn"], 1
    results = Results("frappe", quick=options.quick, data="Frappe in its published split")
    chosen = suite("leaderboard.yaml", seeds, names, overrides(WORK))
    best_of_all(results, compared(results, chosen, WORK / "runs"))
    if not options.quick and not peers_ready():
        install_peers()
    if peers_ready():
        beside_fuxictr(results, seeds)


if __name__ == "__main__":
    main()
