"""A run's folder: `runs/<name>/<id>/`, and what is written down in it when it is made.

The id is a hash of the experiment, of the data version and of the libraries, so an unchanged
experiment finds its own results again.
"""

import hashlib
import json
from pathlib import Path

from feature_store.store import Version
from recsys.checkpoint import write_atomically
from recsys.experiment import Experiment
from recsys.versions import library_versions

EXPERIMENT_FILE = "experiment.yaml"
RUN_FILE = "run.json"
REPORT_FILE = "report.json"
BUNDLE_FOLDER = "bundle"
CHECKPOINTS_FOLDER = "checkpoints"
LATEST = "latest"


class RunNotFound(FileNotFoundError):
    """No run where one was named."""


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
