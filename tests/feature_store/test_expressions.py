"""What each feature kind makes of its raw column, against plain Python."""

import math
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store import expressions, vocabulary
from feature_store.columns import SchemaMismatch
from feature_store.features import Bag, Categorical, DatePart, Numeric, Sequence

NAN, INF = math.nan, math.inf


def encoded(raw: pl.Series, expression_of) -> list:
    frame = raw.to_frame("x")
    return frame.select(expression_of(raw.dtype)).to_series().to_list()


def number(feature: Numeric, raw: list, moments=None) -> list[float]:
    series = pl.Series(raw, dtype=pl.Float64)
    return encoded(series, lambda dtype: expressions.number(feature, dtype, moments)[0])


@settings(max_examples=200)
@given(value=st.floats(-1e30, 1e30), mean=st.floats(-5, 5), deviation=st.floats(0.1, 10))
def test_a_number_is_log1p_then_standardised_in_double_precision(value, mean, deviation):
    feature = Numeric(name="x", log1p=True, standardize=True)
    logarithm = math.copysign(math.log1p(abs(value)), value)
    expected = np.float32((logarithm - mean) / deviation)
    assert number(feature, [value], (mean, deviation)) == [pytest.approx(expected, rel=1e-6)]


def test_a_missing_number_is_the_default_and_has_its_indicator():
    raw = pl.DataFrame({"x": [1.0, None, NAN, INF, -INF, 1e300, 0.0]})
    feature = Numeric(name="x", default=-1.5, indicator=True)
    found = raw.select(expressions.number(feature, pl.Float64(), None))
    assert found["x"].to_list() == [1.0, -1.5, -1.5, -1.5, -1.5, -1.5, 0.0]
    assert found["x__missing"].to_list() == [0, 1, 1, 1, 1, 1, 0]
    assert found.dtypes == [pl.Float32, pl.Float32]


def test_an_infinity_is_missing_after_a_logarithm_too():
    assert number(Numeric(name="x", log1p=True, default=2), [INF, -INF, 1e300]) == [
        2.0,
        2.0,
        pytest.approx(math.log1p(1e300)),
    ]


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.none() | st.integers(-4, 9).map(float) | st.sampled_from([NAN, INF, -INF])),
    boundaries=st.lists(st.integers(-3, 8).map(float), unique=True).map(sorted),
)
def test_a_bucket_counts_the_boundaries_at_or_below_the_number(values, boundaries):
    feature = Numeric(name="x", num_buckets=12)
    expected = [
        2 + sum(value >= boundary for boundary in boundaries)
        if value is not None and math.isfinite(value)
        else 0
        for value in values
    ]
    series = pl.Series(values, dtype=pl.Float64)
    assert encoded(series, lambda dtype: expressions.bucket(feature, dtype, boundaries)) == expected


INDEX = vocabulary.index(pl.Series("v", ["a", "b", "3"]))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (pl.Series([["b", "zz", None, "", "a"], [], None, [None]]), [[3, 1, 2], [], [], []]),
        (pl.Series(["b  zz a", "", None, " "]), [[3, 1, 2], [], [], []]),
        (pl.Series([[3, None, 4], None], dtype=pl.List(pl.Int8)), [[4, 1], []]),
        (pl.Series([[3.0, NAN, 0.5]]), [[4, 1]]),
        (pl.Series([[3, 3]], dtype=pl.Array(pl.Int64, 2)), [[4, 4]]),
        (pl.Series([None, None]), [[], []]),
        (pl.Series([["a"], ["x"]], dtype=pl.List(pl.Categorical)), [[2], [1]]),
    ],
    ids=["list", "text", "integers", "floats", "array", "nulls", "categoricals"],
)  # fmt: skip
def test_a_bag_is_the_ids_of_what_is_there(raw, expected):
    feature = Bag(name="x")
    assert encoded(raw, lambda dtype: expressions.id_list(feature, dtype, INDEX)) == expected


def test_a_bag_keeps_its_first_and_a_sequence_its_last_ids():
    raw = pl.Series([["a", "b", None, "3", "a"]])
    bag, sequence = Bag(name="x", max_length=2), Sequence(name="x", of="y", max_length=2)
    assert encoded(raw, lambda dtype: expressions.id_list(bag, dtype, INDEX)) == [[2, 3]]
    assert encoded(raw, lambda dtype: expressions.id_list(sequence, dtype, INDEX)) == [[4, 2]]


def test_hashed_lists_have_the_hashes_of_their_values():
    raw = pl.Series([["a", None, "b"], []])
    single = encoded(
        pl.Series(["a", "b"]),
        lambda dtype: expressions.single_id(Categorical(name="x", encoding="hash"), dtype, None),
    )
    found = encoded(raw, lambda dtype: expressions.id_list(Bag(name="x"), dtype, None))
    assert found == [single, []]


PARTS = {
    "minute": lambda time: time.minute + 2,
    "hour": lambda time: time.hour + 2,
    "weekday": lambda time: time.isoweekday() + 1,
    "day": lambda time: time.day + 1,
    "month": lambda time: time.month + 1,
    "year": lambda time: time.year - 1970 + 2 if 1970 <= time.year < 2170 else 1,
}


@pytest.mark.parametrize("part", PARTS)
@settings(max_examples=40, deadline=None)
@given(
    time=st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)),
    unit=st.sampled_from(["s", "ms", "us"]),
)
def test_date_parts_of_numbers_and_datetimes_agree_with_the_calendar(part, time, unit):
    feature = DatePart(name="part", source="x", part=part, unit=unit)
    whole = time.replace(microsecond=0)
    since = whole - datetime(1970, 1, 1)
    units = since // timedelta(seconds=1) * {"s": 1, "ms": 10**3, "us": 10**6}[unit]
    for raw in (pl.Series([units]), pl.Series([whole]), pl.Series([float(units)])):
        found = encoded(raw, lambda dtype: expressions.date_part(feature, dtype))
        assert found == [PARTS[part](whole)], raw.dtype


def test_date_parts_are_in_utc():
    moment = datetime(2020, 3, 1, 1, tzinfo=timezone(timedelta(hours=5)))
    zoned = pl.Series([moment.astimezone(UTC)]).dt.convert_time_zone("Asia/Karachi")
    feature = DatePart(name="day", source="x", part="day")
    assert encoded(zoned, lambda dtype: expressions.date_part(feature, dtype)) == [29 + 1]
    dates = pl.Series([date(2020, 2, 29)])
    assert encoded(dates, lambda dtype: expressions.date_part(feature, dtype)) == [29 + 1]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("part", PARTS)
def test_no_number_is_too_absurd_for_a_date_part(part, unit):
    feature = DatePart(name="part", source="x", part=part, unit=unit)
    smallest, largest = expressions.DATE_PARTS[part]
    for raw in (
        pl.Series([2**63 - 1, -(2**63), None]),
        pl.Series([NAN, INF, -INF, 1e300, -1e300, 9.3e18]),
        pl.Series([2**64 - 1], dtype=pl.UInt64),
        pl.Series([127, -128], dtype=pl.Int8),
        pl.Series([None]),
    ):
        ids = encoded(raw, lambda dtype: expressions.date_part(feature, dtype))
        assert all(0 <= id_ <= largest - smallest + 2 for id_ in ids)
        assert [id_ for id_, value in zip(ids, raw, strict=True) if value is None] in ([], [0])


@pytest.mark.parametrize(
    ("make", "dtype", "message"),
    [
        (lambda dtype: expressions.number(Numeric(name="x"), dtype, None), pl.String(),
         "numeric feature 'x' needs a column of numbers, but 'x' has the type String"),
        (lambda dtype: expressions.single_id(Categorical(name="x"), dtype, None),
         pl.List(pl.Int64), "categorical feature 'x' needs one value a row"),
        (lambda dtype: expressions.id_list(Bag(name="x"), dtype, None), pl.Int64(),
         "bag feature 'x' needs lists or separated text, but 'x' has the type Int64"),
        (lambda dtype: expressions.date_part(DatePart(name="d", source="x", part="day"), dtype),
         pl.String(), "date part 'd' needs a datetime, a date or a number of s since 1970"),
    ],
    ids=["numeric", "categorical", "bag", "date part"],
)  # fmt: skip
def test_a_column_of_a_wrong_type_is_refused_with_the_feature_named(make, dtype, message):
    with pytest.raises(SchemaMismatch, match=message):
        make(dtype)
