"""A run's trained model, whole and on CPU, with what can be told of its size."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from feature_store.compatibility import compare
from feature_store.document import read_json
from feature_store.features import UNSEEN_ID, Layout
from feature_store.store import Store, Version
from pipelines.sources import DataConfig
from recsys import experiment as experiments
from recsys.batch import Batch
from recsys.checkpoint import Checkpoint, Checkpoints
from recsys.checkpoint import load as load_tensors
from recsys.dataset import BatchReader
from recsys.embeddings.collection import Embeddings
from recsys.embeddings.identity import require_schemes
from recsys.evaluation.results import TableSize
from recsys.experiment import Experiment
from recsys.export.signature import TextFormat
from recsys.models import ranker
from recsys.objectives import objective
from recsys.rundir import (
    CHECKPOINTS_FOLDER,
    EXPERIMENT_FILE,
    RUN_FILE,
    find_run,
    read_decisions,
    stage_folder,
)
from recsys.training.account import account
from recsys.training.step import TrainModule


@dataclass(frozen=True)
class Trained:
    """A run's model, whole and on CPU."""

    experiment: Experiment
    version: Version
    checkpoint: Checkpoint
    model: TrainModule
    other: Version | None = None
    """A version that its rows are read from instead of the one it was trained on."""

    @property
    def read_from(self) -> Version:
        """The version whose rows `batches` gives."""
        return self.other or self.version

    @property
    def embeddings(self) -> Embeddings:
        """Its embeddings, in training form."""
        embeddings = self.model.ranker.embeddings
        assert isinstance(embeddings, Embeddings), "a trained run is in training form"
        return embeddings


def made_of(checkpoint: Checkpoint) -> str:
    """What a report or a bundle was made of: the training and its checkpoint."""
    return f"{checkpoint.state['training']}/{checkpoint.folder.name}"


def load_trained(run_dir: Path, which: str = "best", stage: str | None = None) -> Trained:
    """A run's model from one of its checkpoints, whole, on CPU, in evaluation mode.

    Args:
        run_dir: the run's folder.
        which: "best" (by the early-stopping metric) or "last".
        stage: of schemes that are trained in several; None: the last, whose result is served.

    Raises:
        CheckpointMismatch: it was written under other schemes.
        RunNotFound: there is no such run.
        CheckpointNotFound: it has no complete checkpoint.
    """
    run_dir = find_run(run_dir)
    experiment = experiments.load(run_dir / EXPERIMENT_FILE)
    number = read_json(run_dir / RUN_FILE)["version_number"]
    version = Store(experiment.data.store).open(experiment.name, number)
    stages = experiment.embeddings.stages
    stage = stage or stages[-1]
    checkpoints = Checkpoints(stage_folder(run_dir, stages, stage) / CHECKPOINTS_FOLDER)
    checkpoint = checkpoints.best() if which == "best" else checkpoints.last()
    embeddings = Embeddings(
        version.layout,
        experiment.embeddings,
        torch.device("cpu"),
        stage=stage,
        decisions=read_decisions(run_dir, stages, stage),
    )
    require_schemes(checkpoint, embeddings)
    model = TrainModule(
        ranker(experiment.model, version.layout, embeddings, experiment.correction()),
        objective(experiment.objective, version.layout),
    )
    tensors = {"model": model.state_dict()}
    load_tensors(checkpoint, tensors)
    model.load_state_dict(tensors["model"])
    return Trained(experiment, version, checkpoint, model.eval())


def reading(trained: Trained, number: int) -> Trained:
    """The same model, to read the rows of another version of its features.

    Values that are in a grown vocabulary but were not when it was trained are unseen to it.

    Raises:
        VersionNotFound: There is no such version.
        IncompatibleVersion: Names every feature that means something else there, and what changed.
    """
    own = trained.version
    if number == own.number:
        return trained
    other = Store(trained.experiment.data.store).open(own.name, number)
    verdict = compare(own.fitted, other.fitted)
    verdict.require(f"a model of {own.name}@{own.number}", f"{own.name}@{number}")
    return replace(trained, other=other)


def batches(trained: Trained, split: str) -> Iterator[Batch]:
    """All rows of a split, in the order of the source.

    Where negatives were left out of the training split, those that are there weigh for the others
    too, so that rates and metrics of that split are those of all its rows.
    """
    reader = BatchReader(
        trained.read_from.files(split),
        trained.version.layout,
        batch_size=trained.experiment.training.batch_size,
    )
    correction = trained.model.ranker.correction
    for batch in reader.epoch(0):
        if trained.other is not None:
            batch.ids = _known(batch.ids, trained.version.layout)
        if correction is not None and split == "train":
            negative_B = batch.labels_BT[:, correction.task] == 0
            batch.weights_B = batch.weights_B / torch.where(negative_B, correction.rate, 1.0)
        yield batch


def _known(ids: KeyedJaggedTensor, layout: Layout) -> KeyedJaggedTensor:
    """Ids that a vocabulary had not yet are unseen."""
    parts = []
    for name, ids_V in zip(ids.keys(), ids.values().split(ids.length_per_key()), strict=True):
        cardinality = layout.id_field(name).cardinality
        parts.append(
            ids_V if cardinality is None else torch.where(ids_V < cardinality, ids_V, UNSEEN_ID)
        )
    return KeyedJaggedTensor(
        keys=ids.keys(),
        values=torch.cat(parts),
        lengths=ids.lengths(),
        weights=ids.weights_or_none(),
    )


def text_format(data: DataConfig) -> TextFormat:
    """How the training data's text was written: rows to score are read the same way."""
    columns = {name: c for table in (data, *data.joins) for name, c in table.columns.items()}
    return TextFormat(
        separators={
            name: column.separator
            for name, column in columns.items()
            if column.type.startswith("list")
        },
        formats={name: c.format for name, c in columns.items() if c.format is not None},
        null_values=data.null_values,
    )


def table_sizes(trained: Trained) -> tuple[TableSize, ...]:
    """Rows, bytes and place of every table and of every scheme's own storage."""
    plan = {row["table"]: row for row in trained.checkpoint.state["plan"]}
    embeddings = trained.embeddings
    sizes = account(embeddings, trained.experiment.training)
    return tuple(
        TableSize(
            name=size.name,
            rows=size.num_embeddings,
            embedding_dim=size.embedding_dim,
            size_bytes=size.parameter_bytes,
            optimizer_bytes=size.optimizer_bytes,
            serving_bytes=size.serving_bytes,
            scheme=size.scheme,
            sharding=plan[size.name]["sharding_type"] if size.is_table else "data_parallel",
            fields=size.fields,
        )
        for size in sizes
    )


def num_dense_parameters(model: TrainModule) -> int:
    """The model's weights outside of the tables."""
    inside = {id(parameter) for parameter in model.ranker.embeddings.parameters()}
    return sum(p.numel() for p in model.ranker.parameters() if id(p) not in inside)
