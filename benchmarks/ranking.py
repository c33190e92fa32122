"""OutRank: do planted useless features come last, and how long do a million rows take?

    python -m benchmarks.ranking [--quick]

Frappe (`../shared/data/frappe`, or FRAPPE=/where/it/is) with three planted columns that tell
nothing, of as many values as its users, its items and its weather (negatives there have the
contexts of positives, so contexts tell of the click only together with an item); and 1 M rows of a
Criteo-shaped log with 40 features, some of them useless by design, in a process of its own.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.feature_sides import CATEGORIES, NUMBERS
from benchmarks.frappe import FRAPPE
from benchmarks.results import Results
from benchmarks.training import in_fresh_process
from feature_store.features import Categorical, FeatureSet, Label, Numeric
from feature_store.store import Store, Version
from pipelines.build import build
from pipelines.datasets.synthetic import SyntheticConfig, generate
from pipelines.ranking import Ranking, rank
from pipelines.sources import DataConfig

ROWS, QUICK_ROWS = 1_000_000, 100_000
NUM_FEATURES = 40
LABEL = "label"
MOST_SECONDS = 30.0
PLANTED = {"planted_user": 957, "planted_item": 4082, "planted_weather": 9}


def with_planted(folder: Path) -> Version:
    """Frappe's training file and three columns of chance."""
    random = np.random.default_rng(0)
    rows = pl.read_parquet(FRAPPE / "train.parquet")
    planted = {name: random.integers(0, size, len(rows)) for name, size in PLANTED.items()}
    rows.with_columns(pl.Series(name, values) for name, values in planted.items()).write_parquet(
        folder / "rows.parquet"
    )
    names = [name for name in (*PLANTED, *rows.columns) if name != LABEL]
    data = DataConfig.model_validate(
        {
            "path": str(folder / "rows.parquet"),
            "columns": dict.fromkeys((LABEL, *names), "int"),
            "split": {"by": "random"},
        }
    )
    features = FeatureSet(
        inputs=tuple(Categorical(name=name) for name in names), labels=(Label(name=LABEL),)
    )
    return build("frappe", data, features, Store(folder / "store")).version


def criteo(folder: Path, num_rows: int) -> list[str]:
    """13 counts, one of them twice, and 26 hashed ids, as a version.

    Returns:
        The useless ones.
    """
    truth = generate(SyntheticConfig(layout="criteo", rows=num_rows, values=10_000), folder / "log")
    columns = {
        LABEL: "int", **dict.fromkeys(NUMBERS, "int"), **dict.fromkeys(CATEGORIES, "string")
    }  # fmt: skip
    data = DataConfig.model_validate(
        {
            "path": str(folder / "log" / "*.parquet"),
            "columns": columns,
            "split": {"by": "random", "valid": 0, "test": 0},
        }
    )
    features = FeatureSet(
        inputs=(
            *(Categorical(name=name, encoding="hash") for name in CATEGORIES),
            *(Numeric(name=name, log1p=True, standardize=True) for name in NUMBERS),
            Numeric(name="plain", source=NUMBERS[0]),
        ),
        labels=(Label(name=LABEL),),
    )
    build("criteo", data, features, Store(folder / "store"))
    return truth["useless"]


def ranked(folder: Path) -> dict[str, Any]:
    """The features of the version that lies there by their scores, and the seconds that took."""
    version = Store(folder / "store").open("criteo")
    started = time.perf_counter()
    found = rank(version)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "worst_first": worst_first(found)}


def worst_first(found: Ranking) -> list[str]:
    """Names of the features from the last on."""
    return [feature.name for feature in reversed(found.features)]


def recorded(results: Results, where: str, worst: list[str], useless: list[str]) -> None:
    """How many of the useless features are last."""
    last = set(worst[: len(useless)]) & set(useless)
    results.record(
        f"{where}, useless features among as many that are last",
        len(last),
        "features",
        target=len(useless),
        met=len(last) == len(useless),
    )


def main() -> None:
    """Run from anywhere."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    parser.add_argument("--ranked", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ranked is not None:
        print(json.dumps(ranked(options.ranked)))
        return
    num_rows = QUICK_ROWS if options.quick else ROWS
    results = Results("ranking", quick=options.quick, data="Frappe; a Criteo-shaped log")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        if any(FRAPPE.glob("*.parquet")):
            found = rank(with_planted(folder))
            recorded(results, "Frappe", worst_first(found), list(PLANTED))
        else:
            print(f"without Frappe: no files in {FRAPPE}", file=sys.stderr)
        useless = criteo(folder, num_rows)
        program = [sys.executable, "-W", "ignore", "-m", "benchmarks.ranking"]
        done = in_fresh_process([*program, "--ranked", str(folder)])
        recorded(results, "Criteo-shaped log", done["worst_first"], useless)
        results.record(
            f"{num_rows:,} rows x {NUM_FEATURES} features, with pairs",
            done["seconds"],
            "s",
            target=MOST_SECONDS,
            met=done["seconds"] <= MOST_SECONDS,
        )


if __name__ == "__main__":
    main()
