"""Losses on clicks.

Shapes: B rows, T tasks.
"""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def log_loss(logits_BT: Tensor, labels_BT: Tensor, weights_B: Tensor, weight_sum: Tensor) -> Tensor:
    """Weighted mean log loss over rows, summed over tasks.

    Args:
        logits_BT: float32.
        labels_BT: 0 or 1.
        weights_B: 0 for padding.
        weight_sum: what the weighted sum is divided by; see `Batch.weight_sum`.
    """
    losses_BT = binary_cross_entropy_with_logits(logits_BT, labels_BT, reduction="none")
    return (losses_BT * weights_B[:, None]).sum() / weight_sum.clamp(min=1e-12)
