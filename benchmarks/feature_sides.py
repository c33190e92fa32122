"""What `benchmarks.features` compares; a side runs alone, in a process that imports little.

    python -m benchmarks.feature_sides SIDE --work FOLDER

The folder holds `log/*.parquet`. Prints one JSON line.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import polars_hash  # noqa: F401 - registers the `nchash` namespace of expressions

from feature_store.features import SPLITS, Categorical, Encoding, FeatureSet, Label, Numeric
from feature_store.store import Store
from pipelines.build import build
from pipelines.mapping import Mapper, in_process
from pipelines.sources import DataConfig

NUMBERS = [f"n{i + 1}" for i in range(13)]
CATEGORIES = [f"c{i + 1}" for i in range(26)]
PARQUET = "log/*.parquet"
SPLIT_FILES = {name: f"{name}.parquet" for name in SPLITS}


def feature_set(encoding: Encoding) -> FeatureSet:
    """Counts as scaled numbers, categories as ids."""
    numbers = [Numeric(name=name, log1p=True, standardize=True) for name in NUMBERS]
    categories = [Categorical(name=name, encoding=encoding) for name in CATEGORIES]
    return FeatureSet(inputs=(*numbers, *categories), labels=(Label(name="label"),))


def data_config(path: str, **more: Any) -> DataConfig:
    """The log as a user describes it."""
    columns = {
        "label": "int",
        **dict.fromkeys(NUMBERS, "int"),
        **dict.fromkeys(CATEGORIES, "string"),
    }
    return DataConfig.model_validate({"path": path, "columns": columns, **more})


def run_build(work: Path, encoding: Encoding, mapper: Mapper = in_process) -> None:
    """What `recsys build` does, into an empty store."""
    data = data_config(str(work / PARQUET))
    build("criteo", data, feature_set(encoding), Store(work / "store"), mapper=mapper)


def run_build_of_files(work: Path) -> None:
    """A build of the rows as the peer gets them, in a file of each split."""
    split = {"by": "file", "files": SPLIT_FILES}
    data = data_config(str(work / PARQUET), split=split)
    build("criteo", data, feature_set("vocabulary"), Store(work / "store"))


def run_bare_pass(work: Path) -> None:
    """Parquet to Parquet with nothing but the hashes."""
    hashes = [pl.col(name).nchash.xxhash64().reinterpret(signed=True) for name in CATEGORIES]  # type: ignore[attr-defined]
    raw = pl.scan_parquet(work / PARQUET).select("label", *NUMBERS, *hashes)
    raw.sink_parquet(work / "bare.parquet", compression="lz4", row_group_size=1 << 17)


SIDES: dict[str, Callable[[Path], None]] = {
    "bare pass": run_bare_pass,
    "build": lambda work: run_build(work, "hash"),
    "build with vocabularies": lambda work: run_build(work, "vocabulary"),
    "build of files": run_build_of_files,
}


def measured(side: Callable[[], None]) -> dict[str, float]:
    """Seconds and peak memory of one side, in this process."""
    start = time.perf_counter()
    side()
    seconds = time.perf_counter() - start
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": seconds, "peak_gb": sum(u.ru_maxrss for u in usage) * 1024 / 1e9}


def main() -> None:
    """Run a side and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    print(json.dumps(measured(lambda: SIDES[options.side](options.work))))


if __name__ == "__main__":
    main()
