"""Tables as values: which table holds which fields, how large, how it is trained and sharded.

The collection, the planner, the optimizers, the checkpoint and the serving form all read these.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from feature_store.config import Config
from feature_store.features import IdField, Layout, nearest

Pooling = Literal["mean", "sum"]
Sharding = Literal[
    "table_wise",
    "column_wise",
    "row_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
    "data_parallel",
]


class FeatureEmbedding(Config):
    """How the ids of one feature (and of every sequence of it) become vectors."""

    embedding_dim: PositiveInt = 16
    """Width of a vector; a multiple of 4 for FBGEMM's kernels."""
    num_embeddings: PositiveInt | None = Field(default=None, ge=2)
    """Rows of the table: ids are hashed into them when there are more ids than rows. Needed for
    hashed features; a vocabulary's table has a row for every id if absent."""
    pooling: Pooling = "mean"
    """How the vectors of a bag become one."""
    init_range: PositiveFloat = 0.05
    """Rows start uniform in [-init_range, init_range]."""
    optimizer: Literal["sparse", "dense"] = "sparse"
    """sparse: updated inside the backward pass, touched rows only, sharded over workers.
    dense: an ordinary parameter, replicated, trained by the dense optimizer; for small tables."""
    sharding_types: tuple[Sharding, ...] | None = None
    """What the planner may choose from; None: every type that keeps the checkpoint loadable on
    any number of workers. data_parallel stands alone: the table is whole on every worker."""

    @model_validator(mode="after")
    def _replicated_stands_alone(self) -> "FeatureEmbedding":
        types = self.sharding_types
        if types is None:
            return self
        if not types:
            raise ValueError("sharding_types is empty: leave it out, or name at least one")
        if "data_parallel" in types and types != ("data_parallel",):
            raise ValueError(
                f"sharding_types {list(types)}: data_parallel keeps the table whole on every"
                " worker, outside the planner's choice; name it alone or not at all"
            )
        if self.optimizer == "dense" and types != ("data_parallel",):
            raise ValueError(
                f"optimizer 'dense' keeps the table whole on every worker, so sharding_types"
                f" {list(types)} cannot apply; drop them or take optimizer 'sparse'"
            )
        return self

    @property
    def replicated(self) -> bool:
        """The table is an ordinary parameter, whole on every worker."""
        return self.optimizer == "dense" or self.sharding_types == ("data_parallel",)


class EmbeddingsConfig(Config):
    """The default for every feature and what differs by feature."""

    default: FeatureEmbedding = FeatureEmbedding()
    features: dict[str, FeatureEmbedding] = {}
    """By feature name. A key that is not given here comes from `default`."""

    def of(self, name: str) -> FeatureEmbedding:
        """The settings of one feature: its own keys over the default's."""
        own = self.features.get(name)
        if own is None:
            return self.default
        chosen = {**self.default.model_dump(), **own.model_dump(exclude_unset=True)}
        return FeatureEmbedding.model_validate(chosen)


@dataclass(frozen=True)
class Table:
    """One embedding table and the fields that look ids up in it."""

    name: str
    num_embeddings: int
    hashed: bool
    """Ids are mixed into rows; else an id is a row."""
    fields: tuple[IdField, ...]
    settings: FeatureEmbedding

    @property
    def parameter(self) -> str:
        """The table's name inside TorchRec; a bare feature name could shadow a dict's method."""
        return f"{self.name}_table"

    @property
    def has_sequence(self) -> bool:
        """Some field keeps one vector an id: the table lives in an unpooled collection."""
        return any(field.shape == "sequence" for field in self.fields)

    @property
    def num_parameters(self) -> int:
        """Weights in the table."""
        return self.num_embeddings * self.settings.embedding_dim


def tables_of(layout: Layout, config: EmbeddingsConfig) -> tuple[Table, ...]:
    """One table for each id space of the layout, in the layout's order.

    Raises:
        ValueError: settings for a feature that has no table, a hashed feature without a size.
    """
    spaces: dict[str, list[IdField]] = {}
    for field in layout.ids:
        spaces.setdefault(field.space, []).append(field)
    for name in config.features:
        if name not in spaces:
            raise ValueError(
                f"embeddings.features.{name}: no feature of that name has a table;"
                f" {nearest(name, list(spaces))} (a sequence uses the table of its `of` feature)"
            )
    return tuple(_table(name, fields, config.of(name)) for name, fields in spaces.items())


def _table(name: str, fields: SequenceOf[IdField], settings: FeatureEmbedding) -> Table:
    cardinality = fields[0].cardinality
    num_embeddings = settings.num_embeddings
    if num_embeddings is None:
        if cardinality is None:
            raise ValueError(
                f"feature {name!r} is hashed to 64 bits, so its table needs a size: set"
                f" embeddings.features.{name}.num_embeddings or embeddings.default.num_embeddings"
            )
        num_embeddings = cardinality
    hashed = cardinality is None or num_embeddings < cardinality
    if not hashed and cardinality is not None:
        num_embeddings = cardinality
    return Table(name, num_embeddings, hashed, tuple(fields), settings)
