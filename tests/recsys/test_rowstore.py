"""Rows that update themselves learn what an ordinary table learns."""

import pytest
import torch
import torch.distributed as dist
from support.ranks import on_ranks
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from recsys.embeddings.rowstore import Float32Store, RowOptimizer, stochastic_round, uniform

ROWS, WIDTH, STEPS, BATCH = 12, 3, 5, 8


def start() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def batches() -> torch.Tensor:
    """Rows of two look-ups in every step; few, so that they repeat within and across."""
    return torch.randint(ROWS, (STEPS, 2, BATCH), generator=torch.Generator().manual_seed(1))


def loss_of(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one * other).sum() + one.square().sum() + other.sin().sum()


def trained_store(kind: str) -> torch.Tensor:
    rank, workers = dist.get_rank(), dist.get_world_size()
    store, optimizer = Float32Store(start()), RowOptimizer(kind, ROWS, WIDTH, lr=0.1)
    for step, (one, other) in enumerate(batches()):
        # The loss of a worker is scaled so that the mean over workers is the whole batch's sum.
        mine = slice(rank * BATCH // workers, (rank + 1) * BATCH // workers)
        (workers * loss_of(store(one[mine]), store(other[mine]))).backward()
        store.apply_gradients(optimizer, seed=0, step=step)
    return store.weight


def trained_table(kind: str) -> torch.Tensor:
    weight = torch.nn.Parameter(start())
    stock = {
        "rowwise_adagrad": lambda p: RowWiseAdagrad(p, lr=0.1, eps=1e-8),
        "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-8),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    }[kind]([weight])
    for one, other in batches():
        stock.zero_grad()
        loss_of(weight[one], weight[other]).backward()
        stock.step()
    return weight.detach()


@pytest.mark.distributed
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adagrad", "sgd"])
def test_a_store_trains_as_a_table_under_the_same_optimizer(kind: str, workers: int) -> None:
    found = on_ranks(workers, trained_store, kind)
    for weight in found:
        assert torch.equal(weight, found[0])
        torch.testing.assert_close(weight, trained_table(kind), rtol=0, atol=1e-5)


def one_sided() -> tuple[torch.Tensor, torch.Tensor]:
    store = Float32Store(start())
    if dist.get_rank() == 0:
        store(torch.tensor([3, 5, 3])).sum().backward()
    return store.touched()


@pytest.mark.distributed
def test_a_worker_without_look_ups_hears_of_the_others() -> None:
    for rows, gradient in on_ranks(2, one_sided):
        assert rows.tolist() == [3, 5]
        assert gradient.tolist() == [[1.0] * WIDTH, [0.5] * WIDTH]


def test_reading_in_evaluation_records_nothing() -> None:
    store = Float32Store(start()).eval()
    assert torch.equal(store(torch.tensor([[1, 2], [2, 0]]))[1, 0], start()[2])
    assert store.touched()[0].numel() == 0
    store.train()
    with torch.no_grad():
        store(torch.tensor([1]))
    assert store.touched()[0].numel() == 0


def test_state_bytes() -> None:
    sizes = {"rowwise_adagrad": 1, "adagrad": WIDTH, "sgd": 0}
    for kind, width in sizes.items():
        assert RowOptimizer(kind, ROWS, WIDTH, lr=0.1).state_bytes() == 4 * ROWS * width


def test_stochastic_rounding_is_right_on_average_and_never_further_than_one() -> None:
    values = torch.tensor([[0.25, -1.75, 3.0, -0.01]]).expand(20_000, 4)
    uniforms = uniform(torch.arange(20_000), 4, "item", seed=1, step=2)
    rounded = stochastic_round(values, uniforms)
    assert ((rounded - values).abs() < 1).all()
    exact = (values.double() + uniforms.double()).floor()
    assert torch.equal(rounded.double(), exact)
    torch.testing.assert_close(rounded.mean(dim=0), values[0], rtol=0, atol=0.015)


def test_draws_are_uniform_and_a_function_of_all_their_arguments() -> None:
    rows = torch.arange(20_000)
    drawn = uniform(rows, 4, "item", seed=1, step=2)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert (torch.histc(drawn, 10, 0, 1) / drawn.numel() - 0.1).abs().max() < 0.005
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.03
    assert torch.equal(drawn[[7, 3]], uniform(torch.tensor([7, 3]), 4, "item", seed=1, step=2))
    for other in (("user", 1, 2), ("item", 2, 2), ("item", 1, 3)):
        name, seed, step = other
        assert not torch.equal(drawn, uniform(rows, 4, name, seed=seed, step=step))
