"""The wiring: build, train, evaluate and export, each alone or all in order.

The only place where the parts meet. Every stage leaves its result in the run's folder,
`runs/<name>/<id>/` (`recsys.rundir`), and finds it again, so a second run of an unchanged
experiment redoes nothing.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from feature_store.asof import histories
from feature_store.document import read_json
from feature_store.online_store import window_rules
from feature_store.selection import SELECTION_FILE
from feature_store.store import Store, Version
from pipelines import build as pipeline
from pipelines.build import BuildResult
from pipelines.entities import gather
from pipelines.fit import fit
from pipelines.mapping import Mapper, in_process
from pipelines.sources import preview
from recsys.checkpoint import Checkpoints
from recsys.embeddings import sharding
from recsys.embeddings.collection import Embeddings
from recsys.embeddings.quantized import Precision
from recsys.embeddings.selected import selected_fields
from recsys.embeddings.sharding import Placement
from recsys.evaluation.evaluate import Evaluator, count_rates, scored_rows
from recsys.evaluation.evaluate import evaluate as evaluate_rows
from recsys.evaluation.report import write_report
from recsys.evaluation.results import (
    DataSummary,
    Report,
    SplitResult,
    TableSize,
    main_split,
)
from recsys.experiment import Experiment
from recsys.explain import report_explanation
from recsys.export.bundle import Bundle, BundleMismatch, BundleNotFound
from recsys.export.publish import export_bundle
from recsys.models import ranker
from recsys.objectives import objective
from recsys.precision import reduced
from recsys.rundir import (
    BUNDLE_FOLDER,
    CHECKPOINTS_FOLDER,
    REPORT_FILE,
    find_run,
    prepare_run,
    report_folder,
)
from recsys.stages import is_begun, train_stages
from recsys.trained import (
    batches,
    load_trained,
    made_of,
    num_dense_parameters,
    reading,
    table_sizes,
    text_format,
)
from recsys.training.account import StorageSize, account, full_bytes
from recsys.training.log import read_metrics
from recsys.training.step import TrainModule
from recsys.training.tasks import ray_mapper
from recsys.versions import library_versions
from recsys.worker import OnProgress

PREVIEW_ROWS = 10_000


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
    worker_bytes: tuple[int, ...]
    """Table weights on each worker, by rank."""
    sizes: tuple[StorageSize, ...]
    """Bytes of every table and of every scheme's own storage."""
    full_bytes: int
    """Of the uncompressed tables."""
    estimated: bool
    """Vocabularies were counted on the first rows only, so tables may come out larger."""
    num_dense_parameters: int


def silent(stage: str, message: str, done: int | None = None, total: int | None = None) -> None:
    """Progress that is shown to nobody."""


def mapper_of(
    on: Literal["here", "ray"], address: str | None = None, cpus_per_task: int = 1
) -> AbstractContextManager[Mapper]:
    """What works off the parts of a build.

    Args:
        on: in this process, or as Ray tasks.
        address: of a running cluster; None: this machine.
        cpus_per_task: also the number of threads of a Ray task.
    """
    if on == "here":
        return nullcontext(in_process)
    return ray_mapper(address, cpus_per_task=cpus_per_task)


def build_features(
    experiment: Experiment, progress: OnProgress = silent, mapper: Mapper = in_process
) -> BuildResult:
    """Raw files to a version in the store, or the version that these files gave before."""

    def told(stage: str, done: int, total: int | None) -> None:
        progress("build", stage, done, total)

    built = pipeline.build(
        experiment.name,
        experiment.data,
        experiment.features,
        Store(experiment.data.store),
        on_progress=told,
        needed=_needed(experiment),
        mapper=mapper,
    )
    for side, entity in experiment.supervised_entities().items():
        gather(built.version, side, entity, on_progress=told)
    return built


def _needed(experiment: Experiment) -> dict[str, str]:
    """Features that no selection may leave out, and why."""
    settings = dict.fromkeys(experiment.embeddings.features, "embeddings.features names it")
    entities = experiment.supervised_entities().values()
    return {
        **settings,
        **dict.fromkeys(experiment.evaluation.fields, "the evaluation reads it"),
        **dict.fromkeys(entities, "objective.ssl tells entities apart by it"),
    }


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
    return _train(experiment, version, root=root, resume=resume, progress=progress)


def _train(
    experiment: Experiment, version: Version, *, root: Path, resume: bool, progress: OnProgress
) -> Path:
    run_dir = prepare_run(experiment, version, root)
    train_stages(experiment, version, run_dir, resume=resume, progress=progress)
    return run_dir


def check(experiment: Experiment, progress: OnProgress = silent) -> CheckResult:
    """Everything that can be known without training: configuration, data, tables, plan, memory.

    Features are fitted on the first rows only, so vocabularies may grow in the build.
    """
    progress("check", "reading the first rows", None, None)
    features, selection = pipeline.selected(
        experiment.features,
        _needed(experiment),
        lambda line, done, total: progress("check", line, done, total),
    )
    first = preview(experiment.data, features, PREVIEW_ROWS)
    fitted = fit(histories(first.rows.lazy(), features), features, selection)
    experiment.evaluation.check(fitted.layout)
    training = experiment.training
    embeddings = Embeddings(fitted.layout, experiment.embeddings, torch.device("meta"))
    tables = embeddings.tables
    model = TrainModule(
        ranker(experiment.model, fitted.layout, embeddings),
        objective(experiment.objective, fitted.layout),
    )
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
    placements = tuple(sharding.explain(sharding_plan, tables))
    return CheckResult(
        rows_read=first.rows_read,
        rows_rejected=first.rows_rejected,
        columns={column.name: column.type for column in fitted.columns},
        placements=placements,
        worker_bytes=sharding.worker_bytes(placements, world_size),
        sizes=account(embeddings, training),
        full_bytes=full_bytes(embeddings),
        estimated=first.rows_read >= PREVIEW_ROWS,
        num_dense_parameters=num_dense_parameters(model),
    )


def evaluate(
    run_dir: Path,
    *,
    which: str = "best",
    on: int | None = None,
    progress: OnProgress = silent,
) -> Report:
    """Measure a run's model on its splits, beside the baselines; write the report.

    Args:
        run_dir: the run's folder.
        which: "best" or "last" checkpoint.
        on: number of another version of its features, whose splits are read instead; the report
            then has a folder of its own (`rundir.report_folder`), and no explanation.
        progress: told of every split.

    Raises:
        IncompatibleVersion: features mean something else in that version; names them.
    """
    run_dir = find_run(run_dir)
    trained = load_trained(run_dir, which)
    if on is not None:
        trained = reading(trained, on)
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
    main = main_split(splits)
    explanation = None
    if config.explain is not None and trained.other is None and version.rows[main]:
        explanation = report_explanation(trained, main, config.explain, progress)
    report = Report(
        name=trained.experiment.name,
        splits=splits,
        experiment=trained.experiment.model_dump(mode="json"),
        versions=library_versions(),
        training=read_metrics(run_dir),
        tables=table_sizes(trained),
        data=_data_summary(trained.read_from),
        model={
            "kind": trained.experiment.model.kind,
            "checkpoint": trained.checkpoint.folder.name,
            "made_of": made_of(trained.checkpoint),
            "dense_parameters": num_dense_parameters(trained.model),
            "finished": trained.checkpoint.state["progress"]["finished"],
        },
        explanation=explanation,
        selected=selected_fields(run_dir / SELECTION_FILE),
    )
    write_report(report, report_folder(run_dir, on))
    progress("evaluate", "report written", len(config.splits), len(config.splits))
    return report


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


def export(
    run_dir: Path,
    *,
    which: str = "best",
    precision: Precision | None = None,
    progress: OnProgress = silent,
) -> Path:
    """Write the run's bundle, checked in a fresh process before it appears.

    Args:
        run_dir: the run's folder.
        which: "best" or "last" checkpoint.
        precision: of the embedding tables; the experiment's if absent.
        progress: told of every stage, and of what the precision changes.

    Returns:
        The bundle's folder.

    Raises:
        PrecisionExceeded: a weight is further off than its format explains.
    """
    run_dir = find_run(run_dir)
    trained = load_trained(run_dir, which)
    model = trained.model.ranker
    progress("export", "tables", None, None)
    model.embeddings, change = reduced(trained, precision or trained.experiment.export.precision)
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
            "made_of": made_of(trained.checkpoint),
            "metrics": {split: values["metrics"] for split, values in headline.items()},
            "embeddings": {"summary": change.sentence(), **asdict(change)},
            "windows": window_rules(trained.experiment.data.events),
        },
        on_progress=lambda stage, done, total: progress("export", stage, done, total),
        text=text_format(trained.experiment.data),
    )
    return run_dir / BUNDLE_FOLDER


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
    checkpoints = Checkpoints(run_dir / CHECKPOINTS_FOLDER)
    with timed("train"):
        if not holds("train", not fresh and _is_finished(checkpoints)):
            resume = not fresh and is_begun(experiment, run_dir)
            _train(experiment, built.version, root=root, resume=resume, progress=progress)
    best = made_of(checkpoints.best())
    with timed("evaluate"):
        if not holds("evaluate", not fresh and _reported(run_dir) == best):
            evaluate(run_dir, progress=progress)
    with timed("export"):
        if not holds("export", "evaluate" in reused and _exported(run_dir) == best):
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
    """What the report was made of; None without a report."""
    path = run_dir / REPORT_FILE
    return read_json(path)["model"]["made_of"] if path.exists() else None


def _exported(run_dir: Path) -> str | None:
    """What the bundle was made of; None without a whole one."""
    try:
        info = Bundle.open(run_dir / BUNDLE_FOLDER).manifest.info
    except (BundleNotFound, BundleMismatch):  # a damaged one is made again
        return None
    return str(info["made_of"])
