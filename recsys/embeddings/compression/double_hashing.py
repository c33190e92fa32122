"""Double hashing (Zhang et al., RecSys 2020, arXiv:2007.14523), two rows of one table an id.

e(x) = E[h1(x)] + E[h2(x)], or [E[h1(x)]; E[h2(x)]] with rows of half the width and so twice as
many. Two ids share a vector only where both hashes meet (with a sum, in either order). The paper
also gives the most frequent ids rows of their own.
"""

from collections.abc import Sequence as SequenceOf
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from recsys.embeddings.compression.hashing_trick import (
    LEAST_ROWS,
    proportional_rows,
    required_rows,
)
from recsys.embeddings.hashing import MOST_ROWS, salted_rows, salts
from recsys.embeddings.scheme import (
    FLOAT_BYTES,
    AbstractScheme,
    Decision,
    SchemeConfig,
    SchemeError,
    Space,
)
from recsys.embeddings.tables import TableSpec


class DoubleHashConfig(SchemeConfig):
    """A smaller table a feature, of which every id has two rows."""

    kind: Literal["double_hash"] = "double_hash"
    num_rows: int | None = Field(default=None, ge=LEAST_ROWS, lt=MOST_ROWS)
    """Of each feature's table; features whose full table is no larger stay whole. Found for a
    budget."""
    combine: Literal["sum", "concatenate"] = "sum"
    """How the two rows become a vector; concatenated rows have half its width."""
    whole_share: float = Field(default=0.1, ge=0, lt=1)
    """Part of a budget in which the features with the smallest tables stay whole."""

    def sized(self, spaces: SequenceOf[Space], budget_bytes: int | None) -> dict[str, Self | None]:
        """Rows in proportion to full tables; features that would not shrink stay whole."""
        for space in spaces:
            self._require_halves(space)
        if budget_bytes is None:
            rows = {space.name: self._fewer(space) for space in spaces}
        else:
            rows = proportional_rows(
                "double_hash", spaces, budget_bytes, self.whole_share, self._row_bytes
            )
        return {
            name: None if num is None else self.model_copy(update={"num_rows": num})
            for name, num in rows.items()
        }

    def _require_halves(self, space: Space) -> None:
        if self.combine == "concatenate" and space.embedding_dim % 2:
            raise SchemeError(
                f"scheme double_hash puts two halves side by side, and embedding_dim"
                f" {space.embedding_dim} of feature {space.name!r} is odd; take an even one, or"
                " combine: sum"
            )

    def _row_bytes(self, space: Space) -> int:
        return FLOAT_BYTES * space.embedding_dim // (2 if self.combine == "concatenate" else 1)

    def _fewer(self, space: Space) -> int | None:
        num_rows = required_rows(self.num_rows, "double_hash")
        bounded = space.num_ids is not None
        is_larger = bounded and num_rows * self._row_bytes(space) >= space.full_bytes
        return None if is_larger else num_rows

    def scheme(self, space: Space, stage: str, decision: Decision) -> "DoubleHash":
        """The smaller table."""
        assert self.num_rows is not None, "sized"
        return DoubleHash(space, self.num_rows, self.combine)


class DoubleHash(AbstractScheme):
    """Two rows of one table, added or side by side."""

    linear = True
    raw_ids: ClassVar[bool] = True

    def __init__(self, space: Space, num_rows: int, combine: str) -> None:
        super().__init__(space)
        self.num_rows = num_rows
        self.side_by_side = combine == "concatenate"
        self.salts = salts(f"{space.name}/double_hash", 2)
        settings, width = space.settings, space.embedding_dim // 2
        if not self.side_by_side:
            # A sum of two has twice the variance of one.
            start = settings.init_range / 2**0.5
            settings, width = settings.model_copy(update={"init_range": start}), space.embedding_dim
        self.lookups = (TableSpec(space.name, num_rows, width, settings),) * 2

    def rows(self, ids: Tensor) -> tuple[Tensor, ...]:
        return salted_rows(ids, self.salts, 2, self.num_rows)

    def combine(self, ids: Tensor, vectors: SequenceOf[Tensor]) -> Tensor:
        first, second = vectors
        return torch.cat([first, second], dim=-1) if self.side_by_side else first + second
