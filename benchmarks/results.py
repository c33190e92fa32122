"""Where figures go: one JSON line each, on stdout and in `benchmarks/results/<name>.jsonl`.

The first line of a file says what the figures are worth: the machine, the versions, the data.
"""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"

_LIBRARIES = (
    "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "ray",
    "polars", "polars-hash", "pyarrow", "deltalake",
)  # fmt: skip


class Results:
    """The figures of one run of a benchmark; its file is made anew.

    Args:
        name: The benchmark, which names the file.
        quick: Figures are an indication only; they go to a file of their own.
        data: What was measured on, in words.
        folder: Where files go.
    """

    def __init__(
        self, name: str, *, quick: bool = False, data: str | None = None, folder: Path = FOLDER
    ) -> None:
        self.path = folder / f"{name}-quick.jsonl" if quick else folder / f"{name}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._write(
            {
                "benchmark": name,
                "quick": quick,
                "data": data,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": machine(),
                "versions": versions(),
            }
        )

    def record(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        target: float | None = None,
        met: bool | None = None,
        peer: str | None = None,
        ratio: float | None = None,
    ) -> None:
        """Print and keep one figure.

        Args:
            name: What was measured.
            value: How much.
            unit: Of the value.
            target: What was asked for, of the ratio where there is a peer, else of the value.
            met: Whether that was reached.
            peer: What it was measured beside, in the same run.
            ratio: Ours to the peer's.
        """
        figure = {"name": name, "value": value, "unit": unit, "target": target, "met": met}
        line = self._write({**figure, "peer": peer, "ratio": ratio})
        sys.stdout.write(line)
        sys.stdout.flush()

    def _write(self, values: dict[str, Any]) -> str:
        line = json.dumps(values, allow_nan=False) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
        return line


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cores = os.cpu_count() or 1
    return {
        "processor": _processor(),
        "cores": cores,
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        # Others' work on the machine shows here: figures of a busy machine say little.
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """The libraries that decide the figures, as installed."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
