"""Deep hash embedding (Kang et al., KDD 2021, arXiv:2010.10784).

No table. k universal hashes of an id x, with p = 2^31 - 1 and m buckets,

    h_i(x) = ((a_i x + b_i) mod p) mod m,   code_i = 2 h_i / (m - 1) - 1,

make k numbers that are uniform in [-1, 1] (or, by Box and Muller's transform of pairs of them,
normal), which a network decodes: hidden layers Mish(BatchNorm(W s)), then a linear layer. The
coefficients a_i, b_i are a function of the feature's name, so nothing but the network is stored.

A 64-bit hash exceeds p: it is mixed and cut into two numbers of 31 bits, x and y, and
h_i = ((a_i x + c_i y + b_i) mod p) mod m. All sums stay below 2 p^2 < 2^63.

Even the least network, of width 1, takes more than 4 k bytes: features whose table is smaller stay
whole.

Shapes: V ids, K hashes, W width of the hidden layers, D embedding width.
"""

import math
from collections.abc import Sequence as SequenceOf
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import mish

from recsys.embeddings.hashing import positive, salt, splitmix64
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
from recsys.normalization import BatchNorm

PRIME = (1 << 31) - 1
MISH_SECOND_MOMENT = 0.4523
"""E[Mish(z)^2] of a standard normal z."""
_NORM_VECTORS = 4
"""Of a batch normalisation: scale, shift, moving mean, moving variance."""


class DHEConfig(SchemeConfig):
    """A network a feature in place of its table."""

    kind: Literal["dhe"] = "dhe"
    width: PositiveInt | None = None
    """Of the hidden layers. Found for a budget, by feature: in proportion to the full tables."""
    num_layers: PositiveInt = 5
    """Hidden ones."""
    num_hashes: int = Field(default=1024, ge=2)
    """k, codes of an id. Fewer make the least network smaller and all of them faster."""
    num_buckets: int = Field(default=1_000_000, ge=2, le=PRIME)
    """m, values of a hash."""
    encoding: Literal["uniform", "gaussian"] = "uniform"
    """How codes are distributed."""
    whole_share: float = Field(default=0.1, ge=0, lt=1)
    """Part of a budget in which the features with the smallest tables stay whole."""

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if self.encoding == "gaussian" and self.num_hashes % 2:
            raise ValueError(
                f"encoding 'gaussian' transforms pairs of hashes: num_hashes {self.num_hashes} is"
                " odd, take an even number"
            )
        return self

    def sized(self, spaces: SequenceOf[Space], budget_bytes: int | None) -> dict[str, Self | None]:
        """Widths for bytes in proportion to full tables; what would not shrink stays whole."""
        if budget_bytes is not None:
            widths = self._widths(spaces, budget_bytes)
        elif self.width is None:
            raise SchemeError("scheme dhe needs a size: set its width, or embeddings.budget")
        else:
            width = self.width
            widths = {space.name: width for space in spaces if self._shrinks(space, width)}
        return {
            space.name: self.model_copy(update={"width": widths[space.name]})
            if space.name in widths
            else None
            for space in spaces
        }

    def _bytes(self, space: Space, width: int) -> int:
        return network_bytes(self.num_hashes, self.num_layers, width, space.embedding_dim)

    def _shrinks(self, space: Space, width: int) -> bool:
        return space.num_ids is None or self._bytes(space, width) < space.full_bytes

    def _widths(self, spaces: SequenceOf[Space], budget_bytes: int) -> dict[str, int]:
        """By feature that does not stay whole."""
        most = max(space.full_bytes for space in spaces)

        def widths(largest: int, whole: SequenceOf[Space]) -> dict[str, int]:
            """When the largest feature may have so many bytes."""
            found = {}
            for space in spaces:
                width = self._width(space, largest * space.full_bytes / most)
                if space not in whole and self._shrinks(space, width):
                    found[space.name] = width
            return found

        def cost(largest: int, whole: SequenceOf[Space]) -> int:
            found = widths(largest, whole)
            return sum(
                self._bytes(space, found[space.name]) if space.name in found else space.full_bytes
                for space in spaces
            )

        whole = smallest_whole(spaces, self.whole_share * budget_bytes)
        if cost(0, whole) > budget_bytes:
            whole = ()
        if cost(0, whole) > budget_bytes:
            raise too_small(self.kind, cost(0, whole), spaces, budget_bytes)
        largest = largest_fitting(lambda size: cost(size, whole), budget_bytes, 0, most, self.kind)
        return widths(largest, whole)

    def _width(self, space: Space, allowed_bytes: float) -> int:
        """The widest network within the bytes, at least 1."""
        if self._bytes(space, 1) > allowed_bytes:
            return 1
        highest = int(allowed_bytes) // (FLOAT_BYTES * self.num_hashes)
        return largest_fitting(
            lambda width: self._bytes(space, width), allowed_bytes, 1, max(1, highest), self.kind
        )

    def scheme(self, space: Space, stage: str, decision: Decision) -> "DHE":
        """The network."""
        assert self.width is not None, "sized"
        return DHE(
            space,
            width=self.width,
            num_layers=self.num_layers,
            num_hashes=self.num_hashes,
            num_buckets=self.num_buckets,
            gaussian=self.encoding == "gaussian",
        )


def network_bytes(num_hashes: int, num_layers: int, width: int, embedding_dim: int) -> int:
    """Bytes of a network's weights and moving statistics."""
    hidden = num_hashes * width + (num_layers - 1) * width**2
    return FLOAT_BYTES * (hidden + num_layers * _NORM_VECTORS * width + (width + 1) * embedding_dim)


class DHE(AbstractScheme):
    """e(x) = A Mish(BN(W_n ... Mish(BN(W_1 codes(x))))) + b.

    Weights start so that every hidden unit has variance about 1 before it is normalised, and the
    vectors have a full table's: codes have second moment 1/3 (normal ones 1), Mish of a standard
    normal number 0.4523. Hidden layers have no bias: the normalisation would remove it.
    """

    raw_ids: ClassVar[bool] = True

    def __init__(
        self,
        space: Space,
        *,
        width: int,
        num_layers: int = 5,
        num_hashes: int = 1024,
        num_buckets: int = 1_000_000,
        gaussian: bool = False,
    ) -> None:
        super().__init__(space)
        self.num_hashes = num_hashes
        self.num_buckets = num_buckets
        self.gaussian = gaussian
        self.fits_prime = space.cardinality is not None and space.cardinality <= PRIME
        inputs = [num_hashes, *[width] * (num_layers - 1)]
        self.hidden = nn.ModuleList(nn.Linear(size, width, bias=False) for size in inputs)
        self.norms = nn.ModuleList(BatchNorm(width, across_workers=True) for _ in inputs)
        self.output = nn.Linear(width, self.embedding_dim)
        moments = [1.0 if gaussian else 1 / 3, *[MISH_SECOND_MOMENT] * num_layers]
        variances = [1.0] * num_layers + [space.settings.init_range**2 / 3]
        linears = [*self.hidden, self.output]
        for linear, moment, variance in zip(linears, moments, variances, strict=True):
            assert isinstance(linear, nn.Linear)
            bound = math.sqrt(3 * variance / (linear.in_features * moment))
            nn.init.uniform_(linear.weight, -bound, bound)
        nn.init.zeros_(self.output.bias)

    def combine(self, ids: Tensor, vectors: SequenceOf[Tensor]) -> Tensor:
        ids_V = ids.reshape(-1)
        if self.training and ids.device.type == "cpu":
            # Every id once, and as often as it occurs in the statistics. On CUDA the host would
            # wait for their number.
            distinct, places_V, counts = torch.unique(
                ids_V, return_inverse=True, return_counts=True
            )
            vectors_VD = self._decoded(self.codes(distinct), counts)[places_V]
        else:
            vectors_VD = self._decoded(self.codes(ids_V), None)
        # Under autocast linear layers give bfloat16; vectors are as wide as weights.
        return vectors_VD.to(self.output.weight.dtype).reshape(*ids.shape, self.embedding_dim)

    def codes(self, ids_V: Tensor) -> Tensor:
        """(V, K) codes of ids, in [-1, 1] or normal."""
        first_K, second_K, shift_K = (self._coefficients(name, ids_V.device) for name in "acb")
        if self.fits_prime:
            sums_VK = first_K * ids_V[:, None] + shift_K
        else:
            mixed_V1 = splitmix64(ids_V)[:, None]
            sums_VK = first_K * (mixed_V1 & PRIME) + shift_K
            sums_VK = sums_VK + second_K * ((mixed_V1 >> 31) & PRIME)
        hashes_VK = (sums_VK % PRIME % self.num_buckets).to(self.output.weight.dtype)
        if not self.gaussian:
            return hashes_VK * (2 / (self.num_buckets - 1)) - 1
        # In (0, 1): zero has no logarithm.
        radius, angle = ((hashes_VK + 0.5) / self.num_buckets).chunk(2, dim=1)
        radius = torch.sqrt(-2 * torch.log(radius))
        angle = 2 * math.pi * angle
        return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)

    def _coefficients(self, name: str, device: torch.device) -> Tensor:
        """(K,) in 1 .. p - 1."""
        numbers_K = torch.arange(self.num_hashes, device=device)
        # XOR, as TorchInductor adds constants to a range beforehand, and stops where they overflow.
        drawn_K = positive(splitmix64(numbers_K ^ salt(self.space.name, "dhe", name)))
        return 1 + drawn_K % (PRIME - 1)

    def _decoded(self, codes_VK: Tensor, counts_V: Tensor | None) -> Tensor:
        units = codes_VK
        for linear, norm in zip(self.hidden, self.norms, strict=True):
            units = mish(norm(linear(units), counts_V))
        decoded_VD: Tensor = self.output(units)
        return decoded_VD
