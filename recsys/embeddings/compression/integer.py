"""Tables of integers, trained with stochastic rounding.

The INT8 and INT16 of the study of learnable vector storage compression (Zhang et al., VLDB 2024,
arXiv:2311.15578); the rounding is that of Gupta et al. (ICML 2015, arXiv:1502.02551):

    e(x) = s c(x),   c' = floor((s c - update) / s + u),   u uniform in [0, 1)

so that the expected code is the updated weight. The scale s is one number for all rows, the zero
point 0. Nothing else is kept of a weight, in training too.

The training's own optimizers do not know these rows: they move by the scheme's `optimizer` and
`lr`, whose defaults are those of the sparse optimizer. The table is whole on every worker, and
workers exchange the gradients of the rows that their batches read.

Shapes: V ids of a batch or any leading dimensions (...); D width; R rows of a table, U distinct
rows of a step.
"""

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import ClassVar, Literal, Self

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn.functional import pad

from recsys.embeddings.access import TableAccess
from recsys.embeddings.rowstore import (
    AbstractRowStore,
    RowOptimizer,
    RowOptimizerKind,
    stochastic_round,
    uniform,
)
from recsys.embeddings.scheme import (
    AbstractScheme,
    Decision,
    SchemeConfig,
    SchemeError,
    Space,
    StepInfo,
    too_small,
)

Bits = Literal[4, 8, 16]
_CHUNK_ROWS = 1 << 16
"""Rows drawn at once: in float32 they take four times the bytes of the codes, and more."""


class SelfTrainedConfig(SchemeConfig):
    """How rows move that the training's optimizers do not know."""

    updates_itself: ClassVar[bool] = True

    optimizer: RowOptimizerKind = "rowwise_adagrad"
    """rowwise_adagrad keeps 4 bytes a row in training, adagrad 4 a weight, sgd nothing."""
    lr: PositiveFloat = 0.05
    eps: PositiveFloat = 1e-8

    def row_optimizer(self, space: Space) -> RowOptimizer:
        """For the rows of a space."""
        return RowOptimizer(
            self.optimizer, space.num_rows, space.embedding_dim, lr=self.lr, eps=self.eps
        )


class _IntegerConfig(SelfTrainedConfig):
    scale: PositiveFloat = 0.01
    """s: the step between two neighbouring weights."""

    @property
    def bits(self) -> Bits:
        """Of a stored weight."""
        raise NotImplementedError

    def sized(self, spaces: SequenceOf[Space], budget_bytes: int | None) -> dict[str, Self | None]:
        """There is nothing to choose: a budget is kept or not."""
        for space in spaces:
            check_range(space, f"scheme int{self.bits}", self.scale, self.bits)
        least = sum(code_bytes(s.num_rows, s.embedding_dim, self.bits) for s in spaces)
        if budget_bytes is not None and least > budget_bytes:
            raise too_small(f"int{self.bits}", least, spaces, budget_bytes)
        return dict.fromkeys((space.name for space in spaces), self)

    def scheme(self, space: Space, stage: str, decision: Decision) -> "IntegerTable":
        """The integers, and their optimizer."""
        return IntegerTable(space, self)


class Int8Config(_IntegerConfig):
    """A byte a weight: 25% of a full table."""

    kind: Literal["int8"] = "int8"

    @property
    def bits(self) -> Bits:
        """Of a stored weight."""
        return 8


class Int16Config(_IntegerConfig):
    """Two bytes a weight: 50% of a full table.

    With the published scale it differs from int8 only beyond +-1.27; a finer one uses its bits.
    """

    kind: Literal["int16"] = "int16"

    @property
    def bits(self) -> Bits:
        """Of a stored weight."""
        return 16


def most_code(bits: Bits) -> int:
    """The largest code; the smallest is one further from zero."""
    return (1 << (bits - 1)) - 1


def check_range(space: Space, what: str, scale: float, bits: Bits) -> None:
    """Refuse settings that the rows of a space cannot start or train with.

    Raises:
        SchemeError: initial weights beyond the largest code; l2 or a dense optimizer.
    """
    settings = space.settings
    reach = scale * most_code(bits)
    if settings.init_range > reach:
        raise SchemeError(
            f"feature {space.name!r}: {what} holds weights up to {reach:g} with a scale of"
            f" {scale:g}, and rows start in +-{settings.init_range:g}; lower"
            f" embeddings.features.{space.name}.init_range, or raise the scale to"
            f" {settings.init_range / most_code(bits):g} or more"
        )
    if settings.l2 or settings.optimizer == "dense":
        found = f"l2 {settings.l2:g}" if settings.l2 else "optimizer 'dense'"
        raise SchemeError(
            f"feature {space.name!r}: the rows of {what} move by the scheme's own optimizer, those"
            f" of a batch alone, so {found} cannot apply; drop it"
        )


def code_bytes(num_rows: int, width: int, bits: Bits) -> int:
    """Bytes of stored codes; 4-bit ones lie two a byte, an odd last one alone."""
    return num_rows * -(-width * bits // 8)


class Codes(nn.Module):
    """Signed integers of 4, 8 or 16 bits, by row.

    Held as bytes: no backend of torch.distributed sends 16-bit integers.

    Args:
        num_rows: of the table.
        width: codes of a row.
        bits: of a code.
    """

    stored: Tensor
    """int8 (R, D); uint8 (R, ceil(D / 2)), the even column plus 8 in the low half; or uint8
    (R, 2 D), little end first."""

    def __init__(self, num_rows: int, width: int, bits: Bits) -> None:
        super().__init__()
        self.width = width
        self.bits = bits
        kind = torch.int8 if bits == 8 else torch.uint8
        stored = torch.zeros(num_rows, code_bytes(1, width, bits), dtype=kind)
        self.register_buffer("stored", stored)

    def forward(self, rows: Tensor) -> Tensor:
        """(..., D) codes as float32 of rows (...)."""
        found = self.stored[rows]
        if self.bits == 8:
            return found.to(torch.float32)
        if self.bits == 4:
            both = torch.stack([found & 15, found >> 4], dim=-1).flatten(-2)
            return both[..., : self.width].to(torch.float32) - 8
        low, high = found.to(torch.float32).unflatten(-1, (-1, 2)).unbind(dim=-1)
        unsigned = low + 256 * high
        return torch.where(unsigned < 1 << 15, unsigned, unsigned - (1 << 16))

    def write(self, rows_U: Tensor, codes_UD: Tensor) -> None:
        """Replace the codes of distinct rows by whole numbers, cut off where codes end."""
        most = most_code(self.bits)
        codes_UD = codes_UD.clamp(-most - 1, most).to(torch.int64)
        if self.bits == 8:
            self.stored[rows_U] = codes_UD.to(torch.int8)
        elif self.bits == 4:
            even = pad(codes_UD + 8, (0, self.width % 2))
            self.stored[rows_U] = (even[:, 0::2] | (even[:, 1::2] << 4)).to(torch.uint8)
        else:
            halves = torch.stack([codes_UD & 255, (codes_UD >> 8) & 255], dim=-1)
            self.stored[rows_U] = halves.flatten(1).to(torch.uint8)

    def draw(self, bound: float, scale: float) -> None:
        """Fill all rows with weights uniform in +-bound, rounded at random, from torch's RNG."""
        num_rows = self.stored.shape[0]
        for start in range(0, num_rows, _CHUNK_ROWS):
            rows_U = torch.arange(start, min(start + _CHUNK_ROWS, num_rows))
            weights_UD = torch.empty(len(rows_U), self.width).uniform_(-bound, bound)
            self.write(rows_U, stochastic_round(weights_UD / scale, torch.rand(weights_UD.shape)))


class IntegerStore(AbstractRowStore):
    """s times the codes.

    Args:
        space: whose rows they are; they start uniform in +-init_range.
        scale: s.
        bits: of a code.
    """

    def __init__(self, space: Space, scale: float, bits: Bits) -> None:
        super().__init__(space.num_rows, space.embedding_dim)
        self.name = f"rounding of {space.name}"
        self.scale = scale
        self.codes = Codes(space.num_rows, space.embedding_dim, bits)
        self.codes.draw(space.settings.init_range, scale)

    def read(self, rows_U: Tensor) -> Tensor:
        return self.scale * self.codes(rows_U)

    def write(self, rows_U: Tensor, values_UD: Tensor, *, seed: int, step: int) -> None:
        noise_UD = uniform(rows_U, self.embedding_dim, self.name, seed=seed, step=step)
        self.codes.write(rows_U, stochastic_round(values_UD / self.scale, noise_UD))


class IntegerTable(AbstractScheme):
    """e(x) = s c(x), with codes that move by stochastic rounding."""

    def __init__(self, space: Space, config: _IntegerConfig) -> None:
        super().__init__(space)
        self.store = IntegerStore(space, config.scale, config.bits)
        self.optimizer = config.row_optimizer(space)

    def combine(self, ids: Tensor, vectors: SequenceOf[Tensor]) -> Tensor:
        return self.store.read(ids) if self.frozen else self.store(ids)

    def after_step(self, info: StepInfo, tables: TableAccess) -> None:
        """Move the rows that were read."""
        self.store.apply_gradients(self.optimizer, seed=info.seed, step=info.step)

    def optimizer_bytes(self) -> int:
        """Of the rows' optimizer."""
        return self.optimizer.state_bytes()

    def serving(self, weights: Mapping[str, Tensor]) -> AbstractScheme:
        """The integers alone."""
        return ServedIntegers(self.space, self.store)

    def serving_bytes(self) -> int:
        """Of the integers."""
        return self.storage_bytes() - self.optimizer_bytes()


class ServedIntegers(AbstractScheme):
    """e(x) = s c(x). Shares the store's memory."""

    def __init__(self, space: Space, store: AbstractRowStore) -> None:
        super().__init__(space)
        self.store = store

    def combine(self, ids: Tensor, vectors: SequenceOf[Tensor]) -> Tensor:
        return self.store.read(ids)
