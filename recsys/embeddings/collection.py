"""From a batch's ids to vectors by feature name, through TorchRec collections.

Features are read by name only: a sharded collection's own order follows the sharding plan.

Shapes: B rows, L positions of a sequence, D embedding width, V ids of the batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from feature_store.features import IdField, Layout
from recsys.embeddings.hashing import hashed_rows
from recsys.embeddings.tables import Table


class SequenceVectors(NamedTuple):
    """Vectors of a sequence, oldest first, padded at the end."""

    values_BLD: Tensor
    """Zero where padded."""
    mask_BL: Tensor
    """bool: True where there is an id."""


Vectors = dict[str, Tensor | SequenceVectors]
"""By field name: (B, D) for single ids and bags, `SequenceVectors` for sequences."""


class Embeddings(nn.Module):
    """All tables: pooled fields in one collection, tables with a sequence in another."""

    def __init__(self, layout: Layout, tables: tuple[Table, ...], device: torch.device) -> None:
        super().__init__()
        self.layout = layout
        self.tables = tables
        pooled = [table for table in tables if not table.has_sequence]
        unpooled = [table for table in tables if table.has_sequence]
        self.pooled = (
            EmbeddingBagCollection(tables=[_bag_config(t) for t in pooled], device=device)
            if pooled
            else None
        )
        self.unpooled = (
            EmbeddingCollection(tables=[_sequence_config(t) for t in unpooled], device=device)
            if unpooled
            else None
        )
        self.pooled_names = [field.name for table in pooled for field in table.fields]
        table_of = {table.name: table for table in tables}
        self.unpooled_fields = [f for f in layout.ids if table_of[f.space].has_sequence]
        self.pooling = {f.name: table_of[f.space].settings.pooling for f in self.unpooled_fields}
        self.hashed_sizes = [
            table_of[f.space].num_embeddings if table_of[f.space].hashed else 0 for f in layout.ids
        ]

    def forward(self, ids: KeyedJaggedTensor) -> Vectors:
        rows = self.rows(ids)
        vectors: Vectors = {}
        if self.pooled is not None:
            keyed = self.pooled(rows)
            by_name = keyed.to_dict()
            vectors.update((name, by_name[name]) for name in self.pooled_names)
        if self.unpooled is not None:
            jagged = self.unpooled(rows)
            for field in self.unpooled_fields:
                vectors[field.name] = _vectors(field, jagged[field.name], self.pooling[field.name])
        return vectors

    def rows(self, ids: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """The same jagged tensor with rows of tables in the place of ids."""
        if not any(self.hashed_sizes):
            return ids
        values_V = ids.values()
        sizes_V = torch.repeat_interleave(
            torch.tensor(self.hashed_sizes, device=values_V.device),
            torch.tensor(ids.length_per_key(), device=values_V.device),
            output_size=values_V.numel(),
        )
        hashed_V = hashed_rows(values_V, sizes_V.clamp(min=2))
        return KeyedJaggedTensor(
            keys=ids.keys(),
            values=torch.where(sizes_V > 0, hashed_V, values_V),
            lengths=ids.lengths(),
            stride=ids.stride(),
            length_per_key=ids.length_per_key(),
        )


def _vectors(field: IdField, jagged: JaggedTensor, pooling: str) -> Tensor | SequenceVectors:
    if field.shape == "single":
        return jagged.values()
    lengths_B = jagged.lengths()
    if field.shape == "bag":
        return _pooled(jagged.values(), lengths_B, pooling)
    assert field.max_length is not None, "a sequence has a longest length"
    values_BLD = jagged.to_padded_dense(field.max_length)
    positions_L = torch.arange(field.max_length, device=lengths_B.device)
    return SequenceVectors(values_BLD, positions_L[None, :] < lengths_B[:, None])


def _pooled(values_VD: Tensor, lengths_B: Tensor, pooling: str) -> Tensor:
    rows_V = torch.repeat_interleave(lengths_B, output_size=values_VD.shape[0])
    zeros_BD = values_VD.new_zeros(lengths_B.numel(), values_VD.shape[1])
    summed_BD = zeros_BD.index_add(0, rows_V, values_VD)
    if pooling == "sum":
        return summed_BD
    return summed_BD / lengths_B.clamp(min=1)[:, None].to(summed_BD.dtype)


def _initializer(table: Table):  # noqa: ANN202  (TorchRec names no type for it)
    bound = table.settings.init_range
    return lambda weight: nn.init.uniform_(weight, -bound, bound)


def _bag_config(table: Table) -> EmbeddingBagConfig:
    only_single = all(field.shape == "single" for field in table.fields)
    mean = table.settings.pooling == "mean" and not only_single
    return EmbeddingBagConfig(
        name=table.parameter,
        embedding_dim=table.settings.embedding_dim,
        num_embeddings=table.num_embeddings,
        feature_names=[field.name for field in table.fields],
        pooling=PoolingType.MEAN if mean else PoolingType.SUM,
        init_fn=_initializer(table),
    )


def _sequence_config(table: Table) -> EmbeddingConfig:
    return EmbeddingConfig(
        name=table.parameter,
        embedding_dim=table.settings.embedding_dim,
        num_embeddings=table.num_embeddings,
        feature_names=[field.name for field in table.fields],
        init_fn=_initializer(table),
    )
