"""Where tables live: the plan over the workers, the sharded model, the plan in a user's words."""

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
import torch.distributed as dist
from pydantic import PositiveFloat
from torch import nn
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec
from torch.distributed.remote_device import _remote_device
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError, PlannerErrorType
from torchrec.distributed.types import ModuleSharder, ParameterSharding, ShardingPlan

from feature_store.config import Config
from recsys.embeddings.initial import initialize
from recsys.embeddings.tables import Sharding, Table

RESHARDABLE: tuple[Sharding, ...] = ("table_wise", "row_wise")
"""Sharding types whose optimizer state has one shape, so any of them loads into any other.
Column-wise shards keep a row-wise accumulator each, data-parallel tables leave the fused
optimizer: both only where the user asks for them."""
ACROSS_HOSTS: tuple[Sharding, ...] = ("table_row_wise",)
_OF_POOLED: tuple[Sharding, ...] = (
    "row_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
)
_OF_SEQUENCES: tuple[Sharding, ...] = ("table_wise", "column_wise", "row_wise", "data_parallel")
"""TorchRec shards tables that are read one vector an id in these ways only."""


class TopologyConfig(Config):
    """What the planner is told about each worker."""

    memory_gib: PositiveFloat | None = None
    """Memory for tables on each worker; None: what TorchRec assumes for the device."""


_LACK_OF_MEMORY = (PlannerErrorType.INSUFFICIENT_STORAGE, PlannerErrorType.PARTITION)
_RESERVED = 0.15
"""Share of a worker's memory that is kept for all else."""
_CUTS = {
    "row_wise": "by rows",
    "column_wise": "by columns",
    "table_row_wise": "by rows within one host",
    "table_column_wise": "by columns within one host",
    "grid_shard": "by columns over hosts and by rows within each",
}
ANY_TOPOLOGY = TopologyConfig()


class BagSharder(EmbeddingBagCollectionSharder):
    """Offers on CPU what TorchRec lists for CUDA only; over gloo it works exactly."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """TorchRec's types and, on CPU, the row-wise and mixed ones."""
        types = super().sharding_types(compute_device_type)
        return list(dict.fromkeys([*types, *_OF_POOLED]))


@dataclass(frozen=True)
class Placement:
    """One row of an explained plan."""

    table: str
    num_embeddings: int
    embedding_dim: int
    sharding_type: str
    kernel: str
    ranks: tuple[int, ...]
    """Workers that hold a shard; empty where every worker holds the whole table."""
    size_bytes: int
    """Weights, over all workers; optimizer state comes on top."""
    worker_bytes: tuple[int, ...] = ()
    """Weights on each worker, by rank; empty where every worker holds the whole table."""

    def sentence(self) -> str:
        """Where the table lies, in plain words."""
        what = f"{self.table} ({self.num_embeddings:,} rows x {self.embedding_dim})"
        if not self.ranks:
            return f"{what} is whole on every worker, {self.size_bytes:,} bytes each"
        workers = ", ".join(map(str, dict.fromkeys(self.ranks)))
        if len(set(self.ranks)) == 1:
            return f"{what} lies on worker {workers}, {self.size_bytes:,} bytes"
        cut, share = _CUTS[self.sharding_type], max(self.worker_bytes)
        return f"{what} is cut {cut} over workers {workers}, {share:,} bytes each"


def sharders() -> list[ModuleSharder[nn.Module]]:
    """Sharders for every collection the project uses."""
    return [BagSharder(), EmbeddingCollectionSharder()]


def plan(
    model: nn.Module,
    tables: SequenceOf[Table],
    *,
    device: torch.device,
    world_size: int,
    batch_size: int,
    topology: TopologyConfig = ANY_TOPOLOGY,
) -> ShardingPlan:
    """The planner's choice for every table, under the tables' own constraints.

    With a process group of several workers the first one's choice is everyone's.

    Args:
        model: unsharded, its collections anywhere inside.
        tables: their settings constrain the planner.
        device: where the workers train.
        world_size: number of workers.
        batch_size: rows of one worker's step, for the cost model.
        topology: memory of a worker.

    Raises:
        ValueError: a table cannot be sharded as asked for, or nothing fits: says which table.
    """
    _require_types(tables)
    memory = None if topology.memory_gib is None else int(topology.memory_gib * 2**30)
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=world_size,
            local_world_size=min(world_size, max(1, torch.cuda.device_count()))
            if device.type == "cuda"
            else world_size,
            compute_device=device.type,
            hbm_cap=memory if device.type == "cuda" else None,
            ddr_cap=memory if device.type == "cpu" else None,
        ),
        batch_size=batch_size,
        constraints={
            table.parameter: _constraints(table, device, world_size)
            for table in tables
            if not table.settings.replicated
        },
        storage_reservation=FixedPercentageStorageReservation(percentage=_RESERVED),
        debug=False,
    )
    try:
        if dist.is_initialized() and world_size > 1:
            return planner.collective_plan(model, sharders(), dist.GroupMember.WORLD)
        return planner.plan(model, sharders())
    except (PlannerError, RuntimeError) as error:
        # TorchRec's own account of a lack of memory fills a screen; the cause keeps it.
        reason = " ".join(str(error).split())
        if isinstance(error, PlannerError) and error.error_type in _LACK_OF_MEMORY:
            reason = _too_large(tables, world_size, memory) or reason
        raise ValueError(
            f"no sharding plan fits {world_size} worker(s) on {device.type}: {reason}. Allow more"
            " sharding_types, give workers more memory (training.topology.memory_gib), make tables"
            " smaller (embeddings.default.num_embeddings, or embeddings.default.scheme with"
            " embeddings.budget), or add workers"
        ) from error


def _require_types(tables: SequenceOf[Table]) -> None:
    for table in tables:
        asked = table.settings.sharding_types or ()
        if table.per_id and asked and not set(asked) & set(_OF_SEQUENCES):
            raise ValueError(
                f"the table {table.name!r} is read one vector an id (by"
                f" {', '.join(field.name for field in table.fields)}), and such tables can be"
                f" sharded as {', '.join(_OF_SEQUENCES)}; found sharding_types {list(asked)}"
            )


def _too_large(tables: SequenceOf[Table], world_size: int, memory: int | None) -> str:
    """Which tables are in the way, the largest first; empty where the memory is unknown."""
    if memory is None:
        return ""
    usable = int(memory * (1 - _RESERVED))
    told = []
    for table in sorted(tables, key=lambda table: -table.num_parameters):
        size = 4 * table.num_parameters
        if size > usable:
            least = -(-size // world_size)
            whole = table.settings.replicated or table.settings.sharding_types == ("table_wise",)
            remedy = (
                f"cut by rows it would take {least:,} on each of {world_size}"
                if whole or least <= usable
                else f"even cut by rows it takes {least:,} on each of {world_size}, so"
                f" {-(-size // usable)} workers would hold it"
            )
            told.append(f"the table {table.name!r} takes {size:,} bytes, {remedy}")
    if not told:
        total = sum(4 * table.num_parameters for table in tables)
        told.append(f"all tables together take {total:,} bytes")
    return f"{'; '.join(told)}; a worker has {usable:,} bytes for tables"


def _constraints(table: Table, device: torch.device, world_size: int) -> ParameterConstraints:
    across = ACROSS_HOSTS if device.type == "cuda" else ()
    # Alone, a worker that cut its tables by rows would only sort every id into one bucket.
    by_default = RESHARDABLE + across if world_size > 1 else ("table_wise",)
    allowed = table.settings.sharding_types or by_default
    return ParameterConstraints(sharding_types=list(allowed), min_partition=4)


def shard(
    model: nn.Module,
    sharding_plan: ShardingPlan,
    tables: SequenceOf[Table],
    *,
    device: torch.device,
    seed: int,
) -> DistributedModelParallel:
    """The model with its collections sharded, everything else replicated, and tables filled.

    Args:
        model: its collections on the meta device, everything else equal on all workers.
        sharding_plan: of `plan`.
        tables: all of the model's.
        device: of this worker.
        seed: of the tables' initial rows.
    """
    sharded = DistributedModelParallel(
        model, device=device, plan=sharding_plan, sharders=sharders()
    )
    initialize(sharded, tables, seed)
    return sharded


def explain(sharding_plan: ShardingPlan, tables: SequenceOf[Table]) -> list[Placement]:
    """The plan, one row a table, in the tables' order."""
    chosen = {
        name: parameter
        for module_plan in sharding_plan.plan.values()
        for name, parameter in module_plan.items()  # type: ignore[attr-defined]
    }
    return [_placement(table, chosen.get(table.parameter)) for table in tables]


def _placement(table: Table, chosen: ParameterSharding | None) -> Placement:
    return Placement(
        table=table.name,
        num_embeddings=table.num_embeddings,
        embedding_dim=table.embedding_dim,
        sharding_type="data_parallel" if chosen is None else chosen.sharding_type,
        kernel="dense" if chosen is None else chosen.compute_kernel,
        ranks=() if chosen is None else tuple(chosen.ranks or ()),
        size_bytes=4 * table.num_parameters,
        worker_bytes=_worker_bytes(chosen),
    )


def _worker_bytes(chosen: ParameterSharding | None) -> tuple[int, ...]:
    if chosen is None or not isinstance(chosen.sharding_spec, EnumerableShardingSpec):
        return ()
    held: dict[int, int] = {}
    for shard_metadata in chosen.sharding_spec.shards:
        assert isinstance(shard_metadata.placement, _remote_device)
        rank = shard_metadata.placement.rank()
        assert rank is not None, "a shard has its worker"
        held[rank] = held.get(rank, 0) + 4 * math.prod(shard_metadata.shard_sizes)
    return tuple(held.get(rank, 0) for rank in range(max(held) + 1))


def worker_bytes(placements: SequenceOf[Placement], world_size: int) -> tuple[int, ...]:
    """Weights of all tables on each worker, by rank."""
    totals = [0] * world_size
    for placement in placements:
        for rank in range(world_size):
            if not placement.ranks:
                totals[rank] += placement.size_bytes
            elif rank < len(placement.worker_bytes):
                totals[rank] += placement.worker_bytes[rank]
    return tuple(totals)
