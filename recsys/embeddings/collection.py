"""From a batch's ids to vectors by feature name, through TorchRec collections.

Features are read by name only: a sharded collection's own order follows the sharding plan.

Shapes: B rows, L positions of a sequence, D embedding width, V ids of the batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
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


class AbstractEmbeddings(nn.Module):
    """Ids to vectors by field name: TorchRec collections in training, plain gathers in serving."""

    tables: tuple[Table, ...]


class Embeddings(AbstractEmbeddings):
    """All tables: pooled fields in one collection, tables with a sequence in another.

    Tables that are whole on every worker are ordinary parameters beside the collections: FBGEMM's
    data-parallel kernel has no unpooled look-up on CPU, and merges tables into one flat parameter.

    Bags are summed by the collections and divided here: TorchRec's mean adds 1e-6 to the divisor
    of row-wise shards (of every table of the group), so scores would depend on the plan.

    All weights are zero until `recsys.embeddings.initial` or a checkpoint fills them.

    Args:
        layout: of an encoded row.
        tables: every id field of the layout is in one of them.
        device: of the collections; meta where they are sharded next, so that no worker ever
            allocates a whole table.
    """

    def __init__(self, layout: Layout, tables: tuple[Table, ...], device: torch.device) -> None:
        super().__init__()
        self.layout = layout
        self.tables = tables
        sharded = [table for table in tables if not table.settings.replicated]
        pooled = [table for table in sharded if not table.has_sequence]
        unpooled = [table for table in sharded if table.has_sequence]
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
        self.replicated = nn.ParameterDict(
            {t.parameter: _replicated(t) for t in tables if t.settings.replicated}
        )
        self.table_of = {field.name: table for table in tables for field in table.fields}
        self.hashed_sizes = [
            self.table_of[f.name].num_embeddings if self.table_of[f.name].hashed else 0
            for f in layout.ids
        ]

    def forward(self, ids: KeyedJaggedTensor) -> Vectors:
        rows = self.rows(ids)
        vectors: Vectors = {}
        by_name = {} if self.pooled is None else self.pooled(rows).to_dict()
        unpooled = {} if self.unpooled is None else self.unpooled(rows)
        for field in self.layout.ids:
            table = self.table_of[field.name]
            if table.settings.replicated:
                vectors[field.name] = self._looked_up(field, table, rows[field.name])
            elif table.has_sequence:
                pooling = table.settings.pooling
                vectors[field.name] = _vectors(field, unpooled[field.name], pooling)
            elif field.shape == "bag" and table.settings.pooling == "mean":
                lengths_B = rows[field.name].lengths()
                vectors[field.name] = _divided(by_name[field.name], lengths_B)
            else:
                vectors[field.name] = by_name[field.name]
        return vectors

    def _looked_up(
        self, field: IdField, table: Table, rows: JaggedTensor
    ) -> Tensor | SequenceVectors:
        values_VD = embedding(rows.values(), self.replicated[table.parameter])
        jagged = JaggedTensor(values=values_VD, lengths=rows.lengths())
        return _vectors(field, jagged, table.settings.pooling)

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
    return summed_BD if pooling == "sum" else _divided(summed_BD, lengths_B)


def _divided(summed_BD: Tensor, lengths_B: Tensor) -> Tensor:
    return summed_BD / lengths_B.clamp(min=1)[:, None].to(summed_BD.dtype)


def _replicated(table: Table) -> nn.Parameter:
    return nn.Parameter(torch.zeros(table.num_embeddings, table.settings.embedding_dim))


def _bag_config(table: Table) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=table.parameter,
        embedding_dim=table.settings.embedding_dim,
        num_embeddings=table.num_embeddings,
        feature_names=[field.name for field in table.fields],
        pooling=PoolingType.SUM,
        init_fn=nn.init.zeros_,
    )


def _sequence_config(table: Table) -> EmbeddingConfig:
    return EmbeddingConfig(
        name=table.parameter,
        embedding_dim=table.settings.embedding_dim,
        num_embeddings=table.num_embeddings,
        feature_names=[field.name for field in table.fields],
        init_fn=nn.init.zeros_,
    )


def table_weight(embeddings: Embeddings, table: Table) -> nn.Parameter:
    """The (num_embeddings, embedding_dim) parameter of a table of unsharded embeddings."""
    if table.settings.replicated:
        return embeddings.replicated[table.parameter]
    if table.has_sequence:
        assert embeddings.unpooled is not None
        return embeddings.unpooled.embeddings[table.parameter].weight
    assert embeddings.pooled is not None
    return embeddings.pooled.embedding_bags[table.parameter].weight
