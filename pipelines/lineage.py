"""What a version's record says of where it comes from, besides its sources and rows."""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as release
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

import feature_store
import pipelines
from feature_store.features import FeatureSet
from pipelines import identity
from pipelines.sources import DataConfig

_DIGITS = 16


class Lineage(TypedDict):
    """Part of `feature_store.version.Metadata`; see there."""

    config_hash: str
    owner: str | None
    description: str | None
    code: str
    configuration: dict[str, Any]


def lineage(data: DataConfig, feature_set: FeatureSet) -> Lineage:
    """Where a version of this configuration comes from, if it is built now."""
    return Lineage(
        config_hash=identity.config_hash(data, feature_set),
        owner=data.owner,
        description=data.description,
        code=code_version(),
        configuration={
            "data": data.model_dump(mode="json"),
            "features": feature_set.model_dump(mode="json"),
        },
    )


@cache
def code_version() -> str:
    """The release of this program, and a hash of the sources that decide what a build makes."""
    try:
        number = release("recsys")
    except PackageNotFoundError:  # run from a checkout that nobody installed
        number = "not installed"
    digest = hashlib.sha256()
    for package in (feature_store, pipelines):
        folder = Path(package.__path__[0])
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{package.__name__}/{file.relative_to(folder)}\n".encode())
            digest.update(file.read_bytes())
    return f"recsys {number}, sources {digest.hexdigest()[:_DIGITS]}"
