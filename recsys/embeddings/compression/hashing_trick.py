"""The hashing trick, one smaller table a feature (Weinberger et al., ICML 2009, arXiv:0902.2206).

e(x) = E[h(x)]: ids that meet in a row share its vector. The baseline that multiplexing is measured
against (`unified`), so both split a budget alike: the smallest features stay whole within
`whole_share` of it, the others get rows in proportion to the bytes of their full tables.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from typing import ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor

from recsys.embeddings.hashing import hashed_rows
from recsys.embeddings.scheme import (
    FLOAT_BYTES,
    AbstractScheme,
    Decision,
    SchemeConfig,
    SchemeError,
    Space,
    largest_fitting,
    smallest_whole,
    too_small,
)
from recsys.embeddings.tables import TableSpec

LEAST_ROWS = 2
"""One for a missing id, one for all others."""


class HashConfig(SchemeConfig):
    """A table of fewer rows than ids for every feature."""

    kind: Literal["hash"] = "hash"
    num_rows: int | None = Field(default=None, ge=LEAST_ROWS)
    """Of each feature's table; features with fewer ids stay whole. Found for a budget."""
    whole_share: float = Field(default=0.1, ge=0, lt=1)
    """Part of a budget in which the features with the smallest tables stay whole."""

    def sized(self, spaces: SequenceOf[Space], budget_bytes: int | None) -> dict[str, Self | None]:
        """Rows in proportion to full tables; features that would not shrink stay whole."""
        if budget_bytes is None:
            rows = {space.name: _fewer(self.num_rows, space, "hash") for space in spaces}
        else:
            rows = proportional_rows("hash", spaces, budget_bytes, self.whole_share, full_row_bytes)
        return {
            name: None if num is None else self.model_copy(update={"num_rows": num})
            for name, num in rows.items()
        }

    def scheme(self, space: Space, stage: str, decision: Decision) -> "Hash":
        """The smaller table."""
        assert self.num_rows is not None, "sized"
        return Hash(space, self.num_rows)


def full_row_bytes(space: Space) -> int:
    """Bytes of a row as wide as the full table's."""
    return FLOAT_BYTES * space.embedding_dim


def _fewer(num_rows: int | None, space: Space, method: str) -> int | None:
    num_rows = required_rows(num_rows, method)
    return None if space.num_ids is not None and num_rows >= space.num_ids else num_rows


def required_rows(num_rows: int | None, method: str) -> int:
    """The rows as set.

    Raises:
        SchemeError: they are not, and no budget says how many.
    """
    if num_rows is None:
        raise SchemeError(
            f"scheme {method} does not know how large its tables may be: set embeddings.budget, or"
            f" num_rows of the scheme ({{kind: {method}, num_rows: ...}})"
        )
    return num_rows


def proportional_rows(
    method: str,
    spaces: SequenceOf[Space],
    budget_bytes: int,
    whole_share: float,
    row_bytes: Callable[[Space], int],
) -> dict[str, int | None]:
    """Rows of each space's table for a budget, in proportion to full bytes; None: left whole.

    Args:
        method: its name, for errors.
        spaces: under one setting.
        budget_bytes: of all their tables together.
        whole_share: part of the budget in which the smallest stay whole, if the rest then fits.
        row_bytes: of a row of a space's table.

    Raises:
        BudgetTooSmall: tables of two rows do not fit.
    """

    def rows(largest: int, whole: SequenceOf[Space]) -> Mapping[str, int | None]:
        """Rows when the largest table, by full bytes, has so many bytes."""
        found: dict[str, int | None] = {}
        for space in spaces:
            num = max(LEAST_ROWS, largest * space.full_bytes // (most * row_bytes(space)))
            is_smaller = num * row_bytes(space) < space.full_bytes
            found[space.name] = num if is_smaller and space not in whole else None
        return found

    def cost(largest: int, whole: SequenceOf[Space]) -> int:
        numbers = rows(largest, whole)
        return sum(
            space.full_bytes if (num := numbers[space.name]) is None else num * row_bytes(space)
            for space in spaces
        )

    most = max(space.full_bytes for space in spaces)
    whole = smallest_whole(spaces, whole_share * budget_bytes)
    if cost(0, whole) > budget_bytes:
        whole = ()
    if cost(0, whole) > budget_bytes:
        raise too_small(method, cost(0, whole), spaces, budget_bytes)
    best = largest_fitting(
        lambda size: cost(size, whole), budget_bytes, 0, most, f"scheme {method}"
    )
    return dict(rows(best, whole))


class Hash(AbstractScheme):
    """e(x) = E[h(x)]; a missing id has a row for itself."""

    linear = True
    raw_ids: ClassVar[bool] = True

    def __init__(self, space: Space, num_rows: int) -> None:
        super().__init__(space)
        self.num_rows = num_rows
        self.lookups = (TableSpec(space.name, num_rows, space.embedding_dim, space.settings),)

    def rows(self, ids: Tensor) -> tuple[Tensor, ...]:
        return (hashed_rows(ids, self.num_rows),)

    def combine(self, ids: Tensor, vectors: SequenceOf[Tensor]) -> Tensor:
        return vectors[0]
