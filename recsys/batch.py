"""One step's rows on one worker.

Shapes: B rows on this worker, N dense numbers, T tasks.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """Rows as tensors; padding rows have weight 0 and empty or missing ids."""

    ids: KeyedJaggedTensor
    """One key a field, in the order of `Layout.ids`; ids as encoded, not yet rows of a table. With
    weights (float32, 1 where a field has none) where any field of the layout is weighted."""
    dense_BN: Tensor
    """float32, in the order of `Layout.dense`."""
    labels_BT: Tensor
    """float32, in the order of `Layout.tasks`."""
    weights_B: Tensor
    """float32; 0 marks padding."""
    groups_B: Tensor
    """int64 key of the row's group (GAUC)."""
    weight_sum: Tensor
    """Scalar: weights of the whole global batch divided by the number of workers, so that the mean
    over workers of `sum(weights * loss) / weight_sum` is the global batch's weighted mean."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The batch on another device; `non_blocking` lets the copy run beside the host."""
        return Batch(
            **{
                f.name: getattr(self, f.name).to(device=device, non_blocking=non_blocking)
                for f in fields(self)
            }
        )

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which copies to a GPU overlap with work there."""
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until work queued on `stream` is done."""
        for field in fields(self):
            getattr(self, field.name).record_stream(stream)
