"""The loop: epochs of steps, with validation, early stop, logging and checkpoints in between."""

import itertools
import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from feature_store.config import Config
from recsys import checkpoint
from recsys.batch import Batch
from recsys.checkpoint import Checkpoint, CheckpointMismatch, Checkpoints
from recsys.dataset import BatchReader
from recsys.embeddings.scheme import AbstractScheme, Earlier
from recsys.embeddings.sharding import TopologyConfig
from recsys.evaluation.evaluate import gathered
from recsys.evaluation.metrics import MetricState
from recsys.normalization import MovingStatistics
from recsys.training.log import RunLog
from recsys.training.optimizers import DenseOptimizerConfig, Optimizers, SparseOptimizerConfig
from recsys.training.scaling import ScalingConfig
from recsys.training.step import Precision, Step, StepConfig, StepResult

KEPT_FOLDER = "kept"
"""Beside the checkpoints: weights that another training starts from."""


class EarlyStoppingConfig(Config):
    """Stop when the validation metric has not improved for a while."""

    metric: Literal["auc", "logloss"] = "auc"
    patience: PositiveInt = 2
    """Validations without a new best before training stops."""
    task: str | None = None
    """Label whose metric decides, here and which checkpoint is the best; absent: the first."""


class TrainingConfig(StepConfig):
    """How a model is trained; the same on one worker and on many."""

    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    """End after so many steps, whatever the epochs say."""
    batch_size: PositiveInt = 4096
    """Rows of a step over all workers: more workers train the same batches, faster."""
    precision: Precision = "fp32"
    """bf16: matrix products in bfloat16 under autocast; weights and optimizers stay float32."""
    sparse_optimizer: SparseOptimizerConfig = SparseOptimizerConfig()
    dense_optimizer: DenseOptimizerConfig = DenseOptimizerConfig()
    validate_every_steps: PositiveInt | None = None
    """Also validate within an epoch; at its end always."""
    early_stopping: EarlyStoppingConfig | None = EarlyStoppingConfig()
    log_every_steps: PositiveInt = 20
    checkpoint_every_steps: PositiveInt | None = None
    """Also save between validations; after each of them always."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest are kept beside the best."""
    warm_start: Path | None = None
    """Another run's folder, runs/NAME/ID, whose best checkpoint this one starts from. Weights of
    equal name and shape are taken over, a dynamic vocabulary into any capacity, and the rows of a
    vocabulary that has grown (features.grow_from); a feature whose vocabulary or boundaries differ
    otherwise starts anew, as optimizers do."""
    scaling: ScalingConfig = ScalingConfig()
    topology: TopologyConfig = TopologyConfig()


_ROWS_AT_ONCE = 1 << 16


class TrainingDiverged(RuntimeError):
    """The loss, or a score, is no longer a number."""


_REMEDY = (
    "Lower training.dense_optimizer.lr or training.sparse_optimizer.lr, warm up"
    " (training.schedule.warmup_steps), clip gradients (training.clip_norm), or standardize numeric"
    " features with large values; the last checkpoint is still there"
)


@dataclass
class Progress:
    """Where training stands; a checkpoint carries it."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    """Rows of the epoch that are done."""
    best_step: int | None = None
    best_value: float | None = None
    """The early-stopping metric at the best step, sign turned so that more is better."""
    misses: int = 0
    """Validations since the best one."""
    finished: str | None = None
    """Why training ended; None while it has not."""


class Trainer:
    """Trains a sharded model on its readers' batches.

    Every worker runs one, with the same configuration and its own slice of the rows. `log` is
    the first worker's alone.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizers: Optimizers,
        device: torch.device,
        readers: dict[str, BatchReader],
        config: TrainingConfig,
        checkpoints: Checkpoints,
    ) -> None:
        self.model = model
        self.optimizers = optimizers
        self.device = device
        self.readers = readers
        self.config = config
        self.checkpoints = checkpoints
        self.progress = Progress()
        steps_per_epoch = max(1, readers["train"].num_batches(0))
        self.step = Step(model, optimizers, device, config, self._num_steps(), steps_per_epoch)
        self.step.embeddings.count_rows(readers["train"].epoch(0), device)
        self.log: RunLog | None = None
        self.saved_state: dict[str, Any] = {}
        """Goes into every checkpoint beside the progress: what it belongs to."""
        self.keeps_epoch: int | None = None
        """The epoch, counted from 0, whose first weights are kept apart for another training."""
        self.kept = Checkpoints(checkpoints.folder.with_name(KEPT_FOLDER))
        """Where they are."""
        self._loss_sum: Tensor = torch.zeros((), device=device)
        self._logged = (0, time.perf_counter())

    def _num_steps(self) -> int:
        steps = self.config.epochs * self.readers["train"].num_batches(0)
        return steps if self.config.max_steps is None else min(steps, self.config.max_steps)

    def fit(self) -> Progress:
        """Train until the epochs are over, the step limit is reached or early stopping says so.

        Raises:
            ValueError: the training split has no rows, or ends within the learning rate's warm-up
                or before averages begin.
            TrainingDiverged: the loss or a validation score is NaN or infinite.
        """
        reader = self.readers["train"]
        if not reader.num_rows:
            raise ValueError("the training split has no rows; look at data.split and the source")
        self.config.schedule.check(self._num_steps())
        if self.config.ema is not None:
            self.config.ema.check(self._num_steps())
        self._logged = (self.progress.step, time.perf_counter())
        validation = self.validation_batches() if self.step.searches else None
        while self.progress.finished is None:
            if self.progress.epoch == self.keeps_epoch and self.progress.position == 0:
                self._keep()
            batches = reader.epoch(self.progress.epoch, self.progress.position)
            for _ in range(reader.num_batches(self.progress.position)):
                due = self._due()
                result = self.step.progress(batches, validation, evaluated=due.save)
                self._advance(result, due)
                if self.progress.finished is not None:
                    break
            batches.close()
        return self.progress

    def validation_batches(self) -> Iterator[Batch]:
        """Endless, one a step, shuffled anew in every pass; resumed where the steps stand."""
        reader = self.readers["search"]
        if not reader.num_rows:
            raise ValueError(
                "a scheme that searches needs validation rows; give data.split a share of them"
            )
        first, done = divmod(self.step.count, reader.num_batches())
        yield from reader.epoch(first, done * self.config.batch_size)
        for epoch in itertools.count(first + 1):
            yield from reader.epoch(epoch)

    def _due(self) -> "_Due":
        """What is done after the next step; schemes are told before it."""
        config, progress = self.config, self.progress
        step = progress.step + 1
        epoch_over = progress.position + config.batch_size >= self.readers["train"].num_rows
        finished = None
        if step == config.max_steps:
            finished = f"max_steps reached: {config.max_steps}"
        elif progress.epoch + epoch_over == config.epochs:
            finished = f"epochs done: {config.epochs}"
        validate = finished is not None or epoch_over or _every(step, config.validate_every_steps)
        save = validate or _every(step, config.checkpoint_every_steps)
        return _Due(epoch_over, finished, validate, save)

    def _advance(self, result: StepResult, due: "_Due") -> None:
        config, progress = self.config, self.progress
        progress.step += 1
        progress.position += config.batch_size
        self._loss_sum += result.loss
        if due.epoch_over:
            progress.epoch += 1
            progress.position = 0
        progress.finished = due.finished
        # Before a checkpoint too: a diverged model must not take the place of a sound one.
        if due.save or _every(progress.step, config.log_every_steps):
            self._log_training()
        if due.validate and self.readers["valid"].num_rows:
            self._validate()
        if due.save:
            self.save()

    def _log_training(self) -> None:
        """The mean loss since the last line; the only place where the host waits for the device."""
        step, now = self.progress.step, time.perf_counter()
        last_step, last_time = self._logged
        mean_loss = self._loss_sum / max(1, step - last_step)
        dist.all_reduce(mean_loss)
        loss = mean_loss.item() / dist.get_world_size()
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the loss is {loss} between step {last_step} and step {step} (epoch"
                f" {self.progress.epoch}). {_REMEDY}"
            )
        steps_per_second = (step - last_step) / max(now - last_time, 1e-9)
        terms = self._self_supervision_metrics(loss)
        self._write(
            "train",
            {
                "loss": loss,
                **terms,
                "steps_per_second": steps_per_second,
                "samples_per_second": steps_per_second * self.config.batch_size,
                **self._scheme_metrics(),
                **self.step.objective.metrics(),
            },
        )
        self._loss_sum.zero_()
        self._logged = (step, time.perf_counter())

    def _self_supervision_metrics(self, loss: float) -> dict[str, float]:
        """The loss without the terms of self-supervision, and what these have to say."""
        supervision = self.step.self_supervision
        if supervision is None:
            return {}
        metrics = supervision.metrics()
        terms = sum(value for name, value in metrics.items() if name.endswith(".loss"))
        return {"main_loss": loss - supervision.alpha * terms, **metrics}

    def _scheme_metrics(self) -> dict[str, float]:
        """What the embeddings' schemes have to say, by space."""
        return {
            f"{scheme.space.name}.{name}": value
            for scheme in self.step.embeddings.own_schemes()
            for name, value in scheme.metrics().items()
        }

    def _validate(self) -> None:
        started = time.perf_counter()
        metrics = self.evaluate("valid")
        self._write("valid", metrics)
        self._judge(metrics)
        self._logged = (self._logged[0], self._logged[1] + time.perf_counter() - started)

    def _judge(self, metrics: dict[str, float]) -> None:
        """Note a new best, or stop after too many validations without one."""
        stopping = self.config.early_stopping or EarlyStoppingConfig()
        value = metrics[stopping.metric] * (1 if stopping.metric == "auc" else -1)
        progress = self.progress
        if math.isnan(value):
            return  # one class only in the validation split: the report says so
        if progress.best_value is None or value > progress.best_value:
            progress.best_value, progress.best_step, progress.misses = value, progress.step, 0
            return
        progress.misses += 1
        if self.config.early_stopping is not None and progress.misses >= stopping.patience:
            progress.finished = progress.finished or (
                f"early stop: {stopping.metric} has not improved since step {progress.best_step}"
            )

    def evaluate(self, split: str) -> dict[str, float]:
        """Exact metrics of a split over all workers; every worker gets them.

        Those of the task that early stopping goes by have plain names. With several tasks those of
        each come with it, as `auc.buy`.

        Raises:
            TrainingDiverged: a score is NaN or infinite.
        """
        self.model.eval()
        tasks = self.readers[split].layout.tasks
        states = {task: MetricState() for task in tasks}
        with self._as_evaluated(), torch.no_grad():
            for batch in self.readers[split].epoch(0):
                batch = batch.to(self.device)
                _, logits_BT = self.model(batch)
                logits = logits_BT.cpu().numpy()
                if not np.isfinite(logits).all():
                    raise TrainingDiverged(
                        f"a score of the split {split!r} is not finite after step"
                        f" {self.progress.step}. {_REMEDY}"
                    )
                labels = batch.labels_BT.cpu().numpy()
                weights, groups = batch.weights_B.cpu().numpy(), batch.groups_B.cpu().numpy()
                for place, task in enumerate(tasks):
                    states[task].update(logits[:, place], labels[:, place], weights, groups)
        self.model.train()
        by_task = {task: merged(state) for task, state in states.items()}
        stopping = self.config.early_stopping or EarlyStoppingConfig()
        metrics = dict(by_task[stopping.task or tasks[0]])
        if len(tasks) > 1:
            for task, found in by_task.items():
                metrics |= {f"{name}.{task}": value for name, value in found.items()}
        return metrics

    def save(self) -> None:
        """Write a checkpoint of this step and forget the ones that are not kept."""
        progress = self.progress
        state = {"progress": asdict(progress), **self.saved_state}
        with self._as_evaluated():
            self.checkpoints.save(progress.step, self._tensors(), state)
        if dist.get_rank() == 0:
            self._mark_best()
            self.checkpoints.keep(self.config.keep_checkpoints)

    def _keep(self) -> None:
        """Write the weights as they are apart from the checkpoints, for another training."""
        share_statistics(self.model)
        tensors = {"model": self.model.state_dict()}
        self.kept.save(self.progress.step, tensors, {"epoch": self.progress.epoch})

    def _mark_best(self) -> None:
        progress = self.progress
        if progress.best_step is not None and progress.best_value is not None:
            self.checkpoints.mark_best(progress.best_step, {"value": progress.best_value})

    def restore(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint, written by any number of workers."""
        self.optimizers.init_state()
        tensors = self._tensors()
        checkpoint.load(saved, tensors)
        self.model.load_state_dict(tensors["model"])
        self.optimizers.combined.load_state_dict(tensors["optimizer"])
        self.progress = Progress(**saved.state["progress"])
        self.step.count = self.progress.step
        if self.step.averages is not None and self.step.averages.begun(self.progress.step):
            self.step.averages.exchange()  # the averages were saved as the model's weights
        if dist.get_rank() == 0:
            self._mark_best()  # a run killed right after saving its best one had not come to this

    def start_from(
        self, saved: Checkpoint, anew: Collection[str] = (), grown: Collection[str] = ()
    ) -> tuple[str, ...]:
        """Take over the weights that another stage's or run's model has in common with this one.

        Args:
            saved: the other's.
            anew: spaces whose ids meant other things there.
            grown: spaces that had fewer ids there, a row each: known rows are taken over.

        Returns:
            Names of this model's tensors that were not there, or not in this shape.

        Raises:
            CheckpointMismatch: there is nothing in common.
        """
        mine = self.model.state_dict()
        theirs = checkpoint.shapes(saved)
        apart = self._parameters_of(anew)
        common = {
            name: tensor
            for name, tensor in mine.items()
            if theirs.get(f"model.{name}") == _shape(tensor) and apart.isdisjoint(name.split("."))
        }
        if not common:
            raise CheckpointMismatch(
                f"{saved.folder} has no weights in common with this model; start from a run of the"
                " same model and features"
            )
        tensors = {"model": common}
        checkpoint.load(saved, tensors)
        self.model.load_state_dict({**mine, **tensors["model"]})
        embeddings = self.step.embeddings
        for child, scheme in embeddings.schemes.items():
            if isinstance(scheme, AbstractScheme) and scheme.space.name not in anew:
                earlier = _earlier(saved, list(theirs), child)
                scheme.adopt(earlier, self.step.tables, self.config.seed)
        carried = self._carry_over(saved, list(theirs), grown)
        return tuple(
            name for name in mine if name not in common and carried.isdisjoint(name.split("."))
        )

    def _carry_over(self, saved: Checkpoint, names: list[str], grown: Collection[str]) -> set[str]:
        """Take over the rows that grown tables had; returns parts of their parameters' names."""
        carried = set()
        for table in self.step.embeddings.tables:
            if not any(field.space in grown for field in table.fields):
                continue
            old_RD = _earlier(saved, names, "").table(table.name)
            if old_RD is None or old_RD.shape[1] != table.embedding_dim:
                continue
            for first in range(0, old_RD.shape[0], _ROWS_AT_ONCE):
                values_ND = old_RD[first : first + _ROWS_AT_ONCE].to(self.device)
                rows_N = torch.arange(first, first + values_ND.shape[0], device=self.device)
                self.step.tables.write_rows(table.name, rows_N, values_ND)
            carried.add(table.parameter)
        return carried

    def _parameters_of(self, spaces: Collection[str]) -> set[str]:
        """Parts of parameters' names that tell the tables and schemes of some spaces."""
        embeddings = self.step.embeddings
        children = {
            child
            for child, scheme in embeddings.schemes.items()
            if isinstance(scheme, AbstractScheme) and scheme.space.name in spaces
        }
        return children | {
            table.parameter
            for table in embeddings.tables
            if any(field.space in spaces for field in table.fields)
        }

    def _tensors(self) -> dict[str, Any]:
        """What a checkpoint holds; under `ema`, the averages are the model's weights in it."""
        averages = self.step.averages
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizers.combined.state_dict(),
            **({} if averages is None else {"trained": averages.others}),
        }

    @contextmanager
    def _as_evaluated(self) -> Iterator[None]:
        """Within, the model has the weights that are evaluated and saved."""
        averages = self.step.averages
        share_statistics(self.model)
        if averages is None:
            yield
            return
        with averages.applied(self.step.count):
            share_statistics(self.model)
            yield

    def _write(self, split: str, values: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.write(split, self.progress.step, {"epoch": self.progress.epoch, **values})


def merged(state: MetricState) -> dict[str, float]:
    """The metrics of all workers' rows together, computed once and given to every worker."""
    whole = gathered(state)
    metrics = [None if whole is None else whole.compute()]
    dist.broadcast_object_list(metrics)
    assert metrics[0] is not None
    return metrics[0]


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.metadata().size if isinstance(tensor, ShardedTensor) else tensor.shape)


def _earlier(saved: Checkpoint, names: list[str], child: str) -> Earlier:
    """A scheme in a checkpoint, by its child's name among the schemes."""

    def own(name: str) -> Tensor | None:
        full = next((n for n in names if n.endswith(f".schemes.{child}.{name}")), None)
        return None if full is None else checkpoint.read(saved, full)

    def table(name: str) -> Tensor | None:
        inside = (n for n in names if n.startswith("model.") and f"{name}_table" in n.split("."))
        full = next(inside, None)
        return None if full is None else checkpoint.read(saved, full)

    return Earlier(own, table)


def share_statistics(model: nn.Module) -> None:
    """Average the moving averages over workers, which each saw their own rows only.

    Without this a validation would score every worker's rows by other averages, and a checkpoint
    would keep those of one worker.
    """
    if dist.get_world_size() == 1:
        return
    for module in model.modules():
        if isinstance(module, MovingStatistics):
            for average_W in module.buffers():
                dist.all_reduce(average_W)
                average_W /= dist.get_world_size()


@dataclass(frozen=True)
class _Due:
    epoch_over: bool
    finished: str | None
    """Why training ends."""
    validate: bool
    save: bool


def _every(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
