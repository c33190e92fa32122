from datetime import UTC, date, datetime
from decimal import Decimal

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from support import served

from feature_store.columns import SchemaMismatch
from recsys.export.signature import Column, RowMismatch, Signature, TextFormat


def signature(*columns: Column) -> Signature:
    return Signature(columns=columns, tasks=("click",), program_inputs=())


def conform(values, column_type: str, **settings):
    column = Column(name="x", type=column_type, nullable=False, **settings)
    return signature(column).conform(pl.DataFrame({"x": values}))["x"].to_list()


def test_a_signature_names_types_nulls_separators_and_examples(bundle):
    columns = {column.name: column for column in bundle.signature.columns}
    golden = bundle.golden()[0].row(0, named=True)
    assert columns["price"].nullable and not columns["item"].nullable
    assert columns["tags"].separator == ";" and columns["seen"].separator == " "
    assert columns["seen"].type == "list<int>" and columns["seen"].example == golden["seen"]
    assert columns["clicked"].example == golden["clicked"].isoformat()
    assert columns["item"].example == golden["item"]


def test_a_typed_table_passes_as_it_is_without_its_other_columns(bundle):
    raw = served.rows(5)
    conformed = bundle.signature.conform(raw)
    assert_frame_equal(conformed, raw.drop("click"))


@pytest.mark.parametrize(
    ("values", "column_type", "expected"),
    [
        (["1", " -2 ", "", None], "int", [1, -2, None, None]),
        (["1.5", "1e3", "-7"], "float", [1.5, 1000.0, -7.0]),
        (["true", "False", "1", "no", ""], "bool", [True, False, True, False, None]),
        ([True, False], "int", [1, 0]),
        (["2024-02-29"], "date", [date(2024, 2, 29)]),
        (
            ["2024-02-29T10:30:00Z", "2024-02-29 10:30:00.5", "2024-02-29T12:30:00+02:00", ""],
            "datetime",
            [
                datetime(2024, 2, 29, 10, 30),
                datetime(2024, 2, 29, 10, 30, 0, 500_000),
                datetime(2024, 2, 29, 10, 30),
                None,
            ],
        ),
        ([1.0, None, float("nan")], "int", [1, None, None]),
        ([None, None], "string", [None, None]),
    ],
)
def test_values_are_read_as_the_declared_type(values, column_type, expected):
    assert conform(values, column_type) == expected


def test_separated_text_becomes_a_list_of_the_declared_type():
    values = ["3 1  2", None, "7"]
    assert conform(values, "list<int>", separator=" ") == [[3, 1, 2], None, [7]]
    assert conform(values, "list<string>", separator=" ") == [["3", "1", "2"], None, ["7"]]


def test_lists_of_whole_floats_pass_for_lists_of_ints():
    assert conform([[1.0, 2.0], None, []], "list<int>") == [[1, 2], None, []]


@pytest.mark.parametrize(
    ("values", "column_type", "message"),
    [
        (["1", "two"], "int", "row 2, column 'x': expected int, found 'two'"),
        (["1.5"], "int", "row 1, column 'x': expected int, found '1.5'"),
        ([1.0, 1.5], "int", "row 2, column 'x': expected int, found 1.5"),
        ([2], "bool", "expected bool, found 2"),
        (["on"], "bool", "expected bool, found 'on'"),
        (["31.01.2024"], "date", "expected date, found '31.01.2024'"),
        (["2024-01-31 at 12"], "datetime", "expected datetime, found '2024-01-31 at 12'"),
        ([[1.0], [1.5]], "list<int>", r"row 2, column 'x': expected list<int>, found \[1\.5\]"),
    ],
)
def test_a_value_of_another_type_is_an_error_with_row_and_column(values, column_type, message):
    with pytest.raises(RowMismatch, match=message):
        conform(values, column_type)


@pytest.mark.parametrize(
    ("values", "column_type"),
    [([date(2024, 1, 1)], "int"), ([[1]], "int"), ([1], "list<int>"), ([["1"]], "list<int>")],
)
def test_a_column_of_another_type_is_an_error_with_both_types(values, column_type):
    with pytest.raises(SchemaMismatch, match=f"'x' holds .* cannot be read as {column_type}"):
        conform(values, column_type)


def test_text_is_read_as_the_training_files_were(features):
    text = TextFormat(separators={"seen": "|"}, formats={"clicked": "%d.%m.%Y %H:%M"})
    signature = Signature.of(features, served.rows(1), text)
    raw = served.rows(1).with_columns(seen=pl.lit("3|4"), clicked=pl.lit("29.02.2024 10:30"))
    row = signature.conform(raw).row(0, named=True)
    assert (row["seen"], row["clicked"]) == ([3, 4], datetime(2024, 2, 29, 10, 30))


def test_the_row_of_a_wrong_list_item_is_its_lists():
    with pytest.raises(RowMismatch, match="row 3, column 'x'"):
        conform(["1 2", "", "3 x"], "list<int>", separator=" ")


def test_numbers_that_mean_the_same_pass_unchanged():
    assert conform([Decimal("1.5")], "float") == [Decimal("1.5")]
    assert conform(pl.Series([2**64 - 1], dtype=pl.UInt64), "int") == [2**64 - 1]
    zoned = pl.Series([datetime(2024, 1, 1, tzinfo=UTC)], dtype=pl.Datetime("ms", "Europe/Paris"))
    assert conform(zoned, "datetime") == [datetime(2024, 1, 1, tzinfo=UTC)]
    assert conform(["2024"], "string") == ["2024"]
    assert conform([2024, None], "string") == ["2024", None]


def test_a_missing_column_names_the_nearest_one(bundle):
    with pytest.raises(SchemaMismatch, match="'item', which is not there; did you mean 'itme'"):
        bundle.signature.conform(served.rows(2).rename({"item": "itme"}))


def test_text_for_a_list_that_two_features_split_differently_is_refused():
    with pytest.raises(SchemaMismatch, match="split text differently"):
        conform(["a b"], "list<string>")
