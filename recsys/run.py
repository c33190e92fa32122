"""The wiring: build, train, evaluate and export, each alone or all in order.

The only place where the parts meet. Every stage leaves its result in the run's folder,
`runs/<name>/<id>/`, and finds it again: the id is a hash of the experiment, of the data version
and of the libraries, so a second run of an unchanged experiment redoes nothing.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
import torch.distributed as dist

from feature_store.asof import histories
from feature_store.store import Store, Version
from pipelines import build as pipeline
from pipelines.build import BuildResult
from pipelines.fit import fit
from pipelines.sources import DataConfig, preview
from recsys import experiment as experiments
from recsys.batch import Batch
from recsys.checkpoint import Checkpoint, Checkpoints, write_atomically
from recsys.checkpoint import load as load_tensors
from recsys.dataset import BatchReader
from recsys.embeddings import sharding
from recsys.embeddings.collection import Embeddings
from recsys.embeddings.serving import serving_form
from recsys.embeddings.sharding import Placement
from recsys.embeddings.tables import Table, tables_of
from recsys.evaluation.document import read_json
from recsys.evaluation.evaluate import Evaluator, count_rates, scored_rows
from recsys.evaluation.evaluate import evaluate as evaluate_rows
from recsys.evaluation.report import write_report
from recsys.evaluation.results import DataSummary, Report, SplitResult, TableSize
from recsys.experiment import Experiment
from recsys.export.bundle import Bundle, BundleMismatch, BundleNotFound
from recsys.export.publish import export_bundle
from recsys.export.signature import TextFormat
from recsys.models import ranker
from recsys.training.launch import launch
from recsys.training.log import RunLog, read_metrics
from recsys.training.optimizers import Optimizers, fuse, state_bytes
from recsys.training.step import TrainModule
from recsys.training.trainer import Trainer
from recsys.versions import library_versions, quieten

OnProgress = Callable[[str, str, int | None, int | None], None]
"""Called with the stage, a few words, how much is done and how much there is (None: unknown)."""

EXPERIMENT_FILE = "experiment.yaml"
RUN_FILE = "run.json"
REPORT_FILE = "report.json"
BUNDLE_FOLDER = "bundle"
LATEST = "latest"
PREVIEW_ROWS = 10_000


class RunNotFound(FileNotFoundError):
    """No run where one was named."""


@dataclass(frozen=True)
class RunSummary:
    """What `run` did."""

    folder: Path
    build: BuildResult
    report: dict[str, Any]
    bundle: Path
    tables: tuple[TableSize, ...]
    reused: tuple[str, ...]
    """Stages whose earlier result still held."""
    seconds: dict[str, float]
    """By stage."""


@dataclass(frozen=True)
class CheckResult:
    """What `check` found, none of it trained."""

    rows_read: int
    rows_rejected: int
    columns: dict[str, str]
    """Raw columns and their types."""
    placements: tuple[Placement, ...]
    optimizer_bytes: dict[str, int]
    """State of the optimizer by table."""
    estimated: bool
    """Vocabularies were counted on the first rows only, so tables may come out larger."""
    num_dense_parameters: int


@dataclass(frozen=True)
class TrainingJob:
    """What every worker is told; picklable."""

    experiment: Experiment
    store: Path
    """Absolute, as `run_dir`: a worker has a working directory of its own."""
    version: int
    run_dir: Path
    resume: bool


@dataclass(frozen=True)
class Trained:
    """A run's model, whole and on CPU."""

    experiment: Experiment
    version: Version
    checkpoint: Checkpoint
    model: TrainModule


def silent(stage: str, message: str, done: int | None = None, total: int | None = None) -> None:
    """Progress that is shown to nobody."""


def build_features(experiment: Experiment, progress: OnProgress = silent) -> BuildResult:
    """Raw files to a version in the store, or the version that these files gave before."""
    return pipeline.build(
        experiment.name,
        experiment.data,
        experiment.features,
        Store(experiment.data.store),
        on_progress=lambda stage, done, total: progress("build", stage, done, total),
    )


def train(
    experiment: Experiment,
    *,
    root: Path = Path("runs"),
    resume: bool = False,
    progress: OnProgress = silent,
) -> Path:
    """Train on the experiment's version, building it first if it is not there.

    Args:
        experiment: what to train.
        root: folder of all runs.
        resume: continue from the run's last checkpoint; else begin anew.
        progress: told of every logged step.

    Returns:
        The run's folder.

    Raises:
        CheckpointNotFound: `resume` without a checkpoint.
    """
    version = build_features(experiment, progress).version
    run_dir = prepare_run(experiment, version, root)
    checkpoints = Checkpoints(run_dir / "checkpoints")
    if resume:
        checkpoints.last()
    else:
        shutil.rmtree(checkpoints.folder, ignore_errors=True)
    steps = _num_steps(experiment, version)
    store = experiment.data.store.resolve()
    job = TrainingJob(experiment, store, version.number, run_dir.resolve(), resume)
    with _followed(run_dir, steps, progress):
        launch(train_on_worker, job, experiment.training.scaling, run_dir)
    return run_dir


def prepare_run(experiment: Experiment, version: Version, root: Path) -> Path:
    """The folder of this experiment on this version, with what it is written down in it."""
    identity = {
        "experiment": experiment.hash(),
        "version": version.fingerprint,
        "libraries": library_versions(),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    run_dir = root / experiment.name / digest[:12]
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / EXPERIMENT_FILE, experiment.to_yaml())
    document = {**identity, "version_number": version.number}
    write_atomically(run_dir / RUN_FILE, json.dumps(document, indent=1))
    latest = run_dir.parent / LATEST
    fresh = latest.with_name(f".{LATEST}.tmp")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(run_dir.name)
    fresh.replace(latest)
    return run_dir


def train_on_worker(job: TrainingJob, device: torch.device) -> None:
    """One worker's part of a training; runs inside the process group."""
    quieten()
    trainer = trainer_of(job, device)
    checkpoints = Checkpoints(job.run_dir / "checkpoints")
    # A worker group that Ray starts again after a fault finds checkpoints of this very run.
    if job.resume or checkpoints.all():
        trainer.restore(checkpoints.last())
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
        Checkpoints(job.run_dir / "checkpoints"),
    )
    trainer.saved_state = {
        "experiment": experiment.model_dump(mode="json"),
        "version": {"number": version.number, "fingerprint": version.fingerprint},
        "plan": [vars(placement) for placement in sharding.explain(sharding_plan, tables)],
    }
    return trainer


def _num_steps(experiment: Experiment, version: Version) -> int:
    config = experiment.training
    steps = config.epochs * -(-version.rows["train"] // config.batch_size)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def check(experiment: Experiment, progress: OnProgress = silent) -> CheckResult:
    """Everything that can be known without training: configuration, data, tables, plan, memory.

    Features are fitted on the first rows only, so vocabularies may grow in the build.
    """
    progress("check", "reading the first rows", None, None)
    first = preview(experiment.data, experiment.features, PREVIEW_ROWS)
    raw = histories(first.rows.lazy(), experiment.features)
    fitted = fit(raw, experiment.features)
    experiment.evaluation.check(fitted.layout)
    training = experiment.training
    tables = tables_of(fitted.layout, experiment.embeddings)
    embeddings = Embeddings(fitted.layout, tables, torch.device("meta"))
    model = TrainModule(ranker(experiment.model, fitted.layout, embeddings))
    progress("check", "planning the tables", None, None)
    world_size = training.scaling.num_workers
    sharding_plan = sharding.plan(
        model,
        tables,
        device=torch.device("cuda" if training.scaling.use_gpu else "cpu"),
        world_size=world_size,
        batch_size=-(-training.batch_size // world_size),
        topology=training.topology,
    )
    return CheckResult(
        rows_read=first.rows_read,
        rows_rejected=first.rows_rejected,
        columns={column.name: column.type for column in fitted.columns},
        placements=tuple(sharding.explain(sharding_plan, tables)),
        optimizer_bytes={table.name: optimizer_bytes(table, experiment) for table in tables},
        estimated=first.rows_read >= PREVIEW_ROWS,
        num_dense_parameters=num_dense_parameters(model),
    )


@contextmanager
def _followed(run_dir: Path, num_steps: int, progress: OnProgress) -> Iterator[None]:
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
        return "undefined" if line[name] is None else f"{line[name]:.4f}"

    if line["split"] == "train":
        return f"loss {shown('loss')}, {line['samples_per_second']:,.0f} rows/s"
    return f"validation auc {shown('auc')}, log loss {shown('logloss')}"


def find_run(path: Path) -> Path:
    """The folder of a run: itself, or the latest below `runs/<name>`.

    Raises:
        RunNotFound: neither is there.
    """
    for folder in (path, path / LATEST):
        if (folder / EXPERIMENT_FILE).exists():
            return folder.resolve()
    raise RunNotFound(
        f"{path} is no run: expected {EXPERIMENT_FILE} in it or in {path / LATEST}. Runs are"
        " folders runs/<name>/<id>; train one first (recsys run FILE)"
    )


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
    checkpoints = Checkpoints(run_dir / "checkpoints")
    checkpoint = checkpoints.best() if which == "best" else checkpoints.last()
    tables = tables_of(version.layout, experiment.embeddings)
    embeddings = Embeddings(version.layout, tables, torch.device("cpu"))
    model = TrainModule(ranker(experiment.model, version.layout, embeddings))
    tensors = {"model": model.state_dict()}
    load_tensors(checkpoint, tensors)
    model.load_state_dict(tensors["model"])
    return Trained(experiment, version, checkpoint, model.eval())


def evaluate(run_dir: Path, *, which: str = "best", progress: OnProgress = silent) -> Report:
    """Measure a run's model on its splits, beside the baselines; write the report.

    Args:
        run_dir: the run's folder.
        which: "best" or "last" checkpoint.
        progress: told of every split.
    """
    run_dir = find_run(run_dir)
    trained = load_trained(run_dir, which)
    config, version = trained.experiment.evaluation, trained.version
    progress("evaluate", "counting the training rows for the baselines", None, None)
    counted = (batch for s in config.baseline_splits for batch in batches(trained, s))
    evaluator = Evaluator(
        config,
        version.layout,
        count_rates(counted, config, version.layout),
        version.fitted.vocabularies,
    )
    splits: dict[str, SplitResult] = {}
    for number, split in enumerate(config.splits):
        progress("evaluate", f"scoring {split}", number, len(config.splits))
        rows = scored_rows(
            trained.model.ranker, batches(trained, split), config.fields, torch.device("cpu")
        )
        result = evaluate_rows(evaluator, rows)
        assert result is not None, "one process has the whole result"
        splits[split] = result
    report = Report(
        name=trained.experiment.name,
        splits=splits,
        experiment=trained.experiment.model_dump(mode="json"),
        versions=library_versions(),
        training=read_metrics(run_dir),
        tables=table_sizes(trained),
        data=_data_summary(version),
        model={
            "kind": trained.experiment.model.kind,
            "checkpoint": trained.checkpoint.folder.name,
            "dense_parameters": num_dense_parameters(trained.model),
            "finished": trained.checkpoint.state["progress"]["finished"],
        },
    )
    write_report(report, run_dir)
    progress("evaluate", "report written", len(config.splits), len(config.splits))
    return report


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


def _data_summary(version: Version) -> DataSummary:
    return DataSummary(
        name=version.name,
        version=version.number,
        fingerprint=version.fingerprint,
        rows=version.rows,
        rows_in=version.metadata["rows_in"],
        rows_rejected=version.metadata["rows_rejected"],
        rejected_path=version.metadata["rejected_path"],
        rejected_reasons=version.metadata["rejected_reasons"],
        sources=tuple(version.metadata["sources"]),
    )


def export(run_dir: Path, *, which: str = "best", progress: OnProgress = silent) -> Path:
    """Write the run's bundle, checked in a fresh process before it appears.

    Args:
        run_dir: the run's folder.
        which: "best" or "last" checkpoint.
        progress: told of every stage.

    Returns:
        The bundle's folder.
    """
    run_dir = find_run(run_dir)
    trained = load_trained(run_dir, which)
    model = trained.model.ranker
    assert isinstance(model.embeddings, Embeddings), "a trained run is in training form"
    model.embeddings = serving_form(model.embeddings)
    report = run_dir / REPORT_FILE
    headline = read_json(report)["splits"] if report.exists() else {}
    export_bundle(
        model,
        trained.version.fitted,
        trained.version.raw_sample(),
        run_dir / BUNDLE_FOLDER,
        trained.experiment.export,
        info={
            "experiment": trained.experiment.name,
            "experiment_hash": trained.experiment.hash(),
            "version": {"number": trained.version.number, "of": trained.version.fingerprint},
            "checkpoint": trained.checkpoint.folder.name,
            "metrics": {split: values["metrics"] for split, values in headline.items()},
        },
        on_progress=lambda stage, done, total: progress("export", stage, done, total),
        text=text_format(trained.experiment.data),
    )
    return run_dir / BUNDLE_FOLDER


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


def run(
    experiment: Experiment,
    *,
    root: Path = Path("runs"),
    fresh: bool = False,
    progress: OnProgress = silent,
) -> RunSummary:
    """Build, train, evaluate and export, each only where its earlier result does not hold.

    A training that was cut off is continued from its last checkpoint.

    Args:
        experiment: what to run.
        root: folder of all runs.
        fresh: train, evaluate and export again, whatever is there.
        progress: told of every stage.
    """
    seconds: dict[str, float] = {}
    reused: list[str] = []

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[stage] = time.perf_counter() - started

    def holds(stage: str, condition: bool) -> bool:
        if condition:
            reused.append(stage)
            progress(stage, "unchanged, reused", 1, 1)
        return condition

    with timed("build"):
        built = build_features(experiment, progress)
    holds("build", built.reused)
    run_dir = prepare_run(experiment, built.version, root)
    checkpoints = Checkpoints(run_dir / "checkpoints")
    with timed("train"):
        if not holds("train", not fresh and _is_finished(checkpoints)):
            resume = not fresh and bool(checkpoints.all())
            train(experiment, root=root, resume=resume, progress=progress)
    checkpoint = checkpoints.best().folder.name
    with timed("evaluate"):
        if not holds("evaluate", "train" in reused and _reported(run_dir) == checkpoint):
            evaluate(run_dir, progress=progress)
    with timed("export"):
        if not holds("export", "evaluate" in reused and _exported(run_dir) == checkpoint):
            export(run_dir, progress=progress)
    return RunSummary(
        folder=run_dir,
        build=built,
        report=read_json(run_dir / REPORT_FILE),
        bundle=run_dir / BUNDLE_FOLDER,
        tables=table_sizes(load_trained(run_dir)),
        reused=tuple(reused),
        seconds=seconds,
    )


def _is_finished(checkpoints: Checkpoints) -> bool:
    complete = checkpoints.all()
    return bool(complete) and complete[-1].state["progress"]["finished"] is not None


def _reported(run_dir: Path) -> str | None:
    """The checkpoint that the report is about; None without a report."""
    path = run_dir / REPORT_FILE
    return read_json(path)["model"]["checkpoint"] if path.exists() else None


def _exported(run_dir: Path) -> str | None:
    """The checkpoint that the bundle was made of; None without a whole one."""
    try:
        info = Bundle.open(run_dir / BUNDLE_FOLDER).manifest.info
    except (BundleNotFound, BundleMismatch):  # a damaged one is made again
        return None
    return str(info["checkpoint"])
