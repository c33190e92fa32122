"""Dynamic sparse learning against a dense table under a dense mask."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ranks import on_ranks
from support.training import EMBEDDING, Recipe, trainer_of
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer

from feature_store.features import IdField
from recsys.embeddings.access import TableAccess
from recsys.embeddings.compression.dsl import Dsl, DslConfig, SparseStore, _others
from recsys.embeddings.config import EmbeddingsConfig
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space, StepInfo
from recsys.embeddings.tables import TableSettings
from recsys.training.trainer import TrainingConfig

NO_TABLES = TableAccess(nn.Module(), CombinedOptimizer([]), [])
NUM_STEPS = 24


def space(name: str = "a", num_ids: int = 30, width: int = 8, l2: float = 0.0) -> Space:
    field = IdField(name=name, shape="single", side="user", space=name, cardinality=num_ids)
    table = TableSettings(l2=l2, optimizer="dense" if l2 else "sparse")
    return Space(name, (field,), num_ids, num_ids, width, table)


def scheme_of(config: DslConfig, of: Space) -> Dsl:
    sized = config.sized([of], None)[of.name]
    assert sized is not None
    return sized.scheme(of, "train", {}).train()


@dataclass
class Dense:
    """The paper's algorithm on whole arrays; state begins anew, the just pruned stay out."""

    weights: np.ndarray
    mask: np.ndarray
    squares: np.ndarray

    def update(self, gradient: np.ndarray, lr: float) -> None:
        gradient = gradient.astype(np.float32)
        self.squares[self.mask] += gradient[self.mask] ** 2
        step = np.float32(lr) * gradient / (np.sqrt(self.squares) + np.float32(1e-8))
        self.weights[self.mask] -= step[self.mask]

    def exchange(self, gradient: np.ndarray, num_moved: int) -> None:
        active, inactive = np.flatnonzero(self.mask), np.flatnonzero(~self.mask)
        pruned = active[np.argsort(np.abs(self.weights.flat[active]), kind="stable")][:num_moved]
        steepness = np.abs(gradient.flat[inactive])
        grown = inactive[np.argsort(-steepness, kind="stable")][:num_moved]
        assert num_moved == 0 or steepness.size >= num_moved
        for changed, active_now in ((pruned, False), (grown, True)):
            self.mask.flat[changed] = active_now
            self.weights.flat[changed] = 0
            self.squares.flat[changed] = 0


def dense_of(store: SparseStore) -> Dense:
    shape = (store.num_embeddings, store.embedding_dim)
    mask, squares = np.zeros(shape, bool), np.zeros(shape, np.float32)
    mask.flat[store.positions().numpy()] = True
    squares.flat[store.positions().numpy()] = store.squares.numpy()
    return Dense(store.dense().numpy().copy(), mask, squares)


@pytest.mark.parametrize("width", [3, 8, 12])
def test_it_trains_as_a_dense_table_under_a_mask(width: int) -> None:
    torch.manual_seed(1)
    config = DslConfig(density=0.4, every=3, lr=0.02)
    scheme = scheme_of(config, space(width=width))
    store = scheme.store
    dense = dense_of(store)
    num_active = store.num_active
    assert num_active == math.floor(0.4 * 30 * width) == dense.mask.sum()
    random = np.random.default_rng(2)
    moved = 0
    for step in range(NUM_STEPS):
        # Every row in every batch, some twice, so that gradients say all that grows.
        ids = torch.from_numpy(random.permutation(np.concatenate([np.arange(30), [4, 4, 7]])))
        coefficients = random.normal(size=(33, width)).astype(np.float32)
        info = StepInfo(step, NUM_STEPS, 0)
        scheme.before_step(info)
        vectors = scheme.combine(ids, [])
        expected = dense.weights[ids.numpy()]
        np.testing.assert_allclose(vectors.detach().numpy(), expected, rtol=1e-5, atol=1e-7)
        (vectors * torch.from_numpy(coefficients)).sum().backward()
        gradient = np.zeros((30, width))
        np.add.at(gradient, ids.numpy(), coefficients)
        scheme.after_step(info, NO_TABLES)
        share = config.moved_share(step + 1, NUM_STEPS)
        num_moved = 0 if share is None else math.floor(share * num_active)
        moved += num_moved
        dense.update(gradient, 0.02)
        dense.exchange(gradient, num_moved)
        found = dense_of(store)
        assert found.mask.sum() == num_active
        np.testing.assert_array_equal(found.mask, dense.mask)
        np.testing.assert_allclose(found.weights, dense.weights, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found.squares, dense.squares, rtol=1e-5, atol=1e-7)
    assert moved > num_active


@given(seed=st.integers(0, 200), num_moved=st.integers(1, 60))
@settings(deadline=None, max_examples=40)
def test_ties_go_by_position(seed: int, num_moved: int) -> None:
    torch.manual_seed(seed)
    store = SparseStore(20, 6, 60, 0.05)
    store.values.copy_(torch.randint(-2, 3, (60,)).float())
    store.squares.copy_(torch.rand(60))
    gradient = torch.randint(1, 4, (20, 6)).float()
    dense = dense_of(store)
    dense.exchange(gradient.numpy(), num_moved)
    store.exchange(num_moved, torch.arange(20), gradient, seed=0)
    found = dense_of(store)
    np.testing.assert_array_equal(found.mask, dense.mask)
    np.testing.assert_array_equal(found.weights, dense.weights)
    np.testing.assert_array_equal(found.squares, dense.squares)


def store_of(positions: list[int], values: list[float], num_rows: int = 4) -> SparseStore:
    store = SparseStore(num_rows, 2, len(positions), 0.05)
    store._place(torch.tensor(positions))
    store.values.copy_(torch.tensor(values))
    store.squares.fill_(9.0)
    return store


def test_an_exchange_by_hand() -> None:
    """In [[1, .], [., -.1], [.2, 3], [., .]] the two smallest give way to the two steepest."""
    store = store_of([0, 3, 4, 5], [1.0, -0.1, 0.2, 3.0])
    gradient_UD = torch.tensor([[0.3, 0.5], [0.4, 7.0]])
    # Position 3 has the steepest gradient, and was just pruned: it does not grow back.
    store.exchange(2, torch.tensor([0, 1]), gradient_UD, seed=0)
    assert store.positions().tolist() == [0, 1, 2, 5]
    assert store.values.tolist() == [1.0, 0.0, 0.0, 3.0]
    assert store.squares.tolist() == [9.0, 0.0, 0.0, 9.0]
    expected = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    torch.testing.assert_close(store.dense(), expected, rtol=0, atol=0)


def test_where_gradients_are_too_few_the_rest_grows_at_random() -> None:
    def exchanged(seed: int) -> list[int]:
        store = store_of([0, 3, 40, 41], [1.0, -0.1, 0.2, 0.3], num_rows=30)
        gradient_UD = torch.tensor([[0.3, 0.0], [0.0, 7.0]])
        store.exchange(3, torch.tensor([4, 1]), gradient_UD, seed)
        return store.positions().tolist()

    found = {seed: exchanged(seed) for seed in range(20)}
    for positions in found.values():
        assert len(set(positions)) == 4
        assert {0, 8} <= set(positions), "the largest weight stays, the one gradient is followed"
        assert not {3, 40, 41} & set(positions), "the pruned stay out"
    assert exchanged(3) == found[3]
    assert len({tuple(positions) for positions in found.values()}) > 15


@given(
    taken=st.sets(st.integers(0, 59), max_size=58),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_other_positions_are_distinct_and_free(taken: set[int], share: float, seed: int) -> None:
    count = max(1, int(share * (60 - len(taken))))
    positions = torch.tensor(sorted(taken), dtype=torch.int64)
    found = _others(positions, count, 60, seed).tolist()
    assert len(found) == len(set(found)) == count
    assert not set(found) & taken
    assert set(found) <= set(range(60))


def test_every_free_position_is_as_likely() -> None:
    taken = torch.tensor([0, 3, 4, 9])
    for count in (1, 2, 5):
        drawn = [p for seed in range(1200) for p in _others(taken, count, 10, seed).tolist()]
        counts = np.bincount(drawn, minlength=10)
        assert counts[[0, 3, 4, 9]].sum() == 0
        np.testing.assert_allclose(counts[[1, 2, 5, 6, 7, 8]] / len(drawn), 1 / 6, atol=0.035)


def test_the_moved_share_follows_the_cosine() -> None:
    config = DslConfig(every=10, until=0.8)
    assert config.moved_share(11, 1000) is None
    assert config.moved_share(10, 1000) == pytest.approx(0.25 * (1 + math.cos(math.pi / 80)))
    assert config.moved_share(400, 1000) == pytest.approx(0.25)
    assert config.moved_share(790, 1000) == 0.005
    assert config.moved_share(800, 1000) is None
    assert config.moved_share(900, 1000) is None
    paper = DslConfig()
    assert [n for n in range(1, 10_000) if paper.moved_share(n, 90_000)] == [2000, 4000, 6000, 8000]
    assert [n for n in range(1, 200) if paper.moved_share(n, 200)] == list(range(10, 150, 10))


def test_a_full_table_exchanges_nothing() -> None:
    scheme = scheme_of(DslConfig(density=1.0, every=1), space())
    before = scheme.store.positions()
    scheme.combine(torch.arange(30), []).sum().backward()
    scheme.after_step(StepInfo(0, 10, 0), NO_TABLES)
    assert torch.equal(scheme.store.positions(), before)


def test_it_begins_with_the_exact_count_everywhere_in_the_table() -> None:
    torch.manual_seed(3)
    scheme = scheme_of(DslConfig(density=0.25), space(num_ids=70_000, width=4))
    positions = scheme.store.positions()
    assert positions.numel() == 70_000
    by_tenth = np.bincount(positions.numpy() // 28_000)
    np.testing.assert_allclose(by_tenth, 7000, rtol=0.06)
    np.testing.assert_allclose(np.bincount(positions.numpy() % 4), 17_500, rtol=0.04)
    assert 0.0285 < float(scheme.store.values.std()) < 0.0293  # uniform in [-0.05, 0.05]
    torch.manual_seed(3)
    again = scheme_of(DslConfig(density=0.25), space(num_ids=70_000, width=4))
    assert torch.equal(again.store.positions(), positions)
    assert again.storage_bytes() == 70_000 * (1 + 4) + 70_000 * (4 + 4)


@pytest.mark.parametrize("percent", [2, 10, 50])
def test_a_budget_makes_one_density_and_no_empty_table(percent: int) -> None:
    spaces = [space("a", 3, 4), space("b", 5000), space("c", 800, 16)]
    budget = percent * sum(each.full_bytes for each in spaces) // 100
    found = DslConfig().sized(spaces, budget)
    taken = 0
    densities = {}
    for each in spaces:
        config = found[each.name]
        if config is None:
            taken += each.full_bytes
            continue
        scheme = config.scheme(each, "train", {})
        taken += scheme.serving_bytes()
        densities[each.name] = scheme.store.num_active / (each.num_rows * each.embedding_dim)
        assert scheme.store.num_active >= 1
    # At a low budget a weight is counted with the bits of the widest table's row.
    assert 0.92 * budget < taken <= budget
    assert densities["b"] == pytest.approx(densities["c"], rel=0.05)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(SchemeError, match=r"feature 'a': scheme dsl .* drop l2"):
        DslConfig().sized([space(l2=0.1)], None)
    with pytest.raises(BudgetTooSmall, match="scheme dsl cannot store a"):
        DslConfig().sized([space()], 5)


def states(recipe: Recipe) -> list[tuple[int, dict[str, np.ndarray]]]:
    trainer = trainer_of(recipe)
    batches = trainer.readers["train"].epoch(0)
    found = []
    for _ in range(8):
        trainer.step.progress(batches)
        schemes = trainer.step.embeddings.own_schemes()
        tensors = {
            f"{scheme.space.name}/{name}": value.numpy().copy()
            for scheme in schemes
            for name, value in scheme.state_dict().items()
        }
        count = sum(s.store.positions().numel() for s in schemes if isinstance(s, Dsl))
        found.append((count, tensors))
    return found


@pytest.mark.distributed
def test_workers_stay_equal_and_as_one(files: tuple[Path, ...], tmp_path: Path) -> None:
    default = EMBEDDING.model_copy(update={"scheme": DslConfig(every=2, density=0.3)})
    recipe = Recipe(
        files,
        tmp_path,
        embeddings=EmbeddingsConfig(default=default),
        training=TrainingConfig(batch_size=60, max_steps=16, epochs=5),
    )
    alone = on_ranks(1, states, recipe)[0]
    first, second = on_ranks(2, states, recipe)
    counts = {count for count, _ in [*alone, *first, *second]}
    assert counts == {sum(int(0.3 * 8 * n) for n in (40, 60, 12, 100))}
    for (_, one), (_, other), (_, single) in zip(first, second, alone, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name], name)
            np.testing.assert_allclose(value, single[name], rtol=1e-4, atol=1e-6, err_msg=name)
