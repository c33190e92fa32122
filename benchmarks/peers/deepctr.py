"""A model of DeepCTR-Torch in its own training loop, on the log of `benchmarks.click_log`.

Runs in the peers' environment, as a script. A model's defaults hold but for its sizes; Adam, no
metrics and no bar, so that its loop does nothing that ours does not. Prints one JSON line.
"""

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat, get_feature_names
from deepctr_torch.models import DCN, DIEN, DIN, WDL, AutoInt, DCNMix, DeepFM

EMBEDDING_DIM = 16
HIDDEN = (400, 400)
SIZES: dict[str, Any] = {"dnn_hidden_units": HIDDEN}
MODELS: dict[str, Callable[[list[Any]], Any]] = {
    "deepfm": lambda columns: DeepFM(columns, columns, **SIZES),
    "wide_deep": lambda columns: WDL(columns, columns, **SIZES),
    "dcn": lambda columns: DCN(columns, columns, cross_num=3, **SIZES),
    "dcn_v2": lambda columns: DCN(
        columns, columns, cross_num=3, cross_parameterization="matrix", **SIZES
    ),
    "dcn_v2_low_rank": lambda columns: DCNMix(columns, columns, cross_num=3, **SIZES),
    "autoint": lambda columns: AutoInt(columns, columns, **SIZES),
    "din": lambda columns: DIN(columns, ["C0"], att_hidden_size=(36,), **SIZES),
    "dien": lambda columns: DIEN(columns, ["C0"], gru_type="AUGRU", **SIZES),
}
HISTORIES = ("din", "dien")
"""Models that read the history."""


def main() -> None:
    """Measure it: one fit to warm up, one that counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="deepfm")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--table-rows", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--warmup-steps", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ids = np.load(arguments.log / "ids.npy", mmap_mode="r")
    numbers = np.load(arguments.log / "numbers.npy", mmap_mode="r")
    labels = np.load(arguments.log / "labels.npy", mmap_mode="r")
    rows_per_table = arguments.table_rows // ids.shape[1]
    columns = [
        *(SparseFeat(f"C{i}", rows_per_table, EMBEDDING_DIM) for i in range(ids.shape[1])),
        *(DenseFeat(f"I{i}", 1) for i in range(numbers.shape[1])),
    ]
    history = np.zeros((0, 0), dtype=np.int64)
    if arguments.model in HISTORIES:
        history = np.load(arguments.log / "history.npy", mmap_mode="r")
        item = SparseFeat("hist_C0", rows_per_table, EMBEDDING_DIM, embedding_name="C0")
        columns.append(VarLenSparseFeat(item, history.shape[1], length_name="length"))
    model = MODELS[arguments.model](columns)
    model.compile("adam", "binary_crossentropy")

    def fit(steps: int) -> float:
        size = steps * arguments.batch_size
        data = {f"C{i}": np.array(ids[:size, i]) for i in range(ids.shape[1])}
        data |= {f"I{i}": np.array(numbers[:size, i]) for i in range(numbers.shape[1])}
        if arguments.model in HISTORIES:
            data["hist_C0"] = np.array(history[:size])
            data["length"] = np.full(size, history.shape[1])
        inputs = {name: data[name] for name in get_feature_names(columns)}
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            model.fit(inputs, np.array(labels[:size]), batch_size=arguments.batch_size, verbose=0)
        return size / (time.perf_counter() - started)

    fit(arguments.warmup_steps)
    print(json.dumps({"samples_per_second": fit(arguments.steps)}))


if __name__ == "__main__":
    main()
