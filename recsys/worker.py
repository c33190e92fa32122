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

from feature_store.entities import dense_columns, open_entities
from feature_store.store import Store, Version
from recsys.checkpoint import Checkpoint, Checkpoints
from recsys.dataset import BatchReader
from recsys.embeddings import sharding
from recsys.embeddings.collection import Embeddings
from recsys.embeddings.identity import STATE_KEY as SCHEMES_KEY
from recsys.embeddings.identity import require_schemes, scheme_names
from recsys.experiment import Experiment
from recsys.models import ranker
from recsys.objectives import objective
from recsys.objectives.self_supervision import SelfSupervision
from recsys.objectives.views import ViewReader
from recsys.rundir import CHECKPOINTS_FOLDER, read_decisions, stage_folder
from recsys.training.log import RunLog, read_metrics
from recsys.training.optimizers import Optimizers, fuse
from recsys.training.step import TrainModule
from recsys.training.trainer import KEPT_FOLDER, Trainer, TrainingConfig
from recsys.versions import quieten
from recsys.warm_start import WarmStart

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
    stage: str
    """Of the embedding schemes' trainings."""
    warm: WarmStart | None = None
    """The other run's checkpoint that the first stage starts from."""

    @property
    def folder(self) -> Path:
        """Where this training keeps its checkpoints and its log."""
        return stage_folder(self.run_dir, self.experiment.embeddings.stages, self.stage)

    @property
    def config(self) -> TrainingConfig:
        """How it is trained, in this stage."""
        training = self.experiment.training
        asked = [method.epochs(self.stage) for method in self.experiment.embeddings.methods]
        epochs = max((count for count in asked if count is not None), default=training.epochs)
        update: dict[str, Any] = {"epochs": epochs}
        if self.experiment.embeddings.is_unstopped(self.stage):
            update["early_stopping"] = None
        return training.model_copy(update=update)


def train_on_worker(job: TrainingJob, device: torch.device) -> None:
    """One worker's part of a training; runs inside the process group."""
    quieten()
    trainer = trainer_of(job, device)
    _keep_for_next(job, trainer)
    checkpoints = trainer.checkpoints
    # A worker group that Ray starts again after a fault finds checkpoints of this very run.
    if job.resume or checkpoints.all():
        last = checkpoints.last()
        require_schemes(last, trainer.step.embeddings)
        trainer.restore(last)
        trainer.saved_state["training"] = last.state["training"]
    elif (before := _continued(job)) is not None:
        trainer.start_from(before)
    elif job.warm is not None:
        _start_warm(trainer, job.warm)
    if dist.get_rank() == 0:
        trainer.log = RunLog(job.folder, trainer.progress.step)
    trainer.fit()
    if trainer.log is not None:
        trainer.log.close()


def _start_warm(trainer: Trainer, warm: WarmStart) -> None:
    require_schemes(warm.checkpoint, trainer.step.embeddings, shared_only=True)
    missing = trainer.start_from(warm.checkpoint, warm.anew, warm.grown)
    trainer.saved_state["warm_start"] = {
        "from": str(warm.checkpoint.folder),
        "other_ids": list(warm.anew),
        "grown": list(warm.grown),
        "not_there": list(missing),
    }


def _continued(job: TrainingJob) -> Checkpoint | None:
    """The weights of the stage before that this one starts from."""
    embeddings = job.experiment.embeddings
    rewinds = embeddings.rewinds(job.stage)
    continues = any(job.stage in method.continues for method in embeddings.methods)
    if rewinds is None and not continues:
        return None
    before = embeddings.stages[embeddings.stages.index(job.stage) - 1]
    folder = stage_folder(job.run_dir, embeddings.stages, before)
    if rewinds is not None:
        return Checkpoints(folder / KEPT_FOLDER).last()
    return Checkpoints(folder / CHECKPOINTS_FOLDER).best()


def _keep_for_next(job: TrainingJob, trainer: Trainer) -> None:
    """Let the training keep the weights that the next stage rewinds to.

    Raises:
        ValueError: it has too few epochs to come there.
    """
    stages = job.experiment.embeddings.stages
    following = stages[stages.index(job.stage) + 1 :]
    epoch = job.experiment.embeddings.rewinds(following[0]) if following else None
    num_epochs = -(-trainer.step.num_steps // trainer.step.steps_per_epoch)
    if epoch is not None and epoch >= num_epochs:
        raise ValueError(
            f"rewind_epoch {epoch}: stage {job.stage!r} has {num_epochs} epochs, counted from 0, so"
            f" that one never begins; take {num_epochs - 1} or less, or more epochs"
        )
    trainer.keeps_epoch = epoch


def trainer_of(job: TrainingJob, device: torch.device) -> Trainer:
    """A worker's trainer: the sharded model, its optimizers and its share of the rows."""
    experiment, config = job.experiment, job.config
    version = Store(job.store).open(experiment.name, job.version)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(config.seed)
    with torch.device(device):
        embeddings = Embeddings(
            version.layout,
            experiment.embeddings,
            torch.device("meta"),
            stage=job.stage,
            decisions=read_decisions(job.run_dir, experiment.embeddings.stages, job.stage),
        )
        made = ranker(experiment.model, version.layout, embeddings, experiment.correction())
        ssl = experiment.objective.ssl
        model = TrainModule(
            made,
            objective(experiment.objective, version.layout),
            config.precision,
            None if ssl is None else SelfSupervision(ssl, version.fitted.feature_set, made),
        )
        model.objective.start(version.files("train"))
    tables = embeddings.tables
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
            name: BatchReader(
                version.files(split),
                version.layout,
                batch_size=config.batch_size,
                rank=rank,
                world_size=world_size,
                shuffle=name != "valid",
                seed=config.seed,
            )
            for name, split in (("train", "train"), ("valid", "valid"), ("search", "valid"))
        },
        config,
        Checkpoints(job.folder / CHECKPOINTS_FOLDER),
    )
    trainer.step.view_readers = view_readers(experiment, version, rank, world_size)
    trainer.saved_state = {
        "training": job.training,
        "experiment": experiment.model_dump(mode="json"),
        "version": {"number": version.number, "fingerprint": version.fingerprint},
        SCHEMES_KEY: scheme_names(embeddings),
        "plan": [vars(placement) for placement in sharding.explain(sharding_plan, tables)],
    }
    return trainer


def view_readers(
    experiment: Experiment, version: Version, rank: int, world_size: int
) -> list[ViewReader]:
    """A worker's views of each side that learns by self-supervision.

    Raises:
        EntitiesNotFound: they were not gathered when the version was built.
    """
    ssl = experiment.objective.ssl
    if ssl is None:
        return []
    return [
        ViewReader(
            open_entities(version, side, entity),
            version.layout,
            dense_columns(version.fitted.feature_set, side),
            masking=ssl.masking,
            dropout=ssl.dropout,
            batch_size=ssl.batch_size,
            default_size=experiment.training.batch_size,
            seed=experiment.training.seed,
            rank=rank,
            world_size=world_size,
        )
        for side, entity in experiment.supervised_entities().items()
    ]


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
