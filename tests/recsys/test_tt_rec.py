"""Rows of tensor trains against the whole tensor, and their sizes against trying every rank."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.embeddings.compression.tt_rec import TTRec, TTRecConfig, row_factors, width_factors
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space
from recsys.embeddings.tables import TableSettings

INIT_RANGE = 0.05


def space_of(num_ids: int | None, width: int = 16, name: str = "item") -> Space:
    return Space(name, (), num_ids, num_ids, width, TableSettings(init_range=INIT_RANGE))


def materialised(scheme: TTRec) -> torch.Tensor:
    """The whole table: the tensor train summed over its two inner indices by definition."""
    (n1, n2, n3), (d1, d2, d3), rank = scheme.counts, scheme.widths, scheme.rank
    first = scheme.first.detach().view(n1, d1, rank)
    middle = scheme.middle.detach().view(n2, rank, d2, rank)
    last = scheme.last.detach().view(n3, rank, d3)
    whole = torch.einsum("aip,bpjq,cqk->abcijk", first, middle, last)
    return whole.reshape(n1 * n2 * n3, d1 * d2 * d3)


@pytest.mark.parametrize(("num_ids", "width", "rank"), [(2, 4, 1), (61, 16, 3), (1000, 12, 5)])
@pytest.mark.parametrize("training", [True, False])
def test_rows_equal_the_materialised_tensor(
    num_ids: int, width: int, rank: int, training: bool
) -> None:
    space = space_of(num_ids, width)
    scheme = TTRec(space, rank, width_factors(space)).train(training)
    table = materialised(scheme)
    torch.testing.assert_close(scheme.combine(torch.arange(num_ids), []), table[:num_ids])
    repeated = torch.tensor([[num_ids - 1, 0, 1], [1, 1, 0]])
    torch.testing.assert_close(scheme.combine(repeated, []), table[repeated])
    assert scheme.combine(torch.zeros(0, 3, dtype=torch.int64), []).shape == (0, 3, width)


@pytest.mark.parametrize("training", [True, False])
def test_gradients(training: bool) -> None:
    scheme = TTRec(space_of(30, 8), 2, (2, 2, 2)).double().train(training)
    ids = torch.tensor([[3, 29], [3, 7]])

    # The check moves the cores in place.
    assert torch.autograd.gradcheck(lambda *_: scheme.combine(ids, []), tuple(scheme.parameters()))


@given(st.integers(2, 10**9))
@settings(max_examples=200)
def test_digits_cover_all_rows(num_rows: int) -> None:
    first, middle, last = row_factors(num_rows)
    assert num_rows <= first * middle * last
    assert max(first, middle, last) <= num_rows ** (1 / 3) + 2
    assert middle <= first


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (16, (2, 2, 4)),
        (8, (2, 2, 2)),
        (64, (4, 4, 4)),
        (12, (2, 2, 3)),
        (4, (1, 2, 2)),
        (6, (1, 2, 3)),
    ],
)
def test_factors_of_widths(width: int, expected: tuple[int, int, int]) -> None:
    assert width_factors(space_of(9, width)) == expected


@pytest.mark.parametrize("width", [1, 2, 7, 13])
def test_a_prime_width_is_refused_unless_asked_for(width: int) -> None:
    with pytest.raises(SchemeError, match=f"embedding_dim {width} of feature 'item'"):
        TTRecConfig(rank=1).sized([space_of(1000, width)], None)
    asked = TTRecConfig(rank=1, width_factors=(1, 1, width)).sized([space_of(1000, width)], None)
    config = asked["item"]
    assert config is not None
    assert config.scheme(space_of(1000, width), "train", {}).storage_bytes() == 4 * (
        20 + 10 * width
    )


def test_factors_that_do_not_make_the_width_are_refused() -> None:
    with pytest.raises(
        SchemeError, match=r"width_factors \[2, 2, 2\] make 8, feature 'item' is 16"
    ):
        TTRecConfig(rank=1, width_factors=(2, 2, 2)).sized([space_of(100)], None)


def bytes_at(spaces: list[Space], rank: int) -> int:
    schemes = [TTRec(space, rank, width_factors(space)) for space in spaces]
    return sum(
        min(space.full_bytes, scheme.storage_bytes())
        for space, scheme in zip(spaces, schemes, strict=True)
    )


SPACES = [space_of(5, name="day"), space_of(300, 8, "user"), space_of(5000, name="item")]


@pytest.mark.parametrize("percent", [2, 5, 10, 25, 50, 90])
def test_the_rank_is_the_largest_that_fits(percent: int) -> None:
    full = sum(space.full_bytes for space in SPACES)
    budget = full * percent // 100
    by_trying = max(rank for rank in range(1, 70) if bytes_at(SPACES, rank) <= budget)
    found = TTRecConfig().sized(SPACES, budget)
    assert found["day"] is None
    assert {config.rank for config in found.values() if config is not None} == {by_trying}
    whole = sum(space.full_bytes for space in SPACES if found[space.name] is None)
    cores = sum(
        config.scheme(space, "train", {}).serving_bytes()
        for space in SPACES
        if (config := found[space.name]) is not None
    )
    assert whole + cores == bytes_at(SPACES, by_trying) <= budget


def test_a_budget_of_everything_leaves_everything_whole() -> None:
    full = sum(space.full_bytes for space in SPACES)
    assert TTRecConfig().sized(SPACES, full) == dict.fromkeys(["day", "user", "item"])


def test_a_budget_below_rank_one_is_refused() -> None:
    least = bytes_at(SPACES, 1)
    TTRecConfig().sized(SPACES, least)
    with pytest.raises(BudgetTooSmall, match=f"the least it takes is {least:,} bytes"):
        TTRecConfig().sized(SPACES, least - 1)


def test_without_a_size_it_says_what_to_set() -> None:
    with pytest.raises(SchemeError, match=r"set its rank, or embeddings\.budget"):
        TTRecConfig().sized([space_of(100)], None)
    with pytest.raises(SchemeError, match=r"embeddings\.features\.item\.num_embeddings"):
        TTRecConfig(rank=2).sized([space_of(None)], None)


@pytest.mark.parametrize("rank", [1, 8])
def test_rows_start_with_the_spread_of_a_table(rank: int) -> None:
    torch.manual_seed(0)
    scheme = TTRec(space_of(200_000), rank, (2, 2, 4)).eval()
    with torch.no_grad():
        rows = scheme.combine(torch.arange(0, 200_000, 7), [])
    # Few weights at rank 1: their own variance varies.
    assert rows.std().item() == pytest.approx(INIT_RANGE / math.sqrt(3), rel=0.15)
    assert abs(rows.mean().item()) < 0.1 * INIT_RANGE
