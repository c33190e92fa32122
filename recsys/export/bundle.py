"""A bundle: one folder with all that turns raw rows into scores, and nothing else needed.

    program.pt2            the model, compiled by AOTInductor or as a torch.export program
    features/              fitted features
    signature.json         raw columns and scores
    golden.parquet         raw rows, and in golden_scores.parquet what the trained model gave them
    manifest.json          what the bundle is, and size and sha256 of every file; written last

`recsys.export.publish` writes bundles; this module reads them and imports nothing of training.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field, JsonValue, PositiveFloat, PositiveInt, ValidationError

from feature_store.config import Config
from feature_store.encoding import FittedFeatures
from recsys.embeddings.quantized import Precision
from recsys.export.signature import Signature

FORMAT = 1

PROGRAM = "program.pt2"
FEATURES = "features"
SIGNATURE = "signature.json"
GOLDEN = "golden.parquet"
GOLDEN_SCORES = "golden_scores.parquet"
MANIFEST = "manifest.json"

ProgramKind = Literal["aotinductor", "torch.export"]

_OPEN_ATTEMPTS = 3


class ExportConfig(Config):
    """What goes into a bundle and how it is checked."""

    compile: bool = True
    """Compile by AOTInductor (needs a C++ compiler here, none where it is served); without, the
    bundle holds the slower `torch.export` program."""
    precision: Precision = "fp32"
    """Of the embedding tables in the bundle: int8 and int4 keep a scale and a minimum for each row.
    What a scheme stores itself (codes, codebooks, sparse rows) stays as it is."""
    golden_rows: PositiveInt = 64
    """Raw rows kept in the bundle and replayed before it is published."""
    tolerance: PositiveFloat = 1e-5
    """Largest difference of a score of the bundle from the trained model's."""


class BundleNotFound(FileNotFoundError):
    """No bundle where one was asked for."""


class BundleMismatch(ValueError):
    """A bundle that is not what its manifest says, or does not fit the machine or its scores."""

    def __init__(self, problem: str, *, expected: object, found: object) -> None:
        self.expected, self.found = expected, found
        super().__init__(f"{problem}: expected {expected}, found {found}")


class FileRecord(Config):
    """One file of a bundle."""

    size_bytes: int
    sha256: str


class Check(Config):
    """What a fresh process saw when it replayed the golden rows."""

    rows: int
    batch_sizes: tuple[int, ...]
    """Sizes of the batches replayed, none of them traced."""
    largest_difference: float
    """From the trained model's own scores."""


class Processor(Config):
    """What a compiled program needs to run."""

    machine: str
    """Architecture, as `uname -m` says it."""
    capability: str
    """Least vector instructions, as `torch.backends.cpu.get_cpu_capability` names them."""


class Manifest(Config):
    """What a bundle is."""

    format: int = FORMAT
    program: ProgramKind
    program_note: str | None = None
    """Why the program is not compiled, where that was wanted."""
    processor: Processor | None
    """None: any."""
    features_fingerprint: str
    versions: dict[str, str | None]
    """Libraries at export; None for what was not installed."""
    created: str
    """Time of the export in UTC, ISO form."""
    info: dict[str, JsonValue]
    """Whatever the exporter tells: experiment, its hash, data version, evaluation headline."""
    tolerance: float
    """Largest difference of a score from the trained model's that the exporter accepts."""
    check: Check | None = None
    files: dict[str, FileRecord] = Field(default_factory=dict)
    """By path relative to the bundle, in `/` form; all but the manifest."""

    def to_bytes(self) -> bytes:
        """The one form of `manifest.json`: its own digest first, keys sorted, NaN as null."""
        values = json.loads(self.model_dump_json())
        digest = hashlib.sha256(_canonical(values)).hexdigest()
        return _canonical({"digest": digest, **values})

    @classmethod
    def from_bytes(cls, content: bytes, path: Path) -> "Manifest":
        """Read a manifest and check it against its own digest.

        Raises:
            BundleMismatch: Not a byte-for-byte manifest of this format.
        """
        try:
            values = json.loads(content)
            found = values.get("format")
        except (ValueError, AttributeError) as error:
            raise BundleMismatch(
                f"{path} is damaged", expected="a manifest in JSON", found=str(error)
            ) from error
        if found != FORMAT:
            raise BundleMismatch(f"{path} is of another format", expected=FORMAT, found=found)
        digest = values.pop("digest", None)
        expected = hashlib.sha256(_canonical(values)).hexdigest()
        if digest != expected or _canonical({"digest": digest, **values}) != content:
            raise BundleMismatch(f"{path} was changed", expected=f"digest {digest}", found=expected)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise BundleMismatch(
                f"{path} is of another version", expected="the fields of this one", found=str(error)
            ) from error


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files are those of its manifest."""

    folder: Path
    manifest: Manifest
    signature: Signature

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Open a bundle and verify every byte of it.

        Raises:
            BundleNotFound: There is no bundle.
            BundleMismatch: A file is missing or changed; names it.
        """
        folder = Path(folder)
        for attempt in range(_OPEN_ATTEMPTS):
            found = existing(folder)
            content = _read_manifest(found)
            try:
                return cls._verified(found, Manifest.from_bytes(content, found / MANIFEST))
            except (BundleMismatch, FileNotFoundError):
                # A new bundle may have been published while this one was read.
                replaced = not found.is_dir() or _read_manifest(found) != content
                if attempt + 1 == _OPEN_ATTEMPTS or not replaced:
                    raise
        raise AssertionError("the last attempt returns or raises")

    @classmethod
    def _verified(cls, folder: Path, manifest: Manifest) -> "Bundle":
        for name, record in manifest.files.items():
            verify(folder / name, record)
        text = (folder / SIGNATURE).read_text(encoding="utf-8")
        return cls(folder, manifest, Signature.model_validate_json(text))

    @property
    def program(self) -> Path:
        """The program's file."""
        return self.folder / PROGRAM

    @cached_property
    def fitted(self) -> FittedFeatures:
        """The fitted features that encode raw rows."""
        fitted = FittedFeatures.load(self.folder / FEATURES)
        if fitted.fingerprint != self.manifest.features_fingerprint:
            raise BundleMismatch(
                f"{self.folder / FEATURES} are the features of another bundle",
                expected=self.manifest.features_fingerprint,
                found=fitted.fingerprint,
            )
        return fitted

    def golden(self) -> tuple[pl.DataFrame, np.ndarray]:
        """Raw rows, and the trained model's scores of them: float32 (rows, tasks)."""
        scores = pl.read_parquet(self.folder / GOLDEN_SCORES)
        return (
            pl.read_parquet(self.folder / GOLDEN),
            scores.select(self.signature.tasks).to_numpy(order="c"),
        )


def previous(folder: Path) -> Path:
    """Where the old bundle waits while a file system without atomic exchange takes the new one."""
    return folder.with_name(f".{folder.name}.previous")


def existing(folder: Path) -> Path:
    """The folder of the last bundle published as `folder`.

    Raises:
        BundleNotFound: There is none.
    """
    for candidate in (folder, previous(folder)):
        if (candidate / MANIFEST).is_file():
            return candidate
    raise BundleNotFound(
        f"{folder} is no bundle: it has no {MANIFEST}; write one with `recsys export RUN`"
    )


def record(path: Path) -> FileRecord:
    """Size and digest of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(size_bytes=path.stat().st_size, sha256=digest)


def verify(path: Path, expected: FileRecord) -> None:
    """Check a file against its record.

    Raises:
        BundleMismatch: The file is missing, or not the one that was recorded.
    """
    if not path.is_file():
        raise BundleMismatch(f"{path} is missing", expected="a file", found="none")
    size = path.stat().st_size
    if size != expected.size_bytes:
        raise BundleMismatch(
            f"{path} was changed", expected=f"{expected.size_bytes} bytes", found=f"{size} bytes"
        )
    found = record(path)
    if found != expected:
        raise BundleMismatch(
            f"{path} was changed",
            expected=f"sha256 {expected.sha256}",
            found=found.sha256,
        )


def _read_manifest(folder: Path) -> bytes:
    return (folder / MANIFEST).read_bytes()


def _canonical(values: dict[str, JsonValue]) -> bytes:
    text = json.dumps(values, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return text.encode() + b"\n"
