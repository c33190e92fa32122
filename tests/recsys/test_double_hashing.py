"""Two rows of one table an id, against a loop over ids."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.features import IdField
from recsys.embeddings.compression.double_hashing import DoubleHashConfig
from recsys.embeddings.hashing import salt, splitmix64
from recsys.embeddings.initial import initial_rows
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space
from recsys.embeddings.tables import Table, TableSettings


def space(name: str, num_ids: int | None, dim: int = 8) -> Space:
    field = IdField(name=name, shape="single", side="item", space=name, cardinality=num_ids)
    return Space(name, (field,), num_ids, num_ids, dim, TableSettings())


def rows_by_hand(name: str, number: int, num_rows: int) -> tuple[int, int]:
    mixed = splitmix64(torch.tensor(number) + salt(f"{name}/double_hash", 0)).item() % 2**64
    return mixed % 2**32 * num_rows // 2**32, mixed // 2**32 * num_rows // 2**32


@pytest.mark.parametrize("combine", ["sum", "concatenate"])
def test_vectors_are_two_rows_of_one_table(combine: str) -> None:
    config = DoubleHashConfig(num_rows=11, combine=combine)
    scheme = config.scheme(space("item", 500), "train", {})
    assert len(set(scheme.lookups)) == 1
    spec = scheme.lookups[0]
    table = torch.randn(spec.num_embeddings, spec.embedding_dim)
    ids = torch.randint(0, 500, (6, 7))
    found = scheme.combine(ids, [table[rows] for rows in scheme.rows(ids)])
    assert found.shape == (6, 7, 8)
    for place, number in enumerate(ids.flatten().tolist()):
        one, other = (table[row] for row in rows_by_hand("item", number, 11))
        expected = one + other if combine == "sum" else torch.cat([one, other])
        assert torch.equal(found.flatten(0, 1)[place], expected)


def test_fewer_ids_are_confused_than_with_one_hash() -> None:
    """500 ids in 60 rows: one hash tells at most 60 apart, two nearly all."""
    scheme = DoubleHashConfig(num_rows=60).scheme(space("item", 500), "train", {})
    one, other = scheme.rows(torch.arange(500))
    assert len(set(zip(one.tolist(), other.tolist(), strict=True))) > 450


def test_the_table_starts_as_wide_as_a_full_one() -> None:
    spread = {}
    for combine in ("sum", "concatenate"):
        config = DoubleHashConfig(num_rows=4000, combine=combine)
        scheme = config.scheme(space("item", 100_000, 16), "train", {})
        spec = scheme.lookups[0]
        width = spec.embedding_dim
        table = Table("t", 4000, width, spec.settings, (), per_id=False)
        weight = initial_rows(table, 0, 0, 4000)
        ids = torch.arange(20_000)
        vectors = scheme.combine(ids, [weight[rows] for rows in scheme.rows(ids)])
        spread[combine] = vectors.std().item()
    assert spread["sum"] == pytest.approx(0.05 / 3**0.5, rel=0.03)
    assert spread["concatenate"] == pytest.approx(0.05 / 3**0.5, rel=0.03)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 5000), st.sampled_from([4, 8, 16])), min_size=1, max_size=5),
    st.floats(0.01, 1.2),
    st.sampled_from(["sum", "concatenate"]),
)
def test_what_is_sized_fits(sizes: list[tuple[int, int]], share: float, combine: str) -> None:
    spaces = [space(f"f{k}", n, dim) for k, (n, dim) in enumerate(sizes)]
    budget = max(1, int(share * sum(each.full_bytes for each in spaces)))
    config = DoubleHashConfig(combine=combine)
    row_bytes = {s.name: s.embedding_dim * (4 if combine == "sum" else 2) for s in spaces}
    least = sum(min(each.full_bytes, 2 * row_bytes[each.name]) for each in spaces)
    if least > budget:
        with pytest.raises(BudgetTooSmall, match=f"double_hash .* {least:,} bytes"):
            config.sized(spaces, budget)
        return
    sized = config.sized(spaces, budget)
    taken = 0
    for each in spaces:
        mine = sized[each.name]
        taken += each.full_bytes if mine is None else mine.num_rows * row_bytes[each.name]
    shrunk = [name for name, mine in sized.items() if mine is not None]
    assert taken <= budget
    assert not shrunk or taken + sum(row_bytes.values()) > budget


def test_rows_as_set_leave_features_whole_that_would_not_shrink() -> None:
    spaces = [space("small", 50), space("large", 51), space("any", None)]
    summed = DoubleHashConfig(num_rows=50).sized(spaces, None)
    assert [name for name, mine in summed.items() if mine is None] == ["small"]
    halves = DoubleHashConfig(num_rows=100, combine="concatenate").sized(spaces, None)
    assert [name for name, mine in halves.items() if mine is None] == ["small"]


def test_an_odd_width_has_no_halves() -> None:
    with pytest.raises(SchemeError, match="embedding_dim 7 of feature 'item' is odd"):
        DoubleHashConfig(num_rows=9, combine="concatenate").sized([space("item", 100, 7)], None)


def test_without_rows_or_budget_it_says_what_to_set() -> None:
    with pytest.raises(SchemeError, match=r"scheme double_hash .* set embeddings\.budget"):
        DoubleHashConfig().sized([space("item", 100)], None)
