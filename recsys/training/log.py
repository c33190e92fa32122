"""What a run says of itself while it trains: metrics.jsonl, and the same for TensorBoard."""

import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from feature_store.document import from_text, to_text
from recsys.checkpoint import write_atomically

METRICS_FILE = "metrics.jsonl"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl; none if it has not begun."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    # A run that is writing right now may have a last line without its end.
    return [from_text(line) for line in lines if line.endswith("\n")]


class RunLog:
    """Appends to metrics.jsonl and to TensorBoard; one worker owns it.

    Args:
        run_dir: the run's folder.
        step: what comes after this step, written by a run that was cut off, is forgotten.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(run_dir) if line["step"] <= step]
        self.path = run_dir / METRICS_FILE
        write_atomically(self.path, "".join(_line(line) for line in kept))
        self.tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def write(self, split: str, step: int, values: dict[str, Any]) -> None:
        """One line; a value that is not a number is written as null and named."""
        line = {"time": round(time.time(), 3), "split": split, "step": step, **values}
        for name, value in values.items():
            if isinstance(value, float):
                self.tensorboard.add_scalar(f"{name}/{split}", value, step)
        with self.path.open("a") as file:
            file.write(_line(line))

    def close(self) -> None:
        """Flush TensorBoard's events."""
        self.tensorboard.close()


def _line(values: dict[str, Any]) -> str:
    return to_text(values, indent=None) + "\n"
