"""Days against the same measures between the days' own counts."""

from datetime import date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support.versions import write

from feature_store import daily
from feature_store.daily import days
from feature_store.drift import psi
from feature_store.features import SPLIT_COLUMN, Bag, Categorical, FeatureSet, Label, Numeric

FEATURES = FeatureSet(
    inputs=(
        Categorical(name="city"),
        Bag(name="tags", separator="|"),
        Numeric(name="price", indicator=True),
    ),
    labels=(Label(name="clicked"),),
    timestamp="time",
)
FIRST = 1_577_836_800  # 2020-01-01
DAY = 86_400


def raw_rows(rows_per_day: int = 200) -> pl.DataFrame:
    """Three days (the second has too few rows) and, after a gap, a fourth that is another."""
    frames = []
    for day, rows in ((0, rows_per_day), (1, 5), (2, rows_per_day), (9, rows_per_day)):
        half, other = rows // 2, day == 9
        frames.append(
            pl.DataFrame(
                {
                    "city": ["a"] * half + ([None] if other else ["b"]) * (rows - half),
                    "tags": [("y" if other else "x|y") if row % 2 else "" for row in range(rows)],
                    "price": [None if row % 4 == 3 else float(row % 2) for row in range(rows)],
                    "time": [FIRST + day * DAY + row for row in range(rows)],
                    "clicked": [int(row % (2 if other else 4) == 0) for row in range(rows)],
                }
            )
        )
    return pl.concat(frames).with_columns(pl.lit("train").alias(SPLIT_COLUMN))


def test_each_day_is_compared_with_the_day_before_and_the_first(tmp_path: Path) -> None:
    found = days(write(tmp_path, raw_rows(), FEATURES))
    assert found.days == (
        date(2020, 1, 1),
        date(2020, 1, 2),
        date(2020, 1, 3),
        date(2020, 1, 10),
    )
    assert (found.rows, found.length) == ((200, 5, 200, 200), 1)
    assert [rate.rate for rate in found.labels["clicked"]] == [0.25, 0.4, 0.25, 0.5]
    by_name = {(feature.name, feature.of): feature for feature in found.features}
    city = by_name["city", "values"]
    # missing, a, b
    changed = psi(np.array([0.0, 100, 100]), np.array([100.0, 100, 0]))
    assert city.psi_before == (None, None, 0.0, pytest.approx(changed))
    assert city.psi_first == city.psi_before
    assert city.missing == (0.0, 0.0, 0.0, 0.5)
    assert city.unseen == (0.0, 0.0, 0.0, 0.0)
    # missing (half of the lists are empty), x, y; then missing and y
    tags = by_name["tags", "values"]
    lists = psi(np.array([100.0, 100, 100]), np.array([100.0, 0, 100]))
    assert tags.psi_before[3] == pytest.approx(lists)
    lengths = psi(np.array([100.0, 0, 100]), np.array([100.0, 100, 0]))
    assert by_name["tags", "lengths"].psi_before[3] == pytest.approx(lengths)
    price = by_name["price", "numbers"]
    assert price.psi_before == (None, None, 0.0, 0.0)
    assert price.missing == (0.25, pytest.approx(0.2), 0.25, 0.25)
    clicked = psi(np.array([150.0, 50]), np.array([100.0, 100]))
    assert by_name["clicked", "label"].psi_before[3] == pytest.approx(clicked)
    excess = [daily._excess(feature) for feature in found.features]
    assert excess == sorted(excess, reverse=True)
    assert found.features[-1].name == "price"


@pytest.mark.parametrize("unit", ["ms", "us", "ns", "datetime"])
def test_any_unit_of_time_gives_the_same_days(tmp_path: Path, unit: str) -> None:
    raw = raw_rows()
    if unit == "datetime":
        time = pl.from_epoch("time", "s")
    else:
        time = pl.col("time") * {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    found = days(write(tmp_path, raw.with_columns(time=time), FEATURES))
    assert found.days[-1] == date(2020, 1, 10)
    assert found.rows == (200, 5, 200, 200)


def test_many_days_are_taken_together(tmp_path: Path) -> None:
    raw = raw_rows().with_columns(time=FIRST + pl.int_range(pl.len()) * DAY)
    found = days(write(tmp_path, raw, FEATURES))
    assert found.length == 7
    assert sum(found.rows) == raw.height
    assert len(found.days) <= 250
    assert found.days[0] <= datetime.fromtimestamp(FIRST).date()


def test_rows_without_time_have_no_days(tmp_path: Path) -> None:
    features = FEATURES.model_copy(update={"timestamp": None})
    with pytest.raises(ValueError, match=r"features\.timestamp"):
        days(write(tmp_path, raw_rows(), features))


def test_numbers_that_are_no_time_are_named(tmp_path: Path) -> None:
    raw = raw_rows().with_columns(time=pl.int_range(pl.len()))
    with pytest.raises(ValueError, match="'time' runs from 0 to 604"):
        days(write(tmp_path, raw, FEATURES))
