"""From a batch's ids to vectors by feature name, through TorchRec collections.

Features are read by name only: a sharded collection's own order follows the sharding plan.

Shapes: B rows, L positions of a sequence, D embedding width, V ids of the batch.
"""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from feature_store.features import IdField, Layout
from recsys.batch import Batch
from recsys.embeddings.config import EmbeddingsConfig, SizedSpace, sized_spaces
from recsys.embeddings.regularization import RowPenalty
from recsys.embeddings.scheme import AbstractScheme, Decision
from recsys.embeddings.tables import Key, Table, merged_tables

NO_DECISIONS: Mapping[str, Decision] = {}


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

    embedding_dims: dict[str, int]
    """Width of every field's vectors."""

    def penalty(self, weights_B: Tensor) -> Tensor | None:
        """Scalar that the last forward pass adds to the loss; None: nothing.

        Args:
            weights_B: of the batch of that pass; 0 marks padding.
        """
        return None


class Embeddings(AbstractEmbeddings):
    """Every space's scheme, and the tables that the schemes ask for.

    Tables of pooled columns lie in one collection, those needed one vector an id in one a width.
    Tables that are whole on every worker are ordinary parameters beside the collections: FBGEMM's
    data-parallel kernel has no unpooled look-up on CPU, and merges tables into one flat parameter.

    Bags are summed by the collections and divided here: TorchRec's mean adds 1e-6 to the divisor
    of row-wise shards (of every table of the group), so scores would depend on the plan.

    All tables are zero until `recsys.embeddings.initial` or a checkpoint fills them.

    Args:
        layout: of an encoded row.
        config: what becomes of each feature's ids.
        device: of the collections; meta where they are sharded next, so that no worker ever
            allocates a whole table.
        stage: the training it is for; None: the last, whose result is served.
        decisions: what earlier stages found out, by space.

    Raises:
        ValueError: settings for a feature without a table.
        SchemeError: sizes, budgets or settings that a scheme cannot keep.
    """

    def __init__(
        self,
        layout: Layout,
        config: EmbeddingsConfig,
        device: torch.device,
        *,
        stage: str | None = None,
        decisions: Mapping[str, Decision] = NO_DECISIONS,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.spaces = sized_spaces(layout, config)
        stage = stage or config.stages[-1]
        schemes = [
            space.scheme(stage, decisions.get(space.space.name, {})) for space in self.spaces
        ]
        self.schemes = nn.ModuleDict(
            {_child(s.space.name): scheme for s, scheme in zip(self.spaces, schemes, strict=True)}
        )
        by_field = {
            field.name: (sized, scheme)
            for sized, scheme in zip(self.spaces, schemes, strict=True)
            for field in sized.space.fields
        }
        self.columns = [_Column(field, *by_field[field.name]) for field in layout.ids]
        self.linear = {c.field.name: c.scheme.linear for c in self.columns}
        self.embedding_dims = {c.field.name: c.scheme.embedding_dim for c in self.columns}
        self.tables = merged_tables(
            {c.field.name: c.scheme.lookups for c in self.columns},
            layout.ids,
            {c.field.name: c.per_id for c in self.columns},
        )
        sharded = [table for table in self.tables if not table.settings.replicated]
        pooled = [table for table in sharded if not table.per_id]
        unpooled = [table for table in sharded if table.per_id]
        self.pooled_keys = [key for table in pooled for key in table.keys]
        self.pooled = (
            EmbeddingBagCollection(tables=[_bag_config(t) for t in pooled], device=device)
            if pooled
            else None
        )
        # An unpooled collection takes tables of one width.
        widths = sorted({table.embedding_dim for table in unpooled})
        by_width = {width: [t for t in unpooled if t.embedding_dim == width] for width in widths}
        self.unpooled_keys = {w: [key for t in by_width[w] for key in t.keys] for w in widths}
        self.unpooled = nn.ModuleDict(
            {
                str(width): EmbeddingCollection(
                    tables=[_sequence_config(table) for table in by_width[width]], device=device
                )
                for width in widths
            }
        )
        self.replicated_tables = [table for table in self.tables if table.settings.replicated]
        self.replicated = nn.ParameterDict(
            {t.parameter: _replicated(t) for t in self.replicated_tables}
        )
        self.frozen = False
        self.table_of = {key: table for table in self.tables for key in table.keys}
        self.row_penalty = RowPenalty(self.tables)

    def forward(self, ids: KeyedJaggedTensor) -> Vectors:
        places = {name: place for place, name in enumerate(ids.keys())}
        lengths_FB = ids.lengths().view(len(places), -1)
        ids_of, rows = self._rows(ids, places)
        weights = self._weights(ids, places)
        self.row_penalty.forget()
        found = self._looked_up(rows, places, lengths_FB, weights)
        vectors: Vectors = {}
        for column in self.columns:
            name = column.field.name
            looked_up = [found[name, k] for k in range(len(column.scheme.lookups))]
            combined = column.scheme.combine(ids_of[name], looked_up)
            vectors[name] = _shaped(combined, column, lengths_FB[places[name]], weights.get(name))
        return vectors

    def _weights(self, ids: KeyedJaggedTensor, places: dict[str, int]) -> dict[str, Tensor]:
        """Weights of the values of weighted fields, by their names."""
        weighted = [c.field.name for c in self.columns if c.field.weighted]
        if not weighted:
            return {}
        weights = ids.weights().split(ids.length_per_key())
        return {name: weights[places[name]] for name in weighted}

    def _rows(
        self, ids: KeyedJaggedTensor, places: dict[str, int]
    ) -> tuple[dict[str, Tensor], dict[tuple[str, int], Tensor]]:
        """Ids as schemes see them by field, and rows of tables by field and look-up."""
        values = ids.values().split(ids.length_per_key())
        ids_of = {c.field.name: c.scheme_ids(values[places[c.field.name]]) for c in self.columns}
        rows = {
            (c.field.name, lookup): rows_V
            for c in self.columns
            for lookup, rows_V in enumerate(c.scheme.rows(ids_of[c.field.name]))
        }
        return ids_of, rows

    @torch.no_grad()
    def count_rows(self, batches: Iterable[Batch], device: torch.device) -> None:
        """Count how often the training split looks up each row, where `mba_l2` asks for it.

        Args:
            batches: this worker's share of the split, once; every worker calls this.
            device: where they are counted.
        """
        if not self.row_penalty.needs_counts:
            return
        self.row_penalty.start_counts(device)
        for batch in batches:
            batch = batch.to(device)
            places = {name: place for place, name in enumerate(batch.ids.keys())}
            lengths_FB = batch.ids.lengths().view(len(places), -1)
            _, rows = self._rows(batch.ids, places)
            lengths = {name: lengths_FB[place] for name, place in places.items()}
            self.row_penalty.count(rows, lengths, batch.weights_B)
        self.row_penalty.share_counts()

    def _looked_up(
        self,
        rows: dict[tuple[str, int], Tensor],
        places: dict[str, int],
        lengths_FB: Tensor,
        weights: Mapping[str, Tensor],
    ) -> dict[tuple[str, int], Tensor]:
        found: dict[tuple[str, int], Tensor] = {}
        if self.pooled is not None:
            keyed = self.pooled(_jagged(self.pooled_keys, rows, places, lengths_FB)).to_dict()
            for key in self.pooled_keys:
                name = key.field.name
                found[name, key.lookup] = self._used(keyed[key.name])
                self._note(key, rows, found[name, key.lookup], lengths_FB[places[name]])
        for width, keys in self.unpooled_keys.items():
            jagged = self.unpooled[str(width)](_jagged(keys, rows, places, lengths_FB))
            for key in keys:
                vectors_VD = self._used(jagged[key.name].values())
                lengths_B = lengths_FB[places[key.field.name]]
                self._note(key, rows, vectors_VD, lengths_B)
                bagged = self._bagged(key, vectors_VD, lengths_B, weights)
                found[key.field.name, key.lookup] = bagged
        for table in self.replicated_tables:
            weight = self.replicated[table.parameter]
            for key in table.keys:
                vectors_VD = embedding(rows[key.field.name, key.lookup], weight)
                lengths_B = lengths_FB[places[key.field.name]]
                self._note(key, rows, vectors_VD, lengths_B)
                bagged = self._bagged(key, vectors_VD, lengths_B, weights)
                found[key.field.name, key.lookup] = bagged
        return found

    def _note(
        self,
        key: Key,
        rows: dict[tuple[str, int], Tensor],
        vectors_VD: Tensor,
        lengths_B: Tensor,
    ) -> None:
        if self.training and not self.frozen:
            rows_V = rows[key.field.name, key.lookup]
            self.row_penalty.note(self.table_of[key], rows_V, vectors_VD, lengths_B)

    def _bagged(
        self, key: Key, vectors_VD: Tensor, lengths_B: Tensor, weights: Mapping[str, Tensor]
    ) -> Tensor:
        """Bags of linear schemes are summed before they are combined, wherever their table is."""
        if key.field.shape == "bag" and self.linear[key.field.name]:
            return _summed(_weighted(vectors_VD, weights.get(key.field.name)), lengths_B)
        return vectors_VD

    def _used(self, vectors: Tensor) -> Tensor:
        return vectors.detach() if self.frozen else vectors

    @contextmanager
    def frozen_tables(self) -> Iterator[None]:
        """Within, no gradient reaches the sharded tables, so a backward pass updates none."""
        self._freeze(True)
        try:
            yield
        finally:
            self._freeze(False)

    def _freeze(self, frozen: bool) -> None:
        self.frozen = frozen
        for scheme in self.own_schemes():
            scheme.frozen = frozen

    def penalty(self, weights_B: Tensor) -> Tensor | None:
        """What all schemes and the looked-up rows add to the loss after a forward pass."""
        of_schemes = [scheme.penalty() for scheme in self.own_schemes()]
        asked = [*of_schemes, self.row_penalty(weights_B)]
        penalties = [penalty for penalty in asked if penalty is not None]
        return torch.stack(penalties).sum() if penalties else None

    def own_schemes(self) -> list[AbstractScheme]:
        """The scheme of every space, in the layout's order."""
        return [scheme for scheme in self.schemes.values() if isinstance(scheme, AbstractScheme)]

    def schemes_by_space(self) -> dict[str, AbstractScheme]:
        """The scheme of every space by the space's name."""
        return {scheme.space.name: scheme for scheme in self.own_schemes()}


class _Column:
    """A field with its space's scheme."""

    def __init__(self, field: IdField, sized: SizedSpace, scheme: AbstractScheme) -> None:
        self.field = field
        self.pooling = sized.pooling
        self.scheme = scheme

    @property
    def per_id(self) -> bool:
        if self.field.shape == "single":
            return False
        # A bag whose rows pay for themselves cannot be summed where it is looked up.
        penalized = any(spec.settings.penalizes_rows for spec in self.scheme.lookups)
        # Weights would have to be there for all columns of the pooled collection.
        alone = penalized or self.field.weighted
        return self.field.shape == "sequence" or not self.scheme.linear or alone

    def scheme_ids(self, ids: Tensor) -> Tensor:
        return ids if self.scheme.raw_ids else self.scheme.space.bounded(ids)


def _child(space: str) -> str:
    # A bare feature name could shadow a method of the dict.
    return f"{space}_scheme"


def _jagged(
    keys: SequenceOf[Key],
    rows: dict[tuple[str, int], Tensor],
    places: dict[str, int],
    lengths_FB: Tensor,
) -> KeyedJaggedTensor:
    columns = [rows[key.field.name, key.lookup] for key in keys]
    lengths = [lengths_FB[places[key.field.name]] for key in keys]
    return KeyedJaggedTensor(
        keys=[key.name for key in keys],
        values=torch.cat(columns),
        lengths=torch.cat(lengths),
        stride=lengths_FB.shape[1],
        length_per_key=[column.numel() for column in columns],
    )


def _shaped(
    vectors: Tensor, column: _Column, lengths_B: Tensor, weights_V: Tensor | None
) -> Tensor | SequenceVectors:
    """Vectors of single ids as they are, of bags pooled, of sequences padded."""
    field = column.field
    if field.shape == "single":
        return vectors
    if field.shape == "bag":
        if column.scheme.linear:
            summed_BD = vectors
        else:
            summed_BD = _summed(_weighted(vectors, weights_V), lengths_B)
        if column.pooling == "sum":
            return summed_BD
        if weights_V is None:
            return _divided(summed_BD, lengths_B)
        return weighted_mean(summed_BD, _summed(weights_V[:, None], lengths_B))
    assert field.max_length is not None, "a sequence has a longest length"
    jagged = JaggedTensor(values=_weighted(vectors, weights_V), lengths=lengths_B)
    values_BLD = jagged.to_padded_dense(field.max_length)
    positions_L = torch.arange(field.max_length, device=lengths_B.device)
    return SequenceVectors(values_BLD, positions_L[None, :] < lengths_B[:, None])


def weighted_mean(summed_BD: Tensor, weights_B1: Tensor) -> Tensor:
    """A weighted sum over the sum of the weights; 0 where that is 0."""
    divisors_B1 = torch.where(weights_B1 > 0, weights_B1, 1.0)
    return summed_BD / divisors_B1.to(summed_BD.dtype)


def _weighted(values_VD: Tensor, weights_V: Tensor | None) -> Tensor:
    return values_VD if weights_V is None else values_VD * weights_V[:, None].to(values_VD.dtype)


def _summed(values_VD: Tensor, lengths_B: Tensor) -> Tensor:
    rows_V = torch.repeat_interleave(lengths_B, output_size=values_VD.shape[0])
    zeros_BD = values_VD.new_zeros(lengths_B.numel(), values_VD.shape[1])
    return zeros_BD.index_add(0, rows_V, values_VD)


def _divided(summed_BD: Tensor, lengths_B: Tensor) -> Tensor:
    return summed_BD / lengths_B.clamp(min=1)[:, None].to(summed_BD.dtype)


def _replicated(table: Table) -> nn.Parameter:
    return nn.Parameter(torch.zeros(table.num_embeddings, table.embedding_dim))


def _bag_config(table: Table) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=table.parameter,
        embedding_dim=table.embedding_dim,
        num_embeddings=table.num_embeddings,
        feature_names=[key.name for key in table.keys],
        pooling=PoolingType.SUM,
        init_fn=nn.init.zeros_,
    )


def _sequence_config(table: Table) -> EmbeddingConfig:
    return EmbeddingConfig(
        name=table.parameter,
        embedding_dim=table.embedding_dim,
        num_embeddings=table.num_embeddings,
        feature_names=[key.name for key in table.keys],
        init_fn=nn.init.zeros_,
    )


def table_weight(embeddings: Embeddings, table: Table) -> nn.Parameter:
    """The (num_embeddings, embedding_dim) parameter of a table of unsharded embeddings."""
    if table.settings.replicated:
        return embeddings.replicated[table.parameter]
    if table.per_id:
        collection = embeddings.unpooled[str(table.embedding_dim)]
        assert isinstance(collection, EmbeddingCollection), "unsharded"
        return collection.embeddings[table.parameter].weight
    assert embeddings.pooled is not None
    return embeddings.pooled.embedding_bags[table.parameter].weight
