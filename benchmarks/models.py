"""Training speed of every model, beside the same model of DeepCTR-Torch and torch-rechub.

    python -m benchmarks.models [--quick] [--models A,B]

The log and the rules are those of `benchmarks.training` (one process on 2 cores, 13 numbers, 26
tables x 16 with 0.1 M rows in all, batch 4096, towers 400-400, fp32): sides alternate, every
measurement is a process of its own, and a ratio is the median of the rounds' ratios. Models of
histories read 20 earlier items a row. A peer is named where its package on PyPI has the model;
FuxiCTR's has none. Theirs is their own form of it: DeepCTR-Torch's AutoInt attends over the ids and
not the numbers, torch-rechub's DCN-V2, DIN and BST leave the numbers out.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.click_log import NUM_FIELDS, write_log
from benchmarks.results import Results
from benchmarks.training import (
    BATCH_SIZE,
    CORES,
    DEEPCTR,
    PEER_PACKAGES,
    PEER_SCRIPTS,
    RECHUB,
    in_fresh_process,
    install_peers,
    peer_python,
    peers_ready,
)

TABLE_ROWS = 100_000
TOWER = {"hidden": [400, 400]}


@dataclass(frozen=True)
class Subject:
    """A model, and who else has it."""

    config: dict[str, Any]
    peers: tuple[str, ...] = ()
    history: bool = False


SUBJECTS = {
    "lr": Subject({"kind": "lr"}),
    "fm": Subject({"kind": "fm"}),
    "dnn": Subject({"kind": "dnn", "mlp": TOWER}),
    "wide_deep": Subject({"kind": "wide_deep", "mlp": TOWER}, (DEEPCTR, RECHUB)),
    "deepfm": Subject({"kind": "deepfm", "mlp": TOWER}, (DEEPCTR, RECHUB)),
    "dcn": Subject({"kind": "dcn", "cross_layers": 3, "mlp": TOWER}, (DEEPCTR,)),
    "dcn_v2": Subject({"kind": "dcn_v2", "mlp": TOWER}, (DEEPCTR, RECHUB)),
    "dcn_v2_low_rank": Subject({"kind": "dcn_v2", "low_rank": {}, "mlp": TOWER}, (DEEPCTR, RECHUB)),
    "dlrm": Subject({"kind": "dlrm", "bottom_mlp": {"hidden": [400, 16]}, "top_mlp": TOWER}),
    "autoint": Subject({"kind": "autoint", "attention_dim": 16, "mlp": TOWER}, (DEEPCTR, RECHUB)),
    "arm_net": Subject({"kind": "arm_net", "mlp": TOWER}),
    "final_mlp": Subject(
        {
            "kind": "final_mlp",
            "mlp1": TOWER,
            "mlp2": TOWER,
            "gate1": {"context": ["C0"]},
            "gate2": {"context": ["C13"]},
        }
    ),
    "mask_net": Subject({"kind": "mask_net", "blocks": [400, 400]}),
    "mmoe": Subject({"kind": "mmoe", "expert_mlp": TOWER}),
    "ple": Subject({"kind": "ple", "expert_mlp": TOWER}),
    "two_tower": Subject({"kind": "two_tower", "query_mlp": TOWER, "item_mlp": TOWER}),
    "din": Subject({"kind": "din", "mlp": TOWER}, (DEEPCTR, RECHUB), history=True),
    "dien": Subject({"kind": "dien", "mlp": TOWER}, (DEEPCTR,), history=True),
    "bst": Subject({"kind": "bst", "mlp": TOWER}, (RECHUB,), history=True),
}


@dataclass(frozen=True)
class Effort:
    """How long to measure; all numbers of steps but the rounds."""

    rounds: int
    warmup: int
    steps: int


FULL = Effort(rounds=3, warmup=4, steps=24)
QUICK = Effort(rounds=1, warmup=2, steps=8)
OURS = "ours"


def command(name: str, side: str, log: Path, effort: Effort) -> list[str]:
    """What runs one side of one model once."""
    if side == OURS:
        program = [sys.executable, "-W", "ignore", "-m", "benchmarks.loops", "ours"]
        program += ["--model", json.dumps(SUBJECTS[name].config)]
    else:
        script = Path(__file__).parent / "peers" / PEER_SCRIPTS[side]
        program = [str(peer_python()), "-W", "ignore", str(script), "--model", name]
    numbers = {
        "--table-rows": TABLE_ROWS,
        "--threads": CORES,
        "--warmup-steps": effort.warmup,
        "--steps": effort.steps,
    }
    return [*program, "--log", str(log), *(str(word) for pair in numbers.items() for word in pair)]


def measure(name: str, log: Path, effort: Effort, results: Results, *, alone: bool) -> None:
    """Alternate a model's sides, and record their medians and ratios."""
    peers = () if alone else SUBJECTS[name].peers
    rates: dict[str, list[float]] = {side: [] for side in (*peers, OURS)}
    for _ in range(effort.rounds):
        for side, found in rates.items():
            found.append(in_fresh_process(command(name, side, log, effort))["samples_per_second"])
    ours = statistics.median(rates[OURS])
    if not peers:
        results.record(name, ours, "samples/s")
    for peer in peers:
        results.record(f"{name}, {peer}", statistics.median(rates[peer]), "samples/s")
        pairs = zip(rates[OURS], rates[peer], strict=True)
        ratio = statistics.median(mine / other for mine, other in pairs)
        results.record(name, ours, "samples/s", peer=peer, ratio=ratio)


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of eight steps")
    parser.add_argument("--models", help=f"by comma; {', '.join(SUBJECTS)} if absent")
    options = parser.parse_args()
    names = options.models.split(",") if options.models else list(SUBJECTS)
    effort = QUICK if options.quick else FULL
    if not options.quick and not peers_ready():
        install_peers()
    alone = not peers_ready()
    if alone:
        print(f"without {' and '.join(PEER_SCRIPTS)}: a full run installs them", file=sys.stderr)
    data = (
        "Criteo-shaped random log: 13 numbers, 26 uniformly drawn ids, for models of histories 20"
        f" items; peers: {', '.join(PEER_PACKAGES[:3])}"
    )
    results = Results("models", quick=options.quick, data=data)
    with tempfile.TemporaryDirectory() as folder:
        rows = BATCH_SIZE * max(effort.steps, effort.warmup)
        logs = {history: Path(folder) / f"log-{history}" for history in (False, True)}
        for history, log in logs.items():
            write_log(log, rows, TABLE_ROWS // NUM_FIELDS, history=history)
        for name in names:
            measure(name, logs[SUBJECTS[name].history], effort, results, alone=alone)


if __name__ == "__main__":
    main()
