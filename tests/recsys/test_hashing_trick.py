"""Smaller tables, sized from a budget."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.features import IdField
from recsys.embeddings.compression.hashing_trick import HashConfig
from recsys.embeddings.hashing import hashed_rows
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space
from recsys.embeddings.tables import TableSettings


def space(name: str, num_ids: int | None, dim: int = 16, cardinality: int | None = -1) -> Space:
    seen = num_ids if cardinality == -1 else cardinality
    field = IdField(name=name, shape="single", side="item", space=name, cardinality=seen)
    return Space(name, (field,), num_ids, seen, dim, TableSettings())


def spaces(*sizes: int, dim: int = 16) -> list[Space]:
    return [space(f"f{place}", size, dim) for place, size in enumerate(sizes)]


def bytes_of(spaces: Sequence[Space], sized: dict[str, HashConfig | None]) -> int:
    """Counted from the tables of the schemes themselves."""
    total = 0
    for each in spaces:
        config = sized[each.name]
        if config is None:
            total += each.full_bytes
            continue
        (spec,) = config.scheme(each, "train", {}).lookups
        total += 4 * spec.num_embeddings * spec.embedding_dim
    return total


def test_vectors_are_rows_by_hash_and_a_missing_id_has_its_own() -> None:
    scheme = HashConfig(num_rows=7).scheme(space("item", 1000), "train", {})
    ids = torch.tensor([[0, 5], [999, 5]])
    (rows,) = scheme.rows(ids)
    assert torch.equal(rows, hashed_rows(ids, 7))
    table = torch.randn(7, 16)
    found = scheme.combine(ids, [table[rows]])
    assert torch.equal(found[0, 0], table[0])
    assert torch.equal(found[0, 1], found[1, 1])
    assert int((hashed_rows(torch.arange(1000), 7) == 0).sum()) == 1


def test_raw_ids_are_hashed_once() -> None:
    """A space whose full table is hashed already would collide twice."""
    config = HashConfig(num_rows=50)
    hashed, plain = space("city", 100, cardinality=None), space("city", 1000)
    one, other = (config.scheme(each, "train", {}) for each in (hashed, plain))
    ids = torch.arange(1000)
    assert one.raw_ids
    assert torch.equal(one.rows(ids)[0], other.rows(ids)[0])


def test_a_budget_is_split_in_proportion_and_tiny_features_stay_whole() -> None:
    all_spaces = spaces(4, 10_000, 2_000, 3)
    sized = HashConfig().sized(all_spaces, 120_070)
    # Whole ones take 7 of 1876 rows; 10,000 and 2,000 share the other 1869 as 5 to 1.
    assert sized["f0"] is None and sized["f3"] is None
    assert (sized["f1"].num_rows, sized["f2"].num_rows) == (1558, 311)
    assert bytes_of(all_spaces, sized) == 64 * 1876


def test_without_a_share_for_them_tiny_features_shrink_too() -> None:
    sized = HashConfig(whole_share=0).sized(spaces(20, 1000), 64 * 102)
    assert (sized["f0"].num_rows, sized["f1"].num_rows) == (2, 100)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 5000), st.sampled_from([4, 8, 16])), min_size=1, max_size=6),
    st.floats(0.01, 1.2),
    st.sampled_from([0.0, 0.1, 0.5]),
)
def test_what_is_sized_fits_and_one_row_more_would_not(
    sizes: list[tuple[int, int]], share: float, whole_share: float
) -> None:
    all_spaces = [space(f"f{k}", n, dim) for k, (n, dim) in enumerate(sizes)]
    full = sum(each.full_bytes for each in all_spaces)
    budget = max(1, int(share * full))
    least = sum(min(each.full_bytes, 8 * each.embedding_dim) for each in all_spaces)
    config = HashConfig(whole_share=whole_share)
    if least > budget:
        with pytest.raises(BudgetTooSmall, match=f"{least:,} bytes"):
            config.sized(all_spaces, budget)
        return
    sized = config.sized(all_spaces, budget)
    taken = bytes_of(all_spaces, sized)
    assert taken <= budget
    shrunk = [each for each in all_spaces if sized[each.name] is not None]
    if budget >= full:
        assert not shrunk
    # A step in proportion adds at most a row to every table.
    assert not shrunk or taken + sum(4 * each.embedding_dim for each in all_spaces) > budget
    for each in shrunk:
        assert 2 <= sized[each.name].num_rows < each.num_ids


def test_rows_as_set_leave_smaller_features_whole() -> None:
    all_spaces = [*spaces(50, 51), space("city", None)]
    sized = HashConfig(num_rows=50).sized(all_spaces, None)
    assert sized["f0"] is None
    assert sized["f1"].num_rows == sized["city"].num_rows == 50


def test_without_rows_or_budget_it_says_what_to_set() -> None:
    with pytest.raises(SchemeError, match=r"scheme hash .* set embeddings\.budget, or num_rows"):
        HashConfig().sized(spaces(100), None)


def test_an_unbounded_feature_has_no_share_of_a_budget() -> None:
    with pytest.raises(SchemeError, match=r"set embeddings\.features\.city\.num_embeddings"):
        HashConfig().sized([*spaces(100), space("city", None)], 1000)


def test_initial_rows_are_those_of_a_full_table() -> None:
    scheme = HashConfig(num_rows=5).scheme(space("item", 100), "train", {})
    assert scheme.lookups[0].settings.init_range == TableSettings().init_range
    assert scheme.storage_bytes() == 0
    assert np.isclose(scheme.space.settings.init_range, 0.05)
