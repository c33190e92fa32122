"""Initial rows are a function of (seed, table, row)."""

import pytest
import torch
from support.encoded import LAYOUT
from support.training import CPU, embeddings_of

from recsys.embeddings import initial
from recsys.embeddings.collection import Embeddings, table_weight
from recsys.embeddings.initial import initial_rows, initial_values, initialize
from recsys.embeddings.tables import Table, TableSettings


def table(num_embeddings: int = 1000, name: str = "item") -> Table:
    return Table(name, num_embeddings, 4, TableSettings(init_range=0.2), (), False)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 64), (63, 65), (100, 900), (999, 1000)])
def test_a_slice_of_the_table_is_drawn_alone(
    monkeypatch: pytest.MonkeyPatch, start: int, stop: int
) -> None:
    monkeypatch.setattr(initial, "CHUNK_ROWS", 64)
    whole = initial_rows(table(), 3, 0, 1000)
    assert whole.shape == (1000, 4)
    assert torch.equal(initial_rows(table(), 3, start, stop), whole[start:stop])


@pytest.mark.parametrize("rows", [[], [0], [999, 0, 63, 64, 64, 500]])
def test_single_rows_are_those_of_the_whole_table(
    monkeypatch: pytest.MonkeyPatch, rows: list[int]
) -> None:
    monkeypatch.setattr(initial, "CHUNK_ROWS", 64)
    found = initial_values(table(), 3, torch.tensor(rows, dtype=torch.int64))
    assert found.shape == (len(rows), 4)
    assert torch.equal(found, initial_rows(table(), 3, 0, 1000)[rows])


def test_an_empty_shard_has_no_rows() -> None:
    for row in (0, 5, 1000):
        assert initial_rows(table(), 3, row, row).shape == (0, 4)


def test_rows_are_uniform_in_the_range_and_differ_by_seed_table_and_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(initial, "CHUNK_ROWS", 500)
    rows = initial_rows(table(), 3, 0, 1000)
    assert rows.abs().max() <= 0.2
    assert abs(rows.std().item() - 0.2 / 3**0.5) < 0.005
    assert not torch.equal(rows[:500], rows[500:])
    assert not torch.equal(rows, initial_rows(table(), 4, 0, 1000))
    assert not torch.equal(rows, initial_rows(table(name="user"), 3, 0, 1000))


def test_every_table_of_a_model_is_filled() -> None:
    for sharding in (None, "data_parallel"):
        embeddings = Embeddings(LAYOUT, embeddings_of(sharding), CPU)
        tables = embeddings.tables
        initialize(embeddings, tables, seed=9)
        for each in tables:
            weight = table_weight(embeddings, each)
            assert torch.equal(weight, initial_rows(each, 9, 0, each.num_embeddings))
