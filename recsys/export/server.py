"""A bundle over HTTP: `POST /predict`, `GET /health`, `GET /signature`.

Requests are checked against the signature before anything is scored; what does not fit is answered
with 422 and the row, the field, what was expected and what was found. Reading, checking and scoring
run in threads, so the event loop only moves bytes. With an online store, requests may leave out
what is stored by key (`recsys.export.completion`).

Shapes: B rows, T tasks.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

from feature_store.online import OnlineFeatures, open_store
from feature_store.online_store import OnlineStoreError
from recsys.export.bundle import BundleMismatch
from recsys.export.completion import FORMS, Completion
from recsys.export.predictor import Predictor
from recsys.export.requests import InvalidRows, Problem, described, table, unusable

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response
except ImportError as error:
    raise ImportError(
        f"serving needs FastAPI and uvicorn ({error}); install them with: pip install"
        " 'recsys[serve]'"
    ) from error

MAX_ROWS = 10_000
"""Rows of one request; files of more are for `recsys predict`."""

MAX_BODY_BYTES = 64 << 20

_BODY = '{"rows": [{...}, ...]}'


def create_app(
    predictor: Predictor,
    *,
    max_rows: int = MAX_ROWS,
    features: OnlineFeatures | None = None,
) -> FastAPI:
    """The service of one loaded bundle.

    Args:
        predictor: Its threads take the requests, one each.
        max_rows: Largest number of rows in a request.
        features: Completes rows by their keys; without, rows bring every column.
    """
    completion = None if features is None else Completion(features, predictor.signature)
    manifest = predictor.bundle.manifest
    signature = predictor.signature.model_dump(mode="json")
    # The documentation pages of FastAPI load scripts from elsewhere; `/signature` is ours.
    app = FastAPI(title="recsys", docs_url=None, redoc_url=None)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return JSONResponse(
                    {"detail": f"the request has more than {MAX_BODY_BYTES} bytes"}, 413
                )
        loop = asyncio.get_running_loop()
        status, answer = await loop.run_in_executor(
            predictor.threads, respond, predictor, bytes(body), max_rows, completion
        )
        return Response(answer, status, media_type="application/json")

    @app.get("/health")
    def health() -> dict[str, Any]:
        state = {} if features is None else {"features": features.state()}
        return {
            "status": "ok",
            "program": manifest.program,
            "created": manifest.created,
            "info": manifest.info,
            **state,
        }

    @app.get("/signature")
    async def describe() -> dict[str, Any]:
        return {**signature, "max_rows": max_rows}

    return app


def respond(
    predictor: Predictor,
    body: bytes,
    max_rows: int = MAX_ROWS,
    completion: Completion | None = None,
) -> tuple[int, bytes]:
    """Status and JSON answer to the body of a request to `/predict`.

    One task: `{"scores": [0.1, ...]}`; several: `{"scores": [{"click": 0.1, "buy": 0.02}, ...]}`.
    With a completion, `features` tells the version of the stored features, their age in seconds,
    and how many keys they do not have.
    """
    answer: dict[str, Any] = {}
    try:
        if completion is None:
            raw = table(_rows(body, max_rows), predictor.signature)
        else:
            completed = completion.raw(_object(body), max_rows)
            raw, answer = completed.rows, {"features": completion.answer(completed)}
        if problems := unusable(raw, predictor.fitted):
            raise InvalidRows(problems)
    except InvalidRows as error:
        detail = [problem._asdict() for problem in error.problems]
        return 422, json.dumps({"detail": detail}).encode()
    except OnlineStoreError as error:
        return 503, json.dumps({"detail": str(error)}).encode()
    scores_BT = predictor.score_conformed(raw)
    tasks = predictor.signature.tasks
    scores: list[Any] = scores_BT.astype(float).tolist()
    if len(tasks) == 1:
        scores = [row[0] for row in scores]
    else:
        scores = [dict(zip(tasks, row, strict=True)) for row in scores]
    return 200, json.dumps({"scores": scores, **answer}, allow_nan=False).encode()


def serve(
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    num_threads: int | None = None,
    features: str | None = None,
) -> None:
    """Serve a bundle until the process is told to stop.

    Args:
        folder: The bundle; its golden rows are replayed before the first request is taken.
        host: Address to listen on; the default is reachable from this machine only.
        port: Port to listen on.
        num_threads: Requests scored at the same time; one per core if absent.
        features: An online store by which rows are completed: a folder or a Redis URL.

    Raises:
        BundleMismatch: A file was changed, or the bundle does not give its golden scores here.
        OnlineStoreError: Nothing was published to the store, it does not answer, or what was
            published is not for this bundle.
    """
    predictor = Predictor(folder, num_threads=num_threads)
    online = None if features is None else stored_features(predictor, features)
    verify_scores(predictor)
    app = create_app(predictor, features=online)
    uvicorn.run(app, host=host, port=port, access_log=False)


def stored_features(predictor: Predictor, store: str) -> OnlineFeatures:
    """The online store of a folder or URL, for a bundle's features.

    Raises:
        OnlineStoreError: Nothing was published to the store, it does not answer, or what was
            published is not for this bundle.
    """
    windows = predictor.bundle.manifest.info.get("windows", {})
    assert isinstance(windows, dict), "an exporter tells windows by their columns"
    return OnlineFeatures(open_store(store), predictor.fitted, windows)


def verify_scores(predictor: Predictor) -> None:
    """Replay the golden rows on this machine, with these libraries.

    Raises:
        BundleMismatch: They score differently.
    """
    raw, _ = predictor.bundle.golden()
    difference = predictor.replay(raw.height)
    tolerance = predictor.bundle.manifest.tolerance
    if not difference <= tolerance:
        raise BundleMismatch(
            f"{predictor.bundle.folder} scores its golden rows differently on this machine",
            expected=f"differences of at most {tolerance:g}",
            found=f"{difference:g}",
        )


def _rows(body: bytes, max_rows: int) -> list[object]:
    """The rows of a request's body.

    Raises:
        InvalidRows: The body is not JSON, or not an object with a list of rows, or too long.
    """
    request = _json(body)
    if not isinstance(request, dict) or not isinstance(request.get("rows"), list):
        found = described(request)
        raise InvalidRows([Problem(None, "rows", f"a list of rows: {_BODY}", found)])
    others = [name for name in request if name != "rows"]
    if others:
        raise InvalidRows(
            [Problem(None, name, f"nothing but rows: {_BODY}", "this field") for name in others]
        )
    rows: list[object] = request["rows"]
    if len(rows) > max_rows:
        raise InvalidRows([Problem(None, "rows", f"at most {max_rows} rows", f"{len(rows)} rows")])
    return rows


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request's body; InvalidRows for anything else."""
    request = _json(body)
    if not isinstance(request, dict):
        raise InvalidRows([Problem(None, None, FORMS, described(request))])
    return request


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRows([Problem(None, None, f"JSON: {_BODY}", f"no JSON: {error}")]) from error
