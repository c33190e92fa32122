"""Statistics over all workers' batches, with the gradients of the whole batch."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support.ranks import on_ranks
from torch import Tensor

from recsys.normalization import GlobalStatistics, MovingStatistics, kept_averages


def batch_of(num_rows: int) -> Tensor:
    return torch.randn(num_rows, 3, generator=torch.manual_seed(0)) * 2 + 5


def outcome(num_rows: int) -> list[np.ndarray]:
    """Moments, averages after two batches, and the gradient of this worker's rows."""
    statistics, rank = GlobalStatistics(3, momentum=0.25), dist.get_rank()
    workers = dist.get_world_size()
    s_BW = batch_of(num_rows)[rank::workers].requires_grad_()
    statistics(batch_of(num_rows + 4)[rank::workers])
    mean_W, variance_W = statistics(s_BW)
    # Each worker's loss sees all workers' rows; the mean of the losses is the whole batch's.
    ((mean_W * torch.arange(3.0)).sum() + variance_W.sin().sum()).div(workers).backward()
    assert s_BW.grad is not None
    tensors = (mean_W, variance_W, statistics.mean, statistics.variance, s_BW.grad)
    return [tensor.detach().numpy() for tensor in tensors]


@pytest.mark.distributed
@pytest.mark.parametrize("workers", [1, 2])
def test_global_statistics_are_those_of_the_whole_batch(workers: int) -> None:
    s_BW = batch_of(7).requires_grad_()
    mean_W, variance_W = s_BW.mean(dim=0), s_BW.var(dim=0, correction=0)
    ((mean_W * torch.arange(3.0)).sum() + variance_W.sin().sum()).backward()
    first_BW = batch_of(11)
    averages = [
        0.75 * (0.75 * start + 0.25 * first) + 0.25 * second.detach()
        for start, first, second in (
            (0, first_BW.mean(dim=0), mean_W),
            (1, first_BW.var(dim=0, correction=0), variance_W),
        )
    ]
    expected = [mean_W.detach(), variance_W.detach(), *averages]
    for rank, found in enumerate(on_ranks(workers, outcome, 7)):
        for one, other in zip(found[:4], expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-5)
        np.testing.assert_allclose(found[4], s_BW.grad[rank::workers], rtol=1e-4, atol=1e-6)


def test_masked_positions_count_in_neither() -> None:
    s_BW, mask_B = batch_of(6), torch.tensor([True, False, True, True, False, True])
    mean_W, variance_W = GlobalStatistics(3)(s_BW, mask_B)
    torch.testing.assert_close(mean_W, s_BW[mask_B].mean(dim=0))
    torch.testing.assert_close(variance_W, s_BW[mask_B].var(dim=0, correction=0))


def test_a_batch_without_positions_leaves_the_averages() -> None:
    statistics = GlobalStatistics(3)
    statistics(torch.zeros(0, 3))
    assert statistics.mean.tolist() == [0, 0, 0]
    assert statistics.variance.tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", [MovingStatistics, GlobalStatistics])
def test_averages_are_kept_within(kind: type[MovingStatistics]) -> None:
    statistics = kind(3)
    with kept_averages(statistics):
        mean_W, _ = statistics(batch_of(5))
    assert statistics.mean.tolist() == [0, 0, 0]
    torch.testing.assert_close(mean_W, batch_of(5).mean(dim=0))
    statistics(batch_of(5))
    torch.testing.assert_close(statistics.mean, 0.1 * mean_W)
