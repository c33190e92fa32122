"""A sweep over schemes: resumable, and a cell without a result stops nothing."""

from pathlib import Path

import pytest

from pipelines.datasets.synthetic import SyntheticConfig, generate
from recsys.experiment import Experiment, load
from recsys.sweep import parsed_scheme, split_labels, sweep
from recsys.trained import load_trained

EXAMPLE = Path(__file__).parents[2] / "examples" / "synthetic_din.yaml"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("sweep")
    generate(SyntheticConfig(rows=6_000, users=300, items=200), folder / "clicks")
    return load(
        EXAMPLE,
        [
            f"data.path={folder / 'clicks'}/*.parquet",
            f"data.store={folder / 'store'}",
            "training.epochs=1",
            "training.scaling.num_workers=1",
        ],
    )


@pytest.mark.slow
@pytest.mark.distributed
def test_a_sweep_fills_its_grid_and_is_resumed(experiment: Experiment, tmp_path: Path) -> None:
    schemes, budgets = ["hash", "compositional{combine: add}"], ["50%", "0.001%"]
    told: list[str] = []
    result = sweep(
        experiment, schemes, budgets, seeds=1, root=tmp_path, keep_runs=True,
        progress=lambda stage, message, done=None, total=None: told.append(message),
    )  # fmt: skip
    by_place = {(cell.scheme, cell.budget): cell for cell in result.cells}
    assert len(by_place) == len(result.cells) == 5
    full, half = by_place["full", "100%"], by_place["hash", "50%"]
    assert full.serving_bytes == full.full_bytes > 0
    assert 0.4 < half.serving_bytes / full.full_bytes <= 0.5
    assert 0.4 < half.test_auc < 1 and half.training_bytes > half.serving_bytes
    for scheme in schemes:
        cell = by_place[scheme, "0.001%"]
        assert cell.status == "unreachable" and "bytes" in cell.message
    assert any("hash at 50%, seed 0: test auc" in message for message in told)
    assert result.page.exists() and result.reused == 0
    # A cell that is lost is the only one that is trained again; a new seed adds its own.
    lost = next((result.folder / "cells").iterdir())
    lost.unlink()
    again = sweep(experiment, schemes, budgets, seeds=1, root=tmp_path)
    assert (again.reused, again.folder) == (4, result.folder)
    assert [cell.test_auc for cell in again.cells] == pytest.approx(
        [cell.test_auc for cell in result.cells], nan_ok=True
    )
    runs = [path.parent for path in result.folder.glob("runs/*/*/*/experiment.yaml")]
    kept = {load_trained(run).experiment.embeddings.budget for run in runs if _is_trained(run)}
    assert kept >= {"50%"}


def _is_trained(run: Path) -> bool:
    return any((run / "checkpoints").glob("step-*/complete"))


def test_labels_are_cut_outside_of_braces() -> None:
    text = "hash, unified{num_lookups: 2, dim: 8},robe"
    assert split_labels(text) == ["hash", "unified{num_lookups: 2, dim: 8}", "robe"]
    assert parsed_scheme("unified{num_lookups: 2, dim: 8}") == {
        "kind": "unified",
        "num_lookups": 2,
        "dim": 8,
    }
    assert parsed_scheme("robe") == {"kind": "robe"}
    with pytest.raises(ValueError, match="settings as unified"):
        parsed_scheme("unified{num_lookups: ")


def test_an_unknown_scheme_is_an_error_before_any_training(
    experiment: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no scheme 'robee'; did you mean 'robe'\?"):
        sweep(experiment, ["robee"], ["10%"], root=tmp_path)
    with pytest.raises(ValueError, match="budget"):
        sweep(experiment, ["hash"], ["ten percent"], root=tmp_path)
