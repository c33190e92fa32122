"""Write the exact locks of this folder from what is installed beside the running interpreter.

Run by `make lock`, which first lets pip resolve `pyproject.toml` in a fresh environment. A lock
leaves out torch and all that torch itself requires: pip installs those first and picks the build
(CPU or CUDA) that the machine can get; everything else is then installed with --no-deps.
"""

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parent
PYTHONS = ("3.11", "3.12", "3.13")
FBGEMM = {"cpu": "fbgemm-gpu-cpu", "cuda": "fbgemm-gpu"}
HEADER = (
    "# Exact lock, written by `make lock`. Install torch first, then this file with --no-deps.\n"
)


def closure(roots: Iterable[str], stop: set[str]) -> dict[str, str]:
    """Name -> version of all that `roots` need on any supported Python, without `stop`."""
    found: dict[str, str] = {}
    visited: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(root) for root in roots]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if name in stop or key in visited:
            continue
        visited.add(key)
        installed = distribution(name)
        found[name] = installed.version
        children = [Requirement(line) for line in installed.requires or []]
        todo += [child for child in children if _wanted(child, requirement.extras)]
    return found


def _wanted(requirement: Requirement, extras: set[str]) -> bool:
    if requirement.marker is None:
        return True
    return any(
        requirement.marker.evaluate(
            {"extra": extra, "python_version": python, "python_full_version": f"{python}.0"}
        )
        for extra in ("", *extras)
        for python in PYTHONS
    )


def write(name: str, versions: dict[str, str]) -> None:
    """One `name==version` a line, sorted, into `<name>.txt`."""
    lines = [f"{package}=={version}\n" for package, version in sorted(versions.items())]
    (FOLDER / f"{name}.txt").write_text(HEADER + "".join(lines))


def main() -> None:
    """Write cpu.txt, cuda.txt and dev.txt."""
    if not sys.version.startswith(PYTHONS[0]):
        sys.exit(f"make the locks with Python {PYTHONS[0]}, the oldest one they must serve")
    declared = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())
    project = declared["project"]
    # torch's own closure is pip's business; fbgemm differs by lock and declares no dependencies.
    torch = set(closure(["torch"], stop=set()))
    extras = project["optional-dependencies"]
    roots = [*project["dependencies"], *extras["serve"], *extras["redis"]]
    runtime = closure(roots, stop=torch | set(FBGEMM.values()))
    for name, package in FBGEMM.items():
        pin = Requirement(extras[name][0])
        write(name, {**runtime, package: str(pin.specifier).removeprefix("==")})
    dev = declared["dependency-groups"]["dev"]
    write("dev", closure(dev, stop=torch | set(runtime)))


if __name__ == "__main__":
    main()
