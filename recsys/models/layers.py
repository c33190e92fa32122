"""Blocks shared by several models.

Shapes: B rows, L positions, W width; layers act on the last dimension.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from feature_store.config import Config

Activation = Literal["relu", "sigmoid", "prelu", "dice"]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class MLPConfig(Config):
    """A tower of linear layers."""

    hidden: tuple[PositiveInt, ...] = (200, 80)
    """Width of each hidden layer."""
    activation: Activation = "relu"
    dropout: Probability = 0.0
    """Share of hidden units dropped in training, after every activation."""
    batch_norm: bool = False
    """Normalise before every activation."""


class Dice(nn.Module):
    """Data-adaptive activation (Zhou et al. 2018, arXiv:1706.06978, equation 9).

    f(s) = p(s) s + (1 - p(s)) alpha s with p(s) = sigmoid((s - E[s]) / sqrt(Var[s] + epsilon)):
    statistics of the batch in training, moving averages in evaluation, alpha learned per unit.
    With a mask, padded positions count in no statistic. The statistics are those of one worker.
    """

    def __init__(self, width: int, *, epsilon: float = 1e-8, momentum: float = 0.1) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.momentum = momentum
        self.alpha = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, s: Tensor, mask: Tensor | None = None) -> Tensor:
        mean_W, variance_W = self.mean, self.variance
        if self.training:
            mean_W, variance_W = self._statistics(s, mask)
        gate = torch.sigmoid((s - mean_W) * torch.rsqrt(variance_W + self.epsilon))
        return gate * s + (1 - gate) * self.alpha * s

    def _statistics(self, s: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
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


def activation(name: Activation, width: int) -> nn.Module:
    """The module of an activation by name."""
    if name == "relu":
        return nn.ReLU()
    if name == "sigmoid":
        return nn.Sigmoid()
    if name == "prelu":
        return nn.PReLU(width)
    return Dice(width)


class MLP(nn.Module):
    """Hidden layers of an `MLPConfig`; a mask reaches the activations that keep statistics."""

    def __init__(self, width: int, config: MLPConfig) -> None:
        super().__init__()
        widths = (width, *config.hidden)
        self.linears = nn.ModuleList(
            nn.Linear(into, out) for into, out in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(out) if config.batch_norm else nn.Identity() for out in config.hidden
        )
        self.activations = nn.ModuleList(activation(config.activation, w) for w in config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.out_width = widths[-1]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for linear, norm, act in zip(self.linears, self.norms, self.activations, strict=True):
            x = norm(linear(x))
            x = act(x, mask) if isinstance(act, Dice) else act(x)
            x = self.dropout(x)
        return x
