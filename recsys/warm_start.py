"""Where a run starts that goes on from another one: a checkpoint, and what of it still holds."""

from dataclasses import dataclass
from pathlib import Path

from feature_store.document import read_json
from feature_store.encoding import FittedFeatures
from feature_store.store import Store, Version
from recsys import experiment as experiments
from recsys.checkpoint import Checkpoint, Checkpoints
from recsys.experiment import Experiment
from recsys.rundir import CHECKPOINTS_FOLDER, EXPERIMENT_FILE, RUN_FILE, find_run


@dataclass(frozen=True)
class WarmStart:
    """What every worker is told; picklable."""

    checkpoint: Checkpoint
    """Its folder is absolute: a worker has a working directory of its own."""
    anew: tuple[str, ...]
    """Spaces whose ids mean other things in that run: their vocabulary or boundaries differ."""


def warm_start(experiment: Experiment, version: Version) -> WarmStart | None:
    """Where an experiment starts; None: from its seed.

    Raises:
        RunNotFound: there is no such run.
        CheckpointNotFound: it has no complete checkpoint.
    """
    if experiment.training.warm_start is None:
        return None
    run_dir = find_run(experiment.training.warm_start)
    earlier = experiments.load(run_dir / EXPERIMENT_FILE)
    number = read_json(run_dir / RUN_FILE)["version_number"]
    before = Store(earlier.data.store).open(earlier.name, number)
    return WarmStart(Checkpoints(run_dir / CHECKPOINTS_FOLDER).best(), _other_ids(before, version))


def _other_ids(before: Version, now: Version) -> tuple[str, ...]:
    spaces = dict.fromkeys(field.space for field in now.layout.ids)
    return tuple(space for space in spaces if not _same_ids(before.fitted, now.fitted, space))


def _same_ids(one: FittedFeatures, other: FittedFeatures, space: str) -> bool:
    """Whether a value has the same id in both."""
    words, others = one.vocabularies.get(space), other.vocabularies.get(space)
    if words is None or others is None:
        same = words is None and others is None
    else:
        same = words.equals(others)
    return same and one.boundaries.get(space) == other.boundaries.get(space)


def told(start: WarmStart) -> str:
    """For a user."""
    text = f"starting from {_short(start.checkpoint.folder)}"
    if start.anew:
        text += f"; other vocabulary or boundaries, so anew: {', '.join(start.anew)}"
    return text


def _short(folder: Path) -> str:
    return "/".join(folder.parts[-4:])
