"""Training, data path included, beside a bare TorchRec loop and the DeepFM of two other packages.

    python -m benchmarks.training [--quick]

One process on 2 cores; 13 numbers, 26 tables x 16, MLP 400-400, batch 4096. Our loop reads its
batches from an encoded log's Parquet files, shuffled; the bare loop finds random tensors ready in
memory. The other packages (their PyPI releases in an environment of their own, made below
`build/peers` on the first full run) train their DeepFM of the same sizes, in fp32, which is all
they have, from arrays in memory by their own loaders and loops. Every measurement is a process of
its own; sides alternate, and a ratio is the median of the rounds' ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.click_log import NUM_FIELDS, write_log
from benchmarks.results import Results

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "build" / "peers"
PEER_PACKAGES = (
    "torch==2.13.0",
    "deepctr-torch==0.3.0",
    "torch-rechub==0.9.0",
    "fuxictr==2.3.7",
    "requests",  # deepctr-torch imports it and does not ask for it
)
CORES = 2
BARE, DEEPCTR, RECHUB = "bare TorchRec", "DeepCTR-Torch", "torch-rechub"
PEER_SCRIPTS = {DEEPCTR: "deepctr.py", RECHUB: "rechub.py"}
LABELS = {100_000: "0.1 M", 2_600_000: "2.6 M", 10_000_000: "10 M"}


@dataclass(frozen=True)
class Comparison:
    """One of ours beside another's, and the ratio that is asked for."""

    table_rows: int
    precision: str
    peer: str
    target: float

    @property
    def ours(self) -> str:
        """Our side."""
        return f"ours {self.precision}"

    @property
    def other(self) -> str:
        """The other side; only the bare loop knows more than one precision."""
        return f"{self.peer} {self.precision}" if self.peer == BARE else self.peer


COMPARISONS = (
    Comparison(2_600_000, "fp32", BARE, 0.75),
    Comparison(2_600_000, "bf16", BARE, 0.75),
    *(Comparison(100_000, "fp32", peer, 1.8) for peer in PEER_SCRIPTS),
    *(Comparison(100_000, "bf16", peer, 3.0) for peer in PEER_SCRIPTS),
    *(Comparison(10_000_000, "fp32", peer, 10.0) for peer in PEER_SCRIPTS),
)


@dataclass(frozen=True)
class Effort:
    """How long to measure; all numbers of steps but the rounds."""

    rounds: int
    warmup: int
    """Long enough for ours to have touched the memory of its windows for the first time."""
    steps: int
    """An epoch, so that every window of the log is read within the measured time."""
    peer_warmup: int
    peer_steps: int
    slow_peer_steps: int
    """At 10 M rows, where a step of theirs takes a second."""


FULL = Effort(rounds=3, warmup=128, steps=256, peer_warmup=5, peer_steps=100, slow_peer_steps=100)
QUICK = Effort(rounds=1, warmup=4, steps=32, peer_warmup=1, peer_steps=16, slow_peer_steps=4)
BATCH_SIZE = 4096


def peer_python() -> Path:
    """The peers' interpreter, whether it is there or not."""
    return PEERS / "bin" / "python"


def peers_ready() -> bool:
    """Whether the peers' environment holds what is asked for."""
    marker = PEERS / "installed.json"
    return marker.exists() and json.loads(marker.read_text()) == list(PEER_PACKAGES)


def install_peers() -> None:
    """Make the peers' environment anew."""
    print(f"installing {', '.join(PEER_PACKAGES)} into {PEERS}", file=sys.stderr)
    venv.create(PEERS, with_pip=True, clear=True)
    subprocess.run([peer_python(), "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
    (PEERS / "installed.json").write_text(json.dumps(PEER_PACKAGES))


def command(side: str, table_rows: int, log: Path, effort: Effort) -> list[str]:
    """What runs one side once."""
    if side in PEER_SCRIPTS:
        script = Path(__file__).parent / "peers" / PEER_SCRIPTS[side]
        program = [str(peer_python()), "-W", "ignore", str(script)]
        many_rows = table_rows >= 10_000_000
        steps = effort.slow_peer_steps if many_rows else effort.peer_steps
        warmup = effort.peer_warmup
    else:
        name, precision = side.rsplit(" ", 1)
        program = [sys.executable, "-W", "ignore", "-m", "benchmarks.loops"]
        program += ["bare" if name == BARE else "ours", "--precision", precision]
        steps, warmup = effort.steps, effort.warmup
    numbers = {
        "--table-rows": table_rows,
        "--threads": CORES,
        "--warmup-steps": warmup,
        "--steps": steps,
    }
    return [*program, "--log", str(log), *(str(word) for pair in numbers.items() for word in pair)]


def in_fresh_process(program: list[str]) -> dict[str, Any]:
    """What the program prints in its last line."""
    # Waiting threads sleep, on all sides: where others work on the machine too, a thread that spins
    # for one that is off its core costs any loop ten times its share, by chance.
    threads = {"OMP_NUM_THREADS": str(CORES), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        program,
        cwd=ROOT,
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES]),
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(program)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    table_rows: int, comparisons: list[Comparison], effort: Effort, results: Results
) -> None:
    """Alternate all sides at one size of the tables, and record their medians and ratios."""
    sides = list(dict.fromkeys(side for c in comparisons for side in (c.other, c.ours)))
    rates: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        num_rows = BATCH_SIZE * max(effort.steps, effort.peer_steps)
        write_log(log, num_rows, table_rows // NUM_FIELDS)
        for _ in range(effort.rounds):
            for side, found in rates.items():
                done = in_fresh_process(command(side, table_rows, log, effort))
                found.append(done["samples_per_second"])
    size = f"{LABELS[table_rows]} table rows"
    for side in dict.fromkeys(c.other for c in comparisons):
        results.record(f"{side}, {size}", statistics.median(rates[side]), "samples/s")
    for asked in comparisons:
        pairs = zip(rates[asked.ours], rates[asked.other], strict=True)
        ratio = statistics.median(ours / other for ours, other in pairs)
        results.record(
            f"{asked.ours}, {size}",
            statistics.median(rates[asked.ours]),
            "samples/s",
            target=asked.target,
            met=ratio >= asked.target,
            peer=asked.other,
            ratio=ratio,
        )


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="an indication within 2 minutes")
    options = parser.parse_args()
    effort = QUICK if options.quick else FULL
    comparisons = list(COMPARISONS)
    if not peers_ready():
        if options.quick:
            comparisons = [c for c in comparisons if c.peer == BARE]
            print(
                f"without {' and '.join(PEER_SCRIPTS)}: a full run installs them", file=sys.stderr
            )
        else:
            install_peers()
    data = (
        "Criteo-shaped random log: 13 numbers, 26 uniformly drawn ids; peers:"
        f" {', '.join(PEER_PACKAGES[:3])}"
    )
    results = Results("training", quick=options.quick, data=data)
    for table_rows in sorted({c.table_rows for c in comparisons}):
        measure(table_rows, [c for c in comparisons if c.table_rows == table_rows], effort, results)


if __name__ == "__main__":
    main()
