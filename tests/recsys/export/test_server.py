import json
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from support import served

from recsys.export import server
from recsys.export.bundle import BundleMismatch
from recsys.export.requests import table


@pytest.fixture(scope="module")
def client(predictor):
    with TestClient(server.create_app(predictor, max_rows=100)) as client:
        yield client


def body(raw) -> dict:
    return {"rows": json.loads(raw.drop("click").write_json())}


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "user": TEXTS,
            "item": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 29),
            "member": st.none() | st.booleans(),
            "genre_text": TEXTS | st.sampled_from(["drama|comedy", "Žánr", "|", "drama||"]),
            "tags": st.lists(TEXTS | st.sampled_from(["drama", "comedy"]), max_size=9),
            "seen": st.lists(st.integers(-3, 40), max_size=9),
            "price": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
            "age": st.integers(-5, 200),
            "clicked": st.datetimes().map(lambda time: time.isoformat()),
        }
    ),
    min_size=1,
    max_size=5,
)

ROUNDING = 1e-5
"""What an export accepts, too. Kernels round differently by batch size and number of threads, the
more the larger a price is; a wrong id or number moves a score far more."""


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_the_served_score_of_a_row_is_its_offline_score(client, predictor, tmp_path_factory, rows):
    answer = client.post("/predict", json={"rows": rows})
    assert answer.status_code == 200, answer.text
    folder = tmp_path_factory.mktemp("offline")
    lines = folder / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predictor.score_file(lines, folder / "scores.parquet")
    written = pl.read_parquet(folder / "scores.parquet")["click"]
    np.testing.assert_allclose(answer.json()["scores"], written, rtol=0, atol=ROUNDING)


@given(ROWS)
@settings(max_examples=30, deadline=None)
def test_the_score_of_a_row_from_a_csv_file_is_its_served_score(
    client, predictor, tmp_path_factory, rows
):
    # A list in a text file cannot hold its own separator.
    rows = [{**row, "tags": [tag.replace(";", "") for tag in row["tags"]]} for row in rows]
    folder = tmp_path_factory.mktemp("csv")
    lists = [
        pl.col("tags").list.join(";"),
        pl.col("seen").cast(pl.List(pl.String)).list.join(" "),
    ]
    table(rows, predictor.signature).with_columns(lists).write_csv(folder / "rows.csv")
    predictor.score_file(folder / "rows.csv", folder / "scores.parquet", batch_size=2)
    scores = client.post("/predict", json={"rows": rows}).json()["scores"]
    written = pl.read_parquet(folder / "scores.parquet")["click"]
    np.testing.assert_allclose(scores, written, rtol=0, atol=ROUNDING)


def test_served_scores_are_the_trained_models(client, features, model):
    raw = served.rows(30, seed=21)
    scores = client.post("/predict", json=body(raw)).json()["scores"]
    expected = np.array(served.trained_scores(features, model, raw))[:, 0]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_one_row_and_no_row_are_answered(client):
    (score,) = client.post("/predict", json=body(served.rows(1))).json()["scores"]
    assert 0 < score < 1
    assert client.post("/predict", json={"rows": []}).json() == {"scores": []}


def test_requests_at_the_same_time_get_their_own_scores(client):
    bodies = [body(served.rows(5, seed)) for seed in range(24)]
    alone = [client.post("/predict", json=one).json() for one in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: client.post("/predict", json=one).json(), bodies))
    assert together == alone


def refusal(client, content: bytes) -> list[dict]:
    answer = client.post("/predict", content=content)
    assert answer.status_code == 422, answer.text
    return answer.json()["detail"]


@pytest.mark.parametrize(
    ("change", "field", "expected", "found"),
    [
        ({"item": None}, "item", "an integer of 64 bits", "null"),
        ({"item": "3"}, "item", "an integer of 64 bits", "the text '3'"),
        ({"item": True}, "item", "an integer of 64 bits", "the bool true"),
        ({"price": float("nan")}, "price", "a finite number or null", "the number nan"),
        ({"user": 7}, "user", "text", "the number 7"),
        ({"seen": ["x"]}, "seen", "a list of integers of 64 bits", "the text 'x' at position 0 .*"),
        ({"colour": 1}, "colour", "no such field", "the number 1; .*"),
    ],
)
def test_a_field_that_does_not_fit_is_answered_with_422(client, change, field, expected, found):
    request = body(served.rows(3))
    request["rows"][2].update(change)
    (problem,) = refusal(client, json.dumps(request).encode())
    assert (problem["row"], problem["field"], problem["expected"]) == (2, field, expected)
    assert re.fullmatch(found, problem["found"])


def test_a_missing_field_is_answered_with_422(client):
    request = body(served.rows(2))
    del request["rows"][1]["age"]
    (problem,) = refusal(client, json.dumps(request).encode())
    assert (problem["row"], problem["field"]) == (1, "age")
    assert problem["found"].startswith("no such field")


@pytest.mark.parametrize(
    ("content", "field", "found"),
    [
        (b"", None, "no JSON"),
        (b"{oops", None, "no JSON"),
        (b"\xff\xff", None, "no JSON"),
        (b"[" * 100_000, None, "no JSON"),
        (b"[1]", "rows", "the list [1]"),
        (b'{"row": []}', "rows", "the object {'row': []}"),
        (b'{"rows": {}}', "rows", "the object"),
        (b'{"rows": [], "model": 1}', "model", "this field"),
        (json.dumps({"rows": [{}] * 101}).encode(), "rows", "101 rows"),
        (b'{"rows": [1]}', None, "the number 1"),
    ],
)
def test_a_body_that_is_no_request_is_answered_with_422(client, content, field, found):
    problem = refusal(client, content)[0]
    assert problem["field"] == field
    assert problem["found"].startswith(found)


def test_a_body_too_large_is_refused_before_it_is_read_whole(client, monkeypatch):
    monkeypatch.setattr(server, "MAX_BODY_BYTES", 1000)
    answer = client.post("/predict", content=b" " * 1001)
    assert answer.status_code == 413


def test_health_and_signature_tell_what_is_served(client, bundle):
    health = client.get("/health").json()
    assert (health["status"], health["info"]) == ("ok", {"experiment": "e"})
    signature = client.get("/signature").json()
    assert signature["tasks"] == ["click"] and signature["max_rows"] == 100
    examples = {column["name"]: column["example"] for column in signature["columns"]}
    nullable = {column["name"] for column in signature["columns"] if column["nullable"]}
    assert nullable == {"member", "price"}
    assert client.post("/predict", json={"rows": [examples]}).status_code == 200


def test_several_tasks_are_answered_by_name(predictor, monkeypatch):
    monkeypatch.setattr(type(predictor), "score_conformed", lambda self, raw: np.eye(2)[:1])
    two = predictor.signature.model_copy(update={"tasks": ("click", "buy")})
    monkeypatch.setattr(type(predictor), "signature", two)
    status, answer = server.respond(predictor, json.dumps(body(served.rows(1))).encode())
    assert (status, json.loads(answer)) == (200, {"scores": [{"click": 1.0, "buy": 0.0}]})


def test_a_bundle_that_scores_differently_here_is_not_served(predictor, monkeypatch):
    server.verify_scores(predictor)
    monkeypatch.setattr(type(predictor), "replay", lambda self, rows: 0.5)
    with pytest.raises(BundleMismatch, match=r"differently on this machine: .* found 0\.5"):
        server.verify_scores(predictor)


def test_without_fastapi_the_extra_to_install_is_named(bundle):
    code = """
import sys
sys.modules["fastapi"] = None
import recsys.export.server
"""
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'recsys[serve]'" in done.stderr.splitlines()[-1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_process_answers_on_loopback_and_stops_when_told(bundle, predictor):
    port = free_port()
    code = (
        "import sys; from pathlib import Path; from recsys.export.server import serve;"
        " serve(Path(sys.argv[1]), port=int(sys.argv[2]))"
    )
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(bundle.folder), str(port)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                assert httpx.get(f"{url}/health").json()["status"] == "ok"
                break
            except httpx.TransportError:
                assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
                time.sleep(0.2)
        raw = served.rows(20, seed=31)
        scores = httpx.post(f"{url}/predict", json=body(raw)).json()["scores"]
        np.testing.assert_allclose(scores, predictor.score(raw)[:, 0], atol=1e-7)
        assert httpx.post(f"{url}/predict", content=b"{").status_code == 422
    finally:
        process.terminate()
        assert process.wait(timeout=30) in (0, -15)
