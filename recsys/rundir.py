"""A run's folder: `runs/<name>/<id>/`, and what is written down in it when it is made.

The id is a hash of the experiment, of the data version and of the libraries, so an unchanged
experiment finds its own results again.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from feature_store.document import read_json
from feature_store.store import Version
from recsys.checkpoint import Checkpoints, write_atomically
from recsys.experiment import Experiment
from recsys.versions import library_versions

EXPERIMENT_FILE = "experiment.yaml"
RUN_FILE = "run.json"
REPORT_FILE = "report.json"
BUNDLE_FOLDER = "bundle"
CHECKPOINTS_FOLDER = "checkpoints"
LATEST = "latest"
STAGES_FOLDER = "stages"
DECISION_FILE = "decision.pt"


class RunNotFound(FileNotFoundError):
    """No run where one was named."""


def prepare_run(experiment: Experiment, version: Version, root: Path) -> Path:
    """The folder of this experiment on this version, with what it is written down in it."""
    identity = {
        **_started_from(experiment, root),
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


def _started_from(experiment: Experiment, root: Path) -> dict[str, str]:
    """The checkpoint that a run starts from is part of what it is."""
    path = experiment.training.warm_start
    if path is None:
        return {}
    source = find_run(path)
    if path.name == LATEST or not (path / EXPERIMENT_FILE).exists():
        named = root / experiment.name
        if source.parent == named.resolve():
            raise ValueError(
                f"training.warm_start {path} is the latest run of this very experiment, which is"
                f" this run from now on; name one run, {named}/{source.name}"
            )
    checkpoint = Checkpoints(source / CHECKPOINTS_FOLDER).best()
    return {"warm_start": f"{checkpoint.state['training']}/{checkpoint.folder.name}"}


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


def report_folder(run_dir: Path, on: int | None = None) -> Path:
    """Where a run's report goes; made if needed.

    Args:
        run_dir: the run's folder.
        on: number of the version that was measured on, where it is not the run's own.
    """
    if on is None or on == read_json(run_dir / RUN_FILE)["version_number"]:
        return run_dir
    folder = run_dir / f"on-version-{on}"
    folder.mkdir(exist_ok=True)
    return folder


def stage_folder(run_dir: Path, stages: Sequence[str], stage: str) -> Path:
    """Where a training of a run keeps its checkpoints and its log; the last one's is the run's."""
    return run_dir if stage == stages[-1] else run_dir / STAGES_FOLDER / stage


def save_decision(run_dir: Path, stage: str, found: dict[str, dict[str, Tensor]]) -> None:
    """Write down what a stage found out, by space and name; it is done when this is there."""
    path = run_dir / STAGES_FOLDER / stage / DECISION_FILE
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(found, temporary)
    temporary.replace(path)


def is_decided(run_dir: Path, stage: str) -> bool:
    """Whether a stage has finished and what it found out is written down."""
    return (run_dir / STAGES_FOLDER / stage / DECISION_FILE).exists()


def read_decisions(
    run_dir: Path, stages: Sequence[str], stage: str
) -> dict[str, dict[str, Tensor]]:
    """What all stages before this one found out, by space; the later prevails."""
    merged: dict[str, dict[str, Tensor]] = {}
    for earlier in stages[: stages.index(stage)]:
        path = run_dir / STAGES_FOLDER / earlier / DECISION_FILE
        for space, found in torch.load(path, weights_only=True).items():
            merged.setdefault(space, {}).update(found)
    return merged
