"""Which releases of torch, TorchRec and FBGEMM fit together, and what is installed.

The three share a binary interface: a wrong pair dies in a long loader traceback, so the table is
checked from package metadata when `recsys` is imported, before anything heavy is.
"""

import logging
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

_ADVICE = (
    "torch.distributed is disabled, unavailable or uninitialized",  # one process loads: intended
    "Please use DTensor instead",  # TorchRec's tables are ShardedTensors
    "`broadcast_buffers` is deprecated",  # set by TorchRec's own wrapper
)
FBGEMM_PACKAGES = ("fbgemm-gpu-cpu", "fbgemm-gpu")
"""Builds of the same library for machines without and with NVIDIA's driver."""


@dataclass(frozen=True)
class Triple:
    """Releases that fit together, the recommended ones first; torch at any patch level."""

    torch: str
    torchrec: tuple[str, ...]
    fbgemm: str

    def fits(self, name: str, installed: str) -> bool:
        """Whether an installed release belongs to this triple; `+cpu` and the like do not count."""
        release = installed.split("+")[0]
        if name == "torch":
            return release.split(".")[:2] == self.torch.split(".")
        if name == "torchrec":
            return release in self.torchrec
        return release == self.fbgemm


ACCEPTED = (
    Triple("2.13", ("1.8.0",), "1.8.0"),
    Triple("2.11", ("1.6.1", "1.6.0"), "1.6.0"),
)


def installed_version(package: str) -> str | None:
    """A package's version as its metadata says; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check() -> None:
    """Refuse installed releases that do not fit together; a server without TorchRec is fine.

    Raises:
        ImportError: one line with what is installed and the command that mends it.
    """
    installed = {name: installed_version(name) for name in ("torch", "torchrec", *FBGEMM_PACKAGES)}
    present = {name: release for name, release in installed.items() if release is not None}
    if any(all(t.fits(name, r) for name, r in present.items()) for t in ACCEPTED):
        return
    torch = present.get("torch")
    # The triple of the torch that is there, so that the largest download stays.
    wanted = next((t for t in ACCEPTED if torch and t.fits("torch", torch)), ACCEPTED[0])
    fbgemm = next((name for name in reversed(FBGEMM_PACKAGES) if name in present), "fbgemm-gpu-cpu")
    found = ", ".join(f"{name} {release}" for name, release in present.items())
    raise ImportError(
        f"installed releases do not fit together ({found}); mend with: {sys.executable} -m pip"
        f" install torch=={wanted.torch}.0 && {sys.executable} -m pip install --no-deps"
        f" torchrec=={wanted.torchrec[0]} {fbgemm}=={wanted.fbgemm}"
    )


def library_versions() -> dict[str, str | None]:
    """Versions of all that decides what a run computes; None for what is not installed."""
    libraries = ("torch", "torchrec", "ray", "polars", "polars-hash", "pyarrow", "deltalake")
    fbgemm = {name: installed_version(name) for name in FBGEMM_PACKAGES}
    return {
        "recsys": installed_version("recsys"),
        "python": platform.python_version(),
        **{name: installed_version(name) for name in libraries},
        "fbgemm": next((f"{r} ({name})" for name, r in fbgemm.items() if r), None),
    }


@contextmanager
def output_held_back() -> Iterator[None]:
    """Hold back what the block writes to stdout and stderr, native code included.

    For imports and start-up calls that talk (FBGEMM a line for each loaded library, TorchRec its
    deprecations). If the block fails, all that was held back is printed first: nothing is hidden.
    """
    streams = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.flush()
    with tempfile.TemporaryFile() as held, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = {fd: os.dup(fd) for fd in (1, 2)}
        for fd in saved:
            os.dup2(held.fileno(), fd)
        failed = True
        try:
            yield
            failed = False
        finally:
            for stream in streams:
                stream.flush()
            for fd, copy in saved.items():
                os.dup2(copy, fd)
                os.close(copy)
            if failed:
                held.seek(0)
                os.write(2, held.read())


def import_quietly() -> None:
    """Import TorchRec and FBGEMM with their chatter held back; later imports are then silent.

    Call it once in each process that trains, before anything else imports them.
    """
    with output_held_back():
        import torchrec.distributed.model_parallel  # noqa: F401
    quieten()


def quieten() -> None:
    """Silence advice that libraries log to their own developers; their errors still come through.

    TorchRec's planner asks for another way to build a topology that torchrec 1.6 does not have,
    and its modules ask torch.fx a question that torch answers with a warning.
    """
    for name in ("torchrec.distributed.planner", "torch.fx._symbolic_trace"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _ADVICE:
        warnings.filterwarnings("ignore", message=message)
