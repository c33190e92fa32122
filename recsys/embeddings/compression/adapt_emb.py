"""Adaptive embedding: rows of their own for frequent values, shared rows for the others.

AdaptEmb of the study of learnable vector storage compression (Zhang et al., VLDB 2024,
arXiv:2311.15578, with code in Hetu's EmbeddingMemoryCompression):

    e(x) = E[x]                           of the H most frequent values,
    e(x) = E[H + h(x) mod (R - H)]        of all others.

The study keeps a remap from values to rows beside the table. The ids of a vocabulary already fall
in frequency (0 missing, 1 unseen, then the most frequent first, counted in the training split), so
here x < H decides and nothing is stored. Features that are hashed have no such order.
"""

from collections.abc import Sequence as SequenceOf
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from recsys.embeddings.compression.hashing_trick import (
    LEAST_ROWS,
    full_row_bytes,
    proportional_rows,
    required_rows,
)
from recsys.embeddings.hashing import positive, salt, splitmix64
from recsys.embeddings.scheme import AbstractScheme, Decision, SchemeConfig, SchemeError, Space
from recsys.embeddings.tables import TableSpec


class AdaptEmbConfig(SchemeConfig):
    """A smaller table a feature, most of it for single values."""

    kind: Literal["adapt_emb"] = "adapt_emb"
    num_rows: int | None = Field(default=None, ge=LEAST_ROWS)
    """R, of each feature's table; features with fewer ids stay whole. Found for a budget: in
    proportion to the full tables."""
    hot_share: float = Field(default=0.8, gt=0, lt=1)
    """H / R, part of the rows that belong to one value each; at least one is shared."""
    whole_share: float = Field(default=0.1, ge=0, lt=1)
    """Part of a budget in which the features with the smallest tables stay whole."""

    def sized(self, spaces: SequenceOf[Space], budget_bytes: int | None) -> dict[str, Self | None]:
        """Rows in proportion to full tables; features that would not shrink stay whole."""
        for space in spaces:
            _check_order(space)
        rows: dict[str, int | None]
        if budget_bytes is None:
            num_rows = required_rows(self.num_rows, self.kind)
            rows = {s.name: num_rows if num_rows < s.num_rows else None for s in spaces}
        else:
            rows = proportional_rows(
                self.kind, spaces, budget_bytes, self.whole_share, full_row_bytes
            )
        return {
            name: None if num is None else self.model_copy(update={"num_rows": num})
            for name, num in rows.items()
        }

    def scheme(self, space: Space, stage: str, decision: Decision) -> "AdaptEmb":
        """The smaller table."""
        assert self.num_rows is not None, "sized"
        return AdaptEmb(space, self.num_rows, self.hot_share)


def _check_order(space: Space) -> None:
    if space.by_frequency:
        return
    remedy = (
        f"encode it with a vocabulary (kind: categorical), or set embeddings.features.{space.name}"
        ".scheme to another"
        if space.cardinality is None
        else f"drop num_embeddings {space.num_ids:,}: the budget sizes its table"
    )
    raise SchemeError(
        f"scheme adapt_emb needs ids in order of frequency, and those of feature {space.name!r} are"
        f" hashed: {remedy}"
    )


class AdaptEmb(AbstractScheme):
    """e(x) = E[x] where x < H, else E[H + h(x) mod (R - H)]; rows start as a full table's."""

    linear = True

    def __init__(self, space: Space, num_rows: int, hot_share: float) -> None:
        super().__init__(space)
        self.num_hot = min(num_rows - 1, max(1, round(hot_share * num_rows)))
        self.num_shared = num_rows - self.num_hot
        self.salt = salt(space.name, "adapt_emb")
        self.lookups = (TableSpec(space.name, num_rows, space.embedding_dim, space.settings),)

    def rows(self, ids: Tensor) -> tuple[Tensor, ...]:
        shared = self.num_hot + positive(splitmix64(ids + self.salt)) % self.num_shared
        return (torch.where(ids < self.num_hot, ids, shared),)

    def combine(self, ids: Tensor, vectors: SequenceOf[Tensor]) -> Tensor:
        return vectors[0]
