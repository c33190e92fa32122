"""The serving form of the embeddings: gathers over padded ids, in plain tensor code.

A server needs torch alone, and the same form exports to AOTInductor and ONNX.

Shapes: B rows, L positions, D embedding width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from feature_store.features import IdField
from recsys.embeddings.collection import (
    AbstractEmbeddings,
    Embeddings,
    SequenceVectors,
    Vectors,
    table_weight,
)
from recsys.embeddings.hashing import hashed_rows
from recsys.embeddings.tables import Table


class PaddedIds(NamedTuple):
    """Ids of one field as a rectangle."""

    ids_BL: Tensor
    """int64, 0 where padded; L is 1 for single ids and at least 1 for lists."""
    lengths_B: Tensor
    """int64: how many ids of each row are real."""


class ServedBatch(NamedTuple):
    """What a model in serving form reads of a batch."""

    ids: dict[str, PaddedIds]
    dense_BN: Tensor


class ServingEmbeddings(AbstractEmbeddings):
    """The same vectors as `Embeddings`, from full copies of its tables."""

    def __init__(self, tables: tuple[Table, ...], weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.tables = tables
        self.weights = nn.ParameterDict(
            {t.parameter: nn.Parameter(weights[t.name], requires_grad=False) for t in tables}
        )

    def forward(self, ids: dict[str, PaddedIds]) -> Vectors:
        vectors: Vectors = {}
        for table in self.tables:
            weight = self.weights[table.parameter]
            for field in table.fields:
                padded = ids[field.name]
                rows_BL = (
                    hashed_rows(padded.ids_BL, table.num_embeddings)
                    if table.hashed
                    else padded.ids_BL
                )
                vectors[field.name] = _gather(field, table, weight[rows_BL], padded)
        return vectors


def _gather(
    field: IdField, table: Table, values_BLD: Tensor, padded: PaddedIds
) -> Tensor | SequenceVectors:
    if field.shape == "single":
        return values_BLD[:, 0]
    positions_L = torch.arange(values_BLD.shape[1], device=values_BLD.device)
    mask_BL = positions_L[None, :] < padded.lengths_B[:, None]
    masked_BLD = values_BLD * mask_BL[:, :, None]
    if field.shape == "sequence":
        return SequenceVectors(masked_BLD, mask_BL)
    summed_BD = masked_BLD.sum(dim=1)
    if table.settings.pooling == "sum":
        return summed_BD
    return summed_BD / padded.lengths_B.clamp(min=1)[:, None].to(summed_BD.dtype)


def serving_form(embeddings: Embeddings) -> ServingEmbeddings:
    """The serving form of unsharded embeddings; the weights are shared, not copied."""
    return ServingEmbeddings(
        embeddings.tables,
        {table.name: table_weight(embeddings, table).detach() for table in embeddings.tables},
    )
