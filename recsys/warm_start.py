"""Where a run starts that goes on from another one: a checkpoint, and what of it still holds.

Between the two versions of the features a space of ids may have

- stayed: its weights are taken over;
- grown (`features.grow_from`): every old id means what it meant, so rows of plain tables are taken
  over and new ids have fresh ones, and so are the rows that hashed or dynamic schemes keep by id;
- changed: it starts anew. So does a grown space whose scheme ties rows to the number of ids.

Whatever else changed, as the mean that a number is standardised with, is told to the user.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from feature_store.compatibility import Change, compare, same_ids
from feature_store.document import read_json
from feature_store.store import Store, Version
from recsys import experiment as experiments
from recsys.checkpoint import Checkpoint, Checkpoints
from recsys.embeddings.config import SizedSpace, kind_of, sized_spaces
from recsys.experiment import Experiment
from recsys.rundir import CHECKPOINTS_FOLDER, EXPERIMENT_FILE, RUN_FILE, find_run

_ROW_PER_ID, _ROWS_BY_KEY = "full", "dynamic"


@dataclass(frozen=True)
class WarmStart:
    """What every worker is told; picklable."""

    checkpoint: Checkpoint
    """Its folder is absolute: a worker has a working directory of its own."""
    anew: tuple[str, ...]
    """Spaces that begin anew: their ids mean other things in that run."""
    grown: tuple[str, ...]
    """Spaces with more ids than in that run, a row each."""
    changes: tuple[Change, ...] = ()
    """What else means something else than in that run."""


def warm_start(experiment: Experiment, version: Version) -> WarmStart | None:
    """Where an experiment starts; None: from its seed.

    Raises:
        RunNotFound: there is no such run.
        CheckpointNotFound: it has no complete checkpoint.
        VersionNotFound: its version of the features is gone.
    """
    if experiment.training.warm_start is None:
        return None
    run_dir = find_run(experiment.training.warm_start)
    earlier = experiments.load(run_dir / EXPERIMENT_FILE)
    number = read_json(run_dir / RUN_FILE)["version_number"]
    before = Store(earlier.data.store).open(earlier.name, number)
    theirs = {s.space.name: s for s in sized_spaces(before.layout, earlier.embeddings)}
    anew, grown = [], []
    for mine in sized_spaces(version.layout, experiment.embeddings):
        name = mine.space.name
        if name not in theirs or not same_ids(before.fitted, version.fitted, name):
            anew.append(name)
            continue
        became = fate(theirs[name], mine)
        if became == "grown":
            grown.append(name)
        elif became == "anew":
            anew.append(name)
    changes = compare(before.fitted, version.fitted).breaks
    return WarmStart(
        Checkpoints(run_dir / CHECKPOINTS_FOLDER).best(),
        tuple(anew),
        tuple(grown),
        tuple(change for change in changes if change.feature not in anew),
    )


def fate(before: SizedSpace, now: SizedSpace) -> Literal["stayed", "grown", "anew"]:
    """What becomes of a space's weights if every id means what it meant, and more may have come.

    Args:
        before: the space as the earlier run had it.
        now: as this run has it.
    """
    if before.space.hashed != now.space.hashed:
        return "anew"
    if before.space.cardinality == now.space.cardinality:
        return "stayed"
    if now.space.hashed:
        return "stayed" if before.space.num_ids == now.space.num_ids else "anew"
    kinds = (kind_of(before.config), kind_of(now.config))
    if kinds == (_ROW_PER_ID, _ROW_PER_ID):
        return "grown"
    return "stayed" if kinds == (_ROWS_BY_KEY, _ROWS_BY_KEY) else "anew"


def told(start: WarmStart) -> str:
    """For a user."""
    text = f"starting from {_short(start.checkpoint.folder)}"
    if start.grown:
        text += f"; grown, known rows taken over: {', '.join(start.grown)}"
    if start.anew:
        text += f"; other vocabulary or boundaries, so anew: {', '.join(start.anew)}"
    if start.changes:
        text += f"; since then {'; '.join(map(str, start.changes))}"
    return text


def _short(folder: Path) -> str:
    return "/".join(folder.parts[-4:])
