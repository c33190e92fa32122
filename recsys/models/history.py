"""What models share that read a user's history.

Shapes: B rows, L positions as given, S positions of a fixed length, D width, T tasks.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from feature_store.config import Config
from feature_store.features import Layout
from recsys.embeddings.collection import AbstractEmbeddings, SequenceVectors, Vectors
from recsys.models.layers import MLP, MLPConfig
from recsys.models.ranker import (
    AbstractRanker,
    FieldWeights,
    FirstLayer,
    columns_of,
    flattened,
    pooled_vector,
    sequence_vectors,
)


class HistoryModelConfig(Config):
    """A model that is nothing without a history: an experiment that declares none is refused."""


class HistoryRanker(AbstractRanker):
    """logits = linear(MLP([single ids and bags; one vector for each history; numbers])).

    A history is read with the single field that shares its table: its candidate.

    Raises:
        ValueError: the layout has no history.
    """

    mlp: MLP
    output: nn.Linear

    def __init__(self, layout: Layout, embeddings: AbstractEmbeddings, kind: str) -> None:
        super().__init__(layout, embeddings)
        self.names = [field.name for field in layout.ids if field.shape != "sequence"]
        self.candidates = candidates(layout, kind)
        self.gaps = {f.gaps_of: f.name for f in layout.ids if f.gaps_of is not None}
        dims = embeddings.embedding_dims
        for name, gaps in self.gaps.items():
            if dims[name] != dims[gaps]:
                raise ValueError(
                    f"model.kind {kind} adds the vectors of {gaps!r} to those of {name!r}, so they"
                    f" need one embedding_dim; found {dims[gaps]} and {dims[name]}: set"
                    f" embeddings.features.{gaps}.embedding_dim"
                )

    def add_tower(self, history_width: int, config: MLPConfig) -> None:
        """The tower, of whose input all histories' vectors take so much."""
        dims, layout = self.embeddings.embedding_dims, self.layout
        width = sum(dims[name] for name in self.names) + history_width + len(layout.dense)
        self.mlp = MLP(width, config)
        self.output = nn.Linear(self.mlp.out_width, len(layout.tasks))

    @property
    def history_dims(self) -> list[int]:
        """Width of every history's vectors."""
        return [self.embeddings.embedding_dims[name] for name in self.candidates]

    @abstractmethod
    def interest(self, place: int, candidate_BD: Tensor, history: SequenceVectors) -> Tensor:
        """What becomes of the history at a place: one vector a row."""

    def logits(self, vectors: Vectors, dense_BN: Tensor) -> Tensor:
        pooled = [pooled_vector(vectors, name) for name in self.names]
        for place, (_, candidate_BD, history) in enumerate(self.histories(vectors)):
            pooled.append(self.interest(place, candidate_BD, history))
        return self.output(self.mlp(flattened(pooled, dense_BN)))

    def histories(self, vectors: Vectors) -> list[tuple[str, Tensor, SequenceVectors]]:
        """Of every history its name, its candidate's vectors and its own."""
        return [
            (name, pooled_vector(vectors, candidate), self._positions(vectors, name))
            for name, candidate in self.candidates.items()
        ]

    def _positions(self, vectors: Vectors, name: str) -> SequenceVectors:
        """A history's vectors, each with that of its gap in time where there are gaps.

        They are added, like the time differences that BST has for positions (Chen et al. 2019,
        arXiv:1905.06874, section 2.1).
        """
        values_BLD, mask_BL = sequence_vectors(vectors, name)
        if name in self.gaps:
            values_BLD = values_BLD + sequence_vectors(vectors, self.gaps[name]).values_BLD
        return SequenceVectors(values_BLD, mask_BL)

    def first_layer(self) -> FirstLayer:
        """Of fields, and of histories whose vectors are as wide as their table's."""
        names = (*self.names, *self.candidates)
        columns = columns_of(names, self.embeddings.embedding_dims)
        return FirstLayer(self.mlp.first_weight(self.output), columns)


def candidates(layout: Layout, kind: str) -> dict[str, str]:
    """By name of each history, the single field of its table: what may be clicked now.

    Raises:
        ValueError: the layout has no history.
    """
    sequences = (field for field in layout.ids if field.shape == "sequence")
    found = {field.name: field.space for field in sequences if field.gaps_of is None}
    if not found:
        raise ValueError(f"model.kind {needs_history(kind)}")
    return found


def needs_history(kind: str) -> str:
    """What a user is told whose model lacks a history."""
    return f"{kind} needs a history: declare a feature of kind sequence, or take kind dnn"


def max_length(layout: Layout, name: str) -> int:
    """S, the longest history of that name."""
    length = layout.id_field(name).max_length
    assert length is not None, "a sequence has a longest length"
    return length


def fixed_length(history: SequenceVectors, length: int) -> SequenceVectors:
    """The first `length` positions, padded to so many: (B, S, D) and (B, S).

    Training pads to S already, serving to the longest of a batch: layers that have weights for
    every position need all of them.
    """
    keys_BLD, mask_BL = history
    positions_S = torch.arange(length, device=keys_BLD.device)
    within_S = positions_S.clamp(max=keys_BLD.shape[1] - 1)
    mask_BS = mask_BL.index_select(1, within_S) & (positions_S < keys_BLD.shape[1])
    keys_BSD = keys_BLD.index_select(1, within_S) * mask_BS[:, :, None]
    return SequenceVectors(keys_BSD, mask_BS)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension in float32; nothing where masked, all zero without any."""
    # A finite floor: a row of -inf (an empty history) would make the softmax NaN.
    floor = torch.finfo(torch.float32).min
    return scores.float().masked_fill(~mask, floor).softmax(dim=-1) * mask


def position_weights(title: str, row: str, name: str, weights_BL: Tensor) -> FieldWeights:
    """Weights of one attending field over the positions of a history, oldest first."""
    fields = tuple(f"{name}[{position}]" for position in range(weights_BL.shape[1]))
    return FieldWeights(title, (row,), fields, weights_BL[:, None, :])
