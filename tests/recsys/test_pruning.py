"""Exact counts of kept weights over several tables and workers, against a sort."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ranks import on_ranks
from support.training import LAYOUT, Recipe, embeddings_of, trainer_of, weights

from feature_store.features import IdField
from recsys.embeddings.packed import PackedTable
from recsys.embeddings.pruning import (
    Part,
    cut,
    magnitude,
    parts_of,
    promised_bytes,
    prune,
    pruned_spaces,
    shares,
    whole_parts,
)
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space
from recsys.embeddings.tables import TableSettings

CPU = torch.device("cpu")


def signed(weights: torch.Tensor, row: int, column: int) -> torch.Tensor:
    return weights.clone()


def largest(scores: list[np.ndarray], num_kept: int) -> list[np.ndarray]:
    """The highest scores of all tables, equal ones in order, by a stable sort."""
    flat = np.concatenate([each.ravel() for each in scores])
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind="stable")[:num_kept]] = True
    ends = np.cumsum([each.size for each in scores])[:-1]
    return [k.reshape(s.shape) for k, s in zip(np.split(kept, ends), scores, strict=True)]


# Few distinct values make ties; subnormal and huge ones try every bit.
NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.5, 0.5, 1.0, -1.0]),
    st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
)


@given(
    tables=st.lists(
        st.integers(1, 4).flatmap(
            lambda width: st.lists(
                st.lists(NUMBERS, min_size=width, max_size=width), min_size=1, max_size=6
            )
        ),
        min_size=1,
        max_size=3,
    ),
    share=st.floats(0, 1),
)
@settings(deadline=None, max_examples=60)
def test_the_cut_keeps_what_a_stable_sort_keeps(
    tables: list[list[list[float]]], share: float
) -> None:
    # Zero has two signs, which a sort takes for equal.
    arrays = [np.array(table, np.float32) + np.float32(0) for table in tables]
    by_name = {str(place): torch.from_numpy(array) for place, array in enumerate(arrays)}
    num_kept = round(share * sum(array.size for array in arrays))
    parts = whole_parts(by_name, dict.fromkeys(by_name, signed))
    found = cut(parts, num_kept, CPU)
    for part, expected in zip(parts, largest(arrays, num_kept), strict=True):
        kept = found.keeps(part.weights, part.first, part.width).numpy()
        np.testing.assert_array_equal(kept, expected)
    flat = np.concatenate([array.ravel() for array in arrays])
    above = int((flat > found.bound).sum())
    assert above <= num_kept
    # What scores zero is as good as pruned, on either side of the bound.
    if len(set(flat.tolist())) == flat.size and found.level != 0:
        assert above == num_kept


def test_pruning_leaves_the_largest_magnitudes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.embeddings.pruning._CHUNK_ROWS", 3)
    tables = {name: torch.randn(10, 4) for name in ("one", "other")}
    tables["one"][2:9] = 0.25  # ties across chunks
    before = [table.abs().numpy().copy() for table in tables.values()]
    parts = whole_parts(tables, dict.fromkeys(tables, magnitude))
    num_kept = int(sum((each > 0.25).sum() for each in before)) + 5
    prune(parts, cut(parts, num_kept, CPU))
    for table, expected in zip(tables.values(), largest(before, num_kept), strict=True):
        np.testing.assert_array_equal(table.numpy() != 0, expected)


def test_a_worker_without_a_shard_takes_part() -> None:
    assert cut([], 0, CPU).level == float("inf")
    part = Part(torch.tensor([[1.0, 2.0]]), 0, 0, 0, 2, True, magnitude)
    copy = part._replace(counted=False)
    assert cut([part, copy], 1, CPU).bound == pytest.approx(2.0)
    assert cut([part, copy], 2, CPU).bound == pytest.approx(1.0)


def pruned_weights(recipe: Recipe, num_kept: int) -> tuple[dict, dict]:
    trainer = trainer_of(recipe)
    tables = trainer.step.tables
    for name, table in tables.tables.items():
        # Rows of equal weights, so that ties lie on several workers.
        rows = torch.arange(0, table.num_embeddings, 2)
        equal = torch.full((rows.numel(), table.embedding_dim), 0.03)
        tables.write_rows(name, rows, equal)
    before = weights(trainer)
    parts = parts_of(tables, dict.fromkeys(tables.tables, magnitude))
    prune(parts, cut(parts, num_kept, CPU))
    return before, weights(trainer)


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", ["row_wise", "column_wise", "table_wise", "data_parallel"])
def test_workers_prune_as_one(sharding: str, files: tuple[Path, ...], tmp_path: Path) -> None:
    recipe = Recipe(files, tmp_path, embeddings=embeddings_of(sharding))
    for num_kept in (1, 500, 1100):
        before, after = on_ranks(2, pruned_weights, recipe, num_kept)[0]
        names = sorted((n for n in before if "_table" in n), key=_order)
        expected = largest([np.abs(before[name]) for name in names], num_kept)
        for name, kept in zip(names, expected, strict=True):
            np.testing.assert_array_equal(after[name], np.where(kept, before[name], 0), name)


def _order(name: str) -> int:
    spaces = list(dict.fromkeys(field.space for field in LAYOUT.ids))
    return next(place for place, space in enumerate(spaces) if f"{space}_table" in name)


def space(name: str, num_ids: int | None, width: int = 16) -> Space:
    field = IdField(name=name, shape="single", side="user", space=name, cardinality=num_ids)
    return Space(name, (field,), num_ids, num_ids, width, TableSettings())


def test_shares_add_up() -> None:
    spaces = [space("a", 3, 7), space("b", 1000), space("c", 41)]
    for num_kept in (1, 5, 999, 16_677):
        found = shares(num_kept, spaces)
        assert sum(found.values()) == num_kept
        for each in spaces:
            exact = num_kept * each.num_rows * each.embedding_dim / (21 + 16_000 + 656)
            assert abs(found[each.name] - exact) < 1


@pytest.mark.parametrize("percent", [0.3, 2, 10, 25, 50, 90, 99.9])
def test_a_budget_is_used_up_and_not_exceeded(percent: float) -> None:
    spaces = [space("a", 300), space("b", 1000, 4), space("c", 4000, 8), space("d", 100, 1)]
    full = sum(each.full_bytes for each in spaces)
    budget = int(percent / 100 * full)
    pruned, num_kept = pruned_spaces(spaces, budget, "deeplight")
    promised = promised_bytes(num_kept, pruned)
    whole = sum(s.full_bytes for s in spaces if s not in pruned)
    assert budget - 13 < whole + sum(promised.values()) <= budget
    for each in pruned:
        assert promised[each.name] < each.full_bytes


@given(seed=st.integers(0, 1000), percent=st.sampled_from([1, 3, 10, 30]))
@settings(deadline=None, max_examples=30)
def test_wherever_the_weights_lie_they_fit(seed: int, percent: float) -> None:
    """Alone in their rows, in whole rows, all in one table, or anywhere."""
    spaces = [space("a", 60), space("b", 50, 4), space("c", 90, 8)]
    budget = int(percent / 100 * sum(each.full_bytes for each in spaces))
    pruned, num_kept = pruned_spaces(spaces, budget, "deeplight")
    random = np.random.default_rng(seed)
    sizes = [s.num_rows * s.embedding_dim for s in pruned]
    order = np.argsort(
        np.concatenate(
            [
                random.random() * np.arange(size) % (random.integers(2) * s.embedding_dim + 1)
                + random.random() * random.random(size)
                for s, size in zip(pruned, sizes, strict=True)
            ]
        )
    )
    flat = np.zeros(sum(sizes), np.float32)
    flat[order[:num_kept]] = 1
    taken = sum(s.full_bytes for s in spaces if s not in pruned)
    for s, part in zip(pruned, np.split(flat, np.cumsum(sizes)[:-1]), strict=True):
        table = PackedTable(torch.from_numpy(part.reshape(s.num_rows, s.embedding_dim)))
        taken += sum(t.numel() * t.element_size() for t in table.buffers())
    assert taken <= budget


def test_the_whole_budget_prunes_nothing() -> None:
    spaces = [space("a", 300), space("b", 1000)]
    assert pruned_spaces(spaces, sum(s.full_bytes for s in spaces), "pep") == ([], 0)


def test_a_budget_below_one_weight_a_table_says_what_is_possible() -> None:
    spaces = [space("a", 300), space("b", 1000)]
    # A weight, its row's number, two bytes of bits and an offset.
    least = 2 * (4 + 4 + 2 + 4)
    assert pruned_spaces(spaces, least, "pep") == (spaces, 2)
    with pytest.raises(BudgetTooSmall, match=f"scheme pep .* the least it takes is {least} bytes"):
        pruned_spaces(spaces, least - 1, "pep")
    with pytest.raises(SchemeError, match="hashed to 64"):
        pruned_spaces([space("a", None)], 500, "pep")
