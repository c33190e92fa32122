"""Several experiments over several seeds, side by side: `recsys leaderboard SUITE.yaml`.

Every experiment with a seed is one cell (`recsys.cells`): a Ray task, written down when it ends. A
second call keeps what is there, and an experiment that is added, or changed, is all that is
trained. What is compared, and how, is said in `recsys.evaluation.standings`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, Field, PositiveInt, model_validator

from feature_store.config import Config
from feature_store.features import nearest
from feature_store.selection import SELECTION_FILE
from feature_store.store import Version
from recsys import experiment as experiments
from recsys import yaml_source
from recsys.cells import Grid, Training, decisive, for_a_task, sizes_of, trained_cell
from recsys.embeddings.collection import Embeddings
from recsys.embeddings.scheme import FLOAT_BYTES
from recsys.embeddings.selected import selected_fields
from recsys.evaluation.metrics import MetricState
from recsys.evaluation.standings import (
    Metric,
    Result,
    Scores,
    Standing,
    head,
    read_baseline,
    regressions,
    rows_of,
    standings,
    without_result,
    write_baseline,
    write_standings,
)
from recsys.experiment import Experiment, folder_name
from recsys.models import ranker
from recsys.problems import validated
from recsys.run import build_features, silent
from recsys.stages import split_metrics
from recsys.trained import Trained, batches
from recsys.versions import library_versions, quieten
from recsys.worker import OnProgress

FOLDER = "leaderboards"
METRICS = ("auc", "gauc", "logloss")


class Regressed(RuntimeError):
    """Experiments are worse than the baseline allows; names each with its numbers."""


class Entry(Config):
    """One experiment of a suite."""

    name: str = Field(min_length=1)
    """Its line in the table."""
    file: Path
    """The experiment's file, beside the suite's."""
    set: tuple[str, ...] = ()
    """Overrides, each as after `--set`: `model={kind: fm}`."""


class Suite(Config):
    """Experiments that are compared."""

    name: Annotated[str, AfterValidator(folder_name)]
    """Names the folder of the results."""
    seeds: PositiveInt = 3
    """Trainings of every experiment, with the seeds 0 to seeds - 1; a single one tells nothing of
    its spread."""
    experiments: tuple[Entry, ...] = Field(min_length=1)
    baseline: str | None = None
    """The experiment that all others are compared with; without it, the best on validation."""
    metric: Metric = "auc"
    """That decides."""

    @model_validator(mode="after")
    def _names_fit(self) -> "Suite":
        names = [entry.name for entry in self.experiments]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two experiments are named {name!r}; names must be unique")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(
                f"the baseline {self.baseline!r} is no experiment of the suite;"
                f" {nearest(self.baseline, names)}"
            )
        return self


def load_suite(path: Path) -> Suite:
    """Read a suite's file; the files of its experiments are looked for beside it.

    Raises:
        FileNotFoundError: there is no such file.
        ExperimentError: lists every problem with its line and what would be right.
    """
    suite = validated(yaml_source.read(path), Suite)
    entries = tuple(e.model_copy(update={"file": path.parent / e.file}) for e in suite.experiments)
    return suite.model_copy(update={"experiments": entries})


@dataclass(frozen=True)
class Leaderboard:
    """What a suite gave."""

    folder: Path
    page: Path
    metric: Metric
    results: tuple[Result, ...]
    standings: tuple[Standing, ...]
    reused: int
    """Trainings that an earlier call had finished."""

    @property
    def table(self) -> list[list[str]]:
        """Header, then a line for every experiment."""
        rows = [list(row) for row in rows_of(self.standings)]
        return [list(head(self.standings, self.metric)), *rows]

    @property
    def failed(self) -> list[str]:
        """Trainings without a result, and why."""
        return without_result(self.results)

    def write_baseline(self, path: Path) -> None:
        """Write the means down, for later leaderboards to be held to.

        Raises:
            ValueError: some training has no result.
        """
        write_baseline(self.standings, self.failed, self.metric, path)

    def require_no_regression(self, baseline: Mapping[str, Any]) -> None:
        """Hold the means to earlier ones.

        Raises:
            Regressed: names every experiment that is behind, has no result, or not all.
        """
        told = regressions(self.standings, self.failed, baseline)
        if told:
            raise Regressed("worse than the baseline:\n" + "\n".join(f"  {line}" for line in told))


@dataclass(frozen=True)
class _Job:
    """One cell, for a worker; picklable."""

    name: str
    seed: int
    training: Training

    @property
    def scores(self) -> Path:
        """Where the test rows' scores go."""
        return self.training.path.with_suffix(".npz")


def leaderboard(
    suite: Suite,
    *,
    root: Path = Path("runs"),
    address: str | None = None,
    cpus_per_task: int = 1,
    keep_runs: bool = False,
    progress: OnProgress = silent,
) -> Leaderboard:
    """Train every experiment of a suite with every seed, and compare them.

    Everything that can be known before is checked before the first training.

    Args:
        suite: the experiments.
        root: folder of all runs.
        address: of a Ray cluster; None: this machine.
        cpus_per_task: of one training.
        keep_runs: keep every cell's checkpoints.
        progress: told of every finished cell.

    Raises:
        ValueError: an experiment that cannot be trained or tested, or two that are the same.
    """
    folder = (root / FOLDER / suite.name).resolve()
    loaded = {entry.name: _loaded(entry) for entry in suite.experiments}
    versions = {}
    for name, experiment in loaded.items():
        versions[name] = build_features(experiment, progress).version
        _require_trainable(name, experiment, versions[name])
    jobs = [
        _job(name, experiment, versions[name], seed, folder, keep=keep_runs)
        for name, experiment in loaded.items()
        for seed in range(suite.seeds)
    ]
    _require_different(jobs)

    def compared(results: Sequence[Result]) -> list[Standing]:
        return standings(
            results, suite.metric, suite.baseline, lambda result: Scores.load(Path(result.scores))
        )

    def write(results: Sequence[Result]) -> Path:
        return write_standings(results, compared(results), suite.name, suite.metric, folder)

    results, reused = _GRID.fill(
        jobs,
        stage="leaderboard",
        address=address,
        cpus_per_task=cpus_per_task,
        progress=progress,
        on_change=write,
    )
    found = tuple(compared(results))
    return Leaderboard(folder, write(results), suite.metric, tuple(results), found, reused)


def baseline_of(suite: Suite, path: Path) -> dict[str, Any]:
    """A baseline's file for a suite; see `standings.read_baseline`."""
    return read_baseline(path, suite.metric)


def _loaded(entry: Entry) -> Experiment:
    try:
        return experiments.load(entry.file, entry.set)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"experiment {entry.name!r}: {error}") from error


def _require_trainable(name: str, experiment: Experiment, version: Version) -> None:
    """Fail now rather than in every task: splits without rows, a model that cannot be."""
    for split in ("train", "valid", "test"):
        if not version.rows[split]:
            raise ValueError(
                f"experiment {name!r}: the {split} split has no rows; a leaderboard decides by"
                " valid and shows test (data.split)"
            )
    try:
        embeddings = Embeddings(version.layout, experiment.embeddings, torch.device("meta"))
        ranker(experiment.model, version.layout, embeddings)
    except ValueError as error:
        raise ValueError(f"experiment {name!r}: {error}") from error


def _require_different(jobs: Sequence[_Job]) -> None:
    owners: dict[Path, str] = {}
    for job in jobs:
        owner = owners.setdefault(job.training.path, job.name)
        if owner != job.name:
            raise ValueError(
                f"experiments {owner!r} and {job.name!r} are the same trainings; drop one, or"
                " change its `set`"
            )


def _job(
    name: str, experiment: Experiment, version: Version, seed: int, folder: Path, *, keep: bool
) -> _Job:
    planned = Experiment.model_validate(for_a_task(experiment, seed))
    identity = [decisive(planned), version.fingerprint, library_versions()]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    training = Training.of(planned, version.number, folder, digest[:16], keep=keep)
    return _Job(name, seed, training)


def _run_cell(job: _Job) -> Result:
    """Train and measure one cell; writes its result and its scores down."""
    quieten()
    trained, seconds = trained_cell(job.training, silent)
    test, scores = _tested(trained)
    valid = split_metrics(trained, "valid")
    sizes = sizes_of(trained)
    scores.save(job.scores)
    result = Result(
        job.name,
        job.seed,
        "done",
        model=trained.experiment.model.kind,
        valid={name: valid[name] for name in METRICS},
        test={name: test[name] for name in METRICS},
        parameters=sizes.parameters,
        served_bytes=sizes.served_bytes + FLOAT_BYTES * sizes.dense_parameters,
        kept=_kept(job.training),
        seconds=seconds,
        scores=str(job.scores),
    )
    job.training.finish(result)
    return result


def _kept(training: Training) -> float | None:
    """Share of the rows that a cell's search kept; None where nothing was chosen from."""
    fields = [f for path in training.runs.rglob(SELECTION_FILE) for f in selected_fields(path)]
    return sum(f.kept for f in fields) / sum(f.total for f in fields) if fields else None


@torch.no_grad()
def _tested(trained: Trained) -> tuple[dict[str, float], Scores]:
    """Metrics of the first task on the test split, and its rows' scores."""
    state = MetricState()
    parts = []
    for batch in batches(trained, "test"):
        part = Scores(
            trained.model.ranker(batch)[:, 0].numpy(),
            batch.labels_BT[:, 0].numpy(),
            batch.weights_B.numpy(),
        )
        state.update(*part, batch.groups_B.numpy())
        parts.append(part)
    whole = Scores(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return state.compute(), whole


def _read(job: _Job, values: dict[str, Any]) -> Result:
    # The cell is known by what it trains: its experiment may have another name by now.
    return Result(**(values | {"experiment": job.name, "scores": str(job.scores)}))


def _failed(job: _Job, message: str) -> Result:
    return Result(job.name, job.seed, "failed", message, job.training.experiment.model.kind)


def _told(result: Result) -> str:
    where = f"{result.experiment}, seed {result.seed}"
    if result.status != "done":
        return f"{where}: {result.status}: {result.message}"
    return f"{where}: valid auc {result.valid['auc']:.4f}, test {result.test['auc']:.4f}"


_GRID: Grid[_Job, Result] = Grid(_run_cell, _read, _failed, _told)
