"""Stateless mixing of ids into table rows, the same numbers on every device and in every program.

splitmix64 (Steele, Lea and Flood, 2014: the finalizer of SplittableRandom), in wrapping int64
arithmetic: torch has no unsigned 64-bit arithmetic, and two's complement gives the same bits.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >= 1 << 63 else bits


def _xor_shift_right(values: Tensor, bits: int) -> Tensor:
    """XOR with values >>> bits: torch's shift keeps the sign, so its copies are masked off."""
    return values ^ ((values >> bits) & ((1 << (64 - bits)) - 1))


def splitmix64(values: Tensor) -> Tensor:
    """A bijection of the 64-bit integers (int64 in, int64 bits out)."""
    values = values + _signed(_GOLDEN)
    values = _xor_shift_right(values, 30) * _signed(_FIRST)
    values = _xor_shift_right(values, 27) * _signed(_SECOND)
    return _xor_shift_right(values, 31)


def salt(*parts: str | int) -> int:
    """A signed 64-bit constant, a function of the parts.

    Added to ids before they are mixed it gives every feature, chunk or purpose a hash of its own,
    and nothing is stored.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def positive(hashes: Tensor) -> Tensor:
    """The upper 63 bits of each hash, as a number that is not negative."""
    return (hashes >> 1) & ((1 << 63) - 1)


def hashed_rows(ids: Tensor, num_embeddings: int | Tensor) -> Tensor:
    """Row of each id in a table of `num_embeddings` rows; id 0 (missing) keeps row 0 for itself.

    Args:
        ids: int64, any shape.
        num_embeddings: rows of the table, at least 2; a tensor gives every id its own table.
    """
    return torch.where(ids == 0, 0, 1 + positive(splitmix64(ids)) % (num_embeddings - 1))


MOST_ROWS = 1 << 31
"""Of a table that `salted_rows` addresses: 32 bits times fewer rows stay below 2^63."""


def salts(name: str, num_lookups: int) -> tuple[int, ...]:
    """The salts of `salted_rows` for so many look-ups: one for every two."""
    return tuple(salt(name, pair) for pair in range((num_lookups + 1) // 2))


def salted_rows(
    ids: Tensor, salts: Sequence[int], num_lookups: int, num_rows: int
) -> tuple[Tensor, ...]:
    """Rows of each look-up, as of independent hash functions; a missing id has some row too.

    Look-up k takes the lower (k even) or upper (k odd) 32 bits of the id mixed with salt k div 2:
    each bit of splitmix64 depends on all of the id, so its halves are as good as two hashes and
    cost one. row = bits * num_rows div 2^32 (Lemire 2019, arXiv:1805.10941) needs no division;
    rows differ in probability by less than 2^-32.

    Args:
        ids: int64, any shape: any 64 bits.
        salts: of `salts`.
        num_lookups: how many rows an id has.
        num_rows: of the table, below 2^31.

    Returns:
        int64 rows in 0 .. num_rows - 1, shaped as the ids, one tensor a look-up.
    """
    rows: list[Tensor] = []
    for constant in salts:
        mixed = splitmix64(ids + constant)
        rows.append(((mixed & 0xFFFFFFFF) * num_rows) >> 32)
        if len(rows) < num_lookups:
            rows.append((((mixed >> 32) & 0xFFFFFFFF) * num_rows) >> 32)
    return tuple(rows)
