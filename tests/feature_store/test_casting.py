"""Raw values in the declared types: text and typed columns that say the same give the same."""

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from feature_store.casting import TextForm, from_column, from_text
from feature_store.columns import SchemaMismatch


def read_text(texts: list[str | None], **form: Any) -> list[Any]:
    frame = pl.DataFrame({"x": pl.Series(texts, dtype=pl.String)})
    return frame.select(from_text(pl.col("x"), TextForm(**form)).alias("x")).to_series().to_list()


def read_column(values: pl.Series, type_name: str) -> tuple[list[Any], bool]:
    column, may_fail = from_column("x", values.dtype, TextForm.model_validate({"type": type_name}))
    return pl.DataFrame({"x": values}).select(column.alias("x")).to_series().to_list(), may_fail


@pytest.mark.parametrize(
    ("type_name", "text", "expected"),
    [
        ("int", " 12 ", 12),
        ("int", "12.0", 12),
        ("int", "9223372036854775807", 2**63 - 1),
        ("int", "12.5", None),
        ("int", "1e30", None),
        ("int", "twelve", None),
        ("int", "nan", None),
        ("float", "1e-3", 0.001),
        ("float", "1,5", None),
        ("float", "-inf", float("-inf")),
        ("bool", "TRUE", True),
        ("bool", "no", False),
        ("bool", "2", None),
        ("string", " a ", " a "),
        ("date", "2024-02-29", date(2024, 2, 29)),
        ("date", "2023-02-29", None),
        ("datetime", "2024-02-29 23:59:59.123456", datetime(2024, 2, 29, 23, 59, 59, 123456)),
        ("datetime", "2024-02-29T23:59:59Z", datetime(2024, 2, 29, 23, 59, 59)),
        ("datetime", "2024-02-29T23:59:59+05:30", datetime(2024, 2, 29, 18, 29, 59)),
        ("datetime", "2024-02-29 23:59", datetime(2024, 2, 29, 23, 59)),
        ("datetime", "2024-02-29", datetime(2024, 2, 29)),
        ("datetime", "29/02/2024", None),
        ("list<int>", "1 2  3", [1, 2, 3]),
        ("list<int>", "1 x", None),
        ("list<string>", "a b", ["a", "b"]),
    ],
)
def test_text_is_read_as_declared_or_not_at_all(type_name: str, text: str, expected: Any) -> None:
    assert read_text([text, None], type=type_name) == [expected, None]


def test_dates_and_lists_follow_the_form_that_is_given() -> None:
    assert read_text(["29.02.24"], type="date", format="%d.%m.%y") == [date(2024, 2, 29)]
    expected = [datetime(2024, 2, 29, 10, 30)]
    assert read_text(["29/02/2024 10h30"], type="datetime", format="%d/%m/%Y %Hh%M") == expected
    zoned = read_text(["29/02/2024 1000 +0200"], type="datetime", format="%d/%m/%Y %H%M %z")
    assert zoned == [datetime(2024, 2, 29, 8)]
    assert read_text(["1|2", "3"], type="list<int>", separator="|") == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"type": "list<int>", "separator": ""}, "at least 1 character"),
        ({"type": "int", "format": "%d"}, "format '%d' is for dates and datetimes, not int"),
        ({"type": "datetime", "format": "%d/%m/%Y %H"}, "cannot be used.*both hour and minute"),
    ],
)
def test_a_form_that_cannot_be_read_is_refused(form: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TextForm.model_validate(form)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_integers_survive_text_and_typed_columns(values: list[int]) -> None:
    assert read_text([str(value) for value in values], type="int") == values
    assert read_column(pl.Series(values, dtype=pl.Int64), "int") == (values, False)
    texts = pl.Series([str(value) for value in values])
    assert read_column(texts, "int") == (values, True)
    assert read_column(pl.Series(values, dtype=pl.Int64), "string")[0] == texts.to_list()


@given(st.lists(st.floats(allow_nan=False), min_size=1))
def test_floats_survive_text(values: list[float]) -> None:
    assert read_text([repr(value) for value in values], type="float") == values


@given(st.lists(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)), min_size=1))
def test_times_survive_text_with_and_without_a_zone(values: list[datetime]) -> None:
    assert read_text([value.isoformat(" ") for value in values], type="datetime") == values
    zone = timezone(timedelta(hours=-3, minutes=-30))
    zoned = [value.replace(tzinfo=UTC).astimezone(zone).isoformat() for value in values]
    assert read_text(zoned, type="datetime") == values


def test_typed_columns_of_other_widths_and_zones_are_read() -> None:
    assert read_column(pl.Series([1, None], dtype=pl.UInt8), "int") == ([1, None], False)
    assert read_column(pl.Series([1, 2]), "float") == ([1.0, 2.0], False)
    assert read_column(pl.Series([True, False]), "int") == ([1, 0], False)
    assert read_column(pl.Series([1, 2, 0]), "bool") == ([True, None, False], True)
    assert read_column(pl.Series([1.0, 1.5]), "int") == ([1, None], True)
    assert read_column(pl.Series([[1.0], [1.5, 2.0]]), "list<int>") == ([[1], None], True)
    assert read_column(pl.Series(["a", ""], dtype=pl.Categorical), "string")[0] == ["a", ""]
    berlin = pl.Series([datetime(2024, 7, 1, 12)]).dt.replace_time_zone("Europe/Berlin")
    assert read_column(berlin, "datetime") == ([datetime(2024, 7, 1, 10)], False)
    assert read_column(pl.Series([date(2024, 7, 1)]), "datetime") == ([datetime(2024, 7, 1)], False)


@pytest.mark.parametrize(
    ("values", "type_name"),
    [(pl.Series([1]), "datetime"), (pl.Series([[1]]), "int"), (pl.Series([1.5]), "date")],
)
def test_types_that_mean_something_else_are_refused(values: pl.Series, type_name: str) -> None:
    with pytest.raises(SchemaMismatch, match=rf"column 'x' holds .* cannot be read as {type_name}"):
        read_column(values, type_name)
