"""Served tables: within the stated error, in the stated bytes, the same in an exported program."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.embeddings.quantized import (
    LARGEST_HALF,
    Int4Table,
    Int8Table,
    Precision,
    ServedTable,
    error_bound,
    served_bytes,
    served_table,
)

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
INTEGERS: tuple[Precision, ...] = ("int8", "int4")


def weights(num_embeddings: int, embedding_dim: int, scale: float = 0.05, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_embeddings, embedding_dim, generator=generator)


def read_whole(table: ServedTable) -> Tensor:
    return table(torch.arange(table.num_embeddings))


@st.composite
def tables(draw: st.DrawFn) -> Tensor:
    """Rows of any size and offset: one number, constant, far from zero, tiny and huge."""
    embedding_dim = draw(st.integers(1, 9))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        exponent = draw(st.integers(-30, 14))
        offset = draw(st.floats(-30000, 30000, width=32)) * draw(st.sampled_from([0.0, 1.0]))
        unit = st.floats(-1, 1, width=32)
        row = draw(st.lists(unit, min_size=embedding_dim, max_size=embedding_dim))
        if draw(st.booleans()):
            row = row[:1] * embedding_dim
        rows.append([number * 2.0**exponent + offset for number in row])
    return torch.tensor(rows, dtype=torch.float32)


@settings(max_examples=150, deadline=None)
@given(tables())
def test_no_weight_is_further_off_than_the_bound(weight_RD: Tensor) -> None:
    for precision in PRECISIONS:
        found_RD = read_whole(served_table(weight_RD, precision))
        assert found_RD.dtype == torch.float32
        off_RD = (found_RD.double() - weight_RD.double()).abs()
        assert (off_RD <= error_bound(weight_RD, precision)[:, None]).all()


@pytest.mark.parametrize(("precision", "levels"), [("int8", 255), ("int4", 15)])
def test_the_bound_is_little_more_than_half_a_step_around_zero(
    precision: Precision, levels: int
) -> None:
    weight_RD = weights(50, 16)
    half_step_R = (weight_RD.amax(1) - weight_RD.amin(1)).double() / levels / 2
    bound_R = error_bound(weight_RD, precision)
    assert (bound_R >= half_step_R).all()
    assert (bound_R <= 1.003 * half_step_R).all()


@pytest.mark.parametrize(("precision", "levels"), [("int8", 255), ("int4", 15)])
def test_codes_are_the_nearest_of_the_row_s_own_grid(precision: Precision, levels: int) -> None:
    """Every value of the grid is tried, in NumPy's float64."""
    weight_RD = weights(20, 7)
    table = served_table(weight_RD, precision)
    assert isinstance(table, Int8Table | Int4Table)
    found_RD = read_whole(table).double().numpy()
    for row in range(20):
        least, step = table.pairs[row].double().tolist()
        grid = least + step * np.arange(levels + 1)
        distances = np.abs(grid[:, None] - weight_RD[row].double().numpy()[None, :])
        expected = grid[distances.argmin(axis=0)]
        np.testing.assert_allclose(found_RD[row], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("num_embeddings", "embedding_dim"), [(1, 1), (5, 1), (7, 3), (9, 16)])
def test_bytes_are_those_of_the_buffers(
    precision: Precision, num_embeddings: int, embedding_dim: int
) -> None:
    table = served_table(weights(num_embeddings, embedding_dim), precision)
    assert served_bytes(num_embeddings, embedding_dim, precision) == sum(
        buffer.nbytes for buffer in table.buffers()
    )
    assert list(table.parameters()) == []


def test_bytes_by_hand() -> None:
    """10 rows of 5: integers add 4 bytes a row, and two of five nibbles make three bytes."""
    assert [served_bytes(10, 5, p) for p in PRECISIONS] == [200, 100, 90, 70]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_zero_row_and_a_constant_row_of_float16_come_back_exactly(precision: Precision) -> None:
    weight_RD = torch.tensor([[0.0] * 5, [-0.25] * 5, [1.5] * 5])
    assert torch.equal(read_whole(served_table(weight_RD, precision)), weight_RD)


@pytest.mark.parametrize("precision", INTEGERS)
def test_the_widest_range_of_float16_is_covered(precision: Precision) -> None:
    weight_RD = torch.tensor([[-LARGEST_HALF, 0.0, LARGEST_HALF]])
    off_RD = (read_whole(served_table(weight_RD, precision)) - weight_RD).abs()
    assert (off_RD <= error_bound(weight_RD, precision)[:, None]).all()


@pytest.mark.parametrize("precision", ["fp16", *INTEGERS])
def test_weights_beyond_float16_are_refused(precision: Precision) -> None:
    with pytest.raises(ValueError, match=rf"1e\+06 does not fit {precision}.*serve the table as"):
        served_table(torch.tensor([[0.0, -1e6]]), precision)


@pytest.mark.parametrize("precision", INTEGERS)
@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(precision: Precision, weight: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        served_table(torch.tensor([[0.0, weight]]), precision)


def test_float32_shares_its_memory() -> None:
    weight_RD = weights(4, 3)
    (stored,) = served_table(weight_RD, "fp32").buffers()
    assert stored.data_ptr() == weight_RD.data_ptr()


def test_more_rows_than_are_converted_at_once() -> None:
    weight_RD = weights((1 << 16) + 3, 2)
    off_RD = (read_whole(served_table(weight_RD, "int8")) - weight_RD).abs()
    assert (off_RD <= error_bound(weight_RD, "int8")[:, None]).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_exported_program_equals_eager_at_any_batch(precision: Precision) -> None:
    table = served_table(weights(40, 5), precision)
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        table, (torch.zeros(3, 4, dtype=torch.int64),), dynamic_shapes=[{0: dynamic, 1: dynamic}]
    ).module()
    for shape in ((1, 1), (1, 4), (3, 1), (17, 6)):
        rows_BL = torch.randint(0, 40, shape)
        assert torch.equal(program(rows_BL), table(rows_BL))
