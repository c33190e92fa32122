"""Pruned tables as they are stored: nonzero values, a bit for every column, where each row begins.

A row's bits say which of its columns have a value; its values lie one after another from the row's
offset. Tables with few nonempty rows store those alone, with their sorted numbers. This is the
storage of checkpoints and bundles, so its bytes are what a pruning method really saves.

Shapes: R rows of a table, D embedding width, (...) rows asked for.
"""

import torch
from torch import Tensor

from recsys.embeddings.quantized import ServedTable

_VALUE_BYTES = 4
_OFFSET_BYTES = 4
_NUMBER_BYTES = 4


def packed_bytes(num_rows: int, embedding_dim: int, num_values: int, nonempty: int) -> int:
    """Bytes of a packed table: of the smaller of its two forms.

    Args:
        num_rows: R.
        embedding_dim: D.
        num_values: nonzero weights.
        nonempty: rows with a nonzero weight.
    """
    values = _VALUE_BYTES * num_values
    all_rows = values + num_rows * _row_bytes(embedding_dim)
    few_rows = values + nonempty * (_row_bytes(embedding_dim) + _NUMBER_BYTES)
    return min(all_rows, few_rows)


def _row_bytes(embedding_dim: int) -> int:
    return -(-embedding_dim // 8) + _OFFSET_BYTES


def csr_bytes(num_rows: int, num_values: int) -> int:
    """The same table as compressed sparse rows with 4-byte indices: the study's account."""
    return _VALUE_BYTES * 2 * num_values + _OFFSET_BYTES * (num_rows + 1)


def largest_num_values(num_rows: int, embedding_dim: int, budget_bytes: int) -> int:
    """How many values certainly fit, wherever they lie; 0 where not even that is certain."""
    in_all_rows = (budget_bytes - num_rows * _row_bytes(embedding_dim)) // _VALUE_BYTES
    # At worst every value is alone in its row.
    alone = budget_bytes // (_VALUE_BYTES + _row_bytes(embedding_dim) + _NUMBER_BYTES)
    return max(0, min(num_rows * embedding_dim, max(in_all_rows, alone)))


class PackedTable(ServedTable):
    """The nonzero weights of a table; reading it gives exactly the table.

    A negative zero is a zero. NaN counts as a value.

    Args:
        weight_RD: float32, pruned weights are zero.
    """

    values: Tensor
    offsets: Tensor
    bits: Tensor
    numbers: Tensor | None

    def __init__(self, weight_RD: Tensor) -> None:
        super().__init__(*weight_RD.shape)
        weight_RD = weight_RD.detach().float()
        kept_RD = weight_RD != 0
        counts_R = kept_RD.sum(dim=1)
        nonempty = int((counts_R > 0).sum())
        few = nonempty * (_row_bytes(self.embedding_dim) + _NUMBER_BYTES)
        self.stores_few = few < self.num_embeddings * _row_bytes(self.embedding_dim)
        if self.stores_few:
            stored = counts_R.nonzero()[:, 0]
            self.register_buffer("numbers", stored.to(torch.int32))
            kept_RD, counts_R, weight_RD = kept_RD[stored], counts_R[stored], weight_RD[stored]
        else:
            self.register_buffer("numbers", None)
        num_values = int(counts_R.sum())
        if num_values >= 1 << 31:
            raise ValueError(f"a packed table holds fewer than 2^31 values, found {num_values:,}")
        self.register_buffer("values", weight_RD[kept_RD])
        self.register_buffer("offsets", (counts_R.cumsum(0) - counts_R).to(torch.int32))
        self.register_buffer("bits", pack_bits(kept_RD))

    def forward(self, rows: Tensor) -> Tensor:
        stored, known = rows, None
        if self.numbers is not None:
            if not self.numbers.numel():
                return rows.new_zeros((*rows.shape, self.embedding_dim), dtype=torch.float32)
            wanted = rows.to(torch.int32)
            stored = torch.searchsorted(self.numbers, wanted).clamp(max=self.numbers.numel() - 1)
            known = self.numbers[stored] == wanted
        kept = unpack_bits(self.bits[stored], self.embedding_dim)
        if known is not None:
            kept = kept & known[..., None]
        if not self.values.numel():
            return rows.new_zeros((*rows.shape, self.embedding_dim), dtype=torch.float32)
        places = self.offsets[stored].to(torch.int64)[..., None] + kept.cumsum(-1) - 1
        found = self.values[places.clamp(min=0, max=self.values.numel() - 1)]
        return torch.where(kept, found, 0.0)

    def dense(self) -> Tensor:
        """The (R, D) table."""
        return self(torch.arange(self.num_embeddings, device=self.values.device))


def pack_bits(kept: Tensor) -> Tensor:
    """Booleans (..., D) as uint8 (..., ceil(D / 8)), the first column in the lowest bit."""
    *lead, width = kept.shape
    padded = torch.nn.functional.pad(kept.to(torch.uint8), (0, -width % 8))
    octets = padded.reshape(*lead, padded.shape[-1] // 8, 8) << torch.arange(
        8, dtype=torch.uint8, device=kept.device
    )
    return octets.sum(dim=-1).to(torch.uint8)


def unpack_bits(bits: Tensor, width: int) -> Tensor:
    """The booleans (..., width) of `pack_bits`."""
    columns = torch.arange(width, device=bits.device)
    octets = bits[..., columns // 8].to(torch.int64)
    return ((octets >> (columns % 8)) & 1).bool()
