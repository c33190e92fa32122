"""Compositional embeddings, quotient and remainder (Shi et al., KDD 2020, arXiv:1909.02107).

e(x) = R[x mod m] * Q[x div m] (or +): every id has a vector of its own from about 2 sqrt(n) rows.
The collision number m is one for all features, found for the budget as the study of learnable
vector storage compression (Zhang et al., VLDB 2024) does.
"""

import math
from collections.abc import Sequence as SequenceOf
from typing import Literal, Self

from pydantic import Field
from torch import Tensor

from recsys.embeddings.scheme import (
    FLOAT_BYTES,
    AbstractScheme,
    BudgetTooSmall,
    Decision,
    SchemeConfig,
    SchemeError,
    Space,
)
from recsys.embeddings.tables import TableSpec


class CompositionalConfig(SchemeConfig):
    """Two small tables a feature: one for the remainder, one for the quotient."""

    kind: Literal["compositional"] = "compositional"
    num_collisions: int | None = Field(default=None, ge=2)
    """Ids that share a quotient: the rows of the remainder's table. Found for a budget; without
    either, about sqrt(n), the fewest rows."""
    combine: Literal["multiply", "add"] = "multiply"

    def sized(self, spaces: SequenceOf[Space], budget_bytes: int | None) -> dict[str, Self | None]:
        """One collision number for all; features whose two tables are no smaller stay whole."""
        if budget_bytes is None:
            return {space.name: self._for(space, self.num_collisions) for space in spaces}
        number = smallest_collisions(spaces, budget_bytes)
        return {space.name: self._for(space, number) for space in spaces}

    def _for(self, space: Space, number: int | None) -> Self | None:
        num_ids = ids_of(space)
        number = number or max(2, math.isqrt(num_ids))
        if num_rows(num_ids, number) >= num_ids:
            return None
        return self.model_copy(update={"num_collisions": number})

    def scheme(self, space: Space, stage: str, decision: Decision) -> "Compositional":
        """The two tables."""
        assert self.num_collisions is not None, "sized"
        return Compositional(space, self.num_collisions, self.combine)


def ids_of(space: Space) -> int:
    """How many ids a space has."""
    if space.num_ids is None:
        raise SchemeError(
            f"scheme compositional cuts ids 0 .. n - 1, and feature {space.name!r} is hashed to 64"
            f" bits: set embeddings.features.{space.name}.num_embeddings"
        )
    return space.num_ids


def num_rows(num_ids: int, num_collisions: int) -> int:
    """Rows of both tables."""
    return -(-num_ids // num_collisions) + num_collisions


def smallest_collisions(spaces: SequenceOf[Space], budget_bytes: int) -> int:
    """The smallest collision number whose tables fit, so that the quotients tell most apart.

    Rows fall with the number until about sqrt(n) of the largest feature and rise after it.

    Raises:
        BudgetTooSmall: no number fits.
    """

    def cost(number: int) -> int:
        return sum(
            FLOAT_BYTES * space.embedding_dim * min(ids_of(space), num_rows(ids_of(space), number))
            for space in spaces
        )

    # Above 2 sqrt(n) every feature grows again.
    highest = 2 * math.isqrt(max(ids_of(space) for space in spaces)) + 2
    lowest = min(range(2, highest + 1), key=cost) if highest > 2 else 2
    if cost(lowest) > budget_bytes:
        raise BudgetTooSmall(
            f"scheme compositional: the smallest tables take {cost(lowest):,} bytes, the budget is"
            f" {budget_bytes:,}"
        )
    # The cost is a sum of terms that each fall and then rise; up to the lowest point it falls for
    # the features that weigh, so the first number that fits lies before it.
    return next(number for number in range(2, lowest + 1) if cost(number) <= budget_bytes)


class Compositional(AbstractScheme):
    """e(x) = R[x mod m] * Q[x div m], or their sum."""

    def __init__(self, space: Space, num_collisions: int, combine: str) -> None:
        super().__init__(space)
        self.num_collisions = num_collisions
        self.multiply = combine == "multiply"
        num_ids = ids_of(space)
        # Products of two uniform numbers in [-a, a] have variance a^4 / 9, one of [-r, r] r^2 / 3;
        # sums of two have twice that of one.
        bound = space.settings.init_range
        start = 3**0.25 * bound**0.5 if self.multiply else bound / 2**0.5
        num_quotients = -(-num_ids // num_collisions)
        settings = space.settings.model_copy(update={"init_range": start})
        self.lookups = (
            TableSpec(f"{space.name}_remainder", num_collisions, space.embedding_dim, settings),
            TableSpec(f"{space.name}_quotient", num_quotients, space.embedding_dim, settings),
        )

    def rows(self, ids: Tensor) -> tuple[Tensor, ...]:
        return (
            ids % self.num_collisions,
            ids.div(self.num_collisions, rounding_mode="floor"),
        )

    def combine(self, ids: Tensor, vectors: SequenceOf[Tensor]) -> Tensor:
        remainder, quotient = vectors
        return remainder * quotient if self.multiply else remainder + quotient
