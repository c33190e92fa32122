"""Where raw files are: on disk or in an object store, by name, pattern or folder.

Object stores are reached by URL (`s3://`, `gs://`, `az://`, `abfs://`, `abfss://`) through the
library that Polars and Delta use too, so one set of environment variables (`AWS_...`, `GOOGLE_...`,
`AZURE_...`) serves all of them. Secrets have no place in a configuration.
"""

import glob
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import obstore
import pyarrow as pa
from obstore.exceptions import BaseError
from obstore.store import from_url

from feature_store.features import nearest

REMOTE = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_", "abfs": "AZURE_", "abfss": "AZURE_"}
"""Schemes of object stores, and how the environment variables that reach them begin."""
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}

_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


class Unreachable(ValueError):
    """An object store does not answer, or not to us."""


@dataclass(frozen=True)
class RemoteFile:
    """An object of a store, as it was when it was listed."""

    url: str
    size_bytes: int
    modified_ns: int
    tag: str
    """What the store says of its content: `ETag ...` or `version ...`; empty if nothing."""

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self._path.name

    def match(self, pattern: str) -> bool:
        """As `Path.match`: a pattern of the end of the path."""
        return self._path.match(pattern)

    def __str__(self) -> str:
        return self.url

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(self.url.split("://", 1)[1])


AnyFile = Path | RemoteFile


def matches(entry: str) -> list[AnyFile]:
    """The files that a path, a pattern, a folder or a URL of one of them names, by name.

    Folders are read with all that is in them; what begins with a dot or an underscore is passed
    over.

    Raises:
        FileNotFoundError: There is nothing of that name.
        Unreachable: The object store does not answer.
        ValueError: The URL is of a kind that cannot be read.
    """
    if is_remote(entry):
        return list(_remote_matches(entry))
    return list(_local_matches(local_path(entry)))


def is_remote(entry: str) -> bool:
    """Whether an entry is the URL of an object store.

    Raises:
        ValueError: It is a URL of another kind, or one with a password.
    """
    if "://" not in entry:
        return False
    parts = urlsplit(entry)
    if parts.password is not None:
        raise ValueError(
            f"a URL on {parts.hostname} holds a password; leave it out of the configuration and set"
            " it in the environment"
        )
    if parts.scheme == "file":
        return False
    if parts.scheme not in REMOTE:
        known = ", ".join(f"{scheme}://" for scheme in ("file", *REMOTE))
        raise ValueError(
            f"{entry}: {parts.scheme}:// cannot be read; expected a path or one of {known}"
            + ("; mount HDFS as a folder" if parts.scheme in ("hdfs", "viewfs") else "")
        )
    return True


def local_path(entry: str) -> str:
    """A path as it is, or that of a `file://` URL."""
    if not entry.startswith("file://"):
        return entry
    parts = urlsplit(entry)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{entry}: a file URL has three slashes, as in file:///data/clicks.csv")
    return url2pathname(entry.removeprefix("file://").removeprefix("localhost"))


def size_of(file: AnyFile) -> int:
    """In bytes."""
    return file.size_bytes if isinstance(file, RemoteFile) else file.stat().st_size


def current(file: RemoteFile) -> RemoteFile:
    """The same object as it is now.

    Raises:
        FileNotFoundError: It is gone.
    """
    root, key = _split(file.url)
    with _reached(file.url):
        return _remote_file(root, obstore.head(from_url(root), key))


def open_stream(file: AnyFile) -> pa.NativeFile:
    """The bytes of a file from its beginning, decompressed if its name says that they need it."""
    compression = COMPRESSIONS.get(PurePosixPath(file.name).suffix)
    return pa.input_stream(open_bytes(file), compression=compression)


def open_bytes(file: AnyFile) -> Any:
    """What Arrow reads a file from, at any place: a path or a file object."""
    if isinstance(file, Path):
        return str(file)
    root, key = _split(file.url)
    with _reached(file.url):
        return _RemoteBytes(file.url, obstore.open_reader(from_url(root), key))


def partition_of(file: AnyFile) -> dict[str, str | None]:
    """What the folders of a file say of all of its rows: `day=2026-11-01/part.parquet`."""
    *folders, _ = str(file).replace("\\", "/").split("/")
    pairs = [folder.split("=", 1) for folder in folders if "=" in folder.strip("=")]
    return {
        unquote(key): None if value == _NULL_PARTITION else unquote(value) for key, value in pairs
    }


def remote_listing(url: str) -> dict[str, RemoteFile]:
    """The objects below a URL, by their path from there."""
    root, key = _split(url)
    prefix = key.rstrip("/")
    start = len(prefix) + 1 if prefix else 0
    with _reached(url):
        listed = [meta for page in obstore.list(from_url(root), prefix or None) for meta in page]
    return {
        meta["path"][start:]: _remote_file(root, meta)
        for meta in sorted(listed, key=lambda meta: meta["path"])
    }


def _local_matches(entry: str) -> Iterator[Path]:
    path = Path(entry)
    if path.is_file():
        return iter([path])
    if path.is_dir():
        inside = sorted(
            file
            for file in path.rglob("*")
            if file.is_file() and _is_shown(str(file.relative_to(path)))
        )
        if not inside:
            raise FileNotFoundError(f"the folder {entry} holds no files")
        return iter(inside)
    found = [Path(match) for match in sorted(glob.glob(entry, recursive=True))]  # noqa: PTH207 - absolute patterns too
    files = [match for match in found if match.is_file()]
    if files:
        return iter(files)
    if glob.has_magic(entry):
        raise FileNotFoundError(f"no file matches {entry}")
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = f"; {nearest(path.name, beside)}" if beside else f"; there is no folder {path.parent}"
    raise FileNotFoundError(f"there is no file {entry}{hint}")


def _remote_matches(entry: str) -> Iterator[RemoteFile]:
    root, key = _split(entry)
    if glob.has_magic(key):
        fixed = re.split(r"[*?\[]", key, maxsplit=1)[0].rpartition("/")[0]
        pattern = re.compile(_regex(key[len(fixed) + 1 if fixed else 0 :]))
        below = remote_listing(f"{root}/{fixed}")
        names_hidden = "/." in f"/{key}"
        found = [
            file
            for path, file in below.items()
            if pattern.fullmatch(path) and (names_hidden or "/." not in f"/{path}")
        ]
        if not found:
            raise FileNotFoundError(f"no file matches {entry}")
        return iter(found)
    below = remote_listing(entry)
    inside = [file for path, file in below.items() if _is_shown(path)]
    if inside:
        return iter(inside)
    if not key or key.endswith("/") or below:
        raise FileNotFoundError(f"the folder {entry} holds no files")
    with _reached(entry):
        return iter([_remote_file(root, obstore.head(from_url(root), key))])


def _is_shown(path: str) -> bool:
    return all(part[0] not in "._" for part in path.split("/"))


def _regex(pattern: str) -> str:
    """A pattern of `glob` as a regular expression; `**` is any number of folders."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.sub(
        r"(\*\*/|\*\*|\*|\?)|(\[!?[^\]]+\])|(.)",
        lambda m: (
            tokens[m[1]] if m[1] else m[2].replace("[!", "[^", 1) if m[2] else re.escape(m[3])
        ),
        pattern,
    )


def _split(url: str) -> tuple[str, str]:
    """Where the store is, and the object's key in it."""
    scheme, rest = url.split("://", 1)
    place, _, key = rest.partition("/")
    return f"{scheme}://{place}", key


def _remote_file(root: str, meta: Any) -> RemoteFile:
    tag = f"ETag {meta['e_tag']}" if meta["e_tag"] else ""
    return RemoteFile(
        url=f"{root}/{meta['path']}",
        size_bytes=meta["size"],
        modified_ns=int(meta["last_modified"].timestamp() * 10**9),
        tag=tag or (f"version {meta['version']}" if meta["version"] else ""),
    )


@contextmanager
def _reached(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {url}") from error
    except (BaseError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        begin = REMOTE[url.split("://", 1)[0]]
        raise Unreachable(
            f"{url} cannot be reached: {reason}; its credentials and endpoint come from the"
            f" environment variables {begin}..."
        ) from error


class _RemoteBytes(io.RawIOBase):
    """An object as a file."""

    def __init__(self, url: str, reader: Any) -> None:
        self._url = url
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place: int = self._reader.seek(offset, whence)
        return place

    def tell(self) -> int:
        place: int = self._reader.tell()
        return place

    def readinto(self, buffer: Any) -> int:
        with _reached(self._url):
            block = memoryview(self._reader.read(len(buffer)))
        buffer[: len(block)] = block
        return len(block)
