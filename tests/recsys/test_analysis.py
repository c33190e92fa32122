"""Collisions against a loop over ids, angles by hand, and the paper's orthogonality experiment."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, embedding

from feature_store.document import from_text, to_text
from feature_store.features import IdField
from recsys.embeddings.analysis import (
    Analysis,
    Block,
    Collisions,
    SeenIds,
    angles,
    block,
    collisions,
    mean_degrees,
    overlap,
    row_norms,
)
from recsys.embeddings.compression.compositional import CompositionalConfig
from recsys.embeddings.compression.double_hashing import DoubleHashConfig
from recsys.embeddings.compression.full import FullConfig
from recsys.embeddings.compression.unified import UnifiedConfig
from recsys.embeddings.scheme import AbstractScheme, SchemeConfig, Space
from recsys.embeddings.tables import Table, TableSettings


def space(name: str, num_ids: int, dim: int = 8) -> Space:
    field = IdField(name=name, shape="single", side="item", space=name, cardinality=num_ids)
    return Space(name, (field,), num_ids, num_ids, dim, TableSettings())


def schemes_of(config: SchemeConfig, sizes: Mapping[str, int]) -> dict[str, AbstractScheme]:
    spaces = [space(name, size) for name, size in sizes.items()]
    sized = config.sized(spaces, None)
    return {s.name: (sized[s.name] or FullConfig()).scheme(s, "train", {}) for s in spaces}


def all_ids(sizes: Mapping[str, int]) -> dict[str, SeenIds]:
    random = torch.Generator().manual_seed(0)
    return {
        name: SeenIds(torch.arange(size), torch.randint(0, 9, (size,), generator=random))
        for name, size in sizes.items()
    }


def by_hand(
    schemes: Mapping[str, AbstractScheme], seen: Mapping[str, SeenIds]
) -> dict[str, Collisions]:
    """Every id against every other, as the definitions say."""
    places: dict[str, list[tuple[tuple[str, int], ...]]] = {
        name: [
            tuple(
                (spec.name, int(row))
                for spec, row in zip(scheme.lookups, scheme.rows(number), strict=True)
            )
            for number in seen[name].ids_N
        ]
        for name, scheme in schemes.items()
    }
    used = {name: {p for each in mine for p in each} for name, mine in places.items()}
    found = {}
    for name, mine in places.items():
        elsewhere = set().union(*(used[other] for other in used if other != name))
        flags = []
        for place, each in enumerate(mine):
            rest = mine[:place] + mine[place + 1 :]
            flags.append(
                (
                    each in rest,
                    any(set(each) & set(other) for other in rest),
                    bool(set(each) & elsewhere),
                )
            )
        counts = seen[name].counts_N.tolist()
        found[name] = {
            "ids": [sum(f[k] for f in flags) / len(flags) for k in range(3)],
            "occurrences": [
                sum(f[k] * count for f, count in zip(flags, counts, strict=True)) / sum(counts)
                for k in range(3)
            ],
            "shared_rows": len(used[name] & elsewhere) / len(used[name]),
        }
    return found


@pytest.mark.parametrize(
    "config",
    [
        UnifiedConfig(num_rows=40, num_lookups=1, whole_share=0),
        UnifiedConfig(num_rows=9, num_lookups=4, num_tables=2, whole_share=0),
        UnifiedConfig(num_rows=25, dim=4, num_lookups={"a": 3, "c": 2}, whole_share=0),
        DoubleHashConfig(num_rows=8),
        CompositionalConfig(num_collisions=5),
        FullConfig(),
    ],
    ids=lambda config: config.kind,
)
def test_collisions_are_those_found_by_comparing_all_ids(config: SchemeConfig) -> None:
    sizes = {"a": 30, "b": 12, "c": 45}
    schemes, seen = schemes_of(config, sizes), all_ids(sizes)
    expected = by_hand(schemes, seen)
    found = collisions(schemes, seen)
    assert [each.space for each in found] == list(sizes)
    for each in found:
        mine = expected[each.space]
        assert each.occurrences is not None
        for shares, parts in (
            (each.ids, mine["ids"]),
            (each.occurrences, mine["occurrences"]),
        ):
            by_name = (shares.every_row, shares.any_row, shares.other_features)
            assert by_name == pytest.approx(parts)
        assert each.shared_rows == pytest.approx(mine["shared_rows"])
        assert each.num_ids == sizes[each.space]


def test_a_full_table_has_no_collisions_and_compositional_ids_share_only_parts() -> None:
    sizes = {"a": 30}
    (full,) = collisions(schemes_of(FullConfig(), sizes), all_ids(sizes))
    assert full.ids.any_row == full.shared_rows == 0
    parts = schemes_of(CompositionalConfig(num_collisions=5), sizes)
    (cut,) = collisions(parts, all_ids(sizes))
    assert (cut.ids.every_row, cut.ids.any_row) == (0, 1)


def test_an_unseen_feature_has_no_occurrences_and_an_empty_one_is_left_out() -> None:
    sizes = {"a": 5, "b": 3}
    nothing = torch.zeros(0, dtype=torch.int64)
    seen = {"a": SeenIds(torch.arange(5), torch.zeros(5, dtype=torch.int64))}
    seen["b"] = SeenIds(nothing, nothing)
    (found,) = collisions(schemes_of(FullConfig(), sizes), seen)
    assert (found.space, found.occurrences) == ("a", None)


def test_angles_of_units_are_averaged() -> None:
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    other = torch.tensor([[0.0, 3.0], [2.0, 2.0], [1.0, 1.0]])
    # 90 and 45 degrees; the third unit does not read the first feature.
    assert mean_degrees(one, other) == pytest.approx(67.5)
    assert mean_degrees(one[:1], -one[:1]) == pytest.approx(180)


def test_overlap_is_that_of_the_product_of_both_readers() -> None:
    one, other = torch.randn(7, 4), torch.randn(7, 4)
    product = np.linalg.norm(one.numpy() @ other.numpy().T)
    expected = product / (np.linalg.norm(one) * np.linalg.norm(other))
    assert overlap(one, other) == pytest.approx(expected, rel=1e-5)
    logistic = overlap(one[:1], other[:1])
    degrees = mean_degrees(one[:1], other[:1])
    assert logistic == pytest.approx(abs(math.cos(math.radians(degrees))), rel=1e-5)
    units = [torch.randn(4000, 4, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    assert overlap(*units) == pytest.approx(0.5, rel=0.05)
    # Readers of different dimensions of the row do not see each other.
    assert overlap(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0]] * 2)) == 0


def test_only_chunks_in_one_table_are_compared_where_there_are_some() -> None:
    sizes = {"a": 9, "b": 9}
    config = UnifiedConfig(num_rows=9, num_lookups=2, num_tables=2, whole_share=0)
    schemes = schemes_of(config, sizes)
    along, across = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0.0, 1, 0, 0]])
    a = block("a", schemes["a"], torch.cat([along, across], dim=1))
    b = block("b", schemes["b"], torch.cat([across, across], dim=1))
    (found,) = angles([a, b])
    assert found.share_a_table
    # 90 degrees in the first table, 0 in the second; chunks in different tables never meet.
    assert found.degrees == pytest.approx(45)
    assert found.independent == 0.5


def test_features_of_one_space_or_of_different_widths_are_not_compared() -> None:
    narrow = Block("c", "c", ((frozenset(["c"]), torch.ones(1, 2)),))
    wide = [Block(n, s, ((frozenset([s]), torch.ones(1, 4)),)) for n, s in ("aa", "ba", "dd")]
    found = angles([*wide, narrow])
    assert [(each.one, each.other) for each in found] == [("a", "d"), ("b", "d")]
    assert not any(each.share_a_table for each in found)


def test_norms_of_rows() -> None:
    table = Table("t", 4, 2, TableSettings(init_range=0.3), (), per_id=False)
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    found = row_norms(table, weight)
    assert found.mean_squared == pytest.approx((25 + 0 + 1 + 4) / 4)
    assert found.quantiles["0.5"] == pytest.approx(1.5)
    assert (found.quantiles["0"], found.quantiles["1"]) == (0, 5)
    start = torch.empty(100_000, 2).uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(0))
    assert found.initial_mean_squared == pytest.approx(float((start**2).sum(1).mean()), rel=0.01)


def test_a_document_reads_back() -> None:
    sizes = {"a": 5}
    found = Analysis("train", collisions(schemes_of(FullConfig(), sizes), all_ids(sizes)), (), ())
    document = from_text(to_text(found.document()))
    assert document["mean_degrees"] is None
    assert document["collisions"][0]["ids"]["any_row"] == 0


def aligned_model_after_training(num_rows: int) -> tuple[float, float]:
    """A logistic model over one table, its theta all equal at the start: mean angle and norm.

    Four features of 60 ids, each with a weight of its own, plain SGD (section 4.2 of the paper).
    """
    random = torch.Generator().manual_seed(0)
    sizes = {f"f{place}": 60 for place in range(4)}
    config = UnifiedConfig(num_rows=num_rows, num_lookups=1, whole_share=0)
    schemes = schemes_of(config, sizes)
    table = nn.Parameter(torch.empty(num_rows, 8).uniform_(-0.05, 0.05, generator=random))
    theta = nn.Parameter((torch.randn(8, generator=random) / 8**0.5).repeat(4, 1))
    planted = torch.randn(4, 60, generator=random)
    assert _mean_angle(schemes, theta) == pytest.approx(0, abs=0.1)
    optimizer = torch.optim.SGD([table, theta], lr=0.5)
    for _ in range(1000):
        ids_BF = torch.randint(0, 60, (256, 4), generator=random)
        truth_B = planted[torch.arange(4), ids_BF].sum(1)
        labels_B = torch.bernoulli(torch.sigmoid(truth_B), generator=random)
        rows_BF = torch.stack(
            [s.rows(ids)[0] for s, ids in zip(schemes.values(), ids_BF.T, strict=True)], dim=1
        )
        logits_B = (embedding(rows_BF, table) * theta).sum((1, 2))
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(logits_B, labels_B).backward()
        optimizer.step()
    return _mean_angle(schemes, theta), float((table.detach() ** 2).sum(1).mean())


def _mean_angle(schemes: Mapping[str, AbstractScheme], theta: Tensor) -> float:
    blocks = [
        block(name, scheme, theta.detach()[place : place + 1])
        for place, (name, scheme) in enumerate(schemes.items())
    ]
    mean = Analysis("train", (), angles(blocks), ()).mean_degrees_sharing
    assert mean is not None
    return mean


def test_sgd_turns_aligned_features_apart_and_more_so_in_a_smaller_table() -> None:
    found = [aligned_model_after_training(num_rows) for num_rows in (1000, 240, 40)]
    degrees, norms = zip(*found, strict=True)
    assert degrees[0] > 10
    assert degrees[1] > degrees[0] + 10
    assert degrees[2] > degrees[1] + 10
    assert degrees[2] > 70
    # Rows that more ids write to grow longer.
    assert norms[2] > 1.5 * norms[1] > 1.5 * 1.5 * norms[0]
