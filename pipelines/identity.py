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
from pipelines.files import AnyFile, RemoteFile, current
from pipelines.sources import DataConfig
from pipelines.split import splits_of
from pipelines.tables import TableConfig, source_files, table_files

FORMAT = 2
"""Raised with every change of which rows a build takes, of their split or of how they are kept.

And with every change of a default: what a configuration leaves out is not in its fingerprint.
"""

KnownHashes = Mapping[tuple[str, int, int], str]
"""sha256 by path, size and time of modification."""


class SourceChanged(ValueError):
    """A file was changed, or vanished, while it was read."""


def configured_files(data: DataConfig) -> list[AnyFile]:
    """All files that a build reads: those of the rows, of the side tables and of the events."""
    return [file for table in data.tables for file in source_files(table)]


def identify(file: AnyFile, known: KnownHashes) -> SourceFile:
    """A file with its content's hash, which is not computed again where it is known.

    A file in an object store is not fetched for that: its ETag or version stands for its content,
    or else its URL, size and time; `identified_by` says which.
    """
    if isinstance(file, RemoteFile):
        return _identify_remote(file)
    status = file.stat()
    key = (str(file.absolute()), status.st_size, status.st_mtime_ns)
    return SourceFile(
        path=key[0],
        size_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        hashed_ns=time.time_ns(),
        sha256=known.get(key) or _sha256(file),
    )


def _identify_remote(file: RemoteFile) -> SourceFile:
    tag = file.tag or f"{file.url} {file.modified_ns}"
    return SourceFile(
        path=file.url,
        size_bytes=file.size_bytes,
        modified_ns=file.modified_ns,
        hashed_ns=time.time_ns(),
        sha256=_digest([file.size_bytes, tag]),
        identified_by=file.tag.split(" ")[0] or "size and time",
    )


def require_unchanged(sources: Sequence[SourceFile]) -> None:
    """Check that files are as they were identified.

    Raises:
        SourceChanged: Names the file that is not, or is gone.
    """
    for source in sources:
        try:
            unchanged = _is_unchanged(source)
        except FileNotFoundError as error:
            raise SourceChanged(
                f"{source['path']} vanished while it was read, so nothing was written; build again"
                " when it is back"
            ) from error
        if not unchanged:
            raise SourceChanged(
                f"{source['path']} was changed while it was read, so nothing was written; build"
                " again when it is complete"
            )


def _is_unchanged(source: SourceFile) -> bool:
    if "identified_by" in source:
        seen = RemoteFile(source["path"], source["size_bytes"], source["modified_ns"], "")
        return identify(current(seen), {})["sha256"] == source["sha256"]
    status = Path(source["path"]).stat()
    return (status.st_size, status.st_mtime_ns) == (source["size_bytes"], source["modified_ns"])


def fingerprint(
    data: DataConfig,
    feature_set: FeatureSet,
    sources: Sequence[SourceFile],
    grown_from: str | None = None,
) -> str:
    """sha256 over all that decides what a version holds; where files lie does not.

    Their names count only where they decide the split. A selection counts by its content, as one of
    the sources; a version that this one grows from by its fingerprint.
    """
    described = _plain(data, {"path", "store", "joins", "events", "owner", "description", "checks"})
    described["joins"] = [_plain(join, {"path"}) for join in data.joins]
    if data.events:
        described["events"] = [_plain(events, {"path"}) for events in data.events]
    if data.split.files is not None:
        described["split_of_files"] = splits_of(source_files(data), data.split.files)
    partitions = [partition for table in data.tables for partition in _partitions(table)]
    if any(partitions):
        described["partitions"] = partitions
    field_ids = [_field_ids(table) for table in data.tables]
    if any(field_ids):
        described["field_ids"] = field_ids
    return _digest(
        {
            "formats": [FORMAT, encoding.FORMAT],
            "hashes": vocabulary.HASH_LIBRARY,
            "data": described,
            "files": [len(source_files(table)) for table in data.tables],
            "features": _plain(feature_set, {"selection", "grow_from"}),
            "sources": [source["sha256"] for source in sources],
            **({} if grown_from is None else {"grown_from": grown_from}),
        }
    )


def _partitions(table: TableConfig) -> list[dict[str, str | None]]:
    """By file: what its folders say of the declared columns."""
    names = [name if c.column is None else str(c.column) for name, c in table.columns.items()]
    return [
        {name: source.partition[name] for name in names if name in source.partition}
        for source in table_files(table)
    ]


def _field_ids(table: TableConfig) -> list[int]:
    """Which columns of a table, whose files may have other names for them, are declared."""
    names = [name if c.column is None else str(c.column) for name, c in table.columns.items()]
    known = table_files(table)[0].field_ids
    return [known[name] for name in names if name in known]


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
