"""Columns computed of events before each row: against a loop, and what bad events lead to."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from feature_store.columns import SchemaMismatch
from feature_store.features import (
    SPLITS,
    Categorical,
    FeatureSet,
    History,
    Label,
    Numeric,
    Sequence,
)
from feature_store.store import Store
from pipelines import events as module
from pipelines.build import build
from pipelines.leakage import Leak
from pipelines.rejection import TooManyRejected
from pipelines.sources import DataConfig, Source, preview, read

COLUMNS = {"user": "string", "item": "string", "time": "int", "clicked": "int"}
VIEWS = {"user": "string", "item": "string", "at": "int", "bought": "int", "price": "float"}
LOG = pl.DataFrame(
    {
        "user": ["ann", "bob", "ann", "ann", None, "eve"],
        "item": ["x", "x", "y", "z", "x", "y"],
        "time": [100, 110, 4000, 4000, 5000, 90_000],
        "clicked": [1, 0, 0, 1, 1, 0],
    }
)


def features(*names: str, history: History | None = None) -> FeatureSet:
    inputs: list[Any] = [Categorical(name="item"), *(Numeric(name=name) for name in names)]
    if history is not None:
        inputs.append(Sequence(name="seen", of="item", max_length=2, history=history))
    return FeatureSet(inputs=tuple(inputs), labels=(Label(name="clicked"),), timestamp="time")


def source(
    folder: Path,
    events: list[dict[str, Any]],
    feature_set: FeatureSet,
    frame: pl.DataFrame = LOG,
    **changes: Any,
) -> Source:
    path = folder / "log.csv"
    frame.write_csv(path)
    values = {"path": str(path), "columns": COLUMNS, "events": events, **changes}
    staged = folder / "staged"
    staged.mkdir()
    return read(DataConfig.model_validate(values), feature_set, staged)


def table(folder: Path, rows: list[tuple], **changes: Any) -> dict[str, Any]:
    types = {
        name: {"string": pl.String, "int": pl.Int64}.get(t, pl.Float64) for name, t in VIEWS.items()
    }
    path = folder / "views.csv"
    pl.DataFrame(rows, types, orient="row").write_csv(path)
    values = {"name": "views", "path": str(path), "columns": VIEWS, "by": "user", "time": "at"}
    return {**values, **changes}


COUNTER = [{"name": "views_1h", "window": "1h"}]


def test_rows_are_their_own_events_before_but_not_at_their_time(tmp_path: Path) -> None:
    events = [
        {
            "name": "users",
            "rows": True,
            "by": "user",
            "counters": [
                {"name": "seen_1h", "window": "1h"},
                {"name": "clicks", "where": "clicked"},
            ],
            "rates": [{"name": "ctr", "of": "clicked", "prior": 0.5, "strength": 1}],
        },
        {"name": "items", "rows": True, "by": "item", "counters": [{"name": "item_seen"}]},
    ]
    names = ("seen_1h", "clicks", "ctr", "item_seen")
    rows = source(tmp_path, events, features(*names)).frame.select(names).collect().rows()
    assert rows == [
        (0, 0, 0.5, 0),
        (0, 0, 0.5, 1),
        (0, 1, 0.75, 0),
        (0, 1, 0.75, 0),
        (0, 0, 0.5, 2),
        (0, 0, 0.5, 1),
    ]


def test_events_come_from_files_in_any_order_and_columns_that_nobody_reads_are_not_made(
    tmp_path: Path,
) -> None:
    rows = [
        ("ann", "b", 3999, 1, 2.5),
        ("bob", "a", 109, 0, 1.0),
        ("ann", "a", 400, 0, 0.1),
        ("ann", "a", 399, 0, 0.1),
        ("ann", "c", 4000, 1, 9.0),
    ]
    events = table(
        tmp_path,
        rows,
        counters=[{"name": "views_1h", "window": "1h"}, {"name": "unread"}],
        sums=[{"name": "spent", "of": "price"}],
        last=[{"name": "latest", "of": "item"}],
        recency=[{"name": "ago"}],
    )
    feature_set = features("views_1h", "spent", "ago")
    feature_set = feature_set.model_copy(
        update={"inputs": (*feature_set.inputs, Categorical(name="latest"))}
    )
    found = source(tmp_path, [events], feature_set).frame.collect()
    assert "unread" not in found.columns
    assert found.select("views_1h", "spent", "latest", "ago").rows() == [
        (0, 0.0, None, None),
        (1, 1.0, "a", 1.0),
        (2, 2.7, "b", 1.0),
        (2, 2.7, "b", 1.0),
        (0, 0.0, None, None),
        (0, 0.0, None, None),
    ]


@pytest.mark.parametrize("partition_rows", [5, 4_000_000])
def test_partitions_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partition_rows: int
) -> None:
    monkeypatch.setattr(module, "PARTITION_ROWS", partition_rows)
    random = np.random.default_rng(0)
    happened = [
        (f"u{random.integers(6)}", f"i{number}", int(random.integers(50)), 1, 0.0)
        for number in range(60)
    ]
    log = pl.DataFrame(
        {
            "user": [f"u{user}" for user in random.integers(0, 8, 40)],
            "item": "x",
            "time": random.integers(0, 60, 40),
            "clicked": 0,
        }
    )
    config = table(
        tmp_path,
        happened,
        counters=[{"name": "n", "window": "9s"}],
        last=[{"name": "latest", "of": "item"}],
    )
    feature_set = features("n").model_copy(
        update={"inputs": (*features("n").inputs, Categorical(name="latest"))}
    )
    got = source(tmp_path, [config], feature_set, log).frame.select("n", "latest").collect().rows()
    expected = []
    for row in log.to_dicts():
        past = [e for e in happened if e[0] == row["user"] and e[2] < row["time"]]
        latest = max(past, key=lambda e: e[2])[2] if past else None
        ties = [e[1] for e in past if e[2] == latest]
        recent = [e for e in past if e[2] >= row["time"] - 9]
        expected.append((len(recent), ties[-1] if ties else None))
    assert got == expected


maybe = st.none()
event_rows = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob"]),
        maybe | st.sampled_from(["a", "b", "c"]),
        st.integers(0, 9),
        maybe | st.integers(0, 1),
        st.just(0.0),
    ),
    min_size=1,
    max_size=12,
)
log_rows = st.lists(
    st.tuples(st.sampled_from(["ann", "bob", "eve"]), st.integers(5, 12)), min_size=1, max_size=8
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=event_rows, rows=log_rows, bought_only=st.booleans())
def test_a_history_of_events_is_what_a_look_at_every_event_finds(
    tmp_path_factory: pytest.TempPathFactory, events, rows, bought_only
) -> None:
    folder = tmp_path_factory.mktemp("events")
    where = "bought" if bought_only else None
    history = History(by="user", events="views", where=where)
    log = pl.DataFrame(
        {
            "user": [user for user, _ in rows],
            "item": "x",
            "time": [time for _, time in rows],
            "clicked": 0,
        }
    )
    config = table(folder, events, horizon=None)
    if min(event[2] for event in events) >= max(time for _, time in rows):
        with pytest.raises(Leak, match="lie at or after the newest row"):
            source(folder, [config], features(history=history), log)
        return
    got = source(folder, [config], features(history=history), log).frame.collect()["seen"]
    for (user, now), seen in zip(rows, got.to_list(), strict=True):
        past = [e for e in events if e[0] == user and e[2] < now and e[1] is not None]
        past = sorted((e for e in past if not bought_only or e[3] == 1), key=lambda e: e[2])
        assert seen == [e[1] for e in past][-2:]


@pytest.mark.parametrize("unit", ["s", "datetime"])
def test_a_history_of_events_brings_its_times_in_the_type_of_the_rows(
    tmp_path: Path, unit: str
) -> None:
    config = table(tmp_path, [("ann", "a", 10, 1, 0.0), ("ann", "b", 20, 1, 0.0)])
    feature_set = features(history=History(by="user", events="views"))
    seen = feature_set.feature("seen").model_copy(update={"gaps": True})
    feature_set = feature_set.model_copy(update={"inputs": (feature_set.inputs[0], seen)})
    log = LOG.filter(pl.col("user") == "ann")
    columns = COLUMNS
    if unit == "datetime":
        columns = {**COLUMNS, "time": "datetime"}
        log = log.with_columns(pl.from_epoch("time", time_unit="s"))
    found = source(tmp_path, [config], feature_set, log, columns=columns).frame.collect()
    times = found["seen__time"].to_list()[0]
    if unit == "datetime":
        times = [(time - datetime(1970, 1, 1)).total_seconds() for time in times]
    assert (found["seen"].to_list()[0], times) == (["a", "b"], [10, 20])


def test_a_history_of_the_rows_by_events_is_that_of_the_log(tmp_path: Path) -> None:
    events = [{"name": "clicks", "rows": True, "by": "user", "where": "clicked"}]
    history = History(by="user", events="clicks")
    found = source(tmp_path, events, features(history=history)).frame.collect()
    assert found["seen"].to_list() == [[], [], ["x"], ["x"], [], []]


def test_times_of_other_units_and_zones_are_the_same_instants(tmp_path: Path) -> None:
    zone = "+02:00"
    start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=2)
    lines = [
        f"ann,a,{(start + timedelta(seconds=s)):%Y-%m-%dT%H:%M:%S}{zone},1,0" for s in (399, 400)
    ]
    path = tmp_path / "zoned.csv"
    path.write_text("user,item,at,bought,price\n" + "\n".join(lines) + "\n")
    config = {
        **table(tmp_path, []),
        "path": str(path),
        "columns": {**VIEWS, "at": "datetime"},
        "counters": COUNTER,
    }
    seconds = source(tmp_path, [config], features("views_1h")).frame.collect()
    assert seconds["views_1h"].to_list() == [0, 0, 1, 1, 0, 0]
    (tmp_path / "staged").rename(tmp_path / "before")
    milliseconds = LOG.with_columns(pl.col("time") * 1000)
    found = source(tmp_path, [config], features("views_1h"), milliseconds, time_unit="ms")
    assert found.frame.collect()["views_1h"].to_list() == [0, 0, 1, 1, 0, 0]


def test_events_without_a_key_or_time_or_from_the_future_are_kept_aside(tmp_path: Path) -> None:
    rows = [
        ("ann", "a", 50, 1, 0.0),
        (None, "a", 50, 1, 0.0),
        ("ann", "a", None, 1, 0.0),
        ("ann", "a", 90_000 + 86_401, 1, 0.0),
        ("ann", "a", 90_000 + 86_400, 1, 0.0),
    ]
    config = table(tmp_path, rows, counters=COUNTER)
    found = source(tmp_path, [config], features("views_1h"), max_rejected=0.6)
    assert found.frame.collect()["views_1h"].to_list() == [1, 0, 0, 0, 0, 0]
    assert [(r.line, r.reason) for r in found.side_rejections] == [
        (3, "events 'views': the key 'user' is missing"),
        (4, "events 'views': expected a time in 'at'"),
        (
            5,
            "events 'views': the time in 'at' is later than the newest row by more than the horizon"
            " of 1d",
        ),
    ]
    assert all(r.file.endswith("views.csv") for r in found.side_rejections)
    assert found.side_rejections[0].content == '{"user": null, "at": 50}'


def test_too_many_bad_events_are_an_error_that_counts_all(tmp_path: Path) -> None:
    rows = [("ann", "a", 50, 1, 0.0), *[("ann", "a", None, 1, 0.0)] * 9]
    with pytest.raises(TooManyRejected, match=r"9 of 10 rows \(90.00%\)[^$]*and 6 more"):
        source(tmp_path, [table(tmp_path, rows, counters=COUNTER)], features("views_1h"))


@pytest.mark.parametrize("first", [90_000, 10**9])
def test_events_that_all_come_after_the_rows_are_refused(tmp_path: Path, first: int) -> None:
    config = table(tmp_path, [("ann", "a", first, 1, 0.0)], counters=COUNTER)
    with pytest.raises(Leak, match=r"views.*'at'\) lie at or after the newest row \('time'\)"):
        source(tmp_path, [config], features("views_1h"))


def test_a_preview_has_the_columns_and_judges_no_times(tmp_path: Path) -> None:
    config = table(tmp_path, [("ann", "a", 10**9, 1, 0.0)], counters=COUNTER)
    LOG.write_csv(tmp_path / "log.csv")
    data = DataConfig.model_validate(
        {"path": str(tmp_path / "log.csv"), "columns": COLUMNS, "events": [config]}
    )
    assert preview(data, features("views_1h"), 2).rows["views_1h"].to_list() == [0, 0]


BASE = {"name": "views", "path": "v.csv", "columns": VIEWS, "by": "user", "time": "at"}


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([{**BASE, "time": "art"}], "time reads 'art'.*did you mean 'at'"),
        ([{**BASE, "by": "usr"}], "by reads 'usr'.*did you mean 'user'"),
        (
            [{**BASE, "sums": [{"name": "s", "of": "prize"}]}],
            "the column 's' reads 'prize'.*did you mean 'price'",
        ),
        ([{**BASE, "by": "at"}], "the key 'at' is not a column of the rows"),
        ([{**BASE, "counters": [{"name": "item"}]}], "the column 'item' is already there"),
        ([BASE, BASE], "two are named 'views'"),
        ([{"name": "r", "rows": True, "by": "user", "path": "x.csv"}], "path"),
        ([{**BASE, "name": "my views"}], "'my views': a name is a letter"),
    ],
)
def test_a_wrong_declaration_is_refused_by_name(events: list[dict], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate({"path": "log.csv", "columns": COLUMNS, "events": events})


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (History(by="user", events="view"), "names 'view', which data.events do not declare"),
        (History(by="item", events="views"), "history.by is 'item', but the events 'views'"),
        (History(by="user", events="views", where="liked"), "reads 'liked' of the events 'views'"),
    ],
)
def test_a_history_of_events_that_do_not_fit_is_refused(
    tmp_path: Path, history: History, message: str
) -> None:
    config = table(tmp_path, [("ann", "a", 1, 1, 0.0)])
    with pytest.raises(SchemaMismatch, match=message):
        source(tmp_path, [config], features(history=history))


def test_a_version_is_built_anew_when_its_events_change(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    log = pl.DataFrame(
        {
            "user": [f"u{user}" for user in random.integers(0, 9, 200)],
            "item": "x",
            "time": np.arange(200) + 100,
            "clicked": random.integers(0, 2, 200),
        }
    )
    log.write_csv(tmp_path / "log.csv")
    happened = [("u1", "a", 50, 1, 0.0), ("u1", "a", 60, 1, 0.0)]
    data = DataConfig.model_validate(
        {
            "path": str(tmp_path / "log.csv"),
            "columns": COLUMNS,
            "split": {"by": "time"},
            "events": [table(tmp_path, happened, counters=COUNTER)],
        }
    )
    assert DataConfig.model_validate(data.model_dump(mode="json")) == data
    store, feature_set = Store(tmp_path / "store"), features("views_1h")
    first = build("clicks", data, feature_set, store)
    assert build("clicks", data, feature_set, store).reused
    of_u1 = log.select(pl.when(pl.col("user") == "u1").then(2.0).otherwise(0.0).alias("views_1h"))
    views = [first.version.scan(split).select("views_1h").collect() for split in SPLITS]
    assert pl.concat(views)["views_1h"].to_list() == of_u1["views_1h"].to_list()
    assert "views_1h" in first.version.raw_sample().columns
    table(tmp_path, happened[:1])
    second = build("clicks", data, feature_set, store)
    assert not second.reused
    assert second.version.scan("train").select(pl.col("views_1h").max()).collect().item() == 1.0
    assert any(
        source["path"].endswith("views.csv") for source in second.version.metadata["sources"]
    )


def test_windows_over_rows_need_their_time(tmp_path: Path) -> None:
    events = [{"name": "u", "rows": True, "by": "user", "counters": [{"name": "n"}]}]
    feature_set = features("n").model_copy(update={"timestamp": None})
    with pytest.raises(ValueError, match=r"data\.events needs features\.timestamp"):
        source(tmp_path, events, feature_set)
