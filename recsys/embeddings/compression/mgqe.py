"""Multi-granular quantised embeddings (Kang et al., WWW 2020, arXiv:2002.08530).

Differentiable product quantisation with the nearest centroid (`vq` of `dpq.py`), where rare values
choose among the first of each codebook's centroids alone: K = 256 for the most frequent tenth,
K' = 64 for the rest, so their codes are shorter and the centroids they share see more examples.

Shapes: those of `dpq.py`.
"""

from collections.abc import Sequence as SequenceOf
from typing import Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from recsys.embeddings.compression.dpq import (
    DPQ,
    Codes,
    DPQConfig,
    PackedCodes,
    check_parts,
    code_bits,
    codebook_bytes,
    most_parts,
    packed_bytes,
)
from recsys.embeddings.scheme import AbstractScheme, Decision, SchemeConfig, SchemeError, Space


class MGQEConfig(SchemeConfig):
    """Codes in place of rows, shorter ones for rare values."""

    kind: Literal["mgqe"] = "mgqe"
    num_choices: int = Field(default=256, ge=2, le=256)
    """K: centroids of a part that frequent values choose from."""
    num_choices_rare: int = Field(default=64, ge=2, le=256)
    """K': the first of them, for all other values."""
    frequent_share: float = Field(default=0.1, gt=0, lt=1)
    """Part of the ids, the most frequent ones, that choose from all centroids."""
    num_parts: PositiveInt | None = None
    """D of the paper: codes of a row; divides embedding_dim. The most that a budget allows;
    without either, 4."""
    regularization: PositiveFloat = 1.0
    """Weight of mean((value - sg(q))^2) in the loss."""

    @model_validator(mode="after")
    def _rare_choose_among_the_first(self) -> Self:
        if self.num_choices_rare > self.num_choices:
            raise ValueError(
                f"num_choices_rare {self.num_choices_rare} is a part of num_choices"
                f" {self.num_choices}: it cannot be more"
            )
        return self

    def sized(self, spaces: SequenceOf[Space], budget_bytes: int | None) -> dict[str, Self | None]:
        """One number of parts for all; features whose codes are no smaller stay whole."""

        def cost(space: Space, num_parts: int) -> int:
            return self.bytes_of(space, num_parts)

        for space in spaces:
            if not space.by_frequency:
                raise SchemeError(
                    f"scheme mgqe gives frequent values finer codes, and the ids of feature"
                    f" {space.name!r} are hashed, in no order of frequency: encode it with a"
                    " vocabulary and without num_embeddings, or take scheme dpq for it"
                )
        if budget_bytes is None:
            num_parts = self.num_parts or 4
            for space in spaces:
                check_parts(space, num_parts)
        else:
            num_parts = most_parts("mgqe", spaces, cost, budget_bytes)
        sized = self.model_copy(update={"num_parts": num_parts})
        return {
            space.name: sized if cost(space, num_parts) < space.full_bytes else None
            for space in spaces
        }

    def num_frequent(self, space: Space) -> int:
        """Ids that choose from all centroids: 0 .. num_frequent - 1."""
        num_rows = space.num_rows
        return min(-int(-self.frequent_share * num_rows // 1), num_rows - 1)

    def bytes_of(self, space: Space, num_parts: int) -> int:
        """Bytes of codes and codebooks."""
        frequent = self.num_frequent(space)
        rare = space.num_rows - frequent
        return (
            packed_bytes(frequent, num_parts, code_bits(self.num_choices))
            + packed_bytes(rare, num_parts, code_bits(self.num_choices_rare))
            + codebook_bytes(space.embedding_dim, self.num_choices)
        )

    def scheme(self, space: Space, stage: str, decision: Decision) -> "MGQE":
        """The full table and its codebooks."""
        assert self.num_parts is not None, "sized"
        return MGQE(space, self)


class MGQE(DPQ):
    """The nearest centroid of each part, among as many as the id's frequency allows."""

    def __init__(self, space: Space, config: MGQEConfig) -> None:
        dpq = DPQConfig(
            mode="vq",
            num_choices=config.num_choices,
            num_parts=config.num_parts,
            regularization=config.regularization,
        )
        super().__init__(space, dpq)
        self.config = config
        self.num_frequent = config.num_frequent(space)

    def allowed(self, ids: Tensor) -> Tensor:
        """Which centroids an id may choose: bool (..., K)."""
        places_K = torch.arange(self.num_choices, device=ids.device)
        return (ids < self.num_frequent)[..., None] | (places_K < self.config.num_choices_rare)

    def served(self, codes_RP: Tensor) -> AbstractScheme:
        """The serving form of codes of all rows."""
        frequent = PackedCodes(codes_RP[: self.num_frequent], code_bits(self.num_choices))
        rare = PackedCodes(codes_RP[self.num_frequent :], code_bits(self.config.num_choices_rare))
        return Codes(self.space, _CodesByFrequency(frequent, rare), self.values_PKW)

    def serving_bytes(self) -> int:
        """Of codes and codebooks."""
        return self.config.bytes_of(self.space, self.num_parts)


class _CodesByFrequency(nn.Module):
    """Codes of the first ids in one width, of the others in another."""

    def __init__(self, frequent: PackedCodes, rare: PackedCodes) -> None:
        super().__init__()
        self.frequent = frequent
        self.rare = rare
        self.num_frequent = frequent.packed.shape[0]

    def forward(self, ids: Tensor) -> Tensor:
        """(..., P) int64 codes of ids (...)."""
        first = self.frequent(ids.clamp(max=self.num_frequent - 1))
        other = self.rare((ids - self.num_frequent).clamp(min=0))
        return torch.where((ids < self.num_frequent)[..., None], first, other)
