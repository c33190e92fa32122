"""Rows that update themselves, for storage that no optimizer knows: integers, sparse rows.

A forward pass reads the batch's distinct rows as a float leaf, which collects the dense gradient of
just those rows (every other row's is exactly zero). After the backward pass the gradients of all
look-ups and all workers are merged, the row optimizer makes a step, and the store keeps the result
in its own form. Stores lie whole on every worker and stay equal there, bit for bit.

Shapes: R rows, U distinct rows of a step, D embedding width, (...) rows asked for.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recsys.embeddings.hashing import salt, splitmix64

RowOptimizerKind = Literal["rowwise_adagrad", "adagrad", "sgd"]


class RowOptimizer(nn.Module):
    """Steps of single rows; its state is a buffer.

    rowwise_adagrad: G += mean over D of g^2, w -= lr g / (sqrt(G) + eps), as FBGEMM's and
    TorchRec's; adagrad: the same with a sum for every element; sgd: w -= lr g.
    """

    state: Tensor

    def __init__(
        self,
        kind: RowOptimizerKind,
        num_embeddings: int,
        embedding_dim: int,
        *,
        lr: float,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        self.kind, self.lr, self.eps = kind, lr, eps
        width = {"rowwise_adagrad": 1, "adagrad": embedding_dim, "sgd": 0}[kind]
        self.register_buffer("state", torch.zeros(num_embeddings, width))

    @torch.no_grad()
    def step(self, rows_U: Tensor, values_UD: Tensor, gradient_UD: Tensor) -> Tensor:
        """The rows after one step; remembers its state."""
        if self.kind == "sgd":
            return values_UD - self.lr * gradient_UD
        squares = gradient_UD.square()
        if self.kind == "rowwise_adagrad":
            squares = squares.mean(dim=1, keepdim=True)
        sums = self.state[rows_U] + squares
        self.state[rows_U] = sums
        return values_UD - self.lr * gradient_UD / (sums.sqrt() + self.eps)

    def state_bytes(self) -> int:
        """Bytes of its state."""
        return self.state.numel() * self.state.element_size()


class AbstractRowStore(nn.Module, ABC):
    """Rows in a form of their own, in buffers that are equal on all workers."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self._read: list[tuple[Tensor, Tensor]] = []
        """Distinct rows and their leaf, of every look-up since the last update."""

    @abstractmethod
    def read(self, rows_U: Tensor) -> Tensor:
        """(U, D) float32: what the rows are now. Takes rows of any shape (...)."""

    @abstractmethod
    def write(self, rows_U: Tensor, values_UD: Tensor, *, seed: int, step: int) -> None:
        """Store distinct rows; rounding is the store's, drawn from (seed, step)."""

    def forward(self, rows: Tensor) -> Tensor:
        """(..., D) rows; in training, with a gradient that `touched` collects."""
        if not (self.training and torch.is_grad_enabled()):
            return self.read(rows)
        rows_U, places = torch.unique(rows, return_inverse=True)
        leaf_UD = self.read(rows_U).detach().requires_grad_()
        self._read.append((rows_U, leaf_UD))
        return leaf_UD[places]

    @torch.no_grad()
    def touched(self) -> tuple[Tensor, Tensor]:
        """Distinct rows, sorted, and their gradient, averaged over workers; forgets the look-ups.

        Every worker gets the same bits: the parts are added in the workers' order.
        """
        read, self._read = self._read, []
        device = next(self.buffers()).device
        rows = [rows_U for rows_U, leaf in read if leaf.grad is not None]
        gradients = [leaf.grad for _, leaf in read if leaf.grad is not None]
        none = torch.zeros(0, dtype=torch.int64, device=device)
        nothing = torch.zeros(0, self.embedding_dim, device=device)
        parts = [_merged([none, *rows], [nothing, *gradients])]
        workers = dist.get_world_size() if dist.is_initialized() else 1
        if workers == 1:
            return parts[0]
        parts = _everyones(*parts[0])
        rows_U, gradient_UD = _merged([r for r, _ in parts], [g for _, g in parts])
        return rows_U, gradient_UD / workers

    def forget(self) -> None:
        """Drop the look-ups since the last update, with their gradients."""
        self._read = []

    def apply_gradients(self, optimizer: RowOptimizer, *, seed: int, step: int) -> None:
        """One step of all touched rows."""
        rows_U, gradient_UD = self.touched()
        if rows_U.numel():
            values_UD = optimizer.step(rows_U, self.read(rows_U), gradient_UD)
            self.write(rows_U, values_UD, seed=seed, step=step)


def _merged(rows: list[Tensor], gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Distinct rows and the sum of their gradients, added part by part.

    Rows are distinct within a part, so no sum depends on the order of threads.
    """
    rows_U = torch.unique(torch.cat(rows))
    total_UD = gradients[0].new_zeros(rows_U.numel(), gradients[0].shape[1])
    for part, gradient in zip(rows, gradients, strict=True):
        total_UD[torch.searchsorted(rows_U, part)] += gradient
    return rows_U, total_UD


def _everyones(rows_U: Tensor, gradient_UD: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Every worker's rows and gradients, in the workers' order."""
    workers = dist.get_world_size()
    count = torch.tensor([rows_U.numel()], device=rows_U.device)
    counts = [torch.zeros_like(count) for _ in range(workers)]
    dist.all_gather(counts, count)
    sizes = [int(c) for c in counts]
    longest, mine = max(sizes), rows_U.numel()
    rows = rows_U.new_zeros(longest)
    gradients = gradient_UD.new_zeros(longest, gradient_UD.shape[1])
    rows[:mine], gradients[:mine] = rows_U, gradient_UD
    all_rows = [torch.zeros_like(rows) for _ in range(workers)]
    all_gradients = [torch.zeros_like(gradients) for _ in range(workers)]
    dist.all_gather(all_rows, rows)
    dist.all_gather(all_gradients, gradients)
    return [(r[:size], g[:size]) for r, g, size in zip(all_rows, all_gradients, sizes, strict=True)]


class Float32Store(AbstractRowStore):
    """Rows in float32: what other stores are held against."""

    weight: Tensor

    def __init__(self, weight_RD: Tensor) -> None:
        super().__init__(*weight_RD.shape)
        self.register_buffer("weight", weight_RD.detach().clone())

    def read(self, rows_U: Tensor) -> Tensor:
        return self.weight[rows_U]

    def write(self, rows_U: Tensor, values_UD: Tensor, *, seed: int, step: int) -> None:
        self.weight[rows_U] = values_UD


def uniform(rows_U: Tensor, width: int, name: str, *, seed: int, step: int) -> Tensor:
    """(U, width) numbers in [0, 1), a pure function of (name, seed, step, row, column).

    All workers and a resumed training draw the same; 24 bits, so each is exact in float32.
    """
    start = splitmix64(rows_U + salt(name, seed, step))
    columns = torch.arange(width, device=rows_U.device)
    bits = splitmix64(start[:, None] + columns[None, :])
    return ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24


def stochastic_round(values: Tensor, uniforms: Tensor) -> Tensor:
    """Round up with the fraction's probability: floor(x + u), whose mean over u is x.

    Args:
        values: finite.
        uniforms: in [0, 1), of the same shape.
    """
    whole = values.floor()
    # floor(x + u) itself would lose u's bits where x is large.
    return whole + (uniforms >= 1 - (values - whole))
