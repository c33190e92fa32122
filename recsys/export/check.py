"""Replay a bundle's golden rows in this process and print what was seen, as one line of JSON.

    python -m recsys.export.check BUNDLE

The exporter runs this in a fresh process before it publishes a bundle; anyone may run it again.
"""

import sys
from pathlib import Path

from recsys.export.bundle import Check
from recsys.export.predictor import Predictor

_TRAINING_ONLY = ("torchrec", "fbgemm_gpu", "ray", "deltalake")


def check(folder: Path) -> Check:
    """Replay the golden rows together, one by one, and in a batch of an odd size."""
    predictor = Predictor(folder)
    rows = predictor.bundle.golden()[0].height
    sizes = tuple(sorted({rows, 1, 2 * rows + 1}))
    largest = max(predictor.replay(size) for size in sizes)
    return Check(rows=rows, batch_sizes=sizes, largest_difference=largest)


def main() -> None:
    """Check the bundle named on the command line."""
    result = check(Path(sys.argv[1]))
    loaded = [name for name in _TRAINING_ONLY if name in sys.modules]
    if loaded:
        sys.exit(f"serving a bundle needs torch alone, but loading this one imported {loaded}")
    sys.stdout.write(result.model_dump_json() + "\n")


if __name__ == "__main__":
    main()
