"""The build with vocabularies as Ray tasks, one a core; `benchmarks.features` runs it alone.

    python -m benchmarks.ray_features --work FOLDER

The time is with the start of Ray and of its processes; the peak memory is the driver's alone.
"""

import argparse
import json
from pathlib import Path

from benchmarks.feature_sides import measured, run_build
from recsys.training.tasks import ray_mapper


def run_ray_build(work: Path) -> None:
    """What `recsys build --on ray` does."""
    with ray_mapper(None) as mapper:
        run_build(work, "vocabulary", mapper)


def main() -> None:
    """Run the build and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    print(json.dumps(measured(lambda: run_ray_build(work))))


if __name__ == "__main__":
    main()
