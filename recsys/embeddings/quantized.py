"""Tables as they are served: float32, float16, or rows of small integers with a scale of their own.

Plain gathers and arithmetic, so that one form runs in eager, exported and compiled programs. An
integer row keeps a float16 pair (least value, step): value = least + code * step. The product of a
code (8 bits) and a step (11 bits) is exact in float32, so a program that fuses the multiplication
into the addition gives the same numbers.

The pair is rounded outwards (least down, step up) before the codes are chosen, so its rounding
only widens the step and no value is cut off. For a row of range r, least value m and largest
magnitude p, with L = 255 or 15 steps:

    step  <= (r + max(2^-10 |m|, 2^-24)) / L * (1 + 2^-10) + 2^-24
    error <= step / 2 + 2^-24 * (p + step / 2)

The last term is the float32 sum. For rows around zero this is half a step of exact float32 pairs,
0.15% wider, at half their bytes; weights under 2^-24 vanish.

Shapes: R rows of a table, D embedding width, (...) rows asked for.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad

Precision = Literal["fp32", "fp16", "int8", "int4"]
"""Of a served table's weights."""

LARGEST_HALF = 65504.0
_CHUNK_ROWS = 1 << 16
"""Rows converted at once: in float64 they take twice the bytes of the weights."""
_PAIR_BYTES = 4
_LEVELS: dict[Precision, int] = {"int8": 255, "int4": 15}


class ServedTable(nn.Module, ABC):
    """A table that is only read. What it stores is its buffers.

    Attributes:
        num_embeddings: rows.
        embedding_dim: width of a row.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim

    @abstractmethod
    def forward(self, rows: Tensor) -> Tensor:
        """(..., D) float32 of rows (...) int64, each in 0 .. num_embeddings - 1."""


class FloatTable(ServedTable):
    """float32 as trained; shares the weights' memory.

    Args:
        weight_RD: float32.
    """

    weight: Tensor

    def __init__(self, weight_RD: Tensor) -> None:
        super().__init__(*weight_RD.shape)
        self.register_buffer("weight", weight_RD.detach().to(torch.float32))

    def forward(self, rows: Tensor) -> Tensor:
        """See `ServedTable`."""
        return embedding(rows, self.weight)


class HalfTable(ServedTable):
    """float16, to the nearest.

    Args:
        weight_RD: float32.

    Raises:
        ValueError: a finite weight is beyond float16.
    """

    weight: Tensor

    def __init__(self, weight_RD: Tensor) -> None:
        super().__init__(*weight_RD.shape)
        half = weight_RD.detach().to(torch.float16)
        if bool((torch.isinf(half) & ~torch.isinf(weight_RD)).any()):
            finite = weight_RD[torch.isfinite(weight_RD)]
            raise ValueError(_beyond_half(float(finite.abs().max()), "fp16"))
        self.register_buffer("weight", half)

    def forward(self, rows: Tensor) -> Tensor:
        """See `ServedTable`."""
        return embedding(rows, self.weight).to(torch.float32)


class Int8Table(ServedTable):
    """A byte a weight, and a float16 pair a row.

    Args:
        weight_RD: float32.

    Raises:
        ValueError: a weight is not finite, or beyond float16.
    """

    codes: Tensor
    pairs: Tensor
    """(R, 2): least value and step."""

    def __init__(self, weight_RD: Tensor) -> None:
        super().__init__(*weight_RD.shape)
        codes, pairs = _affine(weight_RD.detach(), "int8")
        self.register_buffer("codes", codes)
        self.register_buffer("pairs", pairs)

    def forward(self, rows: Tensor) -> Tensor:
        """See `ServedTable`."""
        return _values(self.codes[rows], self.pairs[rows])


class Int4Table(ServedTable):
    """Half a byte a weight, and a float16 pair a row; an odd width leaves half a byte unused.

    Args:
        weight_RD: float32.

    Raises:
        ValueError: a weight is not finite, or beyond float16.
    """

    codes: Tensor
    """(R, ceil(D / 2)): the even column in the low half of a byte."""
    pairs: Tensor
    """(R, 2): least value and step."""

    def __init__(self, weight_RD: Tensor) -> None:
        super().__init__(*weight_RD.shape)
        codes, pairs = _affine(weight_RD.detach(), "int4")
        even = pad(codes, (0, codes.shape[1] % 2))
        self.register_buffer("codes", even[:, 0::2] | (even[:, 1::2] << 4))
        self.register_buffer("pairs", pairs)

    def forward(self, rows: Tensor) -> Tensor:
        """See `ServedTable`."""
        both = self.codes[rows]
        codes = torch.stack([both & 15, both >> 4], dim=-1).flatten(-2)
        return _values(codes[..., : self.embedding_dim], self.pairs[rows])


_TABLES: dict[Precision, type[FloatTable | HalfTable | Int8Table | Int4Table]] = {
    "fp32": FloatTable,
    "fp16": HalfTable,
    "int8": Int8Table,
    "int4": Int4Table,
}


def served_table(weight_RD: Tensor, precision: Precision) -> ServedTable:
    """A table in the precision it is served in, on the weights' device.

    Args:
        weight_RD: float32.
        precision: of the stored weights; vectors come out in float32 whatever it is.

    Raises:
        ValueError: the precision cannot hold the weights.
    """
    return _TABLES[precision](weight_RD)


def served_bytes(num_embeddings: int, embedding_dim: int, precision: Precision) -> int:
    """Bytes of a served table's buffers."""
    if precision == "fp32":
        return 4 * num_embeddings * embedding_dim
    if precision == "fp16":
        return 2 * num_embeddings * embedding_dim
    codes = embedding_dim if precision == "int8" else (embedding_dim + 1) // 2
    return num_embeddings * (codes + _PAIR_BYTES)


def error_bound(weight_RD: Tensor, precision: Precision) -> Tensor:
    """(R,) float64: no weight of a row differs by more in the served table; see the module.

    float16: half its unit in the last place, 2^-11 of the largest magnitude or 2^-25.
    """
    weight_RD = weight_RD.detach().to(torch.float64)
    peak_R = weight_RD.abs().amax(dim=1)
    if precision == "fp32":
        return torch.zeros_like(peak_R)
    if precision == "fp16":
        return (peak_R * 2**-11).clamp(min=2**-25)
    least_R, most_R = weight_RD.aminmax(dim=1)
    widened_R = most_R - least_R + (least_R.abs() * 2**-10).clamp(min=2**-24)
    half_step_R = (widened_R / _LEVELS[precision] * (1 + 2**-10) + 2**-24) / 2
    return half_step_R + 2**-24 * (peak_R + half_step_R)


def _values(codes: Tensor, pairs: Tensor) -> Tensor:
    pairs = pairs.to(torch.float32)
    return codes.to(torch.float32) * pairs[..., 1:] + pairs[..., :1]


def _affine(weight_RD: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """(R, D) uint8 codes and (R, 2) float16 pairs."""
    chunks = [_affine_chunk(chunk, precision) for chunk in weight_RD.split(_CHUNK_ROWS)]
    return torch.cat([codes for codes, _ in chunks]), torch.cat([pairs for _, pairs in chunks])


def _affine_chunk(weight_RD: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    weight_RD = weight_RD.to(torch.float64)
    if not bool((weight_RD.abs() <= LARGEST_HALF).all()):
        if not bool(torch.isfinite(weight_RD).all()):
            raise ValueError(
                f"a table with weights that are NaN or infinite cannot be served as {precision};"
                " the training has diverged: lower its learning rate"
            )
        raise ValueError(_beyond_half(float(weight_RD.abs().max()), precision))
    levels = _LEVELS[precision]
    least_R1, most_R1 = weight_RD.amin(dim=1, keepdim=True), weight_RD.amax(dim=1, keepdim=True)
    low_R1 = _half_at_most(least_R1)
    step_R1 = -_half_at_most((low_R1.to(torch.float64) - most_R1) / levels)
    # A step of zero: the whole row is its least value.
    divisor_R1 = torch.where(step_R1 == 0, 1.0, step_R1.to(torch.float64))
    codes_RD = ((weight_RD - low_R1) / divisor_R1).round().clamp(0, levels).to(torch.uint8)
    return codes_RD, torch.cat([low_R1, step_R1], dim=1)


def _half_at_most(values: Tensor) -> Tensor:
    """The largest float16 that is not above each value."""
    half = values.to(torch.float16)
    bits = half.view(torch.int16)
    # Zero's lower neighbour is the least negative number: the sign bit, and one.
    neighbour = torch.where(half > 0, bits - 1, torch.where(half < 0, bits + 1, -(2**15) + 1))
    below = neighbour.to(torch.int16).view(torch.float16)
    return torch.where(half.to(torch.float64) > values, below, half)


def _beyond_half(largest: float, precision: Precision) -> str:
    return (
        f"a weight of magnitude {largest:g} does not fit {precision}, which holds up to"
        f" {LARGEST_HALF:g}; serve the table as fp32"
    )
