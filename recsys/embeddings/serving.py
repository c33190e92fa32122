"""The serving form of the embeddings: gathers over padded ids, in plain tensor code.

A server needs torch alone, and the same form exports to AOTInductor and ONNX.

Shapes: B rows, L positions, D embedding width.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from feature_store.features import IdField, Layout
from recsys.embeddings.collection import (
    AbstractEmbeddings,
    Embeddings,
    SequenceVectors,
    Vectors,
    table_weight,
    weighted_mean,
)
from recsys.embeddings.config import Pooling
from recsys.embeddings.quantized import Precision, ServedTable, served_table
from recsys.embeddings.scheme import AbstractScheme, module_bytes


class PaddedIds(NamedTuple):
    """Ids of one field as a rectangle."""

    ids_BL: Tensor
    """int64, 0 where padded; L is 1 for single ids and at least 1 for lists."""
    lengths_B: Tensor
    """int64: how many ids of each row are real."""
    weights_BL: Tensor | None = None
    """float32, 0 where padded; None: the field has none."""


class ServedBatch(NamedTuple):
    """What a model in serving form reads of a batch."""

    ids: dict[str, PaddedIds]
    dense_BN: Tensor


class ServingEmbeddings(AbstractEmbeddings):
    """The same vectors as `Embeddings`, from schemes in serving form and whole tables.

    Args:
        layout: of an encoded row.
        schemes: in serving form, by space.
        poolings: of bags, by space.
        tables: by name, all that the schemes look rows up in.
    """

    def __init__(
        self,
        layout: Layout,
        schemes: Mapping[str, AbstractScheme],
        poolings: Mapping[str, Pooling],
        tables: Mapping[str, ServedTable],
    ) -> None:
        super().__init__()
        self.fields = layout.ids
        self.poolings = dict(poolings)
        self.by_space = dict(schemes)
        self.schemes = nn.ModuleList(schemes.values())
        self.names = {name: place for place, name in enumerate(tables)}
        self.tables = nn.ModuleList(tables.values())
        self.embedding_dims = {f.name: schemes[f.space].embedding_dim for f in layout.ids}
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, ids: dict[str, PaddedIds]) -> Vectors:
        return {field.name: self._of(field, ids[field.name]) for field in self.fields}

    def _of(self, field: IdField, padded: PaddedIds) -> Tensor | SequenceVectors:
        scheme = self.by_space[field.space]
        ids_BL = padded.ids_BL if scheme.raw_ids else scheme.space.bounded(padded.ids_BL)
        looked_up = [
            self.tables[self.names[spec.name]](rows_BL)
            for spec, rows_BL in zip(scheme.lookups, scheme.rows(ids_BL), strict=True)
        ]
        values_BLD = scheme.combine(ids_BL, looked_up)
        if field.shape == "single":
            return values_BLD[:, 0]
        positions_L = torch.arange(values_BLD.shape[1], device=values_BLD.device)
        mask_BL = positions_L[None, :] < padded.lengths_B[:, None]
        masked_BLD = values_BLD * mask_BL[:, :, None]
        weights_BL = padded.weights_BL
        if weights_BL is not None:
            masked_BLD = masked_BLD * weights_BL[:, :, None].to(masked_BLD.dtype)
        if field.shape == "sequence":
            return SequenceVectors(masked_BLD, mask_BL)
        summed_BD = masked_BLD.sum(dim=1)
        if self.poolings[field.space] == "sum":
            return summed_BD
        if weights_BL is not None:
            return weighted_mean(summed_BD, (weights_BL * mask_BL).sum(dim=1, keepdim=True))
        return summed_BD / padded.lengths_B.clamp(min=1)[:, None].to(summed_BD.dtype)

    def storage_bytes(self) -> dict[str, int]:
        """Bytes of every table by its name, and of what every scheme keeps by its space's."""
        found = {name: module_bytes(self.tables[place]) for name, place in self.names.items()}
        for space, scheme in self.by_space.items():
            found[space] = found.get(space, 0) + scheme.storage_bytes()
        return found


def whole_tables(embeddings: Embeddings) -> dict[str, Tensor]:
    """The tables of unsharded embeddings by name; shared, not copied."""
    return {table.name: table_weight(embeddings, table).detach() for table in embeddings.tables}


def serving_form(embeddings: Embeddings, precision: Precision = "fp32") -> ServingEmbeddings:
    """The serving form of unsharded embeddings; float32 tables are shared, not copied.

    Args:
        embeddings: trained, whole, on CPU.
        precision: of the tables; what a scheme keeps itself (codes, cores) stays as it is.
    """
    weights = whole_tables(embeddings)
    schemes = {
        name: scheme.serving(weights) for name, scheme in embeddings.schemes_by_space().items()
    }
    needed = {spec.name for scheme in schemes.values() for spec in scheme.lookups}
    return ServingEmbeddings(
        embeddings.layout,
        schemes,
        {sized.space.name: sized.pooling for sized in embeddings.spaces},
        {name: served_table(weights[name], precision) for name in weights if name in needed},
    )
