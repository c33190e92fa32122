"""A version of a feature table: what its commit says of it, and how its rows are read."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired

import polars as pl
from typing_extensions import TypedDict

from feature_store import table
from feature_store.config import Config
from feature_store.encoding import FittedFeatures
from feature_store.features import Layout
from feature_store.lease import Lease

BUILDS_FOLDER = "builds"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class VersionNotFound(LookupError):
    """There is no such table, no such version, or its files are gone."""


class SourceFile(TypedDict):
    """A file that was read, and what was in it."""

    path: str
    size_bytes: int
    modified_ns: int
    """Time of the last modification, in nanoseconds since 1970."""
    sha256: str
    hashed_ns: int
    """Time at which the content was identified, likewise."""
    identified_by: NotRequired[str]
    """What `sha256` was made of, where the content itself was not fetched: the `ETag` or `version`
    of an object store, or `size and time`."""


class Metadata(TypedDict):
    """Where a version comes from; plain values, for reports."""

    fingerprint: str
    """Of the sources' content, the configuration and the code's formats: equal means the same."""
    config_hash: str
    sources: list[SourceFile]
    rows_in: int
    rows_rejected: int
    rejected_reasons: dict[str, int]
    rejected_path: str | None
    """CSV file of the rows that could not be read; None when there are none."""
    unmatched: dict[str, int]
    """By joined file: rows without a partner in it."""
    libraries: dict[str, str]
    negatives_dropped: NotRequired[int]
    """Training rows that data.negative_downsampling left out; absent without it."""
    missing: NotRequired[dict[str, dict[str, int]]]
    """By split and encoded number, rows whose raw number was missing; those with an indicator tell
    that themselves."""
    warnings: NotRequired[list[str]]
    """What data.checks warned of; absent if of nothing."""
    owner: NotRequired[str | None]
    """data.owner when the version was built."""
    description: NotRequired[str | None]
    """data.description, likewise."""
    code: NotRequired[str]
    """Release of this program, and a hash of the sources that build features."""
    configuration: NotRequired[dict[str, Any]]
    """`data` and `features` as they stood, defaults and all."""
    grown_from: NotRequired[int]
    """Number of the version whose ids these features keep; absent without features.grow_from."""
    grown_from_fingerprint: NotRequired[str]
    """That version's fingerprint."""


class Record(Config):
    """What a commit says of its version."""

    metadata: Metadata
    build: str
    created: datetime
    rows: dict[str, int]


@dataclass(frozen=True)
class Version:
    """One immutable version of a feature table, which nobody removes while this object lives."""

    name: str
    number: int
    """The version of the Delta table."""
    path: Path
    """Folder of the feature table in the store."""
    metadata: Metadata
    rows: dict[str, int]
    """Rows per split."""
    build: str
    """Unique name of the build that wrote it."""
    created: datetime
    _files: dict[str, tuple[Path, ...]]
    _lease: Lease | None = field(default=None, compare=False, repr=False)

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints mean the same sources, configuration and code formats."""
        return self.metadata["fingerprint"]

    @property
    def folder(self) -> Path:
        """What its build left beside the rows; what follows from the version may be kept here."""
        return self.path / BUILDS_FOLDER / self.build

    @cached_property
    def fitted(self) -> FittedFeatures:
        """The features as fitted to this version's training split."""
        return FittedFeatures.load(self.folder / table.FEATURES_FOLDER)

    @property
    def layout(self) -> Layout:
        """What an encoded row looks like."""
        return self.fitted.layout

    def files(self, split: str) -> list[Path]:
        """Parquet files of a split; their rows, file after file, are in the order of the source."""
        return list(self._files[table.known_split(split)])

    def scan(self, split: str) -> pl.LazyFrame:
        """The encoded rows of a split, in the order of the source."""
        files = self.files(split)
        if not files:
            return pl.LazyFrame(schema=table.encoded_schema(self.layout))
        return pl.scan_parquet(files, hive_partitioning=False)

    def raw_sample(self) -> pl.DataFrame:
        """Some raw rows of the last split that has any, with histories, as scoring gets them."""
        return pl.read_parquet(self.folder / "raw.parquet")


def check_name(name: str) -> None:
    """Refuse what cannot name a feature table.

    Raises:
        ValueError: Says what can.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a feature table: expected a letter or digit followed by"
            " letters, digits, '.', '_' and '-'"
        )


def parse_reference(text: str) -> tuple[str, int | None]:
    """The table and the number of `NAME` or `NAME@NUMBER`; None: the latest version.

    Raises:
        ValueError: It is neither.
    """
    name, at, number = text.partition("@")
    if at and not re.fullmatch(r"[0-9]+", number):
        raise ValueError(
            f"{text!r} names no version: expected NAME or NAME@NUMBER, such as {name or 'clicks'}@3"
        )
    check_name(name)
    return name, int(number) if at else None
