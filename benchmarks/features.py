"""Feature build, raw Parquet in and Delta version out, beside a bare Polars pass over the columns.

    python -m benchmarks.features [--quick]

A Criteo-shaped synthetic log, 13 numeric and 26 categorical columns, on 2 cores. The build reads,
checks labels, splits, fits on the training split, encodes and commits; the bare pass only hashes
the categorical columns from Parquet to Parquet. Both run alternately, each time in a fresh process.
Then the same builds of ten times as many rows; the build as Ray tasks beside the one in-process;
and a build with vocabularies beside FuxiCTR's preprocessing of the same rows.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from benchmarks.feature_sides import CATEGORIES, NUMBERS, SPLIT_FILES
from benchmarks.results import Results
from benchmarks.training import install_peers, peer_python, peers_ready
from feature_store.features import SPLITS
from pipelines.datasets.synthetic import SyntheticConfig, generate

CORES = 2
TARGET_RATIOS = {"build": 0.5, "build with vocabularies": 0.35}
TARGET_GB = 4.0
TARGET_CHANGE = 0.2
"""Of the rate, from few rows to many."""
TARGET_TIMES_PEER = 8.0
ON_RAY = "build with vocabularies as Ray tasks"
BARE, COMPARED = "bare pass", ("build", "build with vocabularies")
PEER_SCRIPT = Path(__file__).parent / "peers" / "fuxictr_features.py"


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rows: int
    many_rows: int
    peer_rows: int
    repeats: int


FULL = Sizes(rows=2_000_000, many_rows=20_000_000, peer_rows=400_000, repeats=5)
QUICK = Sizes(rows=300_000, many_rows=600_000, peer_rows=20_000, repeats=3)


def told(words: str) -> None:
    """Say on stderr how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def in_fresh_process(name: str, work: Path) -> dict[str, float]:
    """A side in a process of its own, on as many cores as are compared."""
    shutil.rmtree(work / "store", ignore_errors=True)
    program = ["benchmarks.ray_features"] if name == ON_RAY else ["benchmarks.feature_sides", name]
    found = run_alone([sys.executable, "-m", *program, "--work", str(work)])
    told(f"{name}: {found['seconds']:.1f} s, {found['peak_gb']:.2f} GB")
    return found


def run_alone(command: list[str]) -> dict[str, float]:
    """What a program prints in its last line."""
    done = subprocess.run(
        command,
        env={**os.environ, "POLARS_MAX_THREADS": str(CORES)},
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES]),
    )
    return json.loads(done.stdout.splitlines()[-1])


def generated(work: Path, rows: int) -> None:
    """A log of a million rows a file, or of four files if it is small."""
    told(f"generating {rows:,} rows")
    config = SyntheticConfig(layout="criteo", rows=rows)
    generate(config, work / "log", parts=max(4, rows // 1_000_000))


def measure_beside_bare_pass(work: Path, sizes: Sizes, results: Results) -> dict[str, float]:
    """Alternate the sides and record their medians; rows/s by side."""
    generated(work, sizes.rows)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in (BARE, *COMPARED)}
    for _ in range(sizes.repeats):
        for name, found in runs.items():
            found.append(in_fresh_process(name, work))
    rates = {name: [sizes.rows / run["seconds"] for run in found] for name, found in runs.items()}
    results.record(BARE, statistics.median(rates[BARE]), "rows/s")
    for name in COMPARED:
        pairs = zip(rates[name], rates[BARE], strict=True)
        ratio = statistics.median(ours / bare for ours, bare in pairs)
        results.record(
            name,
            statistics.median(rates[name]),
            "rows/s",
            target=TARGET_RATIOS[name],
            met=ratio >= TARGET_RATIOS[name],
            peer=BARE,
            ratio=ratio,
        )
        peak = max(run["peak_gb"] for run in runs[name])
        results.record(f"{name}, peak memory", peak, "GB", target=TARGET_GB, met=peak < TARGET_GB)
    return {name: statistics.median(rates[name]) for name in COMPARED}


def measure_on_ray(work: Path, sizes: Sizes, results: Results) -> None:
    """The same rows as Ray tasks, beside the build in-process."""
    here, there = (
        sizes.rows / in_fresh_process(name, work)["seconds"]
        for name in ("build with vocabularies", ON_RAY)
    )
    results.record(
        f"{ON_RAY}, their start included", there, "rows/s", peer="in-process", ratio=there / here
    )


def measure_many(work: Path, sizes: Sizes, few: dict[str, float], results: Results) -> None:
    """Builds of many rows, and how far their rate is from that of few."""
    generated(work, sizes.many_rows)
    for name in COMPARED:
        found = in_fresh_process(name, work)
        rate, peak = sizes.many_rows / found["seconds"], found["peak_gb"]
        title = f"{name}, {sizes.many_rows:,} rows"
        change = rate / few[name]
        results.record(
            title,
            rate,
            "rows/s",
            target=1.0 - TARGET_CHANGE,
            met=abs(change - 1.0) <= TARGET_CHANGE,
            peer=f"{sizes.rows:,} rows",
            ratio=change,
        )
        results.record(f"{title}, peak memory", peak, "GB", target=TARGET_GB, met=peak < TARGET_GB)


def measure_beside_peer(work: Path, sizes: Sizes, results: Results) -> None:
    """The same rows, fitted and encoded by both; eight tenths of them train."""
    config = SyntheticConfig(layout="criteo", rows=sizes.peer_rows)
    generate(config, work / "whole", parts=1)
    rows = pl.read_parquet(work / "whole" / "*.parquet").select("label", *NUMBERS, *CATEGORIES)
    (work / "log").mkdir()
    bounds = [0, sizes.peer_rows * 8 // 10, sizes.peer_rows * 9 // 10, sizes.peer_rows]
    for name, start, end in zip(SPLITS, bounds, bounds[1:], strict=False):
        rows[start:end].write_parquet(work / "log" / SPLIT_FILES[name])
    log = str(work / "log")
    peer = run_alone([str(peer_python()), "-W", "ignore", str(PEER_SCRIPT), "--log", log])
    told(f"FuxiCTR: {peer['seconds']:.1f} s, {peer['peak_gb']:.2f} GB")
    ours = in_fresh_process("build of files", work)
    times = peer["seconds"] / ours["seconds"]
    results.record(
        f"preprocessing of {sizes.peer_rows:,} rows with vocabularies",
        ours["seconds"],
        "s",
        target=TARGET_TIMES_PEER,
        met=times >= TARGET_TIMES_PEER,
        peer=f"FuxiCTR, {peer['seconds']:.1f} s",
        ratio=times,
    )


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="an indication within minutes")
    options = parser.parse_args()
    if not peers_ready():
        install_peers()
    sizes = QUICK if options.quick else FULL
    data = (
        f"synthetic log of {sizes.rows:,} rows, {len(NUMBERS)} numeric and"
        f" {len(CATEGORIES)} categorical"
    )
    results = Results("features", quick=options.quick, data=data)
    with tempfile.TemporaryDirectory() as work:
        few = measure_beside_bare_pass(Path(work), sizes, results)
        measure_on_ray(Path(work), sizes, results)
    with tempfile.TemporaryDirectory() as work:
        measure_many(Path(work), sizes, few, results)
    with tempfile.TemporaryDirectory() as work:
        measure_beside_peer(Path(work), sizes, results)


if __name__ == "__main__":
    main()
