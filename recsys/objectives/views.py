"""Two views of items drawn evenly from all items: what self-supervision learns from.

Everything is a pure function of (seed, step, place in the global batch): a resumed training sees
what an uninterrupted one does, on any number of workers.

Shapes: N items of a step over all workers, S rows on this worker (its items' first views, then
their second ones), K features of one side, B drawn rows, V values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from feature_store.entities import EntitySide, EntityTable
from feature_store.features import IdField, Layout
from recsys.embeddings.collection import SequenceVectors, Vectors
from recsys.embeddings.hashing import positive, salt, splitmix64
from recsys.objectives.masking import Masking, masked_features

_MOST_VALUES = 1 << 20
"""Of one list; tells the values of different rows apart."""


@dataclass
class Views:
    """Both views of this worker's items; rows of no item have weight 0."""

    side: EntitySide
    ids: KeyedJaggedTensor
    """Every key of the layout, S rows; ids of other sides and of masked features are missing."""
    dense_SN: Tensor
    masked_2K: Tensor
    """bool: what each view lacks, the same on every worker."""
    weights_S: Tensor
    weight_sum: float
    """N over the number of workers."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "Views":
        """The views on another device; `non_blocking` lets the copy run beside the host."""
        return Views(
            self.side,
            self.ids.to(device=device, non_blocking=non_blocking),
            self.dense_SN.to(device=device, non_blocking=non_blocking),
            self.masked_2K.to(device=device, non_blocking=non_blocking),
            self.weights_S.to(device=device, non_blocking=non_blocking),
            self.weight_sum,
        )


class ViewReader:
    """One worker's views, step by step.

    Each step draws N different items. All are drawn before any is drawn again, in an order that is
    new every time, so each comes as often as any other however often it was clicked.

    Args:
        table: All items, or users.
        layout: Of an encoded row.
        dense_of: By feature, its columns among the layout's numbers, if it is not an id field.
        masking: Which features a view lacks.
        dropout: Share of the values of bags and sequences that each view loses.
        batch_size: N; None: so many as `default_size`, or all items where there are fewer.
        default_size: Rows of a training step over all workers.
        seed: Of the draws.
        rank: This worker.
        world_size: Number of workers.

    Raises:
        ValueError: There are fewer items than asked for.
    """

    def __init__(
        self,
        table: EntityTable,
        layout: Layout,
        dense_of: Mapping[str, tuple[str, ...]],
        *,
        masking: Masking,
        dropout: float,
        batch_size: int | None = None,
        default_size: int = 1024,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        rows = table.rows()
        self.side: EntitySide = table.side
        self.layout = layout
        self.features = table.information.fields
        self.information_KK = table.information.adjusted
        self.num_entities = rows.num_rows
        if batch_size is not None and batch_size > self.num_entities:
            raise ValueError(
                f"objective.ssl.batch_size {batch_size} is more than the {self.num_entities}"
                f" distinct values of {table.entity!r} in the training split; set at most that"
            )
        self.batch_size = batch_size or min(default_size, self.num_entities)
        self.masking: Masking = masking
        self.dropout = dropout
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._columns = {name: rows.column(name).chunk(0) for name in rows.column_names}
        self._feature_of = {
            column: place
            for place, name in enumerate(self.features)
            for column in dense_of.get(name, (name,))
        }
        self.weighted = any(field.weighted for field in layout.ids)
        self._order = lru_cache(maxsize=1)(self._ordered)

    def drawn(self, step: int) -> np.ndarray:
        """(N,) places, in the entity table, of the items that a step draws."""
        steps = self.num_entities // self.batch_size
        start = step % steps * self.batch_size
        return self._order(step // steps)[start : start + self.batch_size]

    def at(self, step: int) -> Views:
        """This worker's share of a step's views."""
        size = -(-self.batch_size // self.world_size)
        places_B = np.arange(self.rank * size, min((self.rank + 1) * size, self.batch_size))
        rows_B = self.drawn(step)[places_B]
        masked_2K = self._masked(step)
        padding = size - len(rows_B)
        values: list[Tensor] = []
        lengths: list[Tensor] = []
        weights: list[Tensor] = []
        for field in self.layout.ids:
            for view in range(2):
                ids, counts, own = self._ids(field, rows_B, places_B, view, step, masked_2K)
                weights.append(own)
                if field.shape == "single":
                    ids = torch.cat([ids, ids.new_zeros(padding)])
                    counts = torch.ones(size, dtype=torch.int64)
                    weights[-1] = torch.ones(size)
                else:
                    counts = torch.cat([counts, counts.new_zeros(padding)])
                values.append(ids)
                lengths.append(counts)
        lengths_FS = torch.cat(lengths).view(len(self.layout.ids), 2 * size)
        weights_B = torch.cat([torch.ones(len(rows_B)), torch.zeros(padding)])
        return Views(
            self.side,
            KeyedJaggedTensor(
                keys=[field.name for field in self.layout.ids],
                values=torch.cat(values) if values else torch.zeros(0, dtype=torch.int64),
                weights=torch.cat(weights) if self.weighted else None,
                lengths=lengths_FS.view(-1),
                stride=2 * size,
                length_per_key=lengths_FS.sum(dim=1).tolist(),
            ),
            self._dense(rows_B, padding),
            torch.from_numpy(masked_2K),
            weights_B.repeat(2),
            self.batch_size / self.world_size,
        )

    def _ordered(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng((self.seed, salt("items", self.side) % 2**32, epoch))
        return random.permutation(self.num_entities)

    def _masked(self, step: int) -> np.ndarray:
        random = np.random.default_rng((self.seed, salt("masks", self.side) % 2**32, step))
        return masked_features(self.masking, self.information_KK, random)

    def _ids(
        self,
        field: IdField,
        rows_B: np.ndarray,
        places_B: np.ndarray,
        view: int,
        step: int,
        masked_2K: np.ndarray,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ids of a field in one view, their number in each row, and their weights."""
        name = field.gaps_of or field.name
        column = self._columns.get(field.name)
        none_B = torch.zeros(len(rows_B), dtype=torch.int64)
        single = field.shape == "single"
        if column is None or masked_2K[view, self._feature_of[name]]:
            # A masked id is replaced after the look-up; which row is read does not matter.
            return none_B if single else none_B[:0], none_B, torch.ones(0)
        if single:
            return torch.from_numpy(column.to_numpy()[rows_B]), none_B, torch.ones(0)
        values_V, owners_V, counts_B = _lists(column, rows_B)
        weights_V = torch.ones(len(values_V))
        if field.weighted:
            weights_V, _, _ = _lists(self._columns[field.weights], rows_B)
        if not self.dropout:
            return values_V, counts_B, weights_V
        starts_B = counts_B.cumsum(0) - counts_B
        within_V = torch.arange(len(values_V)) - starts_B[owners_V]
        key = salt("dropout", self.seed, self.side, step, view, name)
        numbers_V = torch.from_numpy(places_B)[owners_V] * _MOST_VALUES + within_V
        draws_V = positive(splitmix64(numbers_V + key)).double() / 2.0**63
        kept_V = draws_V >= self.dropout
        counts_B = torch.bincount(owners_V[kept_V], minlength=len(rows_B))
        return values_V[kept_V], counts_B, weights_V[kept_V]

    def _dense(self, rows_B: np.ndarray, padding: int) -> Tensor:
        """(S, N) numbers; those of other sides are 0, masked ones are replaced later."""
        dense_BN = torch.zeros(len(rows_B) + padding, len(self.layout.dense))
        for place, name in enumerate(self.layout.dense):
            if name in self._columns:
                values_B = self._columns[name].to_numpy()[rows_B]
                dense_BN[: len(rows_B), place] = torch.from_numpy(values_B)
        return dense_BN.repeat(2, 1)


def _lists(column: pa.Array, rows_B: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Values of some rows' lists, the place of each value's row, and the lists' lengths."""
    offsets = column.offsets.to_numpy()
    starts_B = offsets[rows_B]
    counts_B = offsets[rows_B + 1] - starts_B
    owners_V = np.repeat(np.arange(len(rows_B)), counts_B)
    shifts_B = starts_B - (np.cumsum(counts_B) - counts_B)
    values_V = column.values.to_numpy()[np.arange(len(owners_V)) + shifts_B[owners_V]]
    return torch.from_numpy(values_V), torch.from_numpy(owners_V), torch.from_numpy(counts_B)


def stacked(ids: Sequence[KeyedJaggedTensor]) -> KeyedJaggedTensor:
    """Rows of several batches below each other: one look-up instead of several.

    Tables are updated inside the backward pass of each look-up, so two of them would be two steps
    of the optimizer.
    """
    keys = ids[0].keys()
    values = [each.values().split(each.length_per_key()) for each in ids]
    weights = [
        each.weights().split(each.length_per_key())
        for each in ids
        if each.weights_or_none() is not None
    ]
    assert len(weights) in (0, len(ids)), "all batches are of one layout"
    lengths = [each.lengths().view(len(keys), -1) for each in ids]
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.cat([part for parts in zip(*values, strict=True) for part in parts]),
        weights=torch.cat([part for parts in zip(*weights, strict=True) for part in parts])
        if weights
        else None,
        lengths=torch.cat(lengths, dim=1).view(-1),
        stride=sum(each.stride() for each in ids),
        length_per_key=[sum(c) for c in zip(*(e.length_per_key() for e in ids), strict=True)],
    )


def separated(vectors: Vectors, sizes: Sequence[int]) -> list[Vectors]:
    """The vectors of each of several batches whose rows were looked up together."""
    found: list[Vectors] = [{} for _ in sizes]
    for name, vector in vectors.items():
        if isinstance(vector, SequenceVectors):
            parts = zip(*(part.split(list(sizes)) for part in vector), strict=True)
            for own, part in zip(found, parts, strict=True):
                own[name] = SequenceVectors(*part)
        else:
            for own, piece in zip(found, vector.split(list(sizes)), strict=True):
                own[name] = piece
    return found
