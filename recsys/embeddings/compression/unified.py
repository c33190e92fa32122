"""Unified embedding, or feature multiplexing (Coleman et al., NeurIPS 2023, arXiv:2305.12102).

All features look up rows of one table E of M rows and width d:

    e_t(x) = [E[h_{t,1}(x)]; ...; E[h_{t,c_t}(x)]],    h_{t,k} salted by feature t and chunk k

Every id has the whole table to spread over, so ids of one feature collide less than in a table of
their own at equal bytes. What it costs is collisions between features, which a model learns to
tell apart: the weights that read two features become orthogonal. `recsys embeddings analyse`
measures both.

Chunks may lie in several tables, dealt round, the deal going on from feature to feature. The
smallest features stay whole, as in the paper, where the budget hardly feels it.
"""

import math
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from feature_store.features import nearest
from recsys.embeddings.compression.hashing_trick import LEAST_ROWS, required_rows
from recsys.embeddings.hashing import MOST_ROWS, salted_rows, salts
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

MOST_LOOKUPS = 4
"""Of a feature under `num_lookups: auto`, unless `dim` says otherwise."""


class UnifiedConfig(SchemeConfig):
    """Tables that all features under these very settings share."""

    kind: Literal["unified"] = "unified"
    num_rows: Annotated[int, Field(ge=LEAST_ROWS, lt=MOST_ROWS)] | None = None
    """Of each table (M in the paper). Found for a budget."""
    num_lookups: PositiveInt | Literal["auto"] | dict[str, PositiveInt] = 2
    """Rows that make a vector (c_t): one number for all features, or by feature (1 where none is
    named), or `auto`: more for features of more ids, at most 4 or embedding_dim / dim."""
    dim: PositiveInt | None = None
    """Width of a row (d); a feature's vectors are num_lookups * dim wide. None: embedding_dim
    divided by the most look-ups, so that no vector is wider than in a full table."""
    num_tables: PositiveInt = 1
    whole_share: float = Field(default=0.1, ge=0, lt=1)
    """Part of the budget (without one: of the shared tables' bytes) in which the features with the
    smallest tables stay whole."""
    table: str = "unified"
    """Name of the tables. Features under other settings need another name, or equal rows."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def sized(self, spaces: SequenceOf[Space], budget_bytes: int | None) -> dict[str, Self | None]:
        """Rows for what the budget leaves beside the whole features, and every one's look-ups."""
        lookups = self._lookups(spaces)
        dim = self.dim or _shared_dim(spaces, lookups)
        row_bytes = FLOAT_BYTES * dim
        if budget_bytes is None:
            num_rows = required_rows(self.num_rows, "unified")
            whole = self._whole(spaces, num_rows * self.num_tables * row_bytes)
        else:
            whole, num_rows = self._fitted(spaces, lookups, budget_bytes, row_bytes)
        _require_alike([space for space in spaces if space not in whole])
        shared = {s.name: lookups[s.name] for s in spaces if s not in whole}
        sizes = {"num_rows": num_rows, "num_lookups": shared, "dim": dim}
        config = self.model_copy(update=sizes)
        return {space.name: config if space.name in shared else None for space in spaces}

    def _lookups(self, spaces: SequenceOf[Space]) -> dict[str, int]:
        names = [space.name for space in spaces]
        if isinstance(self.num_lookups, int):
            return dict.fromkeys(names, self.num_lookups)
        if self.num_lookups == "auto":
            widest = max(space.embedding_dim for space in spaces)
            most = MOST_LOOKUPS if self.dim is None else max(1, widest // self.dim)
            return proposed_lookups({s.name: s.cardinality or s.num_ids for s in spaces}, most)
        for name in self.num_lookups:
            if name not in names:
                raise SchemeError(
                    f"scheme unified: num_lookups names {name!r}, which has no such scheme;"
                    f" {nearest(name, names)}"
                )
        return {name: self.num_lookups.get(name, 1) for name in names}

    def _whole(self, spaces: SequenceOf[Space], of_bytes: int) -> tuple[Space, ...]:
        bounded = [space for space in spaces if space.num_ids is not None]
        return smallest_whole(bounded, self.whole_share * of_bytes)

    def _fitted(
        self,
        spaces: SequenceOf[Space],
        lookups: Mapping[str, int],
        budget_bytes: int,
        row_bytes: int,
    ) -> tuple[tuple[Space, ...], int]:
        """Features that stay whole and the rows of each table."""
        if sum(space.full_bytes for space in spaces) <= budget_bytes:
            return tuple(spaces), LEAST_ROWS
        for whole in (self._whole(spaces, budget_bytes), ()):
            chunks = sum(lookups[space.name] for space in spaces if space not in whole)
            # Fewer chunks than tables: the last tables are dealt none.
            one_row_bytes = row_bytes * min(self.num_tables, chunks)
            left = budget_bytes - sum(space.full_bytes for space in whole)
            if left >= LEAST_ROWS * one_row_bytes:
                return whole, min(left // one_row_bytes, MOST_ROWS - 1)
        raise too_small("unified", LEAST_ROWS * one_row_bytes, spaces, budget_bytes)

    def scheme(self, space: Space, stage: str, decision: Decision) -> "Unified":
        """Look-ups in the shared tables."""
        assert self.num_rows is not None and self.dim is not None, "sized"
        assert isinstance(self.num_lookups, dict), "sized"
        names = [self.table]
        if self.num_tables > 1:
            names = [f"{self.table}_{place}" for place in range(self.num_tables)]
        tables = [TableSpec(name, self.num_rows, self.dim, space.settings) for name in names]
        before = list(self.num_lookups)[: list(self.num_lookups).index(space.name)]
        first = sum(self.num_lookups[name] for name in before)
        chunks = range(first, first + self.num_lookups[space.name])
        return Unified(space, [tables[chunk % self.num_tables] for chunk in chunks])


def proposed_lookups(
    cardinalities: Mapping[str, int | None], most: int = MOST_LOOKUPS
) -> dict[str, int]:
    """Look-ups of each feature, more for more ids: most * log(n) / log(largest n), rounded.

    To tell n ids apart takes log2(n) bits, and every look-up brings as many as any other, so
    look-ups in proportion to log(n) leave every feature about the same chance of a full collision.

    Args:
        cardinalities: ids of each feature; None: unbounded, taken as the largest.
        most: of the largest feature; every feature has at least one.
    """
    largest = max((n for n in cardinalities.values() if n is not None), default=0)
    if largest < 2:
        return {name: most if n is None else 1 for name, n in cardinalities.items()}
    return {
        name: most if n is None else max(1, round(most * math.log(max(n, 1)) / math.log(largest)))
        for name, n in cardinalities.items()
    }


def _require_alike(spaces: SequenceOf[Space]) -> None:
    """One table starts, is trained and is sharded in one way."""
    for first, space in pairwise(spaces):
        if space.settings != first.settings:
            one, other = first.settings.model_dump(), space.settings.model_dump()
            key = next(key for key in one if one[key] != other[key])
            raise SchemeError(
                f"features {first.name!r} and {space.name!r} share a unified table and differ in"
                f" {key}: {one[key]!r} and {other[key]!r}; make them equal, or give one of them"
                " another scheme"
            )


def _shared_dim(spaces: SequenceOf[Space], lookups: Mapping[str, int]) -> int:
    """Width of a row by which every feature's widest vector is that of its full table.

    Raises:
        SchemeError: it is no whole number, or not the same for all.
    """
    most = max(lookups.values())
    for space in spaces:
        if space.embedding_dim % most:
            raise SchemeError(
                f"scheme unified: embedding_dim {space.embedding_dim} of feature {space.name!r} is"
                f" no multiple of {most} look-ups; change either, or set the scheme's dim"
            )
    widths = {space.embedding_dim for space in spaces}
    if len(widths) > 1:
        raise SchemeError(
            f"scheme unified: features of embedding_dim {sorted(widths)} share a table, so its"
            " width is unclear; set the scheme's dim, or make them equal"
        )
    return widths.pop() // most


class Unified(AbstractScheme):
    """e(x) = [E[h_1(x)]; ...; E[h_c(x)]]; a missing id is an id like any other."""

    linear = True
    raw_ids: ClassVar[bool] = True

    def __init__(self, space: Space, lookups: SequenceOf[TableSpec]) -> None:
        super().__init__(space)
        self.lookups = tuple(lookups)
        self.num_rows = lookups[0].num_embeddings
        self.embedding_dim = sum(spec.embedding_dim for spec in lookups)
        # By the space: a sequence has the rows of its candidate.
        self.salts = salts(space.name, len(lookups))

    def rows(self, ids: Tensor) -> tuple[Tensor, ...]:
        return salted_rows(ids, self.salts, len(self.lookups), self.num_rows)

    def combine(self, ids: Tensor, vectors: SequenceOf[Tensor]) -> Tensor:
        return vectors[0] if len(vectors) == 1 else torch.cat(list(vectors), dim=-1)
