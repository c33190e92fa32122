"""Statistics of activations, kept while training and used in evaluation.

Shapes: W width; layers act on the last dimension.
"""

import torch
from torch import Tensor, nn


class MovingStatistics(nn.Module):
    """Mean and variance of each unit: of the batch in training, moving averages in evaluation.

    With a mask, padded positions count in neither. A worker sees its own rows only; the trainer
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


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167) over the last dimension.

    Unlike PyTorch's it takes a mask, positions in the middle, and a batch of one row (the last
    of an epoch can be one), and its moving variance is the biased one.
    """

    def __init__(self, width: int, *, epsilon: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.statistics = MovingStatistics(width, momentum)

    def forward(self, s: Tensor, mask: Tensor | None = None) -> Tensor:
        mean_W, variance_W = self.statistics(s, mask)
        return (s - mean_W) * torch.rsqrt(variance_W + self.epsilon) * self.weight + self.bias
