"""What launched workers run; importable, quickly, by the processes that Ray starts."""

from pathlib import Path

import torch
import torch.distributed as dist


def tell(folder: Path, device: torch.device) -> None:
    """Write down who this worker is, and a sum over all of them."""
    total = torch.ones((), device=device)
    dist.all_reduce(total)
    told = f"{dist.get_rank()} {dist.get_world_size()} {dist.get_backend()} {device} {total.item()}"
    (folder / f"rank-{dist.get_rank()}").write_text(told)


def fail(folder: Path, device: torch.device) -> None:
    """The second worker fails; the first one waits for it."""
    if dist.get_rank() == 1:
        raise ValueError(f"no feature 'colour' in {folder.name}")
    dist.barrier()
