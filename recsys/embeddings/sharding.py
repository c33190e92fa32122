"""Where tables live: the plan over the workers, the sharded model, the plan in a user's words."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
import torch.distributed as dist
from pydantic import PositiveFloat
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
from torchrec.distributed.types import ModuleSharder, ParameterSharding, ShardingPlan

from feature_store.config import Config
from recsys.embeddings.initial import initialize
from recsys.embeddings.tables import Sharding, Table

RESHARDABLE: tuple[Sharding, ...] = ("table_wise", "row_wise")
"""Sharding types whose optimizer state has one shape, so any of them loads into any other.
Column-wise shards keep a row-wise accumulator each, data-parallel tables leave the fused
optimizer: both only where the user asks for them."""
ACROSS_HOSTS: tuple[Sharding, ...] = ("table_row_wise",)


class TopologyConfig(Config):
    """What the planner is told about each worker."""

    memory_gib: PositiveFloat | None = None
    """Memory for tables on each worker; None: what TorchRec assumes for the device."""


ANY_TOPOLOGY = TopologyConfig()


class RowWiseBagSharder(EmbeddingBagCollectionSharder):
    """TorchRec lists no row-wise sharding for pooled tables on CPU; over gloo it works exactly."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """TorchRec's types and, on CPU, row-wise."""
        types = super().sharding_types(compute_device_type)
        return types if "row_wise" in types else [*types, "row_wise"]


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


def sharders() -> list[ModuleSharder[nn.Module]]:
    """Sharders for every collection the project uses."""
    return [RowWiseBagSharder(), EmbeddingCollectionSharder()]


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
        ValueError: nothing fits, with the planner's reason.
    """
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
        storage_reservation=FixedPercentageStorageReservation(percentage=0.15),
        debug=False,
    )
    try:
        if dist.is_initialized() and world_size > 1:
            return planner.collective_plan(model, sharders(), dist.GroupMember.WORLD)
        return planner.plan(model, sharders())
    except (PlannerError, RuntimeError) as error:
        raise ValueError(
            f"no sharding plan fits {world_size} worker(s) on {device.type}:"
            f" {' '.join(str(error).split())}. Allow more sharding_types, give workers more memory"
            " (training.topology.memory_gib), make tables smaller, or add workers"
        ) from error


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
    )
