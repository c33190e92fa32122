"""Every row once, in an order that is a function of (seed, epoch, position) and nothing else."""

import threading
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.encoded import LAYOUT, rows, write
from support.weighted import WEIGHTED, weighted_rows, write_weighted

from feature_store.features import GROUP_COLUMN, WEIGHT_COLUMN, IdField, Layout
from recsys.batch import Batch
from recsys.dataset import BatchReader, Ragged

NUM_ROWS = 500
# The hash of `city` is drawn from 64 bits, so that it names a row.
ROW_OF = {city: row for row, city in enumerate(rows(NUM_ROWS)["city"].to_list())}


def row_numbers(batch: Batch) -> list[int]:
    """Source rows of a batch without its padding."""
    cities_B = batch.ids["city"].values()[batch.weights_B > 0]
    return [ROW_OF[city] for city in cities_B.tolist()]


def global_batches(files: Sequence[Path], world_size: int, **settings: object) -> list[list[int]]:
    """Source rows of each global batch: the ranks' slices laid end to end."""
    epoch, start = settings.pop("epoch", 0), settings.pop("start", 0)
    slices = [
        [
            row_numbers(batch)
            for batch in BatchReader(
                files, LAYOUT, rank=rank, world_size=world_size, **settings
            ).epoch(epoch, start)
        ]
        for rank in range(world_size)
    ]
    return [list(chain(*parts)) for parts in zip(*slices, strict=True)]


def test_without_shuffling_rows_come_in_the_order_of_the_files(files: Sequence[Path]) -> None:
    found = global_batches(files, 1, batch_size=64)
    assert list(chain(*found)) == list(range(NUM_ROWS))
    assert [len(batch) for batch in found] == [64] * 7 + [52]


def test_tensors_equal_the_columns(files: Sequence[Path]) -> None:
    """Against a Python loop over Polars rows; batches of 64 span row groups of 50 and files."""
    frame = rows(NUM_ROWS)
    reader = BatchReader(files, LAYOUT, batch_size=64, shuffle=True, seed=4, window_rows=120)
    for batch in reader.epoch(0):
        chosen = row_numbers(batch)
        assert batch.ids.keys() == [field.name for field in LAYOUT.ids]
        jagged = {field.name: batch.ids[field.name].to_dense() for field in LAYOUT.ids}
        for place, row in enumerate(frame[chosen].iter_rows(named=True)):
            for field in LAYOUT.ids:
                value = row[field.name]
                expected = [value] if field.shape == "single" else value
                assert jagged[field.name][place].tolist() == expected
            assert batch.dense_BN[place].tolist() == [
                np.float32(row["age"]),
                np.float32(row["price"]),
            ]
            assert batch.labels_BT[place].tolist() == [row["label"]]
            assert batch.groups_B[place].item() == row[GROUP_COLUMN]
        reader_keys = [field.name for field in LAYOUT.ids]
        assert batch.ids.length_per_key() == [len(batch.ids[n].values()) for n in reader_keys]
        assert (batch.dense_BN.dtype, batch.groups_B.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_order_is_independent_of_the_number_of_workers(
    files: Sequence[Path], world_size: int
) -> None:
    settings = {"batch_size": 60, "shuffle": True, "seed": 5, "window_rows": 120}
    expected = global_batches(files, 1, **settings)
    assert global_batches(files, world_size, **settings) == expected
    assert sorted(chain(*expected)) == list(range(NUM_ROWS))


@pytest.mark.parametrize("window_rows", [1, 120, 10_000])
def test_an_epoch_is_a_permutation_that_follows_seed_and_epoch(
    files: Sequence[Path], window_rows: int
) -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        settings = {"batch_size": 60, "shuffle": True, "seed": seed, "window_rows": window_rows}
        return tuple(chain(*global_batches(files, 1, epoch=epoch, **settings)))

    assert order(1, 0) == order(1, 0)
    assert len({order(1, 0), order(1, 1), order(2, 0), tuple(range(NUM_ROWS))}) == 4
    assert sorted(order(1, 1)) == list(range(NUM_ROWS))


@given(
    num_rows=st.integers(1, 90),
    batch_size=st.integers(1, 40),
    before=st.integers(1, 4),
    after=st.integers(1, 4),
    steps=st.integers(0, 5),
    shuffle=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_a_resumed_epoch_sees_every_row_exactly_once(
    tmp_path_factory: pytest.TempPathFactory,
    num_rows: int,
    batch_size: int,
    before: int,
    after: int,
    steps: int,
    shuffle: bool,
) -> None:
    """Stopped after some steps on `before` workers, continued on `after` workers."""
    paths = write(tmp_path_factory.mktemp("rows"), num_rows, row_group_size=7)
    ids = {city: row for row, city in enumerate(rows(num_rows)["city"].to_list())}

    def seen(world_size: int, start: int, most: int | None) -> list[int]:
        found = []
        lengths = set()
        for rank in range(world_size):
            reader = BatchReader(
                paths,
                LAYOUT,
                batch_size=batch_size,
                rank=rank,
                world_size=world_size,
                shuffle=shuffle,
                window_rows=20,
            )
            batches = list(reader.epoch(3, start))
            lengths.add((len(batches), reader.num_batches(start)))
            for batch in batches[:most]:
                real_B = batch.weights_B > 0
                found += [ids[c] for c in batch.ids["city"].values()[real_B].tolist()]
        (counted, promised) = lengths.pop()
        assert not lengths
        assert counted == promised
        return found

    position = min(steps * batch_size, num_rows)
    both = seen(before, 0, steps) + seen(after, position, None)
    assert sorted(both) == list(range(num_rows))


def test_every_worker_has_equally_many_rows_and_padding_weighs_nothing(
    files: Sequence[Path],
) -> None:
    readers = [
        BatchReader(files, LAYOUT, batch_size=64, rank=rank, world_size=3) for rank in range(3)
    ]
    for parts in zip(*(reader.epoch(0) for reader in readers), strict=True):
        assert len({part.weights_B.numel() for part in parts}) == 1
        for part in parts:
            padding_B = part.weights_B == 0
            assert part.dense_BN[padding_B].abs().sum() == 0
            for field in LAYOUT.ids:
                lengths_B = part.ids[field.name].lengths()[padding_B]
                assert lengths_B.tolist() == [int(field.shape == "single")] * int(padding_B.sum())


def test_more_workers_than_rows_leaves_some_with_padding_only(tmp_path: Path) -> None:
    paths = write(tmp_path, 2)
    batches = [
        next(BatchReader(paths, LAYOUT, batch_size=64, rank=rank, world_size=5).epoch(0))
        for rank in range(5)
    ]
    assert [float(batch.weights_B.sum()) for batch in batches] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert batches[4].ids["city"].values().tolist() == [0]


def test_weight_sum_is_the_global_batch_over_the_workers(tmp_path: Path) -> None:
    weights = np.linspace(0.5, 3.0, 90).astype(np.float32)
    path = tmp_path / "weighted.parquet"
    rows(90).with_columns(pl.Series(WEIGHT_COLUMN, weights)).write_parquet(path, row_group_size=13)
    for rank in range(2):
        reader = BatchReader([path], LAYOUT, batch_size=40, rank=rank, world_size=2)
        found = [batch.weight_sum.item() for batch in reader.epoch(0)]
        expected = [weights[start : start + 40].sum() / 2 for start in (0, 40, 80)]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_layout_without_lists_or_without_singles_is_read(tmp_path: Path) -> None:
    paths = write(tmp_path, 30)
    for shapes in ({"single"}, {"bag", "sequence"}):
        fields = tuple(field for field in LAYOUT.ids if field.shape in shapes)
        layout = Layout(ids=fields, dense=(), tasks=("label",))
        batch = next(BatchReader(paths, layout, batch_size=30).epoch(0))
        assert batch.ids.keys() == [field.name for field in fields]
        assert batch.dense_BN.shape == (30, 0)


def test_a_layout_of_numbers_alone_is_read(tmp_path: Path) -> None:
    layout = Layout(ids=(), dense=("age",), tasks=("label",))
    batch = next(BatchReader(write(tmp_path, 30), layout, batch_size=30).epoch(0))
    assert batch.ids.keys() == []
    assert batch.dense_BN.shape == (30, 1)


def test_an_error_while_reading_ahead_reaches_the_reader(tmp_path: Path) -> None:
    missing = IdField(name="shop", shape="single", side="item", space="shop", cardinality=3)
    layout = Layout(ids=(missing,), dense=(), tasks=("label",))
    with pytest.raises(KeyError, match="shop"):
        next(BatchReader(write(tmp_path, 30), layout, batch_size=30).epoch(0))


def test_an_abandoned_epoch_ends_its_thread(files: Sequence[Path]) -> None:
    batches = BatchReader(files, LAYOUT, batch_size=10, window_rows=50).epoch(0)
    next(batches)
    batches.close()
    assert "window-reader" not in Counter(thread.name for thread in threading.enumerate())


@given(
    lists=st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=9),
    data=st.data(),
)
def test_rows_of_a_ragged_column_equal_a_python_loop(
    lists: list[list[int]], data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=12))
    values = torch.tensor([v for part in lists for v in part], dtype=torch.int64)
    offsets = torch.tensor(np.cumsum([0, *map(len, lists)]))
    taken, lengths = Ragged(values, offsets).take(torch.tensor(chosen, dtype=torch.int64))
    assert taken.tolist() == [v for row in chosen for v in lists[row]]
    assert lengths.tolist() == [len(lists[row]) for row in chosen]


def test_weights_stay_with_their_ids_in_any_order(tmp_path: Path) -> None:
    """Ids without weights have 1 each; batches of 16 span windows and row groups."""
    frame = weighted_rows(70)
    files = write_weighted(tmp_path, 70)
    row_of = {city: row for row, city in enumerate(frame["city"].to_list())}
    seen = 0
    reader = BatchReader(files, WEIGHTED, batch_size=16, shuffle=True, seed=3, window_rows=40)
    for batch in reader.epoch(0):
        chosen = [
            row_of[c] if w > 0 else None
            for c, w in zip(batch.ids["city"].values().tolist(), batch.weights_B, strict=True)
        ]
        seen += len(chosen)
        for field in WEIGHTED.ids:
            found = batch.ids[field.name].to_dense_weights()
            for row, weights in zip(chosen, found, strict=True):
                if field.weighted:
                    assert weights.tolist() == frame[field.weights][row].to_list()
                else:
                    assert weights.tolist() == [1.0] * len(weights)
    assert seen == 70


def test_a_layout_without_weights_makes_batches_without_any(files: Sequence[Path]) -> None:
    batch = next(BatchReader(files, LAYOUT, batch_size=16).epoch(0))
    assert batch.ids.weights_or_none() is None
