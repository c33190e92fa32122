"""Reading and writing rows of tables while they are trained, wherever their shards lie.

For what no optimizer does: pruning, giving an evicted id's row to another, promoting a hot id.
Every worker calls every method with the same arguments, and touches its own shards.

Shapes: N rows asked for, D embedding width.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.optim.keyed import KeyedOptimizer

from recsys.embeddings.tables import Table


class Shard(NamedTuple):
    """This worker's part of a table, or of a state of its optimizer."""

    row: int
    """The table's first row in it."""
    column: int
    tensor: Tensor
    """A view: writing to it changes the model. State with one number a row has one dimension."""


class TableAccess:
    """The tables of a sharded model and the state of their optimizers.

    Args:
        model: sharded.
        optimizer: of all its parameters.
        tables: of its embeddings.
    """

    def __init__(
        self, model: nn.Module, optimizer: KeyedOptimizer, tables: Iterable[Table]
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.tables = {table.name: table for table in tables}
        self._weights: dict[str, list[Shard]] = {}
        self._states: dict[str, list[Shard]] = {}

    def shards(self, name: str) -> list[Shard]:
        """This worker's parts of a table's weights."""
        if name not in self._weights:
            table = self.tables[name]
            for key, weight in self.model.state_dict().items():
                if table.parameter in key.split("."):
                    self._weights.setdefault(name, []).extend(_shards(weight))
        return self._weights.setdefault(name, [])

    def state_shards(self, name: str) -> list[Shard]:
        """This worker's parts of all states that the optimizer keeps for a table.

        There are none before the first step of an optimizer that makes them then.
        """
        if not self._states.get(name):
            table = self.tables[name]
            found: list[Shard] = []
            for key, states in self.optimizer.state_dict()["state"].items():
                if table.parameter in key.split("."):
                    for state in states.values():
                        found += _state_shards(state, table)
            self._states[name] = found
        return self._states[name]

    @torch.no_grad()
    def read_rows(self, name: str, rows_N: Tensor) -> Tensor:
        """(N, D) weights of some rows; every worker gets all of them."""
        table = self.tables[name]
        found_ND = torch.zeros(
            rows_N.numel(), table.embedding_dim, dtype=torch.float32, device=rows_N.device
        )
        for row, column, tensor in self.shards(name):
            inside = (rows_N >= row) & (rows_N < row + tensor.shape[0])
            columns = slice(column, column + tensor.shape[1])
            found_ND[inside, columns] = tensor[rows_N[inside] - row].float()
        if not table.settings.replicated and dist.get_world_size() > 1:
            dist.all_reduce(found_ND)
        return found_ND

    @torch.no_grad()
    def write_rows(self, name: str, rows_N: Tensor, values_ND: Tensor) -> None:
        """Replace the weights of some rows, distinct ones."""
        for row, column, tensor in self.shards(name):
            inside = (rows_N >= row) & (rows_N < row + tensor.shape[0])
            columns = slice(column, column + tensor.shape[1])
            tensor[rows_N[inside] - row] = values_ND[inside, columns].to(tensor.dtype)

    @torch.no_grad()
    def reset_state(self, name: str, rows_N: Tensor) -> None:
        """Let the optimizer forget some rows."""
        for row, _, tensor in self.state_shards(name):
            inside = (rows_N >= row) & (rows_N < row + tensor.shape[0])
            tensor[rows_N[inside] - row] = 0


def _shards(value: Any) -> list[Shard]:
    if not isinstance(value, ShardedTensor):
        return [Shard(0, 0, value.detach())]
    found = []
    for local in value.local_shards():
        offsets = local.metadata.shard_offsets
        found.append(
            Shard(offsets[0], offsets[1] if len(offsets) > 1 else 0, local.tensor.detach())
        )
    return found


def _state_shards(state: Any, table: Table) -> list[Shard]:
    """Of state with a number or a vector a row; a step count is neither."""
    if isinstance(state, ShardedTensor):
        # Each column-wise shard has an accumulator of its own for every row; in the whole state
        # they stand one below the other.
        return [
            shard._replace(row=shard.row % table.num_embeddings)
            if shard.tensor.dim() == 1
            else shard
            for shard in _shards(state)
        ]
    if isinstance(state, Tensor) and state.dim() and state.shape[0] == table.num_embeddings:
        return _shards(state)
    return []
