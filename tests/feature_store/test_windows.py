"""Windows over events against a loop that looks at every pair of query and event."""

from datetime import UTC, date, datetime, timedelta, timezone
from fractions import Fraction
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from feature_store import windows as module
from feature_store.aggregates import Windows, seconds_of
from feature_store.columns import SchemaMismatch
from feature_store.encoding import row_key
from feature_store.features import Label
from feature_store.windows import (
    KEY,
    TIME,
    nanoseconds,
    normalized,
    window_columns,
)

WINDOWS = Windows.model_validate(
    {
        "by": "user",
        "counters": [
            {"name": "n_3s", "window": "3s"},
            {"name": "n_1m", "window": "1m", "where": "clicked"},
            {"name": "n"},
        ],
        "sums": [{"name": "spent", "of": "price", "window": "5s", "decimals": 2}],
        "rates": [
            {"name": "ctr", "of": "clicked", "window": "4s", "prior": 0.25, "strength": 2},
            {"name": "bare", "of": "clicked"},
        ],
        "last": [{"name": "item", "of": "item", "window": "6s"}],
        "recency": [{"name": "ago"}, {"name": "ago_click", "where": "clicked", "window": "4s"}],
    }
)


def frames(events: list[tuple], queries: list[tuple]) -> tuple[pl.DataFrame, pl.DataFrame]:
    schema = {
        "user": pl.String,
        "time": pl.Int64,
        "clicked": pl.Int8,
        "price": pl.Float64,
        "item": pl.String,
    }
    asked = pl.DataFrame(queries, {"user": pl.String, "time": pl.Int64}, orient="row")
    return pl.DataFrame(events, schema, orient="row"), asked


def computed(
    raw: pl.DataFrame, asked: pl.DataFrame, windows: Windows = WINDOWS, unit: Any = "s"
) -> pl.DataFrame:
    events = normalized(raw, windows, nanoseconds("time", raw.schema["time"], unit))
    key = row_key(windows.by, asked.schema[windows.by])
    queries = asked.select(
        key.alias(KEY), nanoseconds("time", asked.schema["time"], unit).alias(TIME)
    )
    return window_columns(windows, queries, events)


def brute_force(raw: pl.DataFrame, asked: pl.DataFrame) -> list[tuple]:
    found = []
    for query in asked.to_dicts():
        past = [
            event
            for event in raw.to_dicts()
            if event["user"]
            and event["user"] == query["user"]
            and event["time"] is not None
            and query["time"] is not None
            and event["time"] < query["time"]
        ]
        past.sort(key=lambda event: event["time"])  # stable: ties stay in the order of the rows

        def ago(event: dict, now: int | None = query["time"]) -> int:
            return now - event["time"]

        clicks = [event for event in past if event["clicked"] == 1]
        prices = [
            Fraction(event["price"]).limit_denominator(100)
            for event in past
            if ago(event) <= 5 and event["price"] is not None and abs(event["price"]) < 1e9
        ]
        rated = [e["clicked"] == 1 for e in past if e["clicked"] is not None]
        recent = [e["clicked"] == 1 for e in past if e["clicked"] is not None and ago(e) <= 4]
        items = [event["item"] for event in past if ago(event) <= 6 and event["item"]]
        found.append(
            (
                sum(ago(event) <= 3 for event in past),
                sum(ago(event) <= 60 for event in clicks),
                len(past),
                float(sum(prices)),
                (sum(recent) + 0.5) / (len(recent) + 2),
                sum(rated) / len(rated) if rated else None,
                items[-1] if items else None,
                float(ago(past[-1])) if past else None,
                next((float(ago(e)) for e in reversed(clicks) if ago(e) <= 4), None),
            )
        )
    return found


maybe = st.none()
keys = maybe | st.sampled_from(["ann", "bob", ""])
times = maybe | st.integers(-3, 12)
events = st.lists(
    st.tuples(
        keys,
        times,
        maybe | st.integers(0, 2),
        maybe | st.sampled_from([0.1, 0.25, -3.0, float("nan"), float("inf")]),
        maybe | st.sampled_from(["a", "b", ""]),
    ),
    max_size=25,
)
queries = st.lists(st.tuples(keys, times), max_size=12)


@settings(max_examples=50, deadline=None)
@given(events=events, queries=queries)
def test_every_column_is_what_a_look_at_every_event_finds(events, queries):
    raw, asked = frames(events, queries)
    got = computed(raw, asked)
    assert got.columns == WINDOWS.names
    assert got.rows() == brute_force(raw, asked)


@settings(max_examples=15, deadline=None)
@given(events=events, queries=st.lists(st.tuples(keys, times), min_size=1, max_size=6))
def test_a_query_alone_with_its_keys_events_gets_the_same_bits(events, queries):
    raw, asked = frames(events, queries)
    together = computed(raw, asked)
    for place, (user, _) in enumerate(queries):
        alone = computed(raw.filter(pl.col("user").eq_missing(user)), asked[place])
        assert alone.equals(together[place])


def test_a_comparison_that_lets_the_present_instant_in_is_seen(monkeypatch):
    raw, asked = frames([("ann", 5, 1, 1.0, "a")], [("ann", 5)])
    assert computed(raw, asked).rows() == brute_force(raw, asked)
    monkeypatch.setattr(module, "_before", module._not_after)
    leaking = computed(raw, asked)
    assert leaking.rows() != brute_force(raw, asked)
    assert leaking["n"].to_list() == [1]


def test_a_window_holds_its_first_instant_and_not_the_present_one():
    raw, asked = frames([("ann", t, 1, 1.0, "a") for t in (6, 7, 8, 10)], [("ann", 10)])
    assert computed(raw, asked)["n_3s"].to_list() == [2]


def test_sums_do_not_depend_on_the_order_nor_on_what_other_keys_spend():
    prices = [0.1, 0.2, 0.3, 1e9]
    rows = [("ann", t, 1, p, "a") for t, p in enumerate(prices)]
    others = [("bob", t, 1, 1e12, "a") for t in range(4)]
    raw, asked = frames([*others, *reversed(rows)], [("ann", 3), ("ann", 4)])
    assert computed(raw, asked)["spent"].to_list() == [0.6, 1e9 + 0.6]


def test_numbers_too_large_for_their_decimals_are_an_error():
    raw, asked = frames([("ann", 1, 1, 1e18, "a")], [("ann", 2)])
    with pytest.raises(ValueError, match=r"'spent' cannot sum 'price' to 2 decimals.*fewer"):
        computed(raw, asked)


DAY = datetime(2024, 3, 1, 12)
EAST = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([DAY, DAY + timedelta(milliseconds=1)], dtype=pl.Datetime("ms")),
        pl.Series([DAY, DAY + timedelta(milliseconds=1)], dtype=pl.Datetime("ns")),
        pl.Series([DAY.replace(tzinfo=UTC), DAY.replace(tzinfo=UTC) + timedelta(milliseconds=1)]),
        pl.Series(
            [datetime(2024, 3, 1, 14, tzinfo=EAST), datetime(2024, 3, 1, 14, 0, 0, 1000, EAST)]
        ).dt.convert_time_zone("Europe/Helsinki"),
        pl.Series([1_709_294_400.0, 1_709_294_400.0015]),
    ],
    ids=["ms", "ns", "utc", "zone", "float seconds"],
)
@pytest.mark.parametrize("asked_ms", [1, 0])
def test_times_of_any_unit_and_zone_are_compared_as_instants(column, asked_ms):
    windows = Windows.model_validate({"by": "user", "counters": [{"name": "n"}]})
    raw = pl.DataFrame({"user": ["a", "a"], "time": column})
    now = pl.Series([1_709_294_400_000 + asked_ms])
    queries = pl.DataFrame({"user": ["a"], "time": now}).select(
        row_key("user", pl.String()).alias(KEY),
        nanoseconds("time", pl.Int64(), "ms").alias(TIME),
    )
    events = normalized(raw, windows, nanoseconds("time", raw.schema["time"]))
    assert window_columns(windows, queries, events)["n"].to_list() == [asked_ms]


def test_dates_are_their_midnight_and_impossible_times_lie_at_the_ends():
    frame = pl.DataFrame(
        {"d": [date(1970, 1, 2)], "n": [2**62], "f": [-1e300], "x": [float("nan")]}
    )
    got = frame.select(*(nanoseconds(name, dtype) for name, dtype in frame.schema.items())).row(0)
    assert got[0] == 86_400 * 10**9
    assert 2**63 - 1 - 10**9 < got[1] < 2**63
    assert got[2:] == (-(2**63), None)


def test_a_window_before_all_time_is_empty_of_nothing():
    windows = Windows.model_validate({"by": "user", "counters": [{"name": "n", "window": "9w"}]})
    first = pl.DataFrame({KEY: [1], TIME: [-(2**63) + 5]})
    assert window_columns(windows, first, first.with_columns(pl.lit(-(2**63)).alias(TIME)))[
        "n"
    ].to_list() == [1]


def test_a_label_with_a_threshold_tells_which_events_count():
    windows = Windows.model_validate({"by": "user", "where": "liked", "counters": [{"name": "n"}]})
    raw = pl.DataFrame({"user": 7, "time": [1, 2, 3], "stars": [5.0, 3.0, 4.0]})
    labels = (Label(name="liked", source="stars", threshold=4),)
    events = normalized(raw, windows, nanoseconds("time", pl.Int64()), labels)
    queries = pl.DataFrame({"user": "7", "time": 9}).select(
        row_key("user", pl.String()).alias(KEY), nanoseconds("time", pl.Int32()).alias(TIME)
    )
    assert window_columns(windows, queries, events)["n"].to_list() == [2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counters": [{"name": "n", "where": "cliked"}]}, "did you mean 'clicked'"),
        ({"sums": [{"name": "s", "of": "item"}]}, "'s' sums 'item', which has the type String"),
        ({"rates": [{"name": "r", "of": "item"}]}, "'item' has the type String.*bool"),
        ({"by": "usr", "counters": [{"name": "n"}]}, "did you mean 'user'"),
    ],
)
def test_columns_that_are_not_there_or_cannot_be_read_are_named(changes, message):
    windows = Windows.model_validate({"by": "user", **changes})
    raw, _ = frames([], [])
    with pytest.raises(SchemaMismatch, match=message):
        normalized(raw, windows, nanoseconds("time", pl.Int64()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"counters": [{"name": "n", "window": "1 hour"}]}, "such as 1h or 30d; found '1 hour'"),
        ({"counters": [{"name": "n", "window": "0s"}]}, "a window needs a length"),
        ({"counters": [{"name": "n", "window": "999999d"}]}, "longer than 292 years"),
        ({"counters": [{"name": "n"}], "recency": [{"name": "n"}]}, "two columns are named 'n'"),
        ({"counters": [{"name": "a b"}]}, "'a b' cannot name a column"),
    ],
)
def test_windows_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        Windows.model_validate({"by": "user", **values})


def test_durations_and_the_longest_window():
    assert [seconds_of(text) for text in ("90s", "15m", "1h", "30d", "2w")] == [
        90, 900, 3600, 2_592_000, 1_209_600,
    ]  # fmt: skip
    assert WINDOWS.longest_seconds is None
    assert WINDOWS.only(["n_1m", "ago_click"]).longest_seconds == 60
    assert WINDOWS.only(["n_1m", "ago_click"]).names == ["n_1m", "ago_click"]
    assert set(WINDOWS.reads()) == {"clicked", "price", "item"}
