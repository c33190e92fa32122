"""Data that ship inside a Python package: fetched by pip from the index it is configured for."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from pipelines.datasets.dataset import FetchFailed
from pipelines.sources import OnProgress

_SHOWN_LINES = 5


def fetch_members(
    requirement: str, members: Mapping[str, str], folder: Path, on_progress: OnProgress
) -> None:
    """Put members of a wheel into a folder, each whole and checked, or change nothing.

    Args:
        requirement: Package and exact version, as pip takes it.
        members: Path in the wheel to the sha256 of its content.
        folder: Where the members go, under their own file names; made if needed.
        on_progress: Told of the download and of the checks.

    Raises:
        FetchFailed: No download, or content that is not what is expected.
    """
    if all(is_right(folder / Path(member).name, sha256) for member, sha256 in members.items()):
        on_progress("already there, checked", len(members), len(members))
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    # On the same file system, so that moving a file into place is one step.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        on_progress(f"downloading {requirement}", 0, None)
        wheel = _download(requirement, Path(work))
        on_progress("checking", 0, len(members))
        contents = {member: _checked(wheel, member, sha) for member, sha in members.items()}
        files = {Path(member).name: content for member, content in contents.items()}
        for name, content in files.items():
            (Path(work) / name).write_bytes(content)
        folder.mkdir(exist_ok=True)
        for done, name in enumerate(files, 1):
            (Path(work) / name).replace(folder / name)
            on_progress("checking", done, len(members))


def is_right(file: Path, sha256: str) -> bool:
    """Whether a file is there with that content."""
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = "\n".join(done.stderr.strip().splitlines()[-_SHOWN_LINES:])
        raise FetchFailed(
            f"pip could not download {requirement}; it says:\n{said}\nIs the package index within"
            " reach (pip config list)? Then run the same command again."
        )
    return wheels[0]


def _checked(wheel: Path, member: str, sha256: str) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchFailed(f"{wheel.name} has no readable {member}: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise FetchFailed(
            f"{member} in {wheel.name} is not what it should be: expected sha256 {sha256}, found"
            f" {found}; nothing was written"
        )
    return content
