"""Trainings that die; importable by the processes that they run in."""

import os
import signal
from typing import Any

import torch
import torch.distributed as dist

from recsys import checkpoint
from support.training import Recipe, fitted


def killed_while_saving(recipe: Recipe, moment: str, step: int) -> None:
    """Train, and die by SIGKILL at a moment of saving a step."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    torch.set_num_threads(1)
    end = f"step-{step}"

    def dying(real: Any, applies: Any) -> Any:
        def instead(*arguments: Any, **named: Any) -> Any:
            if applies(*arguments, **named):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return instead

    if moment == "before the tensors":
        checkpoint.dcp.save = dying(
            checkpoint.dcp.save, lambda *_, checkpoint_id, **__: checkpoint_id.name == end
        )
    elif moment == "before it is complete":
        checkpoint.write_atomically = dying(
            checkpoint.write_atomically,
            lambda path, _: path.name == checkpoint.COMPLETE and path.parent.name == end,
        )
    else:  # while an old one is removed
        checkpoint.shutil.rmtree = dying(checkpoint.shutil.rmtree, lambda *_, **__: True)
    fitted(recipe)
