import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import served

from feature_store.encoding import FittedFeatures
from recsys.export.bundle import Bundle, ExportConfig
from recsys.export.predictor import Predictor
from recsys.export.publish import export_bundle
from recsys.models.ranker import AbstractRanker


@pytest.fixture(scope="session")
def features() -> FittedFeatures:
    return served.fitted()


@pytest.fixture(scope="session")
def model(features: FittedFeatures) -> AbstractRanker:
    return served.served_ranker(features)


@pytest.fixture(scope="session")
def bundle(features, model, tmp_path_factory) -> Bundle:
    """A bundle with the torch.export program, which takes seconds where a compiler takes half a
    minute; test_program.py compiles one."""
    folder = tmp_path_factory.mktemp("export") / "bundle"
    config = ExportConfig(compile=False)
    return export_bundle(model, features, served.rows(80, 1), folder, config, {"experiment": "e"})


@pytest.fixture(scope="session")
def predictor(bundle: Bundle) -> Predictor:
    return Predictor(bundle.folder, num_threads=2)


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Callable[[], Path]:
    """Copies of the bundle to damage."""

    def copy() -> Path:
        return Path(shutil.copytree(bundle.folder, tmp_path / "copy"))

    return copy
