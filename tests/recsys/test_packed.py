"""Packed tables against the dense ones they stand for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim

from recsys.embeddings.packed import (
    PackedTable,
    csr_bytes,
    largest_num_values,
    pack_bits,
    packed_bytes,
    unpack_bits,
)


def pruned(num_rows: int, width: int, density: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_rows, width, generator=generator)
    return weight * (torch.rand(num_rows, width, generator=generator) < density)


def stored_bytes(table: PackedTable) -> int:
    return sum(buffer.numel() * buffer.element_size() for buffer in table.buffers())


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 40),
    width=st.integers(1, 20),
    density=st.sampled_from([0.0, 0.02, 0.2, 0.7, 1.0]),
    seed=st.integers(0, 1000),
)
def test_every_row_comes_back_and_bytes_are_as_counted(
    num_rows: int, width: int, density: float, seed: int
) -> None:
    weight = pruned(num_rows, width, density, seed)
    table = PackedTable(weight)
    rows = torch.randint(num_rows, (3, 4), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(table(rows), weight[rows])
    assert torch.equal(table.dense(), weight + 0.0)
    nonempty = sum(any(value != 0 for value in row) for row in weight.tolist())
    count = sum(value != 0 for row in weight.tolist() for value in row)
    assert stored_bytes(table) == packed_bytes(num_rows, width, count, nonempty)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5])
def test_the_exported_table_equals_the_eager_one(density: float) -> None:
    weight = pruned(500, 10, density)
    table = PackedTable(weight)
    program = torch.export.export(
        table, (torch.zeros(3, 5, dtype=torch.int64),),
        dynamic_shapes=({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},), strict=False,
    ).module()  # fmt: skip
    for shape in ((1, 1), (7, 2)):
        rows = torch.randint(500, shape)
        assert torch.equal(program(rows), weight[rows])


def test_few_rows_are_stored_alone_and_all_where_many_have_values() -> None:
    few, many = torch.zeros(1000, 8), torch.ones(1000, 8)
    few[[3, 999]] = 2.0
    assert PackedTable(few).stores_few and not PackedTable(many).stores_few
    assert stored_bytes(PackedTable(few)) == 2 * (8 * 4 + 1 + 4 + 4)
    assert stored_bytes(PackedTable(many)) == 1000 * (8 * 4 + 1 + 4)
    assert csr_bytes(1000, 16) == 16 * 8 + 1001 * 4


def test_negative_zero_is_pruned() -> None:
    table = PackedTable(torch.tensor([[-0.0, 1.0]]))
    assert table.values.tolist() == [1.0]


@pytest.mark.parametrize(("num_rows", "width", "budget"), [(100, 8, 900), (100, 8, 400), (9, 3, 1)])
def test_the_largest_number_of_values_fits_wherever_they_lie(
    num_rows: int, width: int, budget: int
) -> None:
    number = largest_num_values(num_rows, width, budget)
    worst = max(
        packed_bytes(num_rows, width, number, nonempty)
        for nonempty in range(-(-number // width), min(num_rows, number) + 1)
    )
    assert worst <= max(budget, 0) or number == 0
    more = number + 1
    if more <= num_rows * width:
        assert packed_bytes(num_rows, width, more, min(num_rows, more)) > budget


@given(st.lists(st.booleans(), min_size=1, max_size=25))
@settings(max_examples=30, deadline=None)
def test_bits_come_back(row: list[bool]) -> None:
    packed = pack_bits(torch.tensor(row))
    assert packed.numel() == -(-len(row) // 8)
    assert unpack_bits(packed, len(row)).tolist() == row
