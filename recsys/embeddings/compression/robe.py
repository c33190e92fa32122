"""ROBE-Z, random offset block embedding arrays (Desai et al., MLSys 2022, arXiv:2108.02191).

All features under one setting share one circular array M of |M| numbers. A vector is cut into
blocks of Z; each block is a stretch of the array that starts anywhere:

    e(x)[k] = g(x, k) M[(h(x, k div Z) + k mod Z) mod |M|]

with h uniform over the array, another function for every feature and block, and signs g of +-1.
Nothing of h and g is stored.

The array is one table, as in the paper, so that a feature of few values takes no more than what it
adds in collisions, and features of different widths share it. Its rows are stretches of P numbers,
Z rounded up to a multiple of 4 (what FBGEMM's CUDA kernels want): a block lies in one row and the
next, both are looked up, and the block is cut out. So the array is sharded over workers and
updated where it was touched, as any table; a row-wise optimizer keeps one number for P of it.

Shapes: (...) ids, Z block, P width of a row, D embedding width.
"""

from collections.abc import Sequence as SequenceOf
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from recsys.embeddings.hashing import positive, salt, splitmix64
from recsys.embeddings.scheme import (
    FLOAT_BYTES,
    AbstractScheme,
    Decision,
    SchemeConfig,
    SchemeError,
    Space,
    smallest_whole,
    too_small,
)
from recsys.embeddings.tables import TableSpec

LANES = 4
"""Numbers that a row must be a multiple of."""
SIGN_BITS = 62
"""Signs that are taken from one hash."""


class RobeConfig(SchemeConfig):
    """One array of numbers for all features."""

    kind: Literal["robe"] = "robe"
    block: PositiveInt = 16
    """Z. Larger blocks read memory in fewer places; 1 hashes every number on its own. It need not
    divide the width."""
    size: PositiveInt | None = None
    """|M|, numbers in the array, rounded down to whole rows of it. Found for a budget: all that is
    left of it."""
    signs: bool = True
    """Whether numbers are multiplied by g; else g = 1."""
    whole_share: float = Field(default=0.1, ge=0, lt=1)
    """Part of a budget in which the features with the smallest tables stay whole, apart from the
    array; 0 puts all into it, as the paper does."""
    array: str | None = None
    """The array's name. Left out, that of its first feature."""

    def sized(self, spaces: SequenceOf[Space], budget_bytes: int | None) -> dict[str, Self | None]:
        """One size for all; every feature stays whole where the array would be no smaller."""
        row_bytes = FLOAT_BYTES * row_width(self.block)
        whole: tuple[Space, ...] = ()
        if budget_bytes is None:
            if self.size is None:
                raise SchemeError("scheme robe needs a size: set its size, or embeddings.budget")
            num_rows = self._rows(self.size)
        else:
            full = sum(space.full_bytes for space in spaces)
            if budget_bytes < min(row_bytes, full):
                raise too_small(self.kind, min(row_bytes, full), spaces, budget_bytes)
            whole = smallest_whole(spaces, self.whole_share * budget_bytes)
            left = budget_bytes - sum(space.full_bytes for space in whole)
            if left < row_bytes:
                whole, left = (), budget_bytes
            num_rows = left // row_bytes
        members = [space for space in spaces if space not in whole]
        if _none_smaller(members, num_rows * row_bytes):
            members = []
        settings = {
            "size": num_rows * row_width(self.block),
            "array": self.array or (f"{members[0].name}_robe" if members else None),
        }
        _check_shared(members)
        return {
            space.name: self.model_copy(update=settings) if space in members else None
            for space in spaces
        }

    def _rows(self, size: int) -> int:
        width = row_width(self.block)
        if size < width:
            raise SchemeError(
                f"scheme robe: blocks of {self.block} need an array of at least {width} numbers,"
                f" size is {size}"
            )
        return size // width

    def scheme(self, space: Space, stage: str, decision: Decision) -> "Robe":
        """The feature's hashes and its view of the array."""
        assert self.size is not None, "sized"
        assert self.array is not None, "sized"
        return Robe(space, self.array, size=self.size, block=self.block, signs=self.signs)


def row_width(block: int) -> int:
    """Width of the rows that the array is stored in."""
    return -(-block // LANES) * LANES


def _none_smaller(spaces: SequenceOf[Space], array_bytes: int) -> bool:
    """The array saves nothing over the full tables of these spaces."""
    if any(space.num_ids is None for space in spaces):
        return False
    return array_bytes >= sum(space.full_bytes for space in spaces)


def _check_shared(spaces: SequenceOf[Space]) -> None:
    for space in spaces:
        if space.settings != spaces[0].settings:
            raise SchemeError(
                f"scheme robe keeps features {spaces[0].name!r} and {space.name!r} in one array,"
                " which has one init_range, optimizer, l2 and sharding_types: give them equal"
                " ones, or another scheme to one of them"
            )


class Robe(AbstractScheme):
    """e(x)[k] = g(x, k) M[(h(x, k div Z) + k mod Z) mod |M|].

    The array starts as a full table does; signs and hashes leave the spread as it is.

    Args:
        space: what it serves.
        array: name of the table.
        size: |M|, a multiple of the rows' width.
        block: Z.
        signs: whether g is +-1 or 1.
    """

    raw_ids: ClassVar[bool] = True

    def __init__(self, space: Space, array: str, *, size: int, block: int, signs: bool) -> None:
        super().__init__(space)
        self.size = size
        self.block = block
        self.row_width = row_width(block)
        num_blocks = -(-self.embedding_dim // block)
        self.block_salts = [salt(space.name, "robe", number) for number in range(num_blocks)]
        num_words = -(-self.embedding_dim // SIGN_BITS) if signs else 0
        self.sign_salts = [salt(space.name, "robe sign", word) for word in range(num_words)]
        self.rows_per_block = 1 if block == 1 else 2
        spec = TableSpec(array, size // self.row_width, self.row_width, space.settings)
        self.lookups = (spec,) * (num_blocks * self.rows_per_block)

    def rows(self, ids: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        for constant in self.block_salts:
            first = self._starts(ids, constant).div(self.row_width, rounding_mode="floor")
            found.append(first)
            if self.rows_per_block == 2:
                found.append((first + 1) % (self.size // self.row_width))
        return tuple(found)

    def combine(self, ids: Tensor, vectors: SequenceOf[Tensor]) -> Tensor:
        blocks = []
        for number, constant in enumerate(self.block_salts):
            first = number * self.rows_per_block
            stretch = torch.cat(tuple(vectors[first : first + self.rows_per_block]), dim=-1)
            length = min(self.block, self.embedding_dim - number * self.block)
            start = self._starts(ids, constant) % self.row_width
            places = start[..., None] + torch.arange(length, device=ids.device)
            blocks.append(stretch.gather(-1, places))
        numbers = torch.cat(blocks, dim=-1)
        if not self.sign_salts:
            return numbers
        return torch.where(self._negative(ids), -numbers, numbers)

    def _starts(self, ids: Tensor, constant: int) -> Tensor:
        return positive(splitmix64(ids + constant)) % self.size

    def _negative(self, ids: Tensor) -> Tensor:
        """(..., D) bool: g is -1."""
        bits = []
        for word, constant in enumerate(self.sign_salts):
            length = min(SIGN_BITS, self.embedding_dim - word * SIGN_BITS)
            # Powers of two by `**` come out wrong in a program compiled by AOTInductor 2.13.
            shifts = torch.arange(length, device=ids.device)
            bits.append((splitmix64(ids + constant)[..., None] >> shifts) & 1 != 0)
        return torch.cat(bits, dim=-1)
