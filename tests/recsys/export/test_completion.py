"""Rows served by their keys: the values, the scores, what is said of them, and what is refused."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from polars.testing import assert_frame_equal
from support import online, served

from feature_store import online as online_features
from feature_store.asof import histories
from feature_store.features import ROW_COLUMN
from feature_store.online import (
    FeaturesMismatch,
    OnlineFeatures,
    open_store,
    require_compatible,
)
from feature_store.online_lmdb import LmdbStore
from feature_store.online_redis import RedisStore
from feature_store.online_store import NothingPublished, window_rules
from feature_store.publishing import publish
from feature_store.version import Version
from pipelines.sources import read
from recsys.export import server
from recsys.export.bundle import ExportConfig
from recsys.export.completion import Completion
from recsys.export.predictor import Predictor
from recsys.export.publish import export_bundle
from recsys.export.requests import InvalidRows

NOW = online.START + 41 * 3600
"""After the last event."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("completion")


@pytest.fixture(scope="module")
def version(folder) -> Version:
    events = online.events_in(folder)
    return online.built(folder, online.log(), online.WITH_EVENTS, events=events)


@pytest.fixture(scope="module")
def predictor(folder, version) -> Predictor:
    model = served.served_ranker(version.fitted, "dnn")
    golden = version.raw_sample()
    data = online.config(folder, online.log(), events=online.events_in(folder))
    info = {"windows": window_rules(data.events)}
    export_bundle(
        model, version.fitted, golden, folder / "bundle", ExportConfig(compile=False), info
    )
    return Predictor(folder / "bundle", num_threads=2)


@pytest.fixture(scope="module")
def store(folder, version) -> LmdbStore:
    store = LmdbStore(folder / "online")
    publish(version, store, grace_seconds=0.0)
    return store


@pytest.fixture(scope="module")
def features(store, predictor) -> OnlineFeatures:
    return server.stored_features(predictor, str(store.folder))


@pytest.fixture(scope="module")
def client(predictor, features):
    with TestClient(server.create_app(predictor, features=features, max_rows=100)) as client:
        yield client


@pytest.fixture(scope="module")
def later(folder) -> pl.DataFrame:
    """Raw rows after the last event, as a build would see them: users and items known and new."""
    log = online.log()
    latest = dict(log.select("user_id", "country").iter_rows())
    users = [*[f"ü{i}" for i in range(online.NUM_USERS)], "ü25", "nobody"]
    random = np.random.default_rng(5)
    rows = pl.DataFrame(
        {
            "user_id": users * 2,
            "item_id": [*range(online.NUM_ITEMS), *[999] * (2 * len(users) - online.NUM_ITEMS)],
            "country": [latest.get(user) for user in users * 2],
            "device": random.choice(["phone", "tv", "radio"], 2 * len(users)).tolist(),
            "time": [NOW] * (2 * len(users)),
            "amount": [1.0] * (2 * len(users)),
            "clicked": [0] * (2 * len(users)),
        },
        schema_overrides=log.schema,
    )
    events = online.events_in(folder / "later")
    data = online.config(folder / "later", pl.concat([log, rows]), events=events)
    staged = folder / "later" / "staged"
    staged.mkdir()
    raw = histories(read(data, online.WITH_EVENTS, staged).frame, online.WITH_EVENTS)
    return raw.filter(pl.col(ROW_COLUMN) >= log.height).sort(ROW_COLUMN).collect()


def keys_of(raw: pl.DataFrame) -> list[dict]:
    """What a client that knows nothing but the keys and the context sends."""
    return raw.select("user_id", "item_id", "device", "time").to_dicts()


def test_rows_served_by_key_are_encoded_and_scored_as_the_raw_rows(
    client, predictor, features, later
) -> None:
    completed = Completion(features, predictor.signature).raw({"rows": keys_of(later)}, 100)
    assert completed.misses == {"user_id": 1, "item_id": 1}
    encode = predictor.fitted.encode
    assert_frame_equal(
        encode(completed.rows.lazy()).collect(), encode(later.lazy()).collect(), check_exact=True
    )
    assert later["liked"].list.len().max() == 3 and later["clicks_1h"].max() == 0
    assert later["viewed"].list.len().max() == 3 and later["seen"].max() > 0

    by_key = client.post("/predict", json={"rows": keys_of(later)})
    assert by_key.status_code == 200, by_key.text
    whole = later.select(predictor.signature.names)
    rows = json.loads(whole.write_json())
    with TestClient(server.create_app(predictor)) as plain:
        by_value = plain.post("/predict", json={"rows": rows})
    assert by_value.status_code == 200, by_value.text
    assert by_key.json()["scores"] == by_value.json()["scores"]
    offline = predictor.score_conformed(predictor.signature.conform(later))
    assert by_key.json()["scores"] == offline[:, 0].astype(float).tolist()
    assert (
        client.post("/predict", json={"rows": rows}).json()["scores"] == by_value.json()["scores"]
    )


def test_candidates_of_a_context_are_scored_as_rows(client) -> None:
    context = {"user_id": "ü3", "device": "tv", "time": NOW}
    candidates = [*range(20), 999]
    answer = client.post("/predict", json={"context": context, "candidates": candidates})
    assert answer.status_code == 200, answer.text
    rows = [{**context, "item_id": item} for item in candidates]
    assert answer.json()["scores"] == client.post("/predict", json={"rows": rows}).json()["scores"]
    told = answer.json()["features"]
    assert told["version"] == "clicks@0" and told["misses"] == {"user_id": 0, "item_id": 1}
    assert told["age_seconds"] > 3600
    nothing = client.post("/predict", json={"context": context, "candidates": []}).json()
    assert nothing["scores"] == []


def test_what_a_request_brings_wins_over_what_is_stored(features, predictor) -> None:
    completion = Completion(features, predictor.signature)
    row = {"user_id": "ü3", "item_id": 4, "device": "tv", "time": NOW}
    rows = [row, {**row, "price": 7.5}, {**row, "price": None, "liked": [1], "seen": 9}]
    found = completion.raw({"rows": rows}, 10).rows
    stored = online.items()["price"][4]
    assert found["price"].to_list() == [stored, 7.5, None]
    assert found["liked"][2].to_list() == [1] and found["liked"][0].to_list() != [1]
    assert found["seen"][2] == 9


def test_histories_and_windows_are_of_what_was_before_the_rows_time(features, predictor) -> None:
    completion = Completion(features, predictor.signature)
    log = online.log()
    user = log["user_id"][0]
    mine = log.filter((pl.col("user_id") == user) & (pl.col("clicked") == 1))
    times = mine["time"].tail(3).to_list()
    for time in (times[0], times[-1], times[-1] + 1):
        row = {"user_id": user, "item_id": 1, "device": "tv", "time": time}
        found = completion.raw({"rows": [row, row]}, 10).rows
        expected = mine.tail(3).filter(pl.col("time") < time)["item_id"].to_list()
        assert found["liked"].to_list() == [expected, expected]
        assert found["bought"][0].to_list()[-len(expected) :] == expected or not expected
        since = time - times[-1] if time > times[-1] else None
        if since is not None:
            assert found["since_click"][0] == since
    row = {"user_id": user, "item_id": 1, "device": "tv", "time": times[-1] + 1800}
    hour = mine.filter(pl.col("time") >= times[-1] + 1800 - 3600).height
    assert completion.raw({"rows": [row]}, 10).rows["clicks_1h"][0] == hour


@pytest.mark.parametrize(
    ("request_", "field", "found"),
    [
        ({"rows": [{"item_id": 1, "device": "tv", "time": 1}]}, "user_id", "no such field"),
        (
            {"rows": [{"user_id": "a", "item_id": 1, "time": 1}]},
            "device",
            "no such field, and none",
        ),
        ({"rows": [{"user_id": "a", "colour": 1}]}, "colour", "the number 1; did you"),
        ({"rows": [{"user_id": 7}]}, "user_id", "the number 7"),
        ({"rows": [3]}, None, "the number 3"),
        ({"rows": [{}] * 11}, "rows", "11 rows"),
        ({"context": {"device": "tv"}, "candidates": [1]}, "context", "0 of them"),
        ({"context": {"user_id": "a", "item_id": 1}, "candidates": [1]}, "context", "2 of them"),
        ({"context": {"user_id": 3}, "candidates": [1]}, "user_id", "the number 3"),
        ({"context": {"user_id": "a"}, "candidates": ["x"]}, "item_id", "the text 'x'"),
        ({"context": {"user_id": "a"}, "candidates": 3}, "candidates", "the number 3"),
        ({"context": [], "candidates": []}, "context", "the list []"),
        ({"context": {"user_id": "a"}, "candidates": [1] * 11}, "candidates", "11 candidates"),
        ({"context": {}}, None, "context"),
        ({}, None, "no field"),
    ],
)
def test_a_request_that_cannot_be_completed_is_named(
    features, predictor, request_, field, found
) -> None:
    with pytest.raises(InvalidRows) as caught:
        Completion(features, predictor.signature).raw(request_, 10)
    (problem, *_) = caught.value.problems
    assert problem.field == field
    assert problem.found.startswith(found), problem.found


def test_the_first_row_without_its_key_is_named(features, predictor) -> None:
    row = {"user_id": "a", "item_id": 1, "device": "tv", "time": 1}
    keyless = {name: value for name, value in row.items() if name != "item_id"}
    with pytest.raises(InvalidRows) as caught:
        Completion(features, predictor.signature).raw({"rows": [row, row, keyless]}, 10)
    (problem,) = caught.value.problems
    assert (problem.row, problem.field) == (2, "item_id")
    assert problem.found.startswith("no such field")


def test_a_refused_request_is_answered_with_422_and_health_tells_the_version(
    client, version
) -> None:
    answer = client.post("/predict", content=b'{"rows": [{"user_id": 7}]}')
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["field"] == "user_id"
    assert client.post("/predict", content=b"[1]").status_code == 422
    assert client.post("/predict", content=b"{").status_code == 422
    state = client.get("/health").json()["features"]
    assert state["version"] == "clicks@0" and state["problem"] is None
    # One user is known by views alone.
    assert state["keys"] == {"user_id": online.NUM_USERS + 1, "item_id": online.NUM_ITEMS}


@pytest.fixture(params=["lmdb", "redis"])
def moving(request, tmp_path: Path, version, monkeypatch):
    """An online store that publishes anew while it is read."""
    monkeypatch.setattr(online_features, "CHECK_SECONDS", 0.0)
    if request.param == "lmdb":
        store = LmdbStore(tmp_path / "moving")
        publish(version, store, grace_seconds=0.0)
        yield store
    else:
        with online.redis_server(tmp_path) as url:
            store = RedisStore(url)
            publish(version, store, grace_seconds=0.0)
            yield store


def test_a_new_version_is_taken_up_without_a_failed_request(predictor, version, moving) -> None:
    features = OnlineFeatures(moving, predictor.fitted)
    body = json.dumps(
        {"context": {"user_id": "ü3", "device": "tv", "time": NOW}, "candidates": [1, 2]}
    ).encode()
    completion = Completion(features, predictor.signature)
    answers: list[tuple[int, bytes]] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answers.append(server.respond(predictor, body, 10, completion))

    asking = threading.Thread(target=ask)
    asking.start()
    first = features.published.id
    for _ in range(3):
        published = publish(version, moving, grace_seconds=0.0).published
    ended.set()
    asking.join()
    assert features.published.id == published.id != first
    assert {status for status, _ in answers} == {200}
    assert len({json.loads(answer)["scores"][0] for _, answer in answers}) == 1


def test_a_version_that_does_not_fit_is_not_taken_up(
    predictor, version, moving, monkeypatch
) -> None:
    features = OnlineFeatures(moving, predictor.fitted)
    first = features.published.id
    other = changed(features.published, lambda entity: entity.columns.update(price="string"))
    with moving.publishing():
        moving.write(other, [])
        moving.switch(other)
        moving.retire(0.0)
    if isinstance(moving, LmdbStore):
        assert features.published.id == first
        assert "expected the column 'price' as float, found string" in features.state()["problem"]
    else:  # its rows are gone, so there is nothing to answer with
        row = {"user_id": "ü3", "item_id": 4, "device": "tv", "time": NOW}
        body = json.dumps({"rows": [row]}).encode()
        status, answer = server.respond(
            predictor, body, 10, Completion(features, predictor.signature)
        )
        assert status == 503 and b"expected the column 'price' as float" in answer


def changed(published, change: Callable):
    """Another publication, of other features, in which one stored entity differs."""
    made = published.model_copy(update={"id": "other", "features_fingerprint": "other"}, deep=True)
    for entity in made.snapshot.entities:
        if "price" in entity.columns or "liked" in entity.columns:
            change(entity)
    return made


def test_a_version_of_other_features_with_the_same_columns_fits(features, predictor) -> None:
    require_compatible(changed(features.published, lambda entity: None), predictor.fitted)


def cleared(entity) -> None:
    entity.columns.clear()


def shortened(entity) -> None:
    histories = tuple(h.model_copy(update={"max_length": 1}) for h in entity.histories)
    object.__setattr__(entity, "histories", histories)


def retyped(entity) -> None:
    entity.columns.update({name: "bool" for name in entity.columns if name == "price"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cleared, r"clicks@0 in the online store has none of the columns that the model reads"),
        (retyped, r"expected the column 'price' as float, found bool"),
        (shortened, r"the history 'liked' is of the last 3 'item_id' by 'user_id' where 'clicked'"),
    ],
)
def test_a_version_that_cannot_complete_the_models_rows_is_refused(
    features, predictor, change, message
) -> None:
    with pytest.raises(FeaturesMismatch, match=message):
        require_compatible(changed(features.published, change), predictor.fitted)


def test_windows_of_another_length_are_refused_whatever_else_fits(features, predictor) -> None:
    rules = predictor.bundle.manifest.info["windows"]
    require_compatible(features.published, predictor.fitted, rules)
    other = {**rules, "clicks_1h": {**rules["clicks_1h"], "window": "2h"}}
    message = r"expected the window 'clicks_1h' as .*'2h'.* found .*'1h'"
    with pytest.raises(FeaturesMismatch, match=message):
        require_compatible(features.published, predictor.fitted, other)


def test_without_a_published_version_nothing_is_served(predictor, tmp_path: Path) -> None:
    with pytest.raises(NothingPublished, match="nothing was published"):
        OnlineFeatures(open_store(str(tmp_path / "empty")), predictor.fitted)
