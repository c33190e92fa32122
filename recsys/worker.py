"""What a worker does in a training, and how the one who waits hears of it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
import torch.distributed as dist

from feature_store.store import Store
from recsys.checkpoint import Checkpoints
from recsys.dataset import BatchReader
from recsys.embeddings import sharding
from recsys.embeddings.collection import Embeddings
from recsys.embeddings.tables import tables_of
from recsys.experiment import Experiment
from recsys.models import ranker
from recsys.rundir import CHECKPOINTS_FOLDER
from recsys.training.log import RunLog, read_metrics
from recsys.training.optimizers import Optimizers, fuse
from recsys.training.step import TrainModule
from recsys.training.trainer import Trainer
from recsys.versions import quieten

OnProgress = Callable[[str, str, int | None, int | None], None]
"""Called with the stage, a few words, how much is done and how much there is (None: unknown)."""


@dataclass(frozen=True)
class TrainingJob:
    """What every worker is told; picklable."""

    experiment: Experiment
    store: Path
    """Absolute, as `run_dir`: a worker has a working directory of its own."""
    version: int
    run_dir: Path
    resume: bool
    training: str
    """Names this training apart from an earlier one in the same folder."""


def train_on_worker(job: TrainingJob, device: torch.device) -> None:
    """One worker's part of a training; runs inside the process group."""
    quieten()
    trainer = trainer_of(job, device)
    checkpoints = Checkpoints(job.run_dir / CHECKPOINTS_FOLDER)
    # A worker group that Ray starts again after a fault finds checkpoints of this very run.
    if job.resume or checkpoints.all():
        last = checkpoints.last()
        trainer.restore(last)
        trainer.saved_state["training"] = last.state["training"]
    if dist.get_rank() == 0:
        trainer.log = RunLog(job.run_dir, trainer.progress.step)
    trainer.fit()
    if trainer.log is not None:
        trainer.log.close()


def trainer_of(job: TrainingJob, device: torch.device) -> Trainer:
    """A worker's trainer: the sharded model, its optimizers and its share of the rows."""
    experiment, config = job.experiment, job.experiment.training
    version = Store(job.store).open(experiment.name, job.version)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    tables = tables_of(version.layout, experiment.embeddings)
    torch.manual_seed(config.seed)
    with torch.device(device):
        embeddings = Embeddings(version.layout, tables, torch.device("meta"))
        model = TrainModule(ranker(experiment.model, version.layout, embeddings), config.precision)
    fuse(embeddings, config.sparse_optimizer)
    sharding_plan = sharding.plan(
        model,
        tables,
        device=device,
        world_size=world_size,
        batch_size=-(-config.batch_size // world_size),
        topology=config.topology,
    )
    sharded = sharding.shard(model, sharding_plan, tables, device=device, seed=config.seed)
    trainer = Trainer(
        sharded,
        Optimizers(sharded, embeddings, config.sparse_optimizer, config.dense_optimizer),
        device,
        {
            split: BatchReader(
                version.files(split),
                version.layout,
                batch_size=config.batch_size,
                rank=rank,
                world_size=world_size,
                shuffle=split == "train",
                seed=config.seed,
            )
            for split in ("train", "valid")
        },
        config,
        Checkpoints(job.run_dir / CHECKPOINTS_FOLDER),
    )
    trainer.saved_state = {
        "training": job.training,
        "experiment": experiment.model_dump(mode="json"),
        "version": {"number": version.number, "fingerprint": version.fingerprint},
        "plan": [vars(placement) for placement in sharding.explain(sharding_plan, tables)],
    }
    return trainer


@contextmanager
def followed(run_dir: Path, num_steps: int, progress: OnProgress) -> Iterator[None]:
    """Tell of every new line of metrics.jsonl, which a worker elsewhere may be writing."""
    ended = Event()
    seen = len(read_metrics(run_dir))

    def follow() -> None:
        nonlocal seen
        while True:
            last_look = ended.wait(0.5)
            lines = read_metrics(run_dir)
            seen = min(seen, len(lines))
            for line in lines[seen:]:
                progress("train", _told(line), line["step"], num_steps)
            seen = len(lines)
            if last_look:
                return

    progress("train", "starting workers", 0, num_steps)
    thread = Thread(target=follow, name="metrics-follower", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _told(line: dict[str, Any]) -> str:
    def shown(name: str) -> str:
        return "undefined" if math.isnan(line[name]) else f"{line[name]:.4f}"

    if line["split"] == "train":
        steps, rows = line["steps_per_second"], line["samples_per_second"]
        return f"loss {shown('loss')}, {steps:.1f} steps/s, {rows:,.0f} rows/s"
    return f"validation auc {shown('auc')}, log loss {shown('logloss')}"
