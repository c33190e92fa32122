"""Seconds between two times of a row: against datetime arithmetic, units, types and oddities."""

import math
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from feature_store.encoding import SchemaMismatch
from feature_store.features import Elapsed, FeatureSet, Label
from pipelines.fit import fit

LABEL = pl.Series("label", [0, 1])
NOON = datetime(2024, 5, 1, 12)


def encode(feature: Elapsed, **columns: pl.Series) -> pl.DataFrame:
    """Fit and encode rows of the columns; a label is put beside them."""
    raw = pl.DataFrame(columns)
    labelled = raw.with_columns(label=pl.int_range(pl.len()) % 2)
    features = FeatureSet(inputs=(feature,), timestamp="now" if "now" in columns else None)
    return fit(labelled.lazy(), features).encode(raw.lazy()).collect()


def elapsed(**settings: object) -> Elapsed:
    return Elapsed.model_validate({"name": "age", "source": "born", **settings})


times = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31))


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(st.none() | times, st.none() | times), min_size=2, max_size=8))
def test_it_is_the_seconds_that_datetimes_say(rows):
    born, now = (
        pl.Series([row[place] for row in rows], dtype=pl.Datetime("us")) for place in (0, 1)
    )
    found = encode(elapsed(log1p=False, indicator=True, default=-1.0), born=born, now=now)
    for (start, end), (value, missing) in zip(rows, found.rows(), strict=True):
        if start is None or end is None or end < start:
            assert (value, missing) == (-1.0, 1.0)
        else:
            assert value == np.float32((end - start) / timedelta(seconds=1))
            assert missing == 0.0


def test_a_start_after_the_end_is_missing_or_negative_as_declared():
    columns = {"born": pl.Series([NOON, NOON]), "now": pl.Series([NOON - timedelta(hours=1), NOON])}
    assert encode(elapsed(), **columns)["age"].to_list() == [0.0, 0.0]
    assert encode(elapsed(default=-5.0), **columns)["age"].to_list() == [-5.0, 0.0]
    signed = encode(elapsed(future="negative"), **columns)["age"].to_list()
    assert signed == [pytest.approx(-math.log1p(3600)), 0.0]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_numbers_are_read_in_their_units(unit):
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    born = pl.Series([0, -5 * per_second], dtype=pl.Int64)
    now = pl.Series([datetime(1970, 1, 1, 0, 1), datetime(1970, 1, 1)])
    found = encode(elapsed(unit=unit, log1p=False), born=born, now=now)
    assert found["age"].to_list() == [60.0, 5.0]
    floats = encode(elapsed(unit=unit, log1p=False), born=born.cast(pl.Float64), now=now)
    assert floats.equals(found)


def test_the_end_may_be_another_column_in_another_unit():
    feature = elapsed(until="seen", unit="ms", until_unit="s", log1p=False)
    found = encode(feature, born=pl.Series([1500, 0]), seen=pl.Series([3, 2**62]))
    assert found["age"].to_list() == [1.5, 0.0]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("number", [2**63 - 1, -(2**63)])
def test_a_number_that_is_no_plausible_time_is_missing(number, unit):
    # All that 64 bits of nanoseconds can say lies within the years 1 to 9999.
    expected = unit != "ns"
    feature = elapsed(unit=unit, indicator=True, future="negative")
    found = encode(feature, born=pl.Series([number, 0]), now=pl.Series([NOON, NOON]))
    assert found["age__missing"].to_list() == [float(expected), 0.0]


def test_nan_and_infinity_are_missing():
    born = pl.Series([math.nan, math.inf, -math.inf, 1e300, 0.0])
    now = pl.Series([datetime(1970, 1, 1, 0, 0, 1)] * 5)
    found = encode(elapsed(indicator=True, log1p=False), born=born, now=now)
    assert found["age__missing"].to_list() == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert found["age"].to_list() == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_zones_dates_and_resolutions_do_not_matter():
    zoned = NOON.replace(tzinfo=timezone(timedelta(hours=2)))
    columns = [
        pl.Series([zoned, NOON.replace(tzinfo=UTC) - timedelta(hours=2)]).dt.convert_time_zone(
            "Asia/Tokyo"
        ),
        pl.Series([NOON - timedelta(hours=2)] * 2, dtype=pl.Datetime("ns")),
        pl.Series([NOON - timedelta(hours=2)] * 2, dtype=pl.Datetime("ms")),
    ]
    now = pl.Series([date(2024, 5, 2)] * 2)
    for born in columns:
        found = encode(elapsed(log1p=False), born=born, now=now)
        assert found["age"].to_list() == [14 * 3600.0] * 2


def test_it_is_standardised_over_the_training_rows_that_have_it():
    born = pl.Series([0, 0, None, 100])
    now = pl.Series([math.expm1(1), math.expm1(3), 7.0, 0.0])
    found = encode(elapsed(standardize=True, default=9.0), born=born, now=now)
    assert found["age"].to_list() == pytest.approx([-1.0, 1.0, 9.0, 9.0], abs=1e-6)


def test_text_is_no_time():
    with pytest.raises(SchemaMismatch, match=r"elapsed 'age' needs .* 'born' has the type String"):
        encode(elapsed(), born=pl.Series(["2024", "x"]), now=pl.Series([NOON, NOON]))


def test_without_a_timestamp_the_end_must_be_named():
    with pytest.raises(ValidationError, match=r"elapsed .* needs features.timestamp, or"):
        FeatureSet(inputs=(elapsed(),), labels=(Label(),))
