"""Statistics of activations, kept while training and used in evaluation.

Shapes: W width; layers act on the last dimension.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class MovingStatistics(nn.Module):
    """Mean and variance of each unit: of the batch in training, moving averages in evaluation.

    With a mask, padded positions count in neither; numbers in its place say how often each
    position counts. A worker sees its own rows only; the trainer
    averages the moving averages over workers before they are used or saved.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, s: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.training:
            return self.mean, self.variance
        flat = s.reshape(-1, s.shape[-1]).float()
        weights = flat.new_ones(flat.shape[0]) if mask is None else mask.reshape(-1).float()
        count = weights.sum()
        total = count.clamp(min=1.0)
        mean_W = (flat * weights[:, None]).sum(dim=0) / total
        variance_W = ((flat - mean_W).square() * weights[:, None]).sum(dim=0) / total
        with torch.no_grad():
            # Without a single valid position there is nothing to learn: the averages stay.
            step = self.momentum * (count > 0)
            self.mean.lerp_(mean_W, step)
            self.variance.lerp_(variance_W, step)
        return mean_W, variance_W


class GlobalStatistics(MovingStatistics):
    """Mean and variance over the batches of all workers, with their gradient.

    One worker and two learn the same. Costs one small all-reduce forward and, where the input has
    a gradient, one backward.
    """

    def forward(self, s: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.training:
            return self.mean, self.variance
        flat = s.reshape(-1, s.shape[-1]).float()
        weights = flat.new_ones(flat.shape[0]) if mask is None else mask.reshape(-1).float()
        # Around the moving mean, which all workers share, squares do not cancel.
        center_W = self.mean.clone()
        centered = flat - center_W
        weighted = centered * weights[:, None]
        sums_3W = torch.stack(
            [
                weights.sum().expand_as(center_W),
                weighted.sum(dim=0),
                (weighted * centered).sum(dim=0),
            ]
        )
        if dist.is_initialized() and dist.get_world_size() > 1:
            sums_3W = all_reduce(sums_3W)
        count_W, first_W, second_W = sums_3W.unbind()
        total_W = count_W.clamp(min=1.0)
        shift_W = first_W / total_W
        mean_W = center_W + shift_W
        variance_W = (second_W / total_W - shift_W.square()).clamp(min=0.0)
        with torch.no_grad():
            # Without a single valid position there is nothing to learn: the averages stay.
            step = self.momentum * (count_W[0] > 0)
            self.mean.lerp_(mean_W, step)
            self.variance.lerp_(variance_W, step)
        return mean_W, variance_W


@contextmanager
def kept_averages(model: nn.Module) -> Iterator[None]:
    """Within, forward passes leave all moving averages as they are."""
    statistics = [module for module in model.modules() if isinstance(module, MovingStatistics)]
    momenta = [module.momentum for module in statistics]
    for module in statistics:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in zip(statistics, momenta, strict=True):
            module.momentum = momentum


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167) over the last dimension.

    Unlike PyTorch's it takes a mask, positions in the middle, and a batch of one row (the last
    of an epoch can be one), and its moving variance is the biased one.

    Args:
        width: W.
        epsilon: added to the variance.
        momentum: of the moving averages.
        across_workers: statistics of the batches of all workers; else each worker's own.
    """

    def __init__(
        self,
        width: int,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.1,
        across_workers: bool = False,
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        statistics = GlobalStatistics if across_workers else MovingStatistics
        self.statistics = statistics(width, momentum)

    def forward(self, s: Tensor, mask: Tensor | None = None) -> Tensor:
        mean_W, variance_W = self.statistics(s, mask)
        return (s - mean_W) * torch.rsqrt(variance_W + self.epsilon) * self.weight + self.bias
