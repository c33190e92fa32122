"""Raw rows to scores: fitted features and program of one bundle, as the server runs them.

Imports torch, Polars and the feature store; nothing of training is needed to serve.

Shapes: B rows, T tasks.
"""

import os
import platform
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch._C._aoti import AOTIModelPackageLoader

from recsys.export import streams
from recsys.export.bundle import Bundle, BundleMismatch, Processor
from recsys.export.requests import unusable
from recsys.export.signature import RowMismatch, Signature
from recsys.export.tensors import fits, program_inputs

Program = Callable[[list[Tensor]], Tensor]
"""Inputs in the order of `Signature.program_inputs` to probabilities (B, T)."""

OnProgress = Callable[[str, int, int | None], None]
"""Called with what is done, how much of it, and of how much where that is known."""

MAX_BATCH = 16_384
"""Rows in one run of the program; more are cut."""

_SMALLEST_SHARE = 512
"""Rows below which cutting a batch between threads costs more than it saves."""

_X86_CAPABILITIES = ["DEFAULT", "AVX2", "AVX512"]


class ScoredFile(NamedTuple):
    """What scoring a file did."""

    rows: int
    unexpected_nulls: dict[str, int]
    """Nulls by column, where training saw none: they were scored as missing values."""


class Predictor:
    """A loaded bundle; safe to call from several threads.

    Raises:
        BundleNotFound: There is no bundle in the folder.
        BundleMismatch: A file was changed, or the program cannot run on this machine.
    """

    def __init__(self, folder: Path, *, num_threads: int | None = None) -> None:
        """Load a bundle.

        Args:
            folder: The bundle.
            num_threads: Batches scored at the same time, one core each; every core if absent.
        """
        self.num_threads = num_threads or len(os.sched_getaffinity(0))
        self.bundle = Bundle.open(folder)
        self.fitted = self.bundle.fitted
        self.program = load_program(self.bundle, self.num_threads)
        self.threads = scoring_threads(self.num_threads)

    @property
    def signature(self) -> Signature:
        """The raw columns that go in and the tasks that come out."""
        return self.bundle.signature

    def score(self, raw: pl.DataFrame, first_row: int = 1) -> np.ndarray:
        """Probabilities of raw rows, float32 (B, T).

        Args:
            raw: Has the signature's columns, in any order, among others.
            first_row: Number of the first row in error messages.

        Raises:
            SchemaMismatch: A column is missing.
            RowMismatch: A value is not of its column's type.
        """
        conformed = self._conformed(raw, first_row)
        share = -(-conformed.height // self.num_threads)
        parts = list(conformed.iter_slices(max(share, _SMALLEST_SHARE))) or [conformed]
        return np.concatenate(list(self.threads.map(self.score_conformed, parts)))

    def score_conformed(self, raw: pl.DataFrame) -> np.ndarray:
        """Probabilities of rows that `Signature.conform` or `requests.table` made.

        To be called in one of `threads`: elsewhere the threads of Polars and those of the program,
        which wait by spinning, take the cores from each other.
        """
        encoded = self.fitted.encode(raw.lazy()).collect()
        scores = [self._run(piece) for piece in encoded.iter_slices(MAX_BATCH) if piece.height]
        if not scores:
            return np.zeros((0, len(self.signature.tasks)), np.float32)
        return np.concatenate(scores)

    def score_file(
        self,
        source: Path,
        target: Path,
        *,
        keep: Sequence[str] = (),
        batch_size: int = MAX_BATCH,
        on_progress: OnProgress = lambda stage, done, total: None,
    ) -> ScoredFile:
        """Score a file of raw rows into another, a batch at a time.

        Args:
            source: CSV, TSV, Parquet or JSON lines, by its ending. Text files carry lists as text,
                separated as the signature says.
            target: CSV, TSV or Parquet; one column per task after the kept ones, rows in the same
                order. It appears whole or not at all.
            keep: Columns of the input to write beside the scores.
            batch_size: Rows in memory at a time.
            on_progress: Called with "score", rows done and rows in all where known.

        Raises:
            SchemaMismatch: A column is missing.
            RowMismatch: A value is not of its column's type; names row and column.
            ValueError: The files cannot be read or written; says why.
        """
        source, target = Path(source), Path(target)
        streams.check_paths(source, target)
        signature = self.signature
        _check_kept(keep, signature.tasks)
        total = streams.num_rows(source)
        # A missing list is an empty one; text does not even tell them apart.
        counted = (c.name for c in signature.columns if not c.nullable and c.separator is None)
        rows, nulls = 0, dict.fromkeys(counted, 0)
        with streams.score_writer(target, signature.tasks) as writer:
            batches = streams.read_batches(source, signature, tuple(keep), batch_size)
            for raw, conformed, scores_BT in self._scored(batches, source):
                for name in nulls:
                    nulls[name] += conformed[name].null_count()
                writer.write(raw.select(keep), scores_BT)
                rows += raw.height
                on_progress("score", rows, total)
            if not rows:
                nothing = pl.DataFrame(schema=dict.fromkeys(keep, pl.String))
                writer.write(nothing, np.zeros((0, len(signature.tasks)), np.float32))
        return ScoredFile(rows, {name: count for name, count in nulls.items() if count})

    def replay(self, batch_rows: int) -> float:
        """Largest difference of the golden rows' scores from the trained model's.

        Args:
            batch_rows: Rows scored at a time; more than there are repeats them.
        """
        raw, expected_BT = self.bundle.golden()
        repeats = -(-batch_rows // raw.height)
        raw = pl.concat([raw] * repeats)
        expected_BT = np.tile(expected_BT, (repeats, 1))
        largest = 0.0
        for start in range(0, raw.height, batch_rows):
            found_BT = self.score(raw.slice(start, batch_rows))
            differences = np.abs(found_BT - expected_BT[start : start + batch_rows])
            if not np.isfinite(differences).all():
                return float("inf")
            largest = max(largest, float(differences.max()))
        return largest

    def _scored(
        self, batches: Iterator[pl.DataFrame], source: Path
    ) -> Iterator[tuple[pl.DataFrame, pl.DataFrame, np.ndarray]]:
        """Batches with their scores, in order; a few are scored while the next are read."""
        waiting: deque[tuple[pl.DataFrame, Future[tuple[pl.DataFrame, np.ndarray]]]] = deque()
        first_row = 1
        try:
            for raw in batches:
                waiting.append((raw, self.threads.submit(self._score, raw, first_row, source)))
                first_row += raw.height
                if len(waiting) > self.num_threads:
                    done, scored = waiting.popleft()
                    yield done, *scored.result()
            while waiting:
                done, scored = waiting.popleft()
                yield done, *scored.result()
        finally:
            for _, scored in waiting:
                scored.cancel()

    def _conformed(self, raw: pl.DataFrame, first_row: int) -> pl.DataFrame:
        conformed = self.signature.conform(raw, first_row)
        for row, column, expected, found in unusable(conformed, self.fitted):
            raise RowMismatch(
                f"row {first_row + (row or 0)}, column {column!r}: expected {expected}, found"
                f" {found}"
            )
        return conformed

    def _score(
        self, raw: pl.DataFrame, first_row: int, source: Path
    ) -> tuple[pl.DataFrame, np.ndarray]:
        try:
            conformed = self._conformed(raw, first_row)
        except RowMismatch as error:
            raise RowMismatch(f"{source}: {error}") from error
        return conformed, self.score_conformed(conformed)

    def _run(self, encoded: pl.DataFrame) -> np.ndarray:
        layout = self.fitted.layout
        if not fits(encoded, layout):
            # One very long list would pad every row of the batch to its length.
            half = encoded.height // 2
            return np.concatenate([self._run(encoded[:half]), self._run(encoded[half:])])
        return self.program(program_inputs(encoded, layout)).numpy()


def scoring_threads(count: int) -> ThreadPoolExecutor:
    """Threads in which torch works on one core each; this thread keeps its own number."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, thread_name_prefix="score", initializer=_take_one_core)
    # torch also remembers the last number for threads to come: start all of these, then restore it.
    started = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(before)
    return pool


def _take_one_core() -> None:
    torch.get_num_threads()  # a thread's first call takes the process's number: let it be now
    torch.set_num_threads(1)


def load_program(bundle: Bundle, num_threads: int = 1) -> Program:
    """The bundle's program, ready to call.

    Raises:
        BundleMismatch: It was compiled for another torch or another processor.
    """
    if bundle.manifest.program == "torch.export":
        module = torch.export.load(bundle.program).module()

        def run_exported(inputs: list[Tensor]) -> Tensor:
            with torch.no_grad():
                return module(*inputs)

        return run_exported
    _check_torch(bundle)
    if bundle.manifest.processor is not None:
        _check_processor(bundle.manifest.processor)
    # Not torch._inductor's `aoti_load_package`: that looks for a C++ compiler to learn what this
    # processor can do, which takes seconds, and warns where the processor can do more than needed.
    loader = AOTIModelPackageLoader(str(bundle.program), "model", False, num_threads, -1)

    def run_compiled(inputs: list[Tensor]) -> Tensor:
        return loader.boxed_run(inputs)[0]

    return run_compiled


def _check_kept(keep: Sequence[str], tasks: Sequence[str]) -> None:
    for name in keep:
        if name in tasks:
            raise ValueError(
                f"the column {name!r} cannot be kept: the scores of that task are written under its"
                " name; rename the column of the input"
            )
        if list(keep).count(name) > 1:
            raise ValueError(f"the column {name!r} is to be kept twice; name it once")


def _check_torch(bundle: Bundle) -> None:
    """A compiled program calls into the torch it was compiled against."""
    expected = _release(bundle.manifest.versions["torch"] or "none")
    found = _release(torch.__version__)
    if expected != found:
        raise BundleMismatch(
            "the bundle's program was compiled for another version of torch; install that one, or"
            " export again",
            expected=f"torch {expected}",
            found=f"torch {found}",
        )


def _release(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _check_processor(needed: Processor) -> None:
    machine, capability = platform.machine(), torch.backends.cpu.get_cpu_capability()
    if machine == needed.machine and capability == needed.capability:
        return
    if machine == needed.machine == "x86_64" and (
        _rank(capability) >= _rank(needed.capability) >= 0
    ):
        return
    raise BundleMismatch(
        "the bundle's program was compiled for another processor; export it on such a machine as"
        " this one, or with export.compile: false",
        expected=f"{needed.machine} with {needed.capability}",
        found=f"{machine} with {capability}",
    )


def _rank(capability: str) -> int:
    return _X86_CAPABILITIES.index(capability) if capability in _X86_CAPABILITIES else -1
