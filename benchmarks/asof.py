"""As-of join: windowed counters of a user's events just before each click, files in and files out.

    python -m benchmarks.asof [--quick]

5 M clicks and 20 M events of a million users, popular ones having most of both, in Parquet files;
three counters (an hour, a day, 30 days). In a fresh process on 2 cores the clicks are read, joined
and written with their counters. Those of a sample of users are compared with a join of every click
with every event of its user, filtered by time and grouped by the click.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.results import Results
from feature_store.features import FeatureSet, Label, Numeric
from pipelines.sources import DataConfig, read

CLICKS, EVENTS, USERS = 5_000_000, 20_000_000, 1_000_000
QUICK_SHARE = 20
CORES = 2
DAYS = 60
HOURS = {"events_1h": 1, "events_1d": 24, "events_30d": 30 * 24}
TARGET_SECONDS, TARGET_GB = 60.0, 6.0
SAMPLED_USERS = 500
PART_ROWS = 1_000_000


def write_log(folder: Path, num_clicks: int, num_events: int, num_users: int) -> None:
    """Clicks and events in no order of time, as Parquet files of a million rows."""
    random = np.random.default_rng(0)
    for name, num_rows in (("clicks", num_clicks), ("events", num_events)):
        (folder / name).mkdir()
        for part, start in enumerate(range(0, num_rows, PART_ROWS)):
            size = min(PART_ROWS, num_rows - start)
            # The square of an even draw: a user's share falls with the root of the rank.
            users = (random.random(size) ** 2 * num_users).astype(np.int64)
            times = random.integers(0, DAYS * 86_400, size)
            frame = pl.DataFrame({"user": users, "time": times, "clicked": times % 2})
            frame.write_parquet(folder / name / f"{part:03d}.parquet")


def config(work: Path) -> DataConfig:
    """The join as a user declares it."""
    columns = {"user": "int", "time": "int"}
    counters = [{"name": name, "window": f"{hours}h"} for name, hours in HOURS.items()]
    return DataConfig.model_validate(
        {
            "path": str(work / "clicks"),
            "columns": {**columns, "clicked": "int"},
            "events": [
                {
                    "name": "events",
                    "path": str(work / "events"),
                    "columns": columns,
                    "by": "user",
                    "time": "time",
                    "counters": counters,
                }
            ],
        }
    )


def run_join(work: Path) -> dict[str, float]:
    """Seconds and peak memory of the join, in this process."""
    features = FeatureSet(
        inputs=tuple(Numeric(name=name) for name in HOURS),
        labels=(Label(name="clicked"),),
        timestamp="time",
        group="user",
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=work) as staged:
        joined = read(config(work), features, Path(staged)).frame
        joined.sink_parquet(work / "joined.parquet", compression="lz4")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "peak_gb": peak}


def in_fresh_process(work: Path) -> dict[str, float]:
    """The same in a process of its own, on two cores."""
    command = [sys.executable, "-m", "benchmarks.asof", "--work", str(work)]
    done = subprocess.run(
        command,
        env={**os.environ, "POLARS_MAX_THREADS": str(CORES)},
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES]),
    )
    return json.loads(done.stdout)


def compared(work: Path, num_users: int) -> tuple[int, int]:
    """Sampled clicks, and how many of them have other counters than a naive group-by gives."""
    sampled = pl.Series("user", range(0, num_users, max(1, num_users // SAMPLED_USERS)))
    mine = pl.col("user").is_in(sampled.implode())
    clicks = pl.scan_parquet(work / "joined.parquet").filter(mine).collect()
    events = pl.scan_parquet(work / "events" / "*.parquet").filter(mine).collect()
    pairs = clicks.join(events, on="user", suffix="_event").with_columns(
        ago=pl.col("time") - pl.col("time_event")
    )
    past = pairs.filter(pl.col("ago") > 0)
    counts = past.group_by("__row").agg(
        (pl.col("ago") <= hours * 3600).sum().cast(pl.Int64).alias(f"naive {name}")
        for name, hours in HOURS.items()
    )
    both = clicks.join(counts, on="__row", how="left")
    wrong = pl.any_horizontal(
        pl.col(name) != pl.col(f"naive {name}").fill_null(0) for name in HOURS
    )
    return len(both), both.select(wrong.sum()).item()


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="an indication within a minute")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        print(json.dumps(run_join(options.work)))
        return
    share = QUICK_SHARE if options.quick else 1
    clicks, events, users = CLICKS // share, EVENTS // share, USERS // share
    data = f"{clicks:,} clicks and {events:,} events of {users:,} users, {len(HOURS)} counters"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        results = Results("asof", quick=options.quick, data=data)
        write_log(work, clicks, events, users)
        run = in_fresh_process(work)
        seconds, peak = run["seconds"], run["peak_gb"]
        met = seconds <= TARGET_SECONDS
        results.record("as-of join", seconds, "s", target=TARGET_SECONDS, met=met)
        results.record("as-of join", clicks / seconds, "clicks/s")
        results.record("peak memory", peak, "GB", target=TARGET_GB, met=peak < TARGET_GB)
        sampled, wrong = compared(work, users)
        results.record("clicks compared with a naive group-by", sampled, "clicks")
        results.record("clicks that differ from it", wrong, "clicks", target=0, met=not wrong)


if __name__ == "__main__":
    main()
