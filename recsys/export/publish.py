"""From a trained model to a published bundle: write it aside, check it in a fresh process, swap.

A folder appears under its name only when the bundle in it has given the golden rows the trained
model's scores. Killed at any point, an export leaves the last good bundle and at most a hidden
folder, which the next export removes.
"""

import ctypes
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from feature_store.encoding import FittedFeatures
from recsys.export import bundle as files
from recsys.export import program
from recsys.export.bundle import Bundle, BundleMismatch, Check, ExportConfig, Manifest
from recsys.export.predictor import OnProgress
from recsys.export.signature import Signature, TextFormat
from recsys.export.tensors import program_inputs
from recsys.versions import library_versions

_STAGES = ("trace", "compile", "write", "check", "publish")
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class ExportBusy(RuntimeError):
    """Another process is exporting to the same folder."""


def export_bundle(
    model: nn.Module,
    fitted: FittedFeatures,
    golden_raw: pl.DataFrame,
    folder: Path,
    config: ExportConfig | None = None,
    info: dict[str, Any] | None = None,
    on_progress: OnProgress = lambda stage, done, total: None,
    *,
    text: TextFormat | None = None,
) -> Bundle:
    """Write, check and publish a bundle.

    Args:
        model: A trained ranker whose embeddings are in serving form, on CPU.
        fitted: The fitted features it was trained on.
        golden_raw: Raw rows, of which the first `config.golden_rows` go into the bundle.
        folder: Where the bundle appears; an older bundle there is replaced.
        config: What goes into the bundle; the defaults if absent.
        info: JSON values for the manifest (experiment and its hash, data version, headline).
        on_progress: Called with the stage, stages done and stages in all.
        text: How text files wrote the training data, if it came from such.

    Raises:
        ExportBusy: Another export to the folder is running.
        BundleMismatch: The bundle's scores differ from the trained model's; nothing is published.
        CompilationFailed: There is a compiler, but it could not compile the model.
        ValueError: There are no golden rows.
    """
    config = config or ExportConfig()
    if not golden_raw.height:
        raise ValueError("an export needs at least one raw row to check the bundle with; got none")
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _clean(folder)
        work = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        work.mkdir()
        try:
            writer = _Writer(work, model, fitted, config, on_progress)
            writer.write(golden_raw, info or {}, text or TextFormat())
            publish(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    on_progress("publish", len(_STAGES), len(_STAGES))
    return Bundle.open(folder)


class _Writer:
    """Fills a folder that nobody reads yet."""

    def __init__(
        self,
        work: Path,
        model: nn.Module,
        fitted: FittedFeatures,
        config: ExportConfig,
        on_progress: OnProgress,
    ) -> None:
        self.work = work
        self.fitted = fitted
        self.config = config
        self.on_progress = on_progress
        self.program = program.ServedProgram(model, fitted.layout)

    def write(self, golden_raw: pl.DataFrame, info: dict[str, Any], text: TextFormat) -> None:
        """Write everything, then check it in a fresh process and sign it."""
        self._stage("trace")
        training = self.program.ranker.training
        self.program.eval()
        try:
            golden = self._write_golden(golden_raw)
            exported = program.export(self.program, self.fitted.layout)
        finally:
            self.program.ranker.train(training)
        self._stage("compile")
        manifest = self._write_program(exported, info)
        self._stage("write")
        self.fitted.save(self.work / files.FEATURES)
        signature = Signature.of(self.fitted, golden, text).model_dump_json(indent=1) + "\n"
        (self.work / files.SIGNATURE).write_text(signature, encoding="utf-8")
        manifest = manifest.model_copy(update={"files": _records(self.work)})
        _write_durably(self.work / files.MANIFEST, manifest.to_bytes())
        self._stage("check")
        check = check_in_fresh_process(self.work, self.config.tolerance)
        manifest = manifest.model_copy(update={"check": check})
        _write_durably(self.work / files.MANIFEST, manifest.to_bytes())
        self._stage("publish")

    def _stage(self, name: str) -> None:
        self.on_progress(name, _STAGES.index(name), len(_STAGES))

    def _write_golden(self, golden_raw: pl.DataFrame) -> pl.DataFrame:
        """Keep raw rows with the trained model's own scores."""
        names = [column.name for column in self.fitted.columns]
        golden = golden_raw.head(self.config.golden_rows).select(names)
        encoded = self.fitted.encode(golden.lazy()).collect()
        with torch.no_grad():
            scores_BT = self.program(*program_inputs(encoded, self.fitted.layout)).numpy()
        if not np.isfinite(scores_BT).all():
            row = int(np.argwhere(~np.isfinite(scores_BT))[0][0])
            raise ValueError(
                f"the trained model gives golden row {row} the score {scores_BT[row]}, which is no"
                " number; the training diverged: lower its learning rate"
            )
        golden.write_parquet(self.work / files.GOLDEN)
        scores = pl.DataFrame(scores_BT, schema=list(self.fitted.layout.tasks))
        scores.write_parquet(self.work / files.GOLDEN_SCORES)
        return golden

    def _write_program(self, exported: Any, info: dict[str, Any]) -> Manifest:
        path = self.work / files.PROGRAM
        note, processor = None, None
        compiled = self.config.compile and program.compiler() is not None
        if compiled:
            processor = program.compile_to(exported, path)
        else:
            if self.config.compile:
                note = (
                    "there is no C++ compiler on the exporting machine (install g++, or set CXX),"
                    " so this is the torch.export program, which is slower"
                )
            program.save(exported, path)
        return Manifest(
            program="aotinductor" if compiled else "torch.export",
            program_note=note,
            processor=processor,
            features_fingerprint=self.fitted.fingerprint,
            versions=library_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            info=info,
            tolerance=self.config.tolerance,
        )


def check_in_fresh_process(folder: Path, tolerance: float) -> Check:
    """Load a bundle where nothing else is loaded and replay its golden rows.

    Raises:
        BundleMismatch: It does not load, or a score differs by more than the tolerance.
    """
    # The same modules as here, wherever this process found them.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "recsys.export.check", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BundleMismatch(
            f"the exported bundle does not load in a fresh process (exit code {done.returncode})",
            expected="the golden rows' scores",
            found=done.stderr.strip()[-4000:] or "no message",
        )
    check = Check.model_validate(json.loads(done.stdout.splitlines()[-1]))
    if not check.largest_difference <= tolerance:
        raise BundleMismatch(
            "the exported bundle scores golden rows differently from the trained model",
            expected=f"differences of at most {tolerance:g}",
            found=f"{check.largest_difference:g}",
        )
    return check


def publish(work: Path, folder: Path) -> None:
    """Put a finished folder in the place of `folder`, whose old content is removed."""
    if not folder.exists():
        work.rename(folder)
    elif not exchange(work, folder):
        # `Bundle.open` looks at `previous` while neither name holds a bundle.
        old = files.previous(folder)
        folder.rename(old)
        work.rename(folder)
        shutil.rmtree(old)
    _sync(folder.parent)


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    try:
        failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    except AttributeError:  # a C library without renameat2
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _clean(folder: Path) -> None:
    """Finish or remove what killed exports left; the lock says that none is running."""
    old = files.previous(folder)
    if old.exists():
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)
    for left in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(left)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the right to export to a folder; the system gives it back when the process dies."""
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportBusy(f"another export to {folder} is running; wait for it to end") from None
        yield


def _records(work: Path) -> dict[str, files.FileRecord]:
    paths = sorted(path for path in work.rglob("*") if path.is_file())
    for path in paths:
        _sync(path)
    return {
        path.relative_to(work).as_posix(): files.record(path)
        for path in paths
        if path.name != files.MANIFEST
    }


def _write_durably(path: Path, content: bytes) -> None:
    """Replace a file in one step, on disk before it has its name."""
    beside = path.with_name(f"{path.name}.partial")
    beside.write_bytes(content)
    _sync(beside)
    beside.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
