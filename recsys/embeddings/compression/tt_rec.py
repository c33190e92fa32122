"""TT-Rec, tables as tensor trains (Yin et al., MLSys 2021, arXiv:2101.11714).

A table of n = n1 n2 n3 rows (rounded up) and width d = d1 d2 d3 is never stored. With an id's
digits i1 = x div (n2 n3), i2 = x div n3 mod n2, i3 = x mod n3, its row is

    e(x)[j1, j2, j3] = G1[i1][j1, :] G2[i2][:, j2, :] G3[i3][:, j3]

a product of a (d1, R), a (R, d2 R) and a (R, d3) slice of the three cores; R is the rank. The
cores are small and lie whole on every worker.

Shapes: V ids, R rank, D = d1 d2 d3 width.
"""

import math
from collections.abc import Sequence as SequenceOf
from typing import ClassVar, Literal, Self

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import embedding

from recsys.embeddings.scheme import (
    FLOAT_BYTES,
    AbstractScheme,
    Decision,
    SchemeConfig,
    SchemeError,
    Space,
    largest_fitting,
    too_small,
)

Factors = tuple[PositiveInt, PositiveInt, PositiveInt]

_LEAST_MAGNITUDE = 2.0
_TAIL = math.erfc(_LEAST_MAGNITUDE / math.sqrt(2)) / 2
_TAIL_SECOND_MOMENT = (
    1 + _LEAST_MAGNITUDE * math.exp(-(_LEAST_MAGNITUDE**2) / 2) / math.sqrt(2 * math.pi) / _TAIL
)
"""Of a standard normal number given that its magnitude is at least `_LEAST_MAGNITUDE`."""


class TTRecConfig(SchemeConfig):
    """Three cores a feature in place of its table."""

    keeps_smallest: ClassVar[bool] = True
    kind: Literal["tt_rec"] = "tt_rec"
    rank: PositiveInt | None = None
    """R, inner width of the train, one for all features. Found for a budget: the largest."""
    width_factors: Factors | None = None
    """(d1, d2, d3), their product the width. None: as equal as can be, 16 = 2 x 2 x 4; a prime
    width has none but 1 x 1 x d, which must be asked for."""

    def sized(self, spaces: SequenceOf[Space], budget_bytes: int | None) -> dict[str, Self | None]:
        """One rank for all; features whose cores are no smaller than their table stay whole."""
        widths = {space.name: self._factors(space) for space in spaces}

        def cores(space: Space, rank: int) -> int:
            return core_bytes(row_factors(space.num_rows), widths[space.name], rank)

        def cost(rank: int) -> int:
            return sum(min(space.full_bytes, cores(space, rank)) for space in spaces)

        rank = self.rank
        if budget_bytes is not None:
            if cost(1) > budget_bytes:
                raise too_small(self.kind, cost(1), spaces, budget_bytes)
            # A middle slice of R^2 floats for every id: from here on all features stay whole.
            highest = math.isqrt(max(space.full_bytes for space in spaces)) + 1
            rank = largest_fitting(cost, budget_bytes, 1, highest, self.kind)
        if rank is None:
            raise SchemeError("scheme tt_rec needs a size: set its rank, or embeddings.budget")
        return {
            space.name: self.model_copy(update={"rank": rank, "width_factors": widths[space.name]})
            if cores(space, rank) < space.full_bytes
            else None
            for space in spaces
        }

    def _factors(self, space: Space) -> Factors:
        width = space.embedding_dim
        if self.width_factors is None:
            return width_factors(space)
        if math.prod(self.width_factors) != width:
            raise SchemeError(
                f"scheme tt_rec: width_factors {list(self.width_factors)} make"
                f" {math.prod(self.width_factors)}, feature {space.name!r} is {width} wide"
            )
        return self.width_factors

    def scheme(self, space: Space, stage: str, decision: Decision) -> "TTRec":
        """The cores."""
        assert self.rank is not None, "sized"
        assert self.width_factors is not None, "sized"
        return TTRec(space, self.rank, self.width_factors)


def width_factors(space: Space) -> Factors:
    """Three factors of a width, rising, their sum the least.

    Raises:
        SchemeError: the width is 1 or prime.
    """
    width = space.embedding_dim
    divisors = [number for number in range(1, width + 1) if width % number == 0]
    triples = [
        (first, second, width // (first * second))
        for first in divisors
        for second in divisors
        if first <= second and width % (first * second) == 0 and second <= width // (first * second)
    ]
    best = min(triples, key=sum)
    if best[1] == 1:
        raise SchemeError(
            f"scheme tt_rec cannot factor embedding_dim {width} of feature {space.name!r}: take a"
            " multiple of 4, such as 8 or 16, or set width_factors"
            f" [1, 1, {width}], which shares nothing between the columns"
        )
    return best


def row_factors(num_rows: int) -> Factors:
    """(n1, n2, n3), about equal, whose product is at least the rows; the heavy middle is least."""
    third = max(1, round(num_rows ** (1 / 3)))
    third += third**3 < num_rows
    rest = -(-num_rows // third)
    first = math.isqrt(rest - 1) + 1
    return first, -(-rest // first), third


def core_bytes(rows: Factors, widths: Factors, rank: int) -> int:
    """Bytes of three cores."""
    (n1, n2, n3), (d1, d2, d3) = rows, widths
    return FLOAT_BYTES * (n1 * d1 * rank + n2 * rank * d2 * rank + n3 * rank * d3)


class TTRec(AbstractScheme):
    """e(x) = G1[i1] G2[i2] G3[i3].

    A sum of R^2 products of three weights of variance v has variance R^2 v^3: v is chosen so that
    this is a full table's, and the weights keep away from zero (the paper's sampled Gaussian:
    normal numbers below two standard deviations are rejected), as products of plain normal
    numbers pile up at zero.
    """

    def __init__(self, space: Space, rank: int, widths: Factors) -> None:
        super().__init__(space)
        self.rank = rank
        self.widths = widths
        self.counts = row_factors(space.num_rows)
        (n1, n2, n3), (d1, d2, d3) = self.counts, widths
        variance = (space.settings.init_range**2 / 3 / rank**2) ** (1 / 3)
        self.first = nn.Parameter(_sampled_gaussian((n1, d1 * rank), variance))
        self.middle = nn.Parameter(_sampled_gaussian((n2, rank * d2 * rank), variance))
        self.last = nn.Parameter(_sampled_gaussian((n3, rank * d3), variance))

    def combine(self, ids: Tensor, vectors: SequenceOf[Tensor]) -> Tensor:
        ids_V = ids.reshape(-1)
        if self.training and ids.device.type == "cpu":
            # A fifth of the time on a Zipf batch. On CUDA the host would wait for their number.
            distinct, places_V = torch.unique(ids_V, return_inverse=True)
            rows_VD = self._products(distinct)[places_V]
        else:
            rows_VD = self._products(ids_V)
        return rows_VD.reshape(*ids.shape, self.embedding_dim)

    def _products(self, ids_V: Tensor) -> Tensor:
        (_, n2, n3), (d1, d2, d3), rank = self.counts, self.widths, self.rank
        upper_V = ids_V.div(n3, rounding_mode="floor")
        left = embedding(upper_V.div(n2, rounding_mode="floor"), self.first)
        middle = embedding(upper_V % n2, self.middle)
        right = embedding(ids_V % n3, self.last)
        product = torch.bmm(left.view(-1, d1, rank), middle.view(-1, rank, d2 * rank))
        product = torch.bmm(product.view(-1, d1 * d2, rank), right.view(-1, rank, d3))
        # Under autocast products are bfloat16; vectors are as wide as weights.
        return product.view(-1, self.embedding_dim).to(self.first.dtype)


def _sampled_gaussian(shape: tuple[int, int], variance: float) -> Tensor:
    """Normal numbers given that they are large, of either sign, brought to a variance."""
    # In (0, 1]: zero has no quantile.
    uniform = 1 - torch.rand(shape, dtype=torch.float64)
    magnitude = -torch.special.ndtri(uniform * _TAIL)
    sign = torch.where(torch.rand(shape) < 0.5, -1.0, 1.0)
    return (magnitude * sign * math.sqrt(variance / _TAIL_SECOND_MOMENT)).to(torch.float32)
