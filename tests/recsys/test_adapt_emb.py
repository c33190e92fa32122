"""Rows by a loop over ids, sizes against what is held, and what cannot be stored."""

import pytest
import torch

from recsys.embeddings.compression.adapt_emb import AdaptEmb, AdaptEmbConfig
from recsys.embeddings.hashing import salt, splitmix64
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space
from recsys.embeddings.tables import TableSettings


def space_of(num_ids: int, width: int = 16, name: str = "item") -> Space:
    return Space(name, (), num_ids, num_ids, width, TableSettings())


@pytest.mark.parametrize(
    ("num_rows", "hot_share", "num_hot"),
    [(50, 0.8, 40), (50, 0.5, 25), (2, 0.8, 1), (2, 0.01, 1), (3, 0.99, 2), (10, 0.999, 9)],
)
def test_frequent_values_have_rows_of_their_own(
    num_rows: int, hot_share: float, num_hot: int
) -> None:
    scheme = AdaptEmb(space_of(200), num_rows, hot_share)
    (rows,) = scheme.rows(torch.arange(200))
    for x, row in enumerate(rows.tolist()):
        if x < num_hot:
            assert row == x
        else:
            bits = int(splitmix64(torch.tensor(x) + salt("item", "adapt_emb")).item()) % 2**64
            assert row == num_hot + (bits >> 1) % (num_rows - num_hot)
    (spec,) = scheme.lookups
    assert (spec.num_embeddings, spec.embedding_dim) == (num_rows, 16)
    assert scheme.serving_bytes() == 0


def test_shared_rows_are_used_evenly() -> None:
    scheme = AdaptEmb(space_of(100_000), 100, 0.5)
    (rows,) = scheme.rows(torch.arange(50, 100_000))
    counts = torch.bincount(rows)[50:]
    # Binomial with mean 1999 and deviation 44.
    assert counts.min() > 1780
    assert counts.max() < 2220


SPACES = [space_of(5, name="day"), space_of(300, 8, "user"), space_of(5000, name="item")]
FULL = sum(space.full_bytes for space in SPACES)


@pytest.mark.parametrize("percent", [1, 5, 25, 80])
def test_rows_are_in_proportion_and_fill_the_budget(percent: int) -> None:
    budget = FULL * percent // 100
    found = AdaptEmbConfig(whole_share=0.02).sized(SPACES, budget)
    used, shares = 0, []
    for space in SPACES:
        config = found[space.name]
        rows = space.num_rows if config is None else config.num_rows
        assert rows is not None
        used += 4 * rows * space.embedding_dim
        if config is not None:
            shares.append((rows / space.num_rows, 1 / space.num_rows))
    # One row of each feature may not fit.
    assert budget - 3 * 64 < used <= budget
    largest = shares[-1][0]
    for share, row in shares[:-1]:
        assert share == pytest.approx(largest, abs=2 * row)


def test_small_features_stay_whole() -> None:
    assert AdaptEmbConfig(num_rows=5).sized(SPACES, None)["day"] is None
    assert AdaptEmbConfig().sized(SPACES, FULL // 10)["day"] is None
    assert AdaptEmbConfig().sized(SPACES, FULL) == dict.fromkeys(["day", "user", "item"])


def test_a_budget_below_two_rows_a_feature_is_refused() -> None:
    least = 2 * 4 * (16 + 8 + 16)
    AdaptEmbConfig().sized(SPACES, least)
    with pytest.raises(BudgetTooSmall, match=f"the least it takes is {least:,} bytes"):
        AdaptEmbConfig().sized(SPACES, least - 1)


def test_ids_without_an_order_are_refused() -> None:
    hashed = Space("city", (), 1000, None, 16, TableSettings())
    with pytest.raises(SchemeError, match="feature 'city' are hashed: encode it with a vocabulary"):
        AdaptEmbConfig(num_rows=10).sized([hashed], None)
    cut = Space("user", (), 1000, 4000, 16, TableSettings())
    with pytest.raises(SchemeError, match="feature 'user' are hashed: drop num_embeddings 1,000"):
        AdaptEmbConfig().sized([cut], 10_000)


def test_without_a_size_it_says_what_to_set() -> None:
    with pytest.raises(SchemeError, match=r"set embeddings\.budget, or num_rows"):
        AdaptEmbConfig().sized(SPACES, None)
