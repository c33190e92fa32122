"""What raw files and a configuration are, in one number: equal numbers build equal versions."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from feature_store import encoding, vocabulary
from feature_store.features import FeatureSet
from feature_store.store import SourceFile
from pipelines.sources import DataConfig
from pipelines.split import splits_of
from pipelines.tables import source_files

FORMAT = 2
"""Raised with every change of which rows a build takes, of their split or of how they are kept.

And with every change of a default: what a configuration leaves out is not in its fingerprint.
"""

KnownHashes = Mapping[tuple[str, int, int], str]
"""sha256 by path, size and time of modification."""


class SourceChanged(ValueError):
    """A file was changed while it was read."""


def configured_files(data: DataConfig) -> list[Path]:
    """All files that a build reads: those of the rows, then those of the side tables."""
    return [file for table in (data, *data.joins) for file in source_files(table.path)]


def identify(file: Path, known: KnownHashes) -> SourceFile:
    """A file with its content's hash, which is not computed again where it is known."""
    status = file.stat()
    key = (str(file.absolute()), status.st_size, status.st_mtime_ns)
    return SourceFile(
        path=key[0],
        size_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        hashed_ns=time.time_ns(),
        sha256=known.get(key) or _sha256(file),
    )


def require_unchanged(sources: Sequence[SourceFile]) -> None:
    """Check that files are as they were identified.

    Raises:
        SourceChanged: Names the file that is not.
    """
    for source in sources:
        status = Path(source["path"]).stat()
        if (status.st_size, status.st_mtime_ns) != (source["size_bytes"], source["modified_ns"]):
            raise SourceChanged(
                f"{source['path']} was changed while it was read, so nothing was written; build"
                " again when it is complete"
            )


def fingerprint(data: DataConfig, feature_set: FeatureSet, sources: Sequence[SourceFile]) -> str:
    """sha256 over all that decides what a version holds; where files lie does not.

    Their names count only where they decide the split. A selection counts by its content, as one of
    the sources.
    """
    described = _plain(data, {"path", "store", "joins"})
    described["joins"] = [_plain(join, {"path"}) for join in data.joins]
    if data.split.files is not None:
        described["split_of_files"] = splits_of(source_files(data.path), data.split.files)
    return _digest(
        {
            "formats": [FORMAT, encoding.FORMAT],
            "hashes": vocabulary.HASH_LIBRARY,
            "data": described,
            "files": [len(source_files(table.path)) for table in (data, *data.joins)],
            "features": _plain(feature_set, {"selection"}),
            "sources": [source["sha256"] for source in sources],
        }
    )


def config_hash(data: DataConfig, feature_set: FeatureSet) -> str:
    """sha256 of the two configurations as they stand."""
    return _digest({"data": _plain(data), "features": _plain(feature_set)})


def _plain(config: BaseModel, without: Set[str] = frozenset()) -> dict[str, Any]:
    """A configuration in plain values, without the keys that have their defaults.

    So a key that a later release brings changes no fingerprint of configurations that leave it
    out. Tags such as `kind` stay: what they choose is not a default.
    """
    plain = _without_defaults(config, config.model_dump(mode="json"))
    return {name: value for name, value in plain.items() if name not in without}


def _without_defaults(value: object, dumped: Any) -> Any:
    """The dump of a value, less the defaults of all configurations in it."""
    if isinstance(value, BaseModel):
        return {
            name: _without_defaults(getattr(value, name), dumped[name])
            for name, field in type(value).model_fields.items()
            if _is_tag(field)
            or field.is_required()
            or getattr(value, name) != field.get_default(call_default_factory=True)
        }
    if isinstance(value, tuple | list):
        return [_without_defaults(each, d) for each, d in zip(value, dumped, strict=True)]
    if isinstance(value, Mapping):
        pairs = zip(value.values(), dumped.items(), strict=True)
        return {name: _without_defaults(each, d) for each, (name, d) in pairs}
    return dumped


def _is_tag(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
