"""A trained ranker as a program over plain tensors, exported and compiled.

Inputs and their order are those of `recsys.export.tensors`; the output is one probability per row
and task, float32 (B, T). Batch size and list lengths are free.

Shapes: B rows, N dense numbers, C single-id fields, L longest list of the batch, T tasks.
"""

import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._inductor
from torch import Tensor, nn
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.export import Dim, ExportedProgram

from feature_store.features import Layout
from recsys.embeddings.serving import PaddedIds, ServedBatch
from recsys.export.bundle import Processor
from recsys.export.tensors import by_field, list_fields, single_fields

TRACED_ROWS = 3
"""Rows of the batch the program is traced with; its lists are 5, 6, 7 ... long. All differ, and
none is 0 or 1, so that no size is taken for another or for a constant."""

_PORTABLE_X86 = {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}


class CompilationFailed(RuntimeError):
    """AOTInductor could not compile a program although there is a compiler."""


class ServedProgram(nn.Module):
    """Positional tensors to probabilities."""

    def __init__(self, ranker: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.ranker = ranker
        self.layout = layout
        self.singles = [field.name for field in single_fields(layout)]

    def forward(self, dense_BN: Tensor, single_BC: Tensor, *padded: Tensor) -> Tensor:
        """Probabilities (B, T); `padded` are the tensors of every list field, one after another."""
        ones_B = torch.ones(single_BC.shape[0], dtype=torch.int64)
        ids = {
            name: PaddedIds(single_BC[:, place : place + 1], ones_B)
            for place, name in enumerate(self.singles)
        }
        for name, parts in by_field(padded, self.layout).items():
            ids[name] = PaddedIds(*parts)
        return torch.sigmoid(self.ranker(ServedBatch(ids, dense_BN)).float())


def export(program: ServedProgram, layout: Layout) -> ExportedProgram:
    """Trace a program, in evaluation mode, with free batch size and list lengths."""
    dense_BN = torch.zeros(TRACED_ROWS, len(layout.dense))
    single_BC = torch.zeros(TRACED_ROWS, len(single_fields(layout)), dtype=torch.int64)
    padded: list[Tensor] = []
    free: list[dict[int, Any]] = []
    lengths: dict[str, int] = {}
    for place, field in enumerate(list_fields(layout)):
        # Gaps are as many as the values they belong to.
        lengths[field.name] = lengths.get(field.gaps_of or "", TRACED_ROWS + 2 + place)
        rectangle = (TRACED_ROWS, lengths[field.name])
        padded.append(torch.zeros(rectangle, dtype=torch.int64))
        padded.append(torch.ones(TRACED_ROWS, dtype=torch.int64))
        free += [{0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC}]
        if field.weighted:
            padded.append(torch.ones(rectangle))
            free.append({0: Dim.DYNAMIC, 1: Dim.DYNAMIC})
    rows = {0: Dim.DYNAMIC, 1: Dim.STATIC}
    shapes: dict[str, Any] = {"dense_BN": rows, "single_BC": rows}
    if padded:
        shapes["padded"] = tuple(free)
    with torch.no_grad(), _quiet():
        return torch.export.export(
            program, (dense_BN, single_BC, *padded), dynamic_shapes=shapes, strict=False
        )


def compiler() -> str | None:
    """The C++ compiler that would be used; None if there is none."""
    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler:
        return None


def save(exported: ExportedProgram, path: Path) -> None:
    """Write the `torch.export` program: slower than a compiled one, and runs on any processor."""
    with _quiet():
        torch.export.save(exported, path)


def compile_to(exported: ExportedProgram, path: Path) -> Processor:
    """Compile a program by AOTInductor into one file.

    Returns:
        What a machine must have to run it: on x86, AVX2 (any server since 2013), not the newer
        instructions that the exporting machine may have.

    Raises:
        CompilationFailed: The compiler, or torch's use of it, failed.
    """
    processor = Processor(
        machine=platform.machine(), capability=torch.backends.cpu.get_cpu_capability()
    )
    # The number of threads is left to the process that serves; it is else fixed at compilation.
    settings: dict[str, Any] = {"cpp.dynamic_threads": True}
    if processor.machine == "x86_64" and processor.capability in ("AVX2", "AVX512"):
        settings |= _PORTABLE_X86
        processor = processor.model_copy(update={"capability": "AVX2"})
    try:
        with _quiet():
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(path), inductor_configs=settings
            )
    except Exception as error:
        raise CompilationFailed(
            f"AOTInductor could not compile the model with {compiler()}: {error}\n"
            "Repair the compiler, or set export.compile: false to export the torch.export program"
        ) from error
    return processor


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's warnings to itself (pytree's, of a later version) off the user's terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        yield
