"""Feature build, raw Parquet in and Delta version out, beside a bare Polars pass over the columns.

    python -m benchmarks.features [--quick]

A Criteo-shaped synthetic log, 13 numeric and 26 categorical columns, on 2 cores. The build reads,
checks labels, splits, fits on the training split, encodes and commits; the bare pass only hashes
the categorical columns from Parquet to Parquet. Both run alternately, each time in a fresh process.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import polars_hash  # noqa: F401 - registers the `nchash` namespace of expressions

from benchmarks.results import Results
from feature_store.features import Categorical, Encoding, FeatureSet, Label, Numeric
from feature_store.store import Store
from pipelines.build import build
from pipelines.datasets.synthetic import SyntheticConfig, generate
from pipelines.sources import DataConfig

ROWS, QUICK_ROWS = 2_000_000, 300_000
REPEATS, QUICK_REPEATS = 5, 3
CORES = 2
TARGET_RATIO = 0.35
TARGET_GB = 3.0

NUMBERS = [f"n{i + 1}" for i in range(13)]
CATEGORIES = [f"c{i + 1}" for i in range(26)]
PARQUET = "log/*.parquet"


def feature_set(encoding: Encoding) -> FeatureSet:
    """Counts as scaled numbers, categories as ids."""
    numbers = [Numeric(name=name, log1p=True, standardize=True) for name in NUMBERS]
    categories = [Categorical(name=name, encoding=encoding) for name in CATEGORIES]
    return FeatureSet(inputs=(*numbers, *categories), labels=(Label(name="label"),))


def run_build(work: Path, encoding: Encoding) -> None:
    """What `recsys build` does, into an empty store."""
    columns = {
        "label": "int",
        **dict.fromkeys(NUMBERS, "int"),
        **dict.fromkeys(CATEGORIES, "string"),
    }
    data = DataConfig.model_validate({"path": str(work / PARQUET), "columns": columns})
    build("criteo", data, feature_set(encoding), Store(work / "store"))


def run_bare_pass(work: Path) -> None:
    """Parquet to Parquet with nothing but the hashes."""
    hashes = [pl.col(name).nchash.xxhash64().reinterpret(signed=True) for name in CATEGORIES]  # type: ignore[attr-defined]
    raw = pl.scan_parquet(work / PARQUET).select("label", *NUMBERS, *hashes)
    raw.sink_parquet(work / "bare.parquet", compression="lz4", row_group_size=1 << 17)


SIDES: dict[str, Callable[[Path], None]] = {
    "bare pass": run_bare_pass,
    "build": lambda work: run_build(work, "hash"),
    "build with vocabularies": lambda work: run_build(work, "vocabulary"),
}


def measure_side(name: str, work: Path) -> dict[str, float]:
    """Seconds and peak memory of one side, in this process."""
    start = time.perf_counter()
    SIDES[name](work)
    seconds = time.perf_counter() - start
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": seconds, "peak_gb": sum(u.ru_maxrss for u in usage) * 1024 / 1e9}


def in_fresh_process(name: str, work: Path) -> dict[str, float]:
    """The same in a process of its own, on as many cores as are compared."""
    shutil.rmtree(work / "store", ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.features", "--side", name, "--work", str(work)]
    environment = {**os.environ, "POLARS_MAX_THREADS": str(CORES)}
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES]),
    )
    return json.loads(done.stdout)


def measure(work: Path, rows: int, repeats: int, results: Results) -> None:
    """Alternate the sides and record their medians."""
    generate(SyntheticConfig(layout="criteo", rows=rows), work / "log", parts=4)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    for _ in range(repeats):
        for name, found in runs.items():
            found.append(in_fresh_process(name, work))
    rates = {name: [rows / run["seconds"] for run in found] for name, found in runs.items()}
    results.record("bare pass", statistics.median(rates["bare pass"]), "rows/s")
    for name in ("build", "build with vocabularies"):
        pairs = zip(rates[name], rates["bare pass"], strict=True)
        ratio = statistics.median(ours / bare for ours, bare in pairs)
        asked = name == "build"
        results.record(
            name,
            statistics.median(rates[name]),
            "rows/s",
            target=TARGET_RATIO if asked else None,
            met=ratio >= TARGET_RATIO if asked else None,
            peer="bare pass",
            ratio=ratio,
        )
        peak = max(run["peak_gb"] for run in runs[name])
        results.record(f"{name}, peak memory", peak, "GB", target=TARGET_GB, met=peak < TARGET_GB)


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="an indication within 2 minutes")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        print(json.dumps(measure_side(options.side, options.work)))
        return
    rows, repeats = (QUICK_ROWS, QUICK_REPEATS) if options.quick else (ROWS, REPEATS)
    data = (
        f"synthetic log of {rows:,} rows, {len(NUMBERS)} numeric and {len(CATEGORIES)} categorical"
    )
    with tempfile.TemporaryDirectory() as work:
        results = Results("features", quick=options.quick, data=data)
        measure(Path(work), rows, repeats, results)


if __name__ == "__main__":
    main()
