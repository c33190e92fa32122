"""A run's trained model, whole and on CPU, with what can be told of its size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from feature_store.store import Store, Version
from recsys import experiment as experiments
from recsys.batch import Batch
from recsys.checkpoint import Checkpoint, Checkpoints
from recsys.checkpoint import load as load_tensors
from recsys.dataset import BatchReader
from recsys.embeddings.collection import Embeddings
from recsys.embeddings.tables import Table, tables_of
from recsys.evaluation.document import read_json
from recsys.evaluation.results import TableSize
from recsys.experiment import Experiment
from recsys.models import ranker
from recsys.rundir import CHECKPOINTS_FOLDER, EXPERIMENT_FILE, RUN_FILE, find_run
from recsys.training.optimizers import state_bytes
from recsys.training.step import TrainModule


@dataclass(frozen=True)
class Trained:
    """A run's model, whole and on CPU."""

    experiment: Experiment
    version: Version
    checkpoint: Checkpoint
    model: TrainModule


def made_of(checkpoint: Checkpoint) -> str:
    """What a report or a bundle was made of: the training and its checkpoint."""
    return f"{checkpoint.state['training']}/{checkpoint.folder.name}"


def load_trained(run_dir: Path, which: str = "best") -> Trained:
    """A run's model from one of its checkpoints, whole, on CPU, in evaluation mode.

    Args:
        run_dir: the run's folder.
        which: "best" (by the early-stopping metric) or "last".

    Raises:
        RunNotFound: there is no such run.
        CheckpointNotFound: it has no complete checkpoint.
    """
    run_dir = find_run(run_dir)
    experiment = experiments.load(run_dir / EXPERIMENT_FILE)
    number = read_json(run_dir / RUN_FILE)["version_number"]
    version = Store(experiment.data.store).open(experiment.name, number)
    checkpoints = Checkpoints(run_dir / CHECKPOINTS_FOLDER)
    checkpoint = checkpoints.best() if which == "best" else checkpoints.last()
    tables = tables_of(version.layout, experiment.embeddings)
    embeddings = Embeddings(version.layout, tables, torch.device("cpu"))
    model = TrainModule(ranker(experiment.model, version.layout, embeddings))
    tensors = {"model": model.state_dict()}
    load_tensors(checkpoint, tensors)
    model.load_state_dict(tensors["model"])
    return Trained(experiment, version, checkpoint, model.eval())


def batches(trained: Trained, split: str) -> Iterator[Batch]:
    """All rows of a split, in the order of the source."""
    reader = BatchReader(
        trained.version.files(split),
        trained.version.layout,
        batch_size=trained.experiment.training.batch_size,
    )
    return reader.epoch(0)


def table_sizes(trained: Trained) -> tuple[TableSize, ...]:
    """Rows and bytes of every table, and where the plan put it."""
    plan = {row["table"]: row for row in trained.checkpoint.state["plan"]}
    tables = trained.model.ranker.embeddings.tables
    return tuple(
        TableSize(
            name=table.name,
            rows=table.num_embeddings,
            embedding_dim=table.settings.embedding_dim,
            size_bytes=4 * table.num_parameters,
            optimizer_bytes=optimizer_bytes(table, trained.experiment),
            sharding=plan[table.name]["sharding_type"],
            fields=tuple(field.name for field in table.fields),
        )
        for table in tables
    )


def optimizer_bytes(table: Table, experiment: Experiment) -> int:
    """Bytes of optimizer state that a table brings along in training."""
    training = experiment.training
    return state_bytes(table, training.sparse_optimizer, training.dense_optimizer)


def num_dense_parameters(model: TrainModule) -> int:
    """Weights outside of the tables."""
    inside = {id(parameter) for parameter in model.ranker.embeddings.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in inside)
