"""FuxiCTR's preprocessing of a Criteo-shaped log: fit a vocabulary a field, write encoded Parquet.

Runs in the peers' environment, as a script. Counts are standardised, categories get ids by
frequency, as our build does beside it. Prints one JSON line.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from fuxictr.preprocess import FeatureProcessor, build_dataset

NUM_COUNTS, NUM_CATEGORIES = 13, 26


def main() -> None:
    """Preprocess `train.parquet`, `valid.parquet` and `test.parquet` of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, required=True)
    log = parser.parse_args().log
    counts = [f"n{place + 1}" for place in range(NUM_COUNTS)]
    categories = [f"c{place + 1}" for place in range(NUM_CATEGORIES)]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        processor = FeatureProcessor(
            feature_cols=[
                {
                    "name": counts,
                    "active": True,
                    "dtype": float,
                    "type": "numeric",
                    "normalizer": "StandardScaler",
                },
                {"name": categories, "active": True, "dtype": str, "type": "categorical"},
            ],
            label_col={"name": "label", "dtype": float},
            dataset_id="log",
            data_root=folder,
        )
        build_dataset(
            processor,
            train_data=str(log / "train.parquet"),
            valid_data=str(log / "valid.parquet"),
            test_data=str(log / "test.parquet"),
            data_format="parquet",
        )
        written = sorted(path.name for path in (Path(folder) / "log").glob("*.parquet"))
    if written != ["test.parquet", "train.parquet", "valid.parquet"]:
        raise RuntimeError(f"FuxiCTR wrote {written}")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_gb": usage.ru_maxrss * 1024 / 1e9}))


if __name__ == "__main__":
    main()
