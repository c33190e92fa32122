"""Which versions of features somebody still needs: every run and every bundle names its own.

A run's `run.json` and a bundle's `manifest.json` say the version's fingerprint. A run's checkpoints
are of its version, and a bundle may lie anywhere, so whoever removes versions says where to look.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

# As recsys.rundir and recsys.export.bundle name them, which take seconds to import.
RUN_FILE = "run.json"
MANIFEST = "manifest.json"


def named_versions(runs: Iterable[Path], bundles: Iterable[Path] = ()) -> dict[str, str]:
    """By fingerprint of a version: the run or bundle that names it, one of them.

    Args:
        runs: Folders of runs, looked through to the bottom; bundles in them count too.
        bundles: Folders of bundles, likewise.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: A file that names a version cannot be read, so nobody knows which.
    """
    found: dict[str, str] = {}
    for folder in (*runs, *bundles):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {folder} to look for runs and bundles in, so nobody can tell"
                " which versions they need; name the right one (--runs, --bundles)"
            )
        for path, fingerprint in _named(folder):
            found.setdefault(fingerprint, str(path.parent))
    return found


def _named(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob(RUN_FILE)):
        yield path, _fingerprint(path, ("version",))
    for path in sorted(folder.rglob(MANIFEST)):
        yield path, _fingerprint(path, ("info", "version", "of"))


def _fingerprint(path: Path, place: tuple[str, ...]) -> str:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        for key in place:
            value = value[key]
        if not isinstance(value, str):
            raise TypeError(f"expected a fingerprint, found {value!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not say which version of the features it needs"
            f" ({type(error).__name__}: {error}); repair it, or remove its folder"
        ) from error
    return value
