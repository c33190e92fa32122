"""Widths against published ones, vectors against plain tables, sizes against what is held."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.embeddings.compression.mde import (
    MDEConfig,
    MixedDimension,
    PackedMixedDimension,
    budgeted_widths,
    ruled_widths,
)
from recsys.embeddings.scheme import AbstractScheme, BudgetTooSmall, SchemeError, Space
from recsys.embeddings.tables import TableSettings

CRITEO = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
"""Values of the 26 features."""
AT_16 = (8, 8, 1, 2, 8, 8, 4, 8, 16, 4, 4, 1, 4, 8, 4, 2, 16, 4, 8, 16, 2, 16, 16, 4, 8, 4)
"""Widths in Hetu's EmbeddingMemoryCompression, of embedding_dim 16. Its feature of four values has
14 there, no power of two: the rule's own 15 before it is rounded is neither."""
AT_64 = (16, 16, 1, 2, 16, 32, 8, 16, 64, 4, 8, 1, 8, 32, 8, 2, 64, 8, 16, 64, 2, 32, 32, 4, 32, 4)


def space_of(num_ids: int, width: int = 16, name: str = "item") -> Space:
    return Space(name, (), num_ids, num_ids, width, TableSettings(init_range=0.05))


def criteo(width: int) -> list[Space]:
    return [space_of(num, width, f"C{place}") for place, num in enumerate(CRITEO)]


@pytest.mark.parametrize(("width", "alpha", "expected"), [(16, 0.16, AT_16), (64, 0.254, AT_64)])
def test_widths_of_criteo_are_the_published_ones(
    width: int, alpha: float, expected: tuple[int, ...]
) -> None:
    assert tuple(ruled_widths(criteo(width), alpha).values()) == expected


def test_a_tenth_of_criteo_gives_the_published_widths() -> None:
    spaces = criteo(16)
    budget = sum(space.full_bytes for space in spaces) // 10
    assert tuple(budgeted_widths(spaces, budget).values()) == AT_16


def held_bytes(scheme: AbstractScheme) -> int:
    tables = sum(4 * spec.num_embeddings * spec.embedding_dim for spec in scheme.lookups)
    return tables + scheme.serving_bytes()


def total_bytes(spaces: list[Space], found: dict[str, MDEConfig | None]) -> int:
    return sum(
        space.full_bytes
        if (config := found[space.name]) is None
        else held_bytes(config.scheme(space, "train", {}))
        for space in spaces
    )


@pytest.mark.parametrize("percent", [7, 10, 25, 50, 75, 100])
def test_the_temperature_is_the_least_that_fits(percent: int) -> None:
    """No finer grid of temperatures finds wider rows within the budget."""
    spaces = criteo(16)
    budget = sum(space.full_bytes for space in spaces) * percent // 100
    found = MDEConfig().sized(spaces, budget)
    used = total_bytes(spaces, found)
    assert used <= budget
    for alpha in np.linspace(0, 1, 500):
        other = total_bytes(spaces, MDEConfig(alpha=float(alpha)).sized(spaces, None))
        assert other > budget or other <= used


def test_equal_features_halve_the_base() -> None:
    spaces = [space_of(1000, 16, "one"), space_of(1000, 16, "two")]
    full = 2 * 4 * 16 * 1000
    found = MDEConfig().sized(spaces, full // 4 + 600)
    assert [config and config.width for config in found.values()] == [4, 4]
    # 250 packed rows of 4 and a projection of 16 each.
    least = 2 * 4 * (1000 + 16)
    assert total_bytes(spaces, MDEConfig().sized(spaces, least)) == least
    with pytest.raises(BudgetTooSmall, match=f"the least it takes is {least:,} bytes"):
        MDEConfig().sized(spaces, least - 1)


@given(
    st.lists(st.tuples(st.integers(2, 10_000), st.integers(1, 70)), min_size=1, max_size=6),
    st.floats(0.02, 1.0),
)
@settings(max_examples=150, deadline=None)
def test_every_budget_is_kept_or_refused(sizes: list[tuple[int, int]], share: float) -> None:
    spaces = [space_of(num, width, f"f{k}") for k, (num, width) in enumerate(sizes)]
    budget = int(share * sum(space.full_bytes for space in spaces))
    try:
        found = MDEConfig().sized(spaces, budget)
    except BudgetTooSmall:
        narrowest = MDEConfig(width=1).sized(spaces, None)
        assert total_bytes(spaces, narrowest) > budget
    else:
        assert total_bytes(spaces, found) <= budget


def looked_up(scheme: AbstractScheme, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return scheme.combine(ids, [weight[rows] for rows in scheme.rows(ids)])


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_vectors_are_narrow_rows_times_the_projection(width: int) -> None:
    scheme = MDEConfig(width=width).scheme(space_of(11), "train", {})
    assert isinstance(scheme, MixedDimension)
    (spec,) = scheme.lookups
    assert spec.embedding_dim % 4 == 0
    weight = torch.randn(spec.num_embeddings, spec.embedding_dim)
    narrow = weight.reshape(-1, width)
    assert 11 <= narrow.shape[0] < 11 + 4
    ids = torch.tensor([[0, 1, 10], [5, 5, 7]])
    expected = np.zeros((2, 3, 16))
    for place in np.ndindex(2, 3):
        for k in range(width):
            expected[place] += narrow[ids[place], k].item() * scheme.projection[k].detach().numpy()
    found = looked_up(scheme, weight, ids).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("width", [2, 4])
def test_gradients(width: int) -> None:
    scheme = MDEConfig(width=width).scheme(space_of(7, 8), "train", {}).double()
    (spec,) = scheme.lookups
    weight = torch.randn(spec.num_embeddings, 4, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([6, 0, 6, 3])
    # The check moves the weights in place.
    inputs = (weight, *scheme.parameters())
    assert torch.autograd.gradcheck(lambda *_: looked_up(scheme, weight, ids), inputs)


@pytest.mark.parametrize(("width", "linear"), [(1, False), (2, False), (4, True)])
def test_only_packed_rows_need_their_ids(width: int, linear: bool) -> None:
    scheme = MDEConfig(width=width).scheme(space_of(50), "train", {})
    assert scheme.linear is linear
    assert isinstance(scheme, PackedMixedDimension) is not linear


def test_vectors_start_with_the_spread_of_a_table() -> None:
    torch.manual_seed(0)
    spreads = []
    for _ in range(30):
        scheme = MDEConfig(width=4).scheme(space_of(500), "train", {})
        weight = torch.empty(500, 4).uniform_(-0.05, 0.05)
        spreads.append(looked_up(scheme, weight, torch.arange(500)).square().mean().item())
    assert math.sqrt(np.mean(spreads)) == pytest.approx(0.05 / math.sqrt(3), rel=0.05)


def test_features_that_would_not_shrink_stay_whole() -> None:
    # 12 numbers of 8 and a projection of 8 x 16 are more than 12 of 16.
    spaces = [space_of(12, name="month"), space_of(1000)]
    found = MDEConfig(width=8).sized(spaces, None)
    assert found["month"] is None
    assert found["item"] is not None


@pytest.mark.parametrize("width", [3, 6, 10])
def test_a_width_that_cannot_be_stored_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"width {width} must be 1, 2 or a multiple of 4"):
        MDEConfig(width=width)


def test_without_a_size_it_says_what_to_set() -> None:
    with pytest.raises(SchemeError, match=r"set its alpha .* or width, or embeddings\.budget"):
        MDEConfig().sized([space_of(100)], None)
    unbounded = Space("city", (), None, None, 16, TableSettings())
    with pytest.raises(SchemeError, match=r"embeddings\.features\.city\.num_embeddings"):
        MDEConfig(alpha=0.3).sized([unbounded], None)
