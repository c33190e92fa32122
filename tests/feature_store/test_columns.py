"""The one text form of a categorical value, and the names of raw types."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.columns import (
    RawColumn,
    SchemaMismatch,
    canonical_text,
    column_type,
    polars_type,
    require_columns,
)


def texts(values: pl.Series) -> list[str | None]:
    frame = values.to_frame("value")
    return frame.select(canonical_text(pl.col("value"), values.dtype)).to_series().to_list()


@given(number=st.integers(-(2**53), 2**53))
def test_an_integer_a_text_and_a_float_of_one_value_have_one_text(number):
    assert texts(pl.Series([number], dtype=pl.Int64)) == [str(number)]
    assert texts(pl.Series([str(number)])) == [str(number)]
    assert texts(pl.Series([float(number)])) == [str(number)]


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt8, pl.Int32, pl.UInt64, pl.Float32, pl.Float64])
def test_every_width_of_a_number_has_the_same_text(dtype):
    assert texts(pl.Series([7, None], dtype=dtype)) == ["7", None]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([0.5, -0.0, 1e300, float("nan"), float("inf"), -float("inf")]),
         ["0.5", "0", "1e+300", None, None, None]),
        (pl.Series([0.1, 0.5], dtype=pl.Float32), ["0.10000000149011612", "0.5"]),
        (pl.Series([Decimal("3.00"), Decimal("3.25")]), ["3", "3.25"]),
        (pl.Series([True, False, None]), ["true", "false", None]),
        (pl.Series(["x", None], dtype=pl.Categorical), ["x", None]),
        (pl.Series(["x", None], dtype=pl.Enum(["x"])), ["x", None]),
        (pl.Series([date(2020, 2, 29)]), ["2020-02-29"]),
        (pl.Series([None, None]), [None, None]),
        (pl.Series([" 3", "3.0", ""]), [" 3", "3.0", ""]),
    ],
    ids=["float", "float32", "decimal", "bool", "categorical", "enum", "date", "null", "text"],
)  # fmt: skip
def test_values_of_every_type_are_written_as_documented(values, expected):
    assert texts(values) == expected


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_one_moment_has_one_text_in_every_unit_and_zone(unit):
    moment = datetime(2020, 2, 29, 23, 30, tzinfo=timezone(timedelta(hours=-2)))
    naive = pl.Series([moment.astimezone(UTC).replace(tzinfo=None)], dtype=pl.Datetime(unit))
    zoned = naive.dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
    assert texts(naive) == texts(zoned) == ["2020-03-01 01:30:00.000000"]


@pytest.mark.parametrize(
    "name", ["string", "int", "float", "bool", "date", "datetime", "list<int>", "list<datetime>"]
)
def test_a_type_name_survives_the_way_to_polars_and_back(name):
    assert column_type("x", polars_type(name)) == name
    assert RawColumn(name="x", type=name, nullable=False).dtype == polars_type(name)


@pytest.mark.parametrize(
    "dtype", [pl.Struct({"a": pl.Int64}), pl.Binary(), pl.Duration(), pl.List(pl.List(pl.Int64))]
)
def test_a_type_no_feature_can_read_is_refused_by_name(dtype):
    with pytest.raises(SchemaMismatch, match=r"column 'x' has the type .* which no feature can"):
        column_type("x", dtype)


def test_every_missing_column_is_named_with_who_needs_it_and_the_nearest():
    with pytest.raises(SchemaMismatch) as raised:
        require_columns({"user_id": pl.Int64()}, {"userid": "feature 'user'", "zzz": "the label"})
    assert str(raised.value) == (
        "feature 'user' needs the column 'userid', which is not there; did you mean 'user_id'?;"
        " the label needs the column 'zzz', which is not there; known: user_id"
    )
