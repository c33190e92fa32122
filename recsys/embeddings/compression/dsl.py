"""Dynamic sparse learning, DSL (Wang et al., WSDM 2024): as many weights from the first step on.

A random share of the table's weights is active, and no others are stored. Every few steps a part
of the active weights is exchanged (the paper's algorithm 1):

    rho_t = rho_0 / 2 (1 + cos(pi t / T_end))
    prune    the rho_t share of the active weights with the smallest |w|
    grow     as many inactive ones with the largest |gradient| of the batch, from 0

Exactly so many, ties by position. A weight that was just pruned does not grow back in the same
exchange, and the optimizer's state begins anew for a weight that grows. (The authors' program
keeps a dense table and a dense mask, keeps the state of inactive weights, lets pruned ones grow
back at once, and prunes more than asked at ties.)

The table is sparse while it is trained: a bit for every weight, an offset for every row, and for
the active weights alone their value and Adagrad's sum of squared gradients. A batch reads and
writes its own rows only, whose gradient is dense; the gradient of all other rows is zero. Where a
batch touches too few inactive weights, the rest of the exchange grows at random: their gradients
are all equal.

Every worker holds the whole store; the gradients of a batch's rows are gathered from all workers.
An exchange lists the positions of all active weights, 8 bytes each, for its duration.

Shapes: N rows of the table, D width, b bytes of D bits, K active weights, U distinct rows of a
batch, (...) ids.
"""

import math
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from recsys.embeddings.access import TableAccess
from recsys.embeddings.compression.deeplight import Packed
from recsys.embeddings.hashing import salt
from recsys.embeddings.packed import pack_bits, packed_bytes, unpack_bits
from recsys.embeddings.pruning import num_kept_of, num_weights, pruned_spaces, shares
from recsys.embeddings.rowstore import AbstractRowStore
from recsys.embeddings.scheme import (
    AbstractScheme,
    Decision,
    SchemeConfig,
    SchemeError,
    Space,
    StepInfo,
)

_CHUNK_ROWS = 1 << 16
"""Rows whose bits are written at once."""


class DslConfig(SchemeConfig):
    """Train a sparse table whose active weights move to where the gradient is."""

    updates_itself: ClassVar[bool] = True
    keeps_smallest: ClassVar[bool] = True
    kind: Literal["dsl"] = "dsl"
    density: float = Field(default=0.5, gt=0, le=1)
    """Share of the weights that is active where there is no budget; the paper's 0.5."""
    num_active: PositiveInt | None = None
    """Filled in: this feature's active weights."""
    rho: float = Field(default=0.5, gt=0, le=1)
    """The paper's rho_0: the share of the active weights that the first exchange moves."""
    least_rho: float = Field(default=0.005, ge=0, le=1)
    """No exchange moves less."""
    every: PositiveInt | None = None
    """Steps from one exchange to the next. None: the paper's 2,000, or a twentieth of the training
    where that is less."""
    until: float = Field(default=0.75, gt=0, le=1)
    """Share of the training after which nothing is exchanged (the paper's T_end), so that what grew
    last is trained."""
    lr: PositiveFloat = 0.05
    """Adagrad's learning rate."""
    eps: PositiveFloat = 1e-8

    def sized(self, spaces: SequenceOf[Space], budget_bytes: int | None) -> dict[str, Self | None]:
        """One density for all tables; those that would not be smaller packed stay whole."""
        for space in spaces:
            if space.settings.l2:
                raise SchemeError(
                    f"feature {space.name!r}: scheme dsl updates the rows of a batch only, so l2"
                    f" {space.settings.l2} over the whole table is impossible; drop l2"
                )
        found: dict[str, Self | None] = dict.fromkeys((space.name for space in spaces), None)
        if budget_bytes is None:
            counts = {s.name: num_kept_of(num_weights(s), self.density) for s in spaces}
        else:
            pruned, num_kept = pruned_spaces(spaces, budget_bytes, self.kind)
            counts = _at_least_one(shares(num_kept, pruned))
        for name, count in counts.items():
            found[name] = self.model_copy(update={"num_active": count})
        return found

    def scheme(self, space: Space, stage: str, decision: Decision) -> "Dsl":
        """The sparse table."""
        return Dsl(space, self)

    def moved_share(self, done: int, num_steps: int) -> float | None:
        """Share of the active weights that an exchange moves; None: there is none now.

        Args:
            done: steps.
            num_steps: of the whole training.
        """
        every = self.every or min(2000, max(1, num_steps // 20))
        end = self.until * num_steps
        if done % every or done >= end:
            return None
        return max(self.least_rho, self.rho / 2 * (1 + math.cos(math.pi * done / end)))


def _at_least_one(counts: dict[str, int]) -> dict[str, int]:
    """A table without a weight would never learn one: the largest give up what these need."""
    found = {name: max(1, count) for name, count in counts.items()}
    for _ in range(sum(found.values()) - sum(counts.values())):
        found[max(found, key=lambda name: found[name])] -= 1
    return found


class SparseStore(AbstractRowStore):
    """The active weights of a table and Adagrad's state of them, and no others.

    Args:
        num_embeddings: N.
        embedding_dim: D.
        num_active: K, from the first step to the last.
        init_range: active weights start uniform in [-init_range, init_range].
    """

    bits: Tensor
    """(N, b) uint8, the first column in the lowest bit."""
    offsets: Tensor
    """(N,) int32: place of a row's first active weight in `values`."""
    values: Tensor
    """(K,)."""
    squares: Tensor
    """(K,): Adagrad's sums of squared gradients."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, num_active: int, init_range: float
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.num_active = num_active
        values = torch.empty(num_active).uniform_(-init_range, init_range)
        num_bytes = -(-embedding_dim // 8)
        bits = torch.zeros(num_embeddings, num_bytes, dtype=torch.uint8)
        self.register_buffer("values", values)
        self.register_buffer("squares", torch.zeros(num_active))
        self.register_buffer("bits", bits)
        self.register_buffer("offsets", torch.zeros(num_embeddings, dtype=torch.int32))
        self._place(_random_positions(num_embeddings, embedding_dim, num_active))

    def read(self, rows_U: Tensor) -> Tensor:
        """See `AbstractRowStore`."""
        active, places = self._stored(rows_U)
        return torch.where(active, self.values[places.clamp(min=0)], 0.0)

    def write(self, rows_U: Tensor, values_UD: Tensor, *, seed: int, step: int) -> None:
        """See `AbstractRowStore`; what is not active stays zero."""
        active, places = self._stored(rows_U)
        self.values[places[active]] = values_UD[active]

    def _stored(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Which weights (..., D) of some rows are active, and the place of each that is."""
        active = unpack_bits(self.bits[rows], self.embedding_dim)
        places = self.offsets[rows].to(torch.int64)[..., None] + active.cumsum(dim=-1) - 1
        return active, places

    def update(self, rows_U: Tensor, gradient_UD: Tensor, *, lr: float, eps: float) -> None:
        """Adagrad on the active weights of some rows: s += g^2, w -= lr g / (sqrt(s) + eps)."""
        active, places = self._stored(rows_U)
        stored, gradient = places[active], gradient_UD[active]
        squares = self.squares[stored] + gradient.square()
        self.squares[stored] = squares
        self.values[stored] -= lr * gradient / (squares.sqrt() + eps)

    def exchange(self, num_moved: int, rows_U: Tensor, gradient_UD: Tensor, seed: int) -> None:
        """Prune the smallest active weights and grow as many others.

        Args:
            num_moved: at most as many as are not active.
            rows_U: distinct rows of a batch, rising.
            gradient_UD: theirs; of all others it is zero.
            seed: of the weights that grow where no gradient says which.
        """
        positions_K = self.positions()
        kept_K = _without_smallest(self.values.abs(), num_moved)
        active_UD, _ = self._stored(rows_U)
        grown = _largest(rows_U, gradient_UD, active_UD, num_moved).sort().values
        if grown.numel() < num_moved:
            taken, _, _ = _together(positions_K, grown)
            num_weights = self.num_embeddings * self.embedding_dim
            others = _others(taken, num_moved - grown.numel(), num_weights, seed)
            grown, _, _ = _together(grown, others)
        positions, places, _ = _together(positions_K[kept_K], grown)
        for stored in (self.values, self.squares):
            new = torch.zeros_like(stored)
            new[places] = stored[kept_K]
            stored.copy_(new)
        self._place(positions)

    def positions(self) -> Tensor:
        """(K,) int64: row * D + column of every active weight, rising."""
        found = []
        for start in range(0, self.num_embeddings, _CHUNK_ROWS):
            active = unpack_bits(self.bits[start : start + _CHUNK_ROWS], self.embedding_dim)
            found.append(active.flatten().nonzero()[:, 0] + start * self.embedding_dim)
        return torch.cat(found)

    def _place(self, positions_K: Tensor) -> None:
        """Write the bits and the offsets of rising positions."""
        width, num_rows = self.embedding_dim, self.num_embeddings
        for start in range(0, num_rows, _CHUNK_ROWS):
            end = min(start + _CHUNK_ROWS, num_rows)
            starts = torch.arange(start, end + 1, device=positions_K.device) * width
            places = torch.searchsorted(positions_K, starts)
            self.offsets[start:end] = places[:-1].to(torch.int32)
            inside = positions_K[int(places[0]) : int(places[-1])]
            active = torch.zeros((end - start) * width, dtype=torch.bool, device=self.bits.device)
            active[inside - start * width] = True
            self.bits[start:end] = pack_bits(active.view(-1, width))

    def dense(self) -> Tensor:
        """The (N, D) table with its zeros."""
        rows_N = torch.arange(self.num_embeddings, device=self.bits.device)
        return torch.cat([self.read(rows) for rows in rows_N.split(_CHUNK_ROWS)])


class Dsl(AbstractScheme):
    """e(x) = M[x] * E[x], where only what the mask M lets through is stored."""

    def __init__(self, space: Space, config: DslConfig) -> None:
        super().__init__(space)
        assert config.num_active is not None, "sized"
        if config.num_active >= 1 << 31:
            raise SchemeError(
                f"feature {space.name!r}: scheme dsl stores fewer than 2^31 active weights, not"
                f" {config.num_active:,}; lower the budget"
            )
        self.config = config
        # The active weights start as those of a full table do, M * E, as in the paper.
        self.store = SparseStore(
            space.num_rows, space.embedding_dim, config.num_active, space.settings.init_range
        )

    def combine(self, ids: Tensor, vectors: SequenceOf[Tensor]) -> Tensor:
        return self.store(ids)

    def before_step(self, info: StepInfo) -> None:
        """Forget what a pass without an update has read."""
        self.store.forget()

    @torch.no_grad()
    def after_step(self, info: StepInfo, tables: TableAccess) -> None:
        """Update the batch's rows, and exchange weights when it is time."""
        store, config = self.store, self.config
        rows_U, gradient_UD = store.touched()
        store.update(rows_U, gradient_UD, lr=config.lr, eps=config.eps)
        share = config.moved_share(info.step + 1, info.num_steps)
        if share is None:
            return
        num_inactive = num_weights(self.space) - store.num_active
        num_moved = min(math.floor(share * store.num_active), num_inactive)
        if num_moved:
            seed = salt(info.seed, info.step, self.space.name)
            store.exchange(num_moved, rows_U, gradient_UD, seed)

    def serving(self, weights: Mapping[str, Tensor]) -> AbstractScheme:
        """The packed table: what is stored, without the optimizer's state."""
        return Packed(self.space, self.store.dense())

    def serving_bytes(self) -> int:
        """Of all active weights at worst; those that are zero at the end are not packed."""
        num_rows, num_active = self.space.num_rows, self.store.num_active
        return packed_bytes(num_rows, self.embedding_dim, num_active, min(num_active, num_rows))


def _random_positions(num_rows: int, width: int, num_active: int) -> Tensor:
    """So many distinct positions, rising; each chunk of rows gets its share of them."""
    found = []
    for start in range(0, num_rows, _CHUNK_ROWS):
        end = min(start + _CHUNK_ROWS, num_rows)
        count = num_active * end // num_rows - num_active * start // num_rows
        chosen = torch.randperm((end - start) * width)[:count]
        found.append(chosen.sort().values + start * width)
    return torch.cat(found)


def _without_smallest(magnitudes_K: Tensor, count: int) -> Tensor:
    """All but so many of the smallest, of equal ones the first: bool (K,)."""
    level = magnitudes_K.kthvalue(count).values
    kept_K = magnitudes_K >= level
    num_ties = count - (magnitudes_K.numel() - int(kept_K.sum()))
    ties = (magnitudes_K == level).nonzero()[:num_ties, 0]
    kept_K[ties] = False
    return kept_K


def _together(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two rising lists without a number in common as one, and the places of both in it."""
    places = torch.arange(first.numel(), device=first.device)
    places += torch.searchsorted(second, first)
    others = torch.arange(second.numel(), device=first.device)
    others += torch.searchsorted(first, second)
    merged = first.new_empty(first.numel() + second.numel())
    merged[places], merged[others] = first, second
    return merged, places, others


def _largest(rows_U: Tensor, gradient_UD: Tensor, active_UD: Tensor, most: int) -> Tensor:
    """Positions of the inactive weights with the largest gradients that are not zero."""
    width = gradient_UD.shape[1]
    positions_UD = rows_U[:, None] * width + torch.arange(width, device=rows_U.device)
    magnitudes = gradient_UD.abs()
    candidates = ~active_UD & (magnitudes > 0)
    order = magnitudes[candidates].argsort(stable=True, descending=True)
    return positions_UD[candidates][order[:most]]


def _others(taken: Tensor, count: int, num_weights: int, seed: int) -> Tensor:
    """So many random positions that are not taken, rising, a function of the seed.

    Args:
        taken: rising.
        count: at most as many as are free.
        num_weights: positions there are.
        seed: of the draw.
    """
    num_free = num_weights - taken.numel()
    generator = torch.Generator().manual_seed(seed)
    # The r-th free position is r plus the taken ones before it; the taken one at place p has
    # taken[p] - p free ones before it.
    if 4 * count > num_free:
        ranks = torch.randperm(num_free, generator=generator)[:count]
    else:
        ranks = torch.empty(0, dtype=torch.int64)
        while ranks.numel() < count:
            more = torch.randint(num_free, (2 * count,), generator=generator)
            ranks = torch.cat([ranks, more]).unique()
        ranks = ranks[torch.randperm(ranks.numel(), generator=generator)[:count]]
    ranks = ranks.sort().values.to(taken.device)
    free_before = taken - torch.arange(taken.numel(), device=taken.device)
    return ranks + torch.searchsorted(free_before, ranks, right=True)
