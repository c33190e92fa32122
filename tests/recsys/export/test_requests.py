import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from support import served

from recsys.export.requests import MAX_PROBLEMS, InvalidRows, table
from recsys.export.signature import Column, Signature

NAN = float("nan")


def request_rows(frame: pl.DataFrame) -> list[dict]:
    """Rows as a client sends them."""
    return json.loads(frame.drop("click").write_json())


def problems(rows, signature, **settings):
    with pytest.raises(InvalidRows) as caught:
        table(rows, signature, **settings)
    return caught.value.problems


@given(st.integers(0, 2**32 - 1))
def test_rows_of_a_request_become_the_table_they_came_from(seed):
    frame = served.rows(6, seed)
    made = table(request_rows(frame), SIGNATURE)
    assert_frame_equal(made, frame.drop("click"))


SIGNATURE = Signature.of(served.fitted(), served.rows(1))


@pytest.mark.parametrize(
    ("field", "value", "expected", "found"),
    [
        ("item", "3", "an integer of 64 bits", "the text '3'"),
        ("item", 3.0, "an integer of 64 bits", "the number 3.0"),
        ("item", True, "an integer of 64 bits", "the bool true"),
        ("item", 2**63, "an integer of 64 bits", "the number 9223372036854775808"),
        ("item", None, "an integer of 64 bits", "null"),
        ("item", [3], "an integer of 64 bits", "the list [3]"),
        ("item", {}, "an integer of 64 bits", "the object {}"),
        ("user", 3, "text", "the number 3"),
        ("user", "\ud800", "text", "the text '\\ud800'"),
        ("member", 1, "true or false or null", "the number 1"),
        ("price", "1.5", "a finite number or null", "the text '1.5'"),
        ("price", NAN, "a finite number or null", "the number nan"),
        ("price", float("inf"), "a finite number or null", "the number inf"),
        ("price", 10**400, "a finite number or null", "the number 1000"),
        ("price", False, "a finite number or null", "the bool false"),
        ("clicked", "yesterday", "a time such as", "the text 'yesterday'"),
        ("clicked", 12, "a time such as", "the number 12"),
        ("seen", "1 2", "a list of integers of 64 bits", "the text '1 2'"),
        ("seen", [1, "2"], "a list of integers of 64 bits", "the text '2' at position 1"),
        ("seen", [True], "a list of integers of 64 bits", "the bool true at position 0"),
        ("seen", [None], "a list of integers of 64 bits", "null at position 0"),
        ("seen", None, "a list of integers of 64 bits", "null"),
        ("tags", [["a"]], "a list of texts", "the list ['a'] at position 0"),
    ],
)
def test_a_mistyped_field_is_named_with_its_row(field, value, expected, found):
    rows = request_rows(served.rows(3))
    rows[1][field] = value
    (problem,) = problems(rows, SIGNATURE)
    assert (problem.row, problem.field) == (1, field)
    assert problem.expected.startswith(expected)
    assert problem.found.startswith(found)


def test_a_missing_field_names_the_nearest_that_is_there_and_the_extra_one_its_nearest():
    rows = request_rows(served.rows(2))
    rows[0]["itme"] = rows[0].pop("item")
    missing, extra = problems(rows, SIGNATURE)
    assert (missing.row, missing.field) == (0, "item")
    assert missing.found == "no such field; did you mean 'itme'?"
    assert (extra.row, extra.field, extra.expected) == (0, "itme", "no such field")
    assert "did you mean 'item'?" in extra.found


@pytest.mark.parametrize("row", [None, 3, "x", [1]])
def test_a_row_that_is_no_object_is_named(row):
    (problem,) = problems([*request_rows(served.rows(1)), row], SIGNATURE)
    assert (problem.row, problem.field, problem.expected) == (1, None, "an object of fields")


def test_nulls_pass_where_training_had_them():
    rows = [{**row, "price": None, "member": None} for row in request_rows(served.rows(2))]
    made = table(rows, SIGNATURE)
    assert made["price"].to_list() == [None, None]
    assert made["member"].dtype == pl.Boolean


def test_a_file_may_have_further_fields_and_nulls():
    rows = [{**row, "item": None, "seen": None, "x": 1} for row in request_rows(served.rows(2))]
    made = table(rows, SIGNATURE, strict=False)
    assert made["item"].to_list() == [None, None]
    assert made.columns == SIGNATURE.names


def test_many_problems_are_cut_and_sorted_by_row():
    rows = [{**row, "item": "x", "user": 1} for row in request_rows(served.rows(100))]
    found = problems(rows, SIGNATURE, first_row=1)
    assert len(found) == MAX_PROBLEMS
    assert [problem.row for problem in found] == sorted(problem.row for problem in found)
    assert found[0].row == 1


def test_times_with_an_offset_are_read_in_utc_and_large_numbers_as_floats():
    columns = (
        Column(name="t", type="datetime", nullable=True),
        Column(name="d", type="list<date>", nullable=False),
        Column(name="x", type="float", nullable=False),
    )
    signature = Signature(columns=columns, tasks=("click",), program_inputs=())
    row = {"t": "2024-01-01T01:00:00+02:00", "d": ["2024-01-01"], "x": 2**70}
    made = table([row, {"t": None, "d": [], "x": 1}], signature)
    assert made["t"].dt.to_string("iso").to_list() == ["2023-12-31 23:00:00.000000", None]
    assert made["x"].to_list() == [float(2**70), 1.0]
    assert made["d"].dtype == pl.List(pl.Date)
