"""AutoDim: the mixture as written down, the choice against all choices, bytes within the budget."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.features import IdField
from recsys.embeddings.compression.autodim import (
    AutoDimConfig,
    AutoDimSearch,
    NarrowTable,
    Option,
    best_choice,
)
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space, StepInfo
from recsys.embeddings.tables import TableSettings


def space_of(name: str, num_ids: int, width: int = 8) -> Space:
    field = IdField(name=name, shape="single", side="user", space=name, cardinality=num_ids)
    return Space(name, (field,), num_ids, num_ids, width, TableSettings())


def test_the_mixture_is_the_papers() -> None:
    torch.manual_seed(0)
    scheme = AutoDimSearch(space_of("user", 20), AutoDimConfig())
    with torch.no_grad():
        scheme.architecture["alpha"].copy_(torch.tensor([0.3, -0.2, 0.9]))
    scheme.before_step(StepInfo(4_000, 10_000, 1))
    rows = torch.randn(16, 8)
    found = scheme.combine(torch.arange(16), (rows,)).detach().numpy()
    alpha = np.array([0.3, -0.2, 0.9])
    logits = alpha - np.log(np.exp(alpha).sum()) + scheme.noise_K.numpy()
    weights = np.exp(logits / (1 - 5e-5 * 4_000))
    weights /= weights.sum()
    expected = np.zeros((16, 8))
    for weight, width, linear in zip(weights, (2, 4, 8), scheme.projections, strict=True):
        wide = rows.numpy()[:, :width] @ linear.weight.detach().numpy().T
        wide = wide + linear.bias.detach().numpy()
        expected += weight * (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    np.testing.assert_allclose(found, expected * 0.05 / math.sqrt(3), rtol=1e-4, atol=1e-6)


def test_noise_is_a_function_of_seed_step_and_space() -> None:
    def noise(name: str, seed: int, step: int) -> list[float]:
        scheme = AutoDimSearch(space_of(name, 5), AutoDimConfig())
        scheme.before_step(StepInfo(step, 10, seed))
        return scheme.noise_K.tolist()

    assert noise("a", 1, 2) == noise("a", 1, 2)
    assert len({tuple(noise(*key)) for key in itertools.product("ab", (1, 2), (3, 4))}) == 8


def test_gumbel_noise_has_its_mean_and_spread() -> None:
    config = AutoDimConfig(candidates=tuple(range(1, 501)))
    scheme = AutoDimSearch(space_of("a", 2, width=500), config)
    scheme.before_step(StepInfo(0, 10, 0))
    assert scheme.noise_K.mean().item() == pytest.approx(0.5772, abs=0.2)
    assert scheme.noise_K.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.2)


@pytest.mark.parametrize(("step", "expected"), [(0, 1.0), (10_000, 0.5), (10**6, 0.01)])
def test_it_cools_down(step: int, expected: float) -> None:
    scheme = AutoDimSearch(space_of("a", 5), AutoDimConfig())
    scheme.before_step(StepInfo(step, 10**6, 0))
    assert scheme.temperature.item() == pytest.approx(expected)


def test_alpha_has_the_gradient_of_the_mixture() -> None:
    torch.manual_seed(0)
    scheme = AutoDimSearch(space_of("a", 5), AutoDimConfig()).double()
    scheme.before_step(StepInfo(0, 10, 0))
    rows = torch.randn(6, 8, dtype=torch.float64)
    alpha = scheme.architecture["alpha"]

    def loss() -> torch.Tensor:
        return (scheme.combine(torch.arange(6), (rows,)) * rows).sum()

    (gradient,) = torch.autograd.grad(loss(), [alpha])
    with torch.no_grad():
        for place in range(3):
            alpha[place] += 1e-3
            above = loss()
            alpha[place] -= 2e-3
            below = loss()
            alpha[place] += 1e-3
            # The projections are normalised in float32.
            assert gradient[place].item() == pytest.approx(
                ((above - below) / 2e-3).item(), rel=1e-2, abs=1e-5
            )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.integers(-9, 0)), min_size=1, max_size=3),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 30),
)
def test_the_choice_is_the_best_of_all(drawn: list[list[tuple[int, int]]], budget: int) -> None:
    options = [[Option(c, float(s), w) for w, (c, s) in enumerate(each)] for each in drawn]
    fitting = [
        choice
        for choice in itertools.product(*options)
        if sum(option.cost for option in choice) <= budget
    ]
    if not fitting:
        with pytest.raises(ValueError, match="no choice"):
            best_choice(options, budget)
        return
    found = best_choice(options, budget)
    assert sum(option.cost for option in found) <= budget
    best = max(sum(option.score for option in choice) for choice in fitting)
    assert sum(option.score for option in found) == best


def served_bytes(space: Space, width: int) -> int:
    scheme = NarrowTable(space, width)
    tables = {s.name: torch.zeros(s.num_embeddings, s.embedding_dim) for s in scheme.lookups}
    served = scheme.serving(tables)
    return served.storage_bytes() + sum(4 * tables[s.name].numel() for s in served.lookups)


def test_a_decision_keeps_the_budget_and_small_features_stay_whole() -> None:
    spaces = [space_of("few", 3), space_of("some", 200), space_of("many", 1000)]
    budget = sum(space.full_bytes for space in spaces) // 2
    sized = AutoDimConfig().sized(spaces, budget)
    assert sized["few"] is None, "a projection weighs more than 3 rows"
    config = sized["many"]
    assert config is not None
    promised = spaces[0].full_bytes
    for space in spaces[1:]:
        each = sized[space.name]
        assert each is not None
        promised += each.costs(space)[each.promised_width or 0]
    assert 0.6 * budget < promised <= budget
    searched = {space.name: AutoDimSearch(space, config) for space in spaces[1:]}
    with torch.no_grad():
        for scheme in searched.values():
            scheme.architecture["alpha"].copy_(torch.tensor([0.0, 1.0, 2.0]))
    found = config.decide("search", searched, {}, lambda: 0.5)
    widths = {name: int(each["width"]) for name, each in found.items()}
    assert widths == {"some": 8, "many": 2}
    total = spaces[0].full_bytes + sum(served_bytes(s, widths[s.name]) for s in spaces[1:])
    assert total <= budget
    free = AutoDimConfig().decide("search", searched, {}, lambda: 0.5)
    assert {int(each["width"]) for each in free.values()} == {8}


@pytest.mark.parametrize("width", [2, 4, 6, 8])
def test_bytes_are_told_before_they_are_there(width: int) -> None:
    space = space_of("many", 100)
    scheme = NarrowTable(space, width)
    kept = sum(4 * s.num_embeddings * s.embedding_dim for s in scheme.served_lookups())
    assert scheme.serving_bytes() + kept == served_bytes(space, width)
    config = AutoDimConfig(candidates=(2, 4, 6, 8))
    assert config.costs(space)[width] == served_bytes(space, width)


def test_a_narrow_vector_is_projected_and_starts_with_the_spread_of_a_full_one() -> None:
    torch.manual_seed(0)
    scheme = NarrowTable(space_of("many", 4000, width=16), 2)
    rows = torch.empty(4000, 4).uniform_(-0.05, 0.05)
    vectors = scheme.combine(torch.arange(4000), (rows,)).detach()
    assert scheme.projection is not None
    expected = rows[:, :2] @ scheme.projection.weight.detach().T
    torch.testing.assert_close(vectors, expected)
    assert vectors.std().item() == pytest.approx(0.05 / math.sqrt(3), rel=0.35)
    served = scheme.serving({scheme.lookups[0].name: rows})
    torch.testing.assert_close(served.combine(torch.arange(4000), ()), vectors)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SchemeError, match="candidate width 16 is more than the 8 of feature 'a'"):
        AutoDimConfig(candidates=(2, 16)).sized([space_of("a", 100)], None)
    unbounded = Space("city", (), None, None, 8, TableSettings())
    with pytest.raises(SchemeError, match="'city' is hashed to 64 bits"):
        AutoDimConfig().sized([unbounded], None)
    with pytest.raises(BudgetTooSmall, match="the least it takes is 896 bytes"):
        AutoDimConfig().sized([space_of("a", 100)], 600)
