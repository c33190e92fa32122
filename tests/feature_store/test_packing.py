"""Rows as bytes and back: every value of every type, bit for bit."""

from datetime import date, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from feature_store.columns import ColumnType
from feature_store.packing import DamagedRow, RowPacking

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SCALARS = {
    "string": TEXTS,
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(),
    "bool": st.booleans(),
    "date": st.dates(date(1, 1, 1), date(9999, 12, 31)),
    "datetime": st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)),
}
VALUES = {
    **SCALARS,
    **{f"list<{kind}>": st.lists(st.none() | s, max_size=4) for kind, s in SCALARS.items()},
}


@st.composite
def tables(draw) -> tuple[dict[str, ColumnType], pl.DataFrame]:
    kinds = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=5))
    columns = {f"c{place}": kind for place, kind in enumerate(kinds)}
    num_rows = draw(st.integers(0, 6))
    packing = RowPacking(columns)
    values = {
        name: draw(st.lists(st.none() | VALUES[k], min_size=num_rows, max_size=num_rows))
        for name, k in columns.items()
    }
    return columns, pl.DataFrame(values, schema=packing.schema)


@given(tables())
@settings(max_examples=40, deadline=None)
def test_rows_come_back_as_they_were_all_together_and_each_alone(table) -> None:
    columns, frame = table
    packing = RowPacking(columns)
    rows = packing.pack(frame)
    assert_frame_equal(packing.unpack(rows), frame, check_exact=True)
    for place, row in enumerate(rows):
        assert_frame_equal(packing.unpack([memoryview(row)]), frame[place : place + 1])


def test_the_bits_of_a_float_are_kept() -> None:
    values = pl.DataFrame({"x": [-0.0, 5e-324, 0.1 + 0.2, float("nan"), float("-inf")]})
    packing = RowPacking({"x": "float"})
    back = packing.unpack(packing.pack(values)).get_column("x").to_numpy()
    assert back.tobytes() == values.get_column("x").to_numpy().tobytes()


def test_rows_of_all_rows_and_of_a_part_are_the_same_bytes() -> None:
    frame = pl.DataFrame({"a": ["x", None, "žy"], "b": [[1], [], [2, None]]})
    packing = RowPacking({"a": "string", "b": "list<int>"})
    assert packing.pack(frame)[1:] == packing.pack(frame[1:])


@pytest.mark.parametrize("cut", [0, 3, -1])
def test_bytes_that_are_no_row_are_refused(cut: int) -> None:
    packing = RowPacking({"a": "string", "b": "list<float>"})
    (row,) = packing.pack(pl.DataFrame({"a": ["text"], "b": [[1.0]]}))
    with pytest.raises(DamagedRow):
        packing.unpack([row[:cut]])
