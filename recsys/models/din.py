"""Deep Interest Network (Zhou et al., KDD 2018, arXiv:1706.06978).

Shapes: B rows, L history positions, D embedding width, T tasks, W flattened width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from feature_store.config import Config
from feature_store.features import Layout
from recsys.embeddings.collection import AbstractEmbeddings, SequenceVectors, Vectors
from recsys.models.layers import MLP, MLPConfig
from recsys.models.ranker import (
    AbstractRanker,
    FirstLayer,
    columns_of,
    flattened,
    pooled_vector,
    sequence_vectors,
)


class AttentionConfig(Config):
    """The local activation unit."""

    mlp: MLPConfig = MLPConfig(hidden=(36,), activation="dice")
    softmax: bool = False
    """Normalise the weights over the history. The paper does not (section 4.3): their sum then
    tells how strong the interest is. Its authors' code does, with scores over sqrt(D)."""


class DINConfig(Config):
    """Attention over every history, then a tower."""

    kind: Literal["din"] = "din"
    attention: AttentionConfig = AttentionConfig()
    mlp: MLPConfig = MLPConfig(hidden=(200, 80), activation="dice")


class LocalActivationUnit(nn.Module):
    """Interest in a candidate: sum_j a(e_j, v) e_j (equation 3), a(.) a small network.

    Its input at each position is [e_j; v; v - e_j; v * e_j]. Padded positions weigh exactly
    nothing, with softmax (-inf before it) and without (zero after), and count in no statistic of
    Dice; an empty history gives the zero vector.
    """

    def __init__(self, embedding_dim: int, config: AttentionConfig) -> None:
        super().__init__()
        self.softmax = config.softmax
        self.scale = embedding_dim**-0.5
        self.mlp = MLP(4 * embedding_dim, config.mlp)
        self.score = nn.Linear(self.mlp.out_width, 1)

    def forward(self, candidate_BD: Tensor, history: SequenceVectors) -> Tensor:
        keys_BLD, mask_BL = history
        query_BLD = candidate_BD[:, None, :].expand_as(keys_BLD)
        pairs = torch.cat([keys_BLD, query_BLD, query_BLD - keys_BLD, query_BLD * keys_BLD], dim=2)
        scores_BL = self.score(self.mlp(pairs, mask_BL)).squeeze(2)
        if self.softmax:
            # A finite floor: a row of -inf (an empty history) would make the softmax NaN.
            floor = torch.finfo(scores_BL.dtype).min
            scores_BL = (scores_BL * self.scale).masked_fill(~mask_BL, floor).softmax(dim=1)
        weights_BL = scores_BL * mask_BL
        return (weights_BL[:, :, None] * keys_BLD).sum(dim=1)


class DIN(AbstractRanker):
    """MLP over profile, candidate, context and one attended interest for each history.

    A history attends to the single field that shares its table: its candidate.
    """

    def __init__(self, layout: Layout, embeddings: AbstractEmbeddings, config: DINConfig) -> None:
        super().__init__(layout, embeddings)
        dims = embeddings.embedding_dims
        self.names = [field.name for field in layout.ids if field.shape != "sequence"]
        self.candidates = {f.name: f.space for f in layout.ids if f.shape == "sequence"}
        if not self.candidates:
            raise ValueError(
                "model.kind din needs a history: declare a feature of kind 'sequence' (of the"
                " candidate's feature), or take model.kind dnn"
            )
        self.attention = nn.ModuleList(
            LocalActivationUnit(dims[name], config.attention) for name in self.candidates
        )
        width = sum(dims[name] for name in (*self.names, *self.candidates)) + len(layout.dense)
        self.mlp = MLP(width, config.mlp)
        self.output = nn.Linear(self.mlp.out_width, len(layout.tasks))

    def logits(self, vectors: Vectors, dense_BN: Tensor) -> Tensor:
        pooled = [pooled_vector(vectors, name) for name in self.names]
        for unit, (name, candidate) in zip(self.attention, self.candidates.items(), strict=True):
            pooled.append(unit(pooled_vector(vectors, candidate), sequence_vectors(vectors, name)))
        return self.output(self.mlp(flattened(pooled, dense_BN)))

    def first_layer(self) -> FirstLayer:
        names = (*self.names, *self.candidates)
        columns = columns_of(names, self.embeddings.embedding_dims)
        return FirstLayer(self.mlp.first_weight(self.output), columns)
