"""OptEmbed: the supernet as written down, evolution that leaves parents alone, bytes counted."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.features import IdField
from recsys.embeddings.compression.optembed import (
    Evolution,
    KeptRows,
    LongTailedStep,
    OptEmbedConfig,
    OptEmbedSupernet,
    places_of,
    stored_bytes,
)
from recsys.embeddings.scheme import BudgetTooSmall, Space, StepInfo
from recsys.embeddings.tables import TableSettings


def space_of(name: str, num_ids: int, width: int = 8) -> Space:
    field = IdField(name=name, shape="single", side="user", space=name, cardinality=num_ids)
    return Space(name, (field,), num_ids, num_ids, width, TableSettings())


def test_the_supernet_prunes_rows_and_columns() -> None:
    torch.manual_seed(0)
    scheme = OptEmbedSupernet(space_of("a", 20), OptEmbedConfig())
    rows = torch.randn(20, 8)
    with torch.no_grad():
        scheme.threshold.fill_(6.0)
    widths = set()
    for step in range(40):
        scheme.before_step(StepInfo(step, 40, 0))
        width = int(scheme.drawn)
        widths.add(width)
        found = scheme.combine(torch.arange(20), (rows,)).detach().numpy()
        expected = rows.numpy().copy()
        for row in expected:
            if np.abs(row).sum() <= 6.0:
                row[:] = 0
        expected[:, width:] = 0
        np.testing.assert_array_equal(found, expected)
        assert 0 < np.count_nonzero(found.any(axis=1)) < 20
    assert widths == set(range(1, 9))
    scheme.eval()
    whole = scheme.combine(torch.arange(20), (rows,)).detach().numpy()
    assert (whole[:, 7] != 0).any(), "evaluation reads all columns"


def test_widths_are_a_function_of_seed_step_and_space() -> None:
    def drawn(name: str, seed: int) -> list[int]:
        scheme = OptEmbedSupernet(space_of(name, 3, width=64), OptEmbedConfig())
        found = []
        for step in range(8):
            scheme.before_step(StepInfo(step, 8, seed))
            found.append(int(scheme.drawn))
        return found

    assert drawn("a", 0) == drawn("a", 0)
    assert drawn("a", 0) != drawn("a", 1)
    assert drawn("a", 0) != drawn("b", 0)


@pytest.mark.parametrize(
    ("x", "slope"), [(0.0, 2.0), (0.1, 1.6), (-0.3, 0.8), (0.4, 0.4), (-0.9, 0.4), (1.1, 0.0)]
)
def test_the_step_has_the_long_tailed_gradient(x: float, slope: float) -> None:
    value = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    step = LongTailedStep.apply(value)
    assert step.item() == (x > 0)
    (3 * step).backward()
    assert value.grad is not None
    assert value.grad.item() == pytest.approx(3 * slope)


def test_the_threshold_learns_from_the_loss_and_the_regulariser() -> None:
    scheme = OptEmbedSupernet(space_of("a", 2, width=2), OptEmbedConfig(regularization=0.1))
    with torch.no_grad():
        scheme.threshold.fill_(0.5)
    row = torch.tensor([[0.3, -0.4]], requires_grad=True)
    (scheme.combine(torch.tensor([0]), (row,)).sum() + scheme.penalty()).backward()
    slope = 2 - 4 * 0.2  # |e|_1 - t = .2
    assert scheme.threshold.grad is not None
    assert row.grad is not None
    expected = -slope * (0.3 - 0.4) - 0.1 * math.exp(-0.5)
    assert scheme.threshold.grad.item() == pytest.approx(expected, rel=1e-4)
    signs = torch.tensor([[1.0, -1.0]])
    torch.testing.assert_close(row.grad, 1 + slope * (0.3 - 0.4) * signs)


def test_children_are_copies() -> None:
    evolution = Evolution(OptEmbedConfig(kept=2), [8] * 6, lambda _: True)
    parents = [tuple([n % 8 + 1] * 6) for n in range(22)]
    before = list(parents)
    children = evolution.children(parents)
    assert parents == before
    assert len(children) == 22
    assert children[:2] == parents[:2]
    assert any(child != parent for child, parent in zip(children[2:12], parents, strict=False))
    for child in children[12:]:
        values = list(child)
        changes = sum(a != b for a, b in itertools.pairwise(values))
        assert changes <= 1, "crossed at one point"
        assert set(values) <= set(range(1, 11))


def test_evolution_finds_a_hidden_optimum_and_scores_nothing_twice() -> None:
    wanted = (3, 7, 1, 5)
    scored: list[tuple[int, ...]] = []

    def score(widths: tuple[int, ...]) -> float:
        scored.append(widths)
        return -sum(abs(a - b) for a, b in zip(widths, wanted, strict=True))

    config = OptEmbedConfig(generations=60, mutation_probability=0.3, kept=2)
    found = Evolution(config, [8] * 4, lambda _: True).search(score)
    assert found == wanted
    assert len(scored) == len(set(scored))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 30))
def test_only_what_fits_is_scored(widest: list[int], spare: int) -> None:
    most = len(widest) + spare

    def score(widths: tuple[int, ...]) -> float:
        assert sum(widths) <= most
        return sum(widths)

    config = OptEmbedConfig(generations=3, mutations=3, crossovers=3)
    found = Evolution(config, widest, lambda widths: sum(widths) <= most).search(score)
    assert all(1 <= width <= full for width, full in zip(found, widest, strict=True))


@pytest.mark.parametrize("share", [0.6, 0.3, 0.15])
def test_what_is_decided_is_within_the_budget(share: float) -> None:
    torch.manual_seed(0)
    spaces = [space_of("a", 50), space_of("b", 400)]
    budget = int(share * sum(space.full_bytes for space in spaces))
    sized = OptEmbedConfig(generations=2).sized(spaces, budget)
    config = sized["a"]
    assert config is not None
    schemes = {space.name: OptEmbedSupernet(space, config) for space in spaces}
    weights = {space.name: torch.randn(space.num_rows, 8) for space in spaces}
    with torch.no_grad():
        for scheme in schemes.values():
            scheme.threshold.fill_(8.0)
    found = config.decide(
        "supernet", schemes, weights, lambda: sum(float(s.width) for s in schemes.values())
    )
    total = 0
    for space in spaces:
        kept = KeptRows(space, int(found[space.name]["width"]), found[space.name].get("places"))
        tables = {s.name: torch.ones(s.num_embeddings, s.embedding_dim) for s in kept.lookups}
        served = kept.serving(tables)
        tables_bytes = sum(4 * tables[spec.name].numel() for spec in served.lookups)
        bytes_here = served.storage_bytes() + tables_bytes
        promised = kept.serving_bytes() + sum(
            4 * s.num_embeddings * s.embedding_dim for s in kept.served_lookups()
        )
        assert promised == bytes_here
        total += bytes_here
        if "places" in found[space.name]:
            ids = torch.arange(space.num_rows)
            rows = served.rows(ids)
            looked_up = [tables[s.name][r] for s, r in zip(served.lookups, rows, strict=True)]
            vectors = served.combine(ids, looked_up)
            large = weights[space.name].abs().sum(dim=1) > 8.0
            assert torch.equal(vectors[:, 0] == 1, large)
            assert torch.equal(vectors.any(dim=1), large)
    assert total <= budget
    assert any("places" in each for each in found.values())


def test_an_index_that_weighs_more_than_it_saves_is_left_out() -> None:
    space = space_of("a", 100)
    assert stored_bytes(space, 99, 4) == 100 * 4 * 4
    assert stored_bytes(space, 50, 4) == 50 * 4 * 4 + 100
    assert places_of(torch.tensor([True, False, True])).tolist() == [0, -1, 1]
    assert places_of(torch.ones(40_000, dtype=torch.bool)).dtype == torch.int32


def test_a_vector_is_filled_up_with_zeros() -> None:
    scheme = KeptRows(space_of("a", 4), 3, torch.tensor([1, -1, 0, -1], dtype=torch.int8))
    table = torch.arange(8.0).reshape(2, 4) + 1
    ids = torch.arange(4)
    (rows,) = scheme.rows(ids)
    expected = [[5, 6, 7, 0, 0, 0, 0, 0], [0] * 8, [1, 2, 3, 0, 0, 0, 0, 0], [0] * 8]
    assert scheme.combine(ids, (table[rows],)).tolist() == expected
    served = scheme.serving({"a_kept": table})
    assert served.combine(ids, ()).tolist() == expected
    assert served.storage_bytes() == 2 * 3 * 4 + 4


def test_a_budget_below_width_one_is_refused() -> None:
    with pytest.raises(BudgetTooSmall, match=r"least it takes is 400 bytes \(12.5%\)"):
        OptEmbedConfig().sized([space_of("a", 100)], 399)
