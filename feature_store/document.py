"""The one writer of numbers that are read back: metrics, reports, benchmark results.

JSON has no NaN. A number that is not finite is written as `null` and *named*: the document's own
key `not_finite` maps its place (a JSON pointer, RFC 6901) to what it was. Reading puts it back, so
a document survives the round trip, and a reader in another language sees which nulls are which.
"""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from datetime import date, datetime
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np

NOT_FINITE = "not_finite"
_BY_NAME = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_text(document: Mapping[str, Any], *, indent: int | None = 2) -> str:
    """The document as JSON text; `indent=None` gives one line, as `metrics.jsonl` needs.

    NumPy scalars and arrays, tuples, paths, dates and enums become their plain JSON forms.

    Raises:
        ValueError: A key `not_finite` is already there; it is this writer's own.
        TypeError: A value or key has no JSON form; the message says where.
    """
    if NOT_FINITE in document:
        raise ValueError(f"the key {NOT_FINITE!r} is written by the document writer; rename yours")
    found: dict[str, str] = {}
    plain = _plain(document, "", found)
    if found:
        plain[NOT_FINITE] = found
    return json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False)


def from_text(text: str) -> dict[str, Any]:
    """The document again, with every number that was not finite back in its place.

    Raises:
        ValueError: The text is not a JSON object, or names a place that it does not have.
    """
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, found {type(document).__name__}")  # noqa: TRY004
    for pointer, name in document.pop(NOT_FINITE, {}).items():
        _restore(document, pointer, name)
    return document


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write the document; the file is there whole or not at all."""
    write_text(to_text(document) + "\n", path)


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote; ValueError names the file if it is not such a document."""
    try:
        return from_text(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_text(text: str, path: Path) -> None:
    """Replace the file in one act: a reader or a kill sees the old text or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    unfinished = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.chmod(0o644)  # mkstemp's 0600 would hide the report from a web server
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _plain(value: object, pointer: str, found: dict[str, str]) -> Any:
    """The value in JSON's own types; notes in `found` each number that is not finite."""
    match value:
        case np.generic() | np.ndarray():
            return _plain(value.tolist(), pointer, found)
        case Enum():
            return _plain(value.value, pointer, found)
        case None | bool() | int() | str():
            return value
        case float():
            if math.isfinite(value):
                return value
            found[pointer] = str(value)
            return None
        case Mapping():
            return {
                _key(key, pointer): _plain(item, f"{pointer}/{_escape(str(key))}", found)
                for key, item in value.items()
            }
        case list() | tuple():
            return [_plain(item, f"{pointer}/{i}", found) for i, item in enumerate(value)]
        case PurePath():
            return str(value)
        case date() | datetime():
            return value.isoformat()
    raise TypeError(f"{pointer or '/'}: {type(value).__name__} has no JSON form")


def _key(key: object, pointer: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{pointer or '/'}: the key {key!r} is not text")
    return key


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _restore(document: dict[str, Any], pointer: str, name: str) -> None:
    keys = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    target: Any = document
    try:
        for key in keys[:-1]:
            target = target[int(key)] if isinstance(target, list) else target[key]
        last: Any = int(keys[-1]) if isinstance(target, list) else keys[-1]
        if target[last] is not None:
            raise ValueError(f"{NOT_FINITE} names {pointer}, which is {target[last]!r}, not null")
        target[last] = _BY_NAME[name]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{NOT_FINITE} names {pointer} as {name!r}: no such place") from error
