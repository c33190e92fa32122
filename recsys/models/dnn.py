"""Embeddings and numbers, concatenated, into a tower: the plain deep baseline.

Shapes: B rows, T tasks, W flattened width.
"""

from typing import Literal

from torch import Tensor, nn

from feature_store.config import Config
from feature_store.features import Layout
from recsys.embeddings.collection import AbstractEmbeddings, Vectors
from recsys.models.layers import MLP, MLPConfig
from recsys.models.ranker import (
    AbstractRanker,
    FirstLayer,
    columns_of,
    flattened,
    pooled_vector,
)


class DNNConfig(Config):
    """A plain deep network over single ids, bags and numbers; it reads no sequences."""

    kind: Literal["dnn"] = "dnn"
    mlp: MLPConfig = MLPConfig(hidden=(400, 400))


class DNN(AbstractRanker):
    """logits = linear(MLP([e_1; ...; e_F; numbers])) over every field that is not a sequence."""

    def __init__(self, layout: Layout, embeddings: AbstractEmbeddings, config: DNNConfig) -> None:
        super().__init__(layout, embeddings)
        dims = embeddings.embedding_dims
        self.names = [field.name for field in layout.ids if field.shape != "sequence"]
        width = sum(dims[name] for name in self.names) + len(layout.dense)
        self.mlp = MLP(width, config.mlp)
        self.output = nn.Linear(self.mlp.out_width, len(layout.tasks))

    def logits(self, vectors: Vectors, dense_BN: Tensor) -> Tensor:
        pooled = [pooled_vector(vectors, name) for name in self.names]
        return self.output(self.mlp(flattened(pooled, dense_BN)))

    def first_layer(self) -> FirstLayer:
        columns = columns_of(self.names, self.embeddings.embedding_dims)
        return FirstLayer(self.mlp.first_weight(self.output), columns)
