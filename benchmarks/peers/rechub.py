"""torch-rechub's DeepFM in its own training loop, on the log of `benchmarks.click_log`.

Runs in the peers' environment, as a script. The model's defaults hold but for its sizes; one epoch
of its trainer, without validation and without the model file that its `fit` writes at the end.
Prints one JSON line.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.ranking import DeepFM
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator

EMBEDDING_DIM = 16
HIDDEN = [400, 400]


def main() -> None:
    """Measure it: one epoch to warm up, one that counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    model = DeepFM(dense + sparse, sparse, {"dims": HIDDEN})
    trainer = CTRTrainer(model, optimizer_params={"lr": 1e-3}, n_epoch=1)

    def epoch(steps: int) -> float:
        size = steps * arguments.batch_size
        data = {f"C{i}": np.array(ids[:size, i]) for i in range(ids.shape[1])}
        data |= {f"I{i}": np.array(numbers[:size, i]) for i in range(numbers.shape[1])}
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
