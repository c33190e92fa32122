"""A model of torch-rechub in its own training loop, on the log of `benchmarks.click_log`.

Runs in the peers' environment, as a script. A model's defaults hold but for its sizes; one epoch
of its trainer, without validation and without the model file that its `fit` writes at the end.
Prints one JSON line.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models.ranking import BST, DIN, AutoInt, DCNv2, DeepFM, WideDeep
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator

EMBEDDING_DIM = 16
HIDDEN = [400, 400]
TOWER = {"dims": HIDDEN}
MODELS: dict[str, Callable[[list[Any], list[Any], list[Any]], Any]] = {
    "deepfm": lambda dense, sparse, _: DeepFM(dense + sparse, sparse, TOWER),
    "wide_deep": lambda dense, sparse, _: WideDeep(sparse, dense + sparse, TOWER),
    "dcn_v2": lambda _, sparse, __: DCNv2(sparse, 3, TOWER, use_low_rank_mixture=False),
    "dcn_v2_low_rank": lambda _, sparse, __: DCNv2(sparse, 3, TOWER),
    "autoint": lambda dense, sparse, _: AutoInt(sparse, dense, mlp_params=TOWER),
    "din": lambda _, sparse, history: DIN(
        sparse[1:], history, sparse[:1], TOWER, {"dims": [36], "use_softmax": False}
    ),
    "bst": lambda _, sparse, history: BST(sparse[1:], history, sparse[:1], TOWER),
}
"""Made of numbers, ids and the history. Its DCN-V2, DIN and BST take no numbers."""
HISTORIES = ("din", "bst")
"""Models that read the history."""


def main() -> None:
    """Measure it: one epoch to warm up, one that counts."""
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
    sparse = [
        SparseFeature(f"C{i}", vocab_size=rows_per_table, embed_dim=EMBEDDING_DIM)
        for i in range(ids.shape[1])
    ]
    dense = [DenseFeature(f"I{i}") for i in range(numbers.shape[1])]
    history = np.zeros((0, 0), dtype=np.int64)
    sequences = []
    if arguments.model in HISTORIES:
        history = np.load(arguments.log / "history.npy", mmap_mode="r")
        past = SequenceFeature(
            "history", rows_per_table, EMBEDDING_DIM, pooling="concat", shared_with="C0"
        )
        sequences.append(past)
    model = MODELS[arguments.model](dense, sparse, sequences)
    trainer = CTRTrainer(model, optimizer_params={"lr": 1e-3}, n_epoch=1)

    def epoch(steps: int) -> float:
        size = steps * arguments.batch_size
        data = {f"C{i}": np.array(ids[:size, i]) for i in range(ids.shape[1])}
        data |= {f"I{i}": np.array(numbers[:size, i]) for i in range(numbers.shape[1])}
        if sequences:
            data["history"] = np.array(history[:size])
        first = {name: values[:1] for name, values in data.items()}
        target = np.array(labels[:size])
        batches, _, _ = DataGenerator(data, target).generate_dataloader(
            first, target[:1], first, target[:1], batch_size=arguments.batch_size
        )
        started = time.perf_counter()
        trainer.train_one_epoch(batches)
        return size / (time.perf_counter() - started)

    epoch(arguments.warmup_steps)
    print(json.dumps({"samples_per_second": epoch(arguments.steps)}))


if __name__ == "__main__":
    main()
