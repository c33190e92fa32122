"""One training loop, measured in this process: ours, or a bare TorchRec loop to hold it against.

Run as `python -m benchmarks.loops --help`; prints one JSON line. `benchmarks.training` starts it.

Shapes: B rows, N numbers, F fields, D embedding width.
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.click_log import NUM_FIELDS, NUM_NUMBERS, encoded_files, layout
from recsys.dataset import BatchReader
from recsys.embeddings import sharding
from recsys.embeddings.collection import Embeddings
from recsys.embeddings.config import EmbeddingsConfig, FeatureEmbedding
from recsys.models import ModelConfig, ranker
from recsys.models.dnn import DNNConfig
from recsys.models.history import HistoryModelConfig
from recsys.models.layers import MLPConfig
from recsys.objectives.click import LogLoss, LogLossConfig
from recsys.sweep import parsed_scheme
from recsys.training.account import account
from recsys.training.optimizers import (
    DenseOptimizerConfig,
    Optimizers,
    SparseOptimizerConfig,
    fuse,
)
from recsys.training.step import Precision, Step, StepConfig, TrainModule
from recsys.training.trainer import TrainingConfig

BATCH_SIZE = 4096
EMBEDDING_DIM = 16
HIDDEN = (400, 400)
DEVICE = torch.device("cpu")


class Memory(NamedTuple):
    """Bytes of embeddings and of the state of their optimizers."""

    accounted: int
    """As `recsys check` tells before training."""
    held: int
    """Of the tensors that are there."""
    resident: int
    """By which the process has grown, everything else in it included."""


def our_step(
    log: Path,
    rows_per_table: int,
    precision: Precision,
    scheme: str,
    budget: str | None,
    config: ModelConfig,
) -> tuple[Callable[[], None], Callable[[], Memory]]:
    """One step of what `recsys train` runs, reading the log from its Parquet files, shuffled.

    Returns:
        The step, and what the embeddings and their optimizer's state weigh by then.
    """
    torch.manual_seed(0)
    settings = FeatureEmbedding(
        embedding_dim=EMBEDDING_DIM,
        num_embeddings=rows_per_table,
        scheme=parsed_scheme(scheme),
    )
    before = resident_bytes()
    rows = layout(history=isinstance(config, HistoryModelConfig))
    embeddings = Embeddings(
        rows, EmbeddingsConfig(default=settings, budget=budget), torch.device("meta")
    )
    tables = embeddings.tables
    module = TrainModule(
        ranker(config, rows, embeddings), LogLoss(rows, LogLossConfig()), precision
    )
    sparse = SparseOptimizerConfig()
    fuse(embeddings, sparse)
    plan = sharding.plan(module, tables, device=DEVICE, world_size=1, batch_size=BATCH_SIZE)
    model = sharding.shard(module, plan, tables, device=DEVICE, seed=0)
    dense = DenseOptimizerConfig()
    optimizers = Optimizers(model, embeddings, sparse, dense)
    step = Step(model, optimizers, DEVICE, StepConfig(), num_steps=1_000_000)
    reader = BatchReader(encoded_files(log), rows, batch_size=BATCH_SIZE, shuffle=True)
    batches = itertools.chain.from_iterable(map(reader.epoch, itertools.count()))

    def memory() -> Memory:
        training = TrainingConfig(sparse_optimizer=sparse, dense_optimizer=dense)
        sizes = account(embeddings, training)
        return Memory(
            accounted=sum(size.parameter_bytes + size.optimizer_bytes for size in sizes),
            held=_held_bytes(model, optimizers),
            resident=resident_bytes() - before,
        )

    return lambda: step.progress(batches) and None, memory


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _held_bytes(model: nn.Module, optimizers: Optimizers) -> int:
    weights = {name: w for name, w in model.state_dict().items() if ".embeddings." in name}
    states = {
        f"{name} {key}": state
        for name, of_parameter in optimizers.combined.state_dict()["state"].items()
        if ".embeddings." in name
        for key, state in of_parameter.items()
        if key != "step"
    }
    return sum(_bytes(value) for value in (*weights.values(), *states.values()))


def _bytes(value: object) -> int:
    if isinstance(value, ShardedTensor):
        return sum(_bytes(local.tensor) for local in value.local_shards())
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


class BareModel(nn.Module):
    """The same arithmetic as `recsys.models.dnn.DNN` with its loss, in TorchRec's own terms."""

    def __init__(self, rows_per_table: int, precision: Precision) -> None:
        super().__init__()
        self.bf16 = precision == "bf16"
        self.collection = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=f"table_{field}",
                    embedding_dim=EMBEDDING_DIM,
                    num_embeddings=rows_per_table,
                    feature_names=[f"C{field}"],
                )
                for field in range(NUM_FIELDS)
            ],
            device=torch.device("meta"),
        )
        widths = (NUM_FIELDS * EMBEDDING_DIM + NUM_NUMBERS, *HIDDEN)
        layers: list[nn.Module] = []
        for into, out in itertools.pairwise(widths):
            layers += [nn.Linear(into, out), nn.ReLU()]
        self.tower = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, ids: KeyedJaggedTensor, numbers_BN: Tensor, labels_B: Tensor) -> Tensor:
        """Mean log loss."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits_B1 = self.tower(torch.cat([self.collection(ids).values(), numbers_BN], dim=1))
        return binary_cross_entropy_with_logits(logits_B1[:, 0].float(), labels_B)


def bare_step(rows_per_table: int, precision: Precision) -> Callable[[], None]:
    """One step of a plain TorchRec loop on random tensors that lie ready in memory."""
    torch.manual_seed(0)
    model = BareModel(rows_per_table, precision)
    apply_optimizer_in_backward(
        RowWiseAdagrad, model.collection.parameters(), {"lr": 0.05, "eps": 1e-8}
    )
    sharded = DistributedModelParallel(model, device=DEVICE)
    adam = torch.optim.Adam(sharded.module.tower.parameters(), lr=1e-3)
    batches = itertools.cycle([_random_batch(rows_per_table) for _ in range(16)])

    def step() -> None:
        adam.zero_grad()
        sharded(*next(batches)).backward()
        adam.step()

    return step


def _random_batch(rows_per_table: int) -> tuple[KeyedJaggedTensor, Tensor, Tensor]:
    ids = KeyedJaggedTensor.from_lengths_sync(
        keys=[f"C{field}" for field in range(NUM_FIELDS)],
        values=torch.randint(rows_per_table, (NUM_FIELDS * BATCH_SIZE,)),
        lengths=torch.ones(NUM_FIELDS * BATCH_SIZE, dtype=torch.int64),
    )
    return ids, torch.randn(BATCH_SIZE, NUM_NUMBERS), torch.randint(2, (BATCH_SIZE,)).float()


def samples_per_second(step: Callable[[], None], warmup_steps: int, steps: int) -> float:
    """Rows a second over `steps` steps, after a warm-up that is not counted."""
    for _ in range(warmup_steps):
        step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * BATCH_SIZE / (time.perf_counter() - started)


def a_model(text: str) -> ModelConfig:
    """A model's configuration from its JSON."""
    return TypeAdapter(ModelConfig).validate_json(text)


def main() -> None:
    """Measure one loop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("loop", choices=["ours", "bare"])
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--table-rows", type=int, required=True, help="rows of all tables together")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument(
        "--model", type=a_model, default=DNNConfig(mlp=MLPConfig(hidden=HIDDEN)), help="ours, JSON"
    )
    parser.add_argument("--scheme", default="full", help="of our embeddings")
    parser.add_argument("--budget", default=None, help="of our embeddings: a percentage")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup-steps", type=int, default=20)
    parser.add_argument("--steps", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    rows_per_table = arguments.table_rows // NUM_FIELDS
    memory = None
    if arguments.loop == "ours":
        step, memory = our_step(
            arguments.log,
            rows_per_table,
            arguments.precision,
            arguments.scheme,
            arguments.budget,
            arguments.model,
        )
    else:
        step = bare_step(rows_per_table, arguments.precision)
    value = samples_per_second(step, arguments.warmup_steps, arguments.steps)
    weighed = {} if memory is None else memory()._asdict()
    print(json.dumps({"samples_per_second": value, **weighed}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
