"""An object store of the S3 kind on this machine's own network, small but real."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

_TIME = "2026-11-01T00:00:00.000Z"
_HTTP_TIME = "Sun, 01 Nov 2026 00:00:00 GMT"


class ObjectStore:
    """Objects by `bucket/key`."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.reads: list[str] = []
        """Objects whose bytes were asked for."""

    def put_folder(self, folder: Path, prefix: str) -> None:
        """Put all files of a folder, with their paths below it."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.objects[f"{prefix}/{file.relative_to(folder)}"] = file.read_bytes()

    def listed(self, bucket: str, prefix: str) -> bytes:
        """The answer to ListObjectsV2."""
        found = "".join(
            f"<Contents><Key>{escape(name.removeprefix(bucket + '/'))}</Key>"
            f"<LastModified>{_TIME}</LastModified><ETag>{escape(_etag(data))}</ETag>"
            f"<Size>{len(data)}</Size></Contents>"
            for name, data in sorted(self.objects.items())
            if name.startswith(f"{bucket}/{prefix}")
        )
        head = "<?xml version='1.0'?><ListBucketResult><IsTruncated>false</IsTruncated>"
        return f"{head}{found}</ListBucketResult>".encode()


@contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store that the environment names, as it does outside of tests."""
    store = ObjectStore()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(store))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _handler(store: ObjectStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            name, query = unquote(url.path).lstrip("/"), parse_qs(url.query)
            if "list-type" in query:
                prefix = query.get("prefix", [""])[0]
                return self._answer(200, store.listed(name.rstrip("/"), prefix))
            if name not in store.objects:
                return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            data, length, status = store.objects[name], len(store.objects[name]), 200
            headers = {"ETag": _etag(data), "Last-Modified": _HTTP_TIME}
            if self.command == "GET":
                store.reads.append(name)
            if wanted := self.headers.get("Range"):
                first, last = wanted.removeprefix("bytes=").split("-")
                start = int(first) if first else max(0, length - int(last))
                end = min(int(last) + 1 if first and last else length, length)
                data, status = data[start:end], 206
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{length}"
            return self._answer(status, data, headers)

        def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
