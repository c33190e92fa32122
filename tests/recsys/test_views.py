"""Which items are drawn, what their views lack, and that nothing but the step decides it."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import chi2
from support.catalogue import DENSE_OF, rows, table
from support.encoded import LAYOUT
from support.weighted import WEIGHTED

from feature_store.entities import EntityTable, save
from recsys.objectives.views import ViewReader, Views, stacked


@pytest.fixture
def items(tmp_path: Path) -> EntityTable:
    return table(tmp_path)


def reader(items: EntityTable, **settings: object) -> ViewReader:
    given = {"masking": "rfm", "dropout": 0.3, "batch_size": 7, **settings}
    return ViewReader(items, LAYOUT, DENSE_OF, **given)  # type: ignore[arg-type]


def lists(views: Views, name: str) -> list[list[int]]:
    return [part.tolist() for part in views.ids[name].to_dense()]


def test_views_hold_the_items_fields_but_for_what_is_masked(items: EntityTable) -> None:
    frame = rows()
    made = reader(items, dropout=0.0)
    for step in range(12):
        views = made.at(step)
        drawn = frame[made.drawn(step)]
        for view, lacks in enumerate(views.masked_2K.tolist()):
            part = slice(7 * view, 7 * view + 7)
            item, tags, price = lacks
            expected = [[0]] * 7 if item else [[i] for i in drawn["item"]]
            assert lists(views, "item")[part] == expected
            assert lists(views, "tags")[part] == ([[]] * 7 if tags else drawn["tags"].to_list())
            found = views.dense_SN[part, LAYOUT.dense.index("price")]
            np.testing.assert_array_equal(found, drawn["price"].to_numpy())
            assert price in (True, False)
        # Nothing of the other sides.
        assert lists(views, "user") == [[0]] * 14
        assert lists(views, "history") == [[]] * 14
        assert not views.dense_SN[:, LAYOUT.dense.index("age")].any()
        assert views.ids.length_per_key() == [
            sum(map(len, lists(views, f.name))) for f in LAYOUT.ids
        ]


def test_all_items_are_drawn_before_any_is_drawn_again(items: EntityTable) -> None:
    made = reader(items, batch_size=10)  # 58 items: five steps, eight items wait for another turn
    epochs = [np.concatenate([made.drawn(5 * e + step) for step in range(5)]) for e in range(3)]
    for drawn in epochs:
        assert len(set(drawn)) == 50
    assert not np.array_equal(epochs[0], epochs[1])


def test_items_are_drawn_evenly(items: EntityTable) -> None:
    """However the clicks are spread: the reader never sees them."""
    draws, num_items, size = 3000, 58, 5
    counts = np.zeros(num_items)
    for seed in range(draws):
        counts[reader(items, seed=seed, batch_size=size).drawn(1)] += 1
    expected = draws * size / num_items
    # Without repetition within a batch: the statistic is that much smaller than with it.
    statistic = ((counts - expected) ** 2 / expected).sum() / (1 - size / num_items)
    low, high = chi2.ppf([0.0005, 0.9995], num_items - 1)
    assert low < statistic < high


def test_dropout_takes_its_share_of_values_in_each_view_apart(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "item": np.arange(2, 402),
            "tags": pl.Series([list(range(2, 12))] * 400, dtype=pl.List(pl.Int64)),
            "price": np.zeros(400, np.float32),
        }
    )
    made = reader(table(tmp_path, frame), masking="none", batch_size=400)
    kept = []
    for step in range(5):
        by_row = lists(made.at(step), "tags")
        assert all(values == sorted(values) for values in by_row)
        present = np.array([[tag in values for tag in range(2, 12)] for values in by_row])
        kept.append((present[:400], present[400:]))
    first, second = (np.concatenate(views) for views in zip(*kept, strict=True))
    for view in (first, second):
        assert view.mean() == pytest.approx(0.7, abs=0.01)
        np.testing.assert_allclose(view.mean(axis=0), 0.7, atol=0.04)
    assert (first & second).mean() == pytest.approx(0.49, abs=0.015)
    assert (kept[0][0] & kept[1][0]).mean() == pytest.approx(0.49, abs=0.025)


def test_single_ids_are_never_dropped(items: EntityTable) -> None:
    views = reader(items, masking="none", dropout=0.9).at(0)
    assert all(part[0] > 1 for part in lists(views, "item"))


def test_a_step_is_the_same_whatever_came_before(items: EntityTable) -> None:
    one, other = reader(items), reader(items)
    for step in (3, 0, 9, 8):
        one.at(step)
    for step in (9, 3):
        a, b = one.at(step), other.at(step)
        assert torch.equal(a.ids.values(), b.ids.values())
        assert torch.equal(a.ids.lengths(), b.ids.lengths())
        assert torch.equal(a.masked_2K, b.masked_2K)
    assert not torch.equal(one.at(3).ids.values(), one.at(4).ids.values())
    assert not np.array_equal(one.drawn(0), reader(items, seed=1).drawn(0))


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_share_out_what_one_alone_would_see(items: EntityTable, world_size: int) -> None:
    alone = reader(items).at(5)
    parts = [reader(items, rank=r, world_size=world_size).at(5) for r in range(world_size)]
    size = len(parts[0].weights_S) // 2
    for view in range(2):
        rows_S = slice(view * size, view * size + size)
        for name in ("item", "tags", "user"):
            found = [
                row
                for part in parts
                for row, weight in zip(
                    lists(part, name)[rows_S], part.weights_S[rows_S].tolist(), strict=True
                )
                if weight
            ]
            assert found == lists(alone, name)[7 * view : 7 * view + 7]
    for part in parts:
        assert torch.equal(part.masked_2K, alone.masked_2K)
        assert part.weight_sum == 7 / world_size
        assert len(part.weights_S) == 2 * size  # equally many rows on every worker


def test_more_items_than_there_are_is_an_error(items: EntityTable) -> None:
    with pytest.raises(ValueError, match=r"batch_size 59 is more than the 58 distinct .*'item'"):
        reader(items, batch_size=59)
    assert reader(items, batch_size=None, default_size=1024).batch_size == 58
    assert reader(items, batch_size=None, default_size=32).batch_size == 32


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_values_of_views_keep_their_weights(tmp_path: Path, dropout: float) -> None:
    """Each tag's weight tells which tag it is, also after others were dropped."""
    frame = rows()
    weights = frame["tags"].list.eval(pl.element().cast(pl.Float32) / 4)
    items = table(tmp_path, frame)
    save(tmp_path / "weighted", frame.with_columns(tags__weight=weights), items.information)
    weighted = EntityTable(tmp_path / "weighted", "item", "item")
    views = ViewReader(
        weighted, WEIGHTED, DENSE_OF, masking="rfm", dropout=dropout, batch_size=9, seed=1
    ).at(3)
    tags = views.ids["tags"]
    assert len(tags.values())
    np.testing.assert_array_equal(tags.weights(), tags.values().float() / 4)
    assert (views.ids["item"].weights() == 1.0).all()
    both = stacked([views.ids, views.ids])["tags"]
    np.testing.assert_array_equal(both.weights(), both.values().float() / 4)
