"""Two optimizers: one fused into the backward pass of the tables, one for everything else.

A table that is whole on every worker is not fused: left alone it would never train. Its
parameter goes to the dense optimizer if its settings say so, and otherwise to the unfused twin of
the sparse optimizer, so that where a table lies never changes what is learned.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from feature_store.config import Config
from recsys.embeddings.collection import Embeddings, table_weight
from recsys.embeddings.tables import Table


class SparseOptimizerConfig(Config):
    """Updates the touched rows of the tables inside the backward pass."""

    kind: Literal["rowwise_adagrad", "adagrad", "sgd"] = "rowwise_adagrad"
    """The kinds that FBGEMM fuses on CPU and CUDA alike (Adam is CUDA only)."""
    lr: PositiveFloat = 0.05
    eps: PositiveFloat = 1e-8


class DenseOptimizerConfig(Config):
    """Updates everything that is not in a sharded table."""

    kind: Literal["adam", "adamw", "adagrad", "sgd"] = "adam"
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0


_SPARSE: dict[str, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}
_DENSE: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


def _sparse_arguments(config: SparseOptimizerConfig) -> dict[str, Any]:
    return {"lr": config.lr} if config.kind == "sgd" else {"lr": config.lr, "eps": config.eps}


def fuse(embeddings: Embeddings, config: SparseOptimizerConfig) -> None:
    """Mark the tables of sparse settings for updates inside the backward pass; before sharding."""
    for table in embeddings.tables:
        if not table.settings.replicated:
            apply_optimizer_in_backward(
                _SPARSE[config.kind], [table_weight(embeddings, table)], _sparse_arguments(config)
            )


def state_bytes(table: Table, sparse: SparseOptimizerConfig, dense: DenseOptimizerConfig) -> int:
    """Bytes of state that the optimizer of a table keeps, on all workers that hold it once."""
    per_weight = {"adam": 8, "adamw": 8, "adagrad": 4, "sgd": 0}
    if table.settings.optimizer == "dense":
        return per_weight[dense.kind] * table.num_parameters
    if sparse.kind == "rowwise_adagrad":
        return 4 * table.num_embeddings
    return per_weight[sparse.kind] * table.num_parameters


class Optimizers:
    """The fused optimizer, the unfused twin for replicated tables, and the dense optimizer.

    Attributes:
        combined: all of them; its state goes into checkpoints.
        unfused: what `step` must update after the backward pass.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        embeddings: Embeddings,
        sparse: SparseOptimizerConfig,
        dense: DenseOptimizerConfig,
    ) -> None:
        settings = {table.parameter: table.settings for table in embeddings.tables}
        rest: dict[str, nn.Parameter] = {}
        unfused_sparse: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            table = next((settings[part] for part in name.split(".") if part in settings), None)
            if table is None or table.optimizer == "dense":
                rest[name] = parameter
            elif table.replicated:
                unfused_sparse[name] = parameter
        self.unfused = [
            _keyed(rest, _DENSE[dense.kind], {"lr": dense.lr, "weight_decay": dense.weight_decay})
        ]
        if unfused_sparse:
            arguments = _sparse_arguments(sparse)
            self.unfused.append(_keyed(unfused_sparse, _SPARSE[sparse.kind], arguments))
        self.combined = CombinedOptimizer([model.fused_optimizer, *self.unfused])

    def zero_grad(self) -> None:
        """Forget the gradients of everything that is not fused."""
        for optimizer in self.unfused:
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Update everything that the backward pass has not updated already."""
        for optimizer in self.unfused:
            optimizer.step()

    def init_state(self) -> None:
        """Create the lazy state in place, so that a checkpoint can be loaded into it.

        This steps with zero gradients: load the parameters afterwards.
        """
        for optimizer in self.unfused:
            optimizer.init_state()
        self.zero_grad()


def _keyed(
    parameters: dict[str, nn.Parameter],
    optimizer: Callable[..., torch.optim.Optimizer],
    arguments: dict[str, Any],
) -> KeyedOptimizerWrapper:
    return KeyedOptimizerWrapper(parameters, lambda params: optimizer(params, **arguments))
