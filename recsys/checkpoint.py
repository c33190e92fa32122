"""Checkpoints that appear whole or not at all and load on any number of workers.

A checkpoint is a folder `step-N`: tensors by `torch.distributed.checkpoint` (each worker writes
its own shards), `state.json` (position, metrics, what it belongs to), and `complete`, written
last: a folder without it does not exist for a reader.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

COMPLETE = "complete"
STATE = "state.json"
BEST = "best.json"


class CheckpointMismatch(ValueError):
    """A checkpoint that does not fit what it is loaded into."""


class CheckpointNotFound(FileNotFoundError):
    """No complete checkpoint where one was asked for."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int

    @property
    def state(self) -> dict[str, Any]:
        """What was saved beside the tensors."""
        return json.loads((self.folder / STATE).read_text())


class Checkpoints:
    """The checkpoints of one run: `step-N` folders and the name of the best one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[Checkpoint]:
        """Complete checkpoints, oldest first."""
        found = [
            Checkpoint(path, int(path.name.removeprefix("step-")))
            for path in self.folder.glob("step-*")
            if (path / COMPLETE).exists()
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def last(self) -> Checkpoint:
        """The newest one.

        Raises:
            CheckpointNotFound: there is none.
        """
        complete = self.all()
        if not complete:
            raise CheckpointNotFound(
                f"{self.folder}: no complete checkpoint; train the run first (recsys train)"
            )
        return complete[-1]

    def best(self) -> Checkpoint:
        """The one marked best, or the last where none was marked (no validation)."""
        marker = self.folder / BEST
        if not marker.exists():
            return self.last()
        step = json.loads(marker.read_text())["step"]
        for checkpoint in self.all():
            if checkpoint.step == step:
                return checkpoint
        raise CheckpointNotFound(
            f"{self.folder}: the best checkpoint, step-{step}, is gone; evaluate the last one"
            " (--checkpoint last) or train again"
        )

    def save(self, step: int, tensors: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Write `step-N`; every worker calls this with its own shards.

        An unfinished folder of the same step, left by a killed run, is replaced.
        """
        folder = self.folder / f"step-{step}"
        if _rank() == 0:
            if folder.exists():
                _remove(folder)
            folder.mkdir(parents=True)
        _barrier()
        dcp.save(dict(tensors), checkpoint_id=folder)
        if _rank() == 0:
            write_atomically(folder / STATE, json.dumps(dict(state), indent=1))
            write_atomically(folder / COMPLETE, "")
        _barrier()

    def mark_best(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember a saved step as the best one; one worker calls this."""
        write_atomically(self.folder / BEST, json.dumps({"step": step, **metrics}))

    def keep(self, num_last: int) -> None:
        """Remove all but the newest `num_last` and the best; one worker calls this."""
        complete = self.all()
        best = self.best().step if (self.folder / BEST).exists() else None
        for checkpoint in complete[:-num_last]:
            if checkpoint.step != best:
                _remove(checkpoint.folder)

    def clear(self) -> None:
        """Remove all of them, to train anew; one worker calls this."""
        (self.folder / BEST).unlink(missing_ok=True)
        for folder in self.folder.glob("step-*"):
            _remove(folder)


def load(checkpoint: Checkpoint, tensors: dict[str, Any]) -> None:
    """Fill tensors in place, whatever number of workers wrote them.

    Args:
        checkpoint: a complete one.
        tensors: nested state dict of the shapes to fill, sharded or whole.

    Raises:
        CheckpointMismatch: a tensor is missing or has another shape.
    """
    try:
        dcp.load(tensors, checkpoint_id=checkpoint.folder, no_dist=not dist.is_initialized())
    except (dcp.api.CheckpointException, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointMismatch(
            f"{checkpoint.folder} does not fit this model: {_reason(error)}. It was written by"
            " another experiment or sharding; train from the start or load it with the experiment"
            " beside it (experiment.yaml)"
        ) from error


def shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a checkpoint, by its name with dots between the levels."""
    metadata = dcp.FileSystemReader(checkpoint.folder).read_metadata()
    return {
        name: tuple(entry.size)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def read(checkpoint: Checkpoint, name: str) -> Tensor:
    """One whole tensor of a checkpoint, on CPU; `name` is one of `shapes`.

    Every worker reads for itself.
    """
    metadata = dcp.FileSystemReader(checkpoint.folder).read_metadata()
    entry = metadata.state_dict_metadata[name]
    assert isinstance(entry, TensorStorageMetadata), "a tensor"
    found = {name: torch.empty(entry.size, dtype=entry.properties.dtype, device="cpu")}
    dcp.load(found, checkpoint_id=checkpoint.folder, no_dist=True)
    return found[name]


def _reason(error: BaseException) -> str:
    if isinstance(error, dcp.api.CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return " ".join(str(error).split())


def _remove(folder: Path) -> None:
    # The marker goes first: a half-removed folder must not look complete.
    (folder / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
