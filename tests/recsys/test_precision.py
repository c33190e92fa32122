"""What fewer bits cost is measured on the model, and held to the format's own bound."""

from pathlib import Path

import pytest
import torch

from pipelines.datasets.synthetic import SyntheticConfig, generate
from recsys import precision as precisions
from recsys import run as stages
from recsys.embeddings.collection import table_weight
from recsys.embeddings.quantized import Precision, error_bound
from recsys.experiment import load
from recsys.precision import PrecisionExceeded, reduced
from recsys.stages import split_metrics
from recsys.trained import load_trained

EXAMPLE = Path(__file__).parents[2] / "examples" / "synthetic_din.yaml"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision")
    generate(SyntheticConfig(rows=6_000, users=300, items=200), folder / "clicks")
    experiment = load(
        EXAMPLE,
        [
            f"data.path={folder / 'clicks'}/*.parquet",
            f"data.store={folder / 'store'}",
            "training.epochs=1",
            "training.scaling.num_workers=1",
        ],
    )
    return stages.train(experiment, root=folder / "runs")


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_the_change_is_that_of_the_served_tables(run_dir: Path, precision: Precision) -> None:
    plain, trained = load_trained(run_dir), load_trained(run_dir)
    serving, change = reduced(trained, precision)
    assert change.auc_before == split_metrics(plain, "test")["auc"]
    assert change.bytes_after == sum(serving.storage_bytes().values()) < change.bytes_before
    assert abs(change.auc_after - change.auc_before) < 0.02
    bounds = []
    for table in plain.embeddings.tables:
        was, now = (table_weight(t.embeddings, table) for t in (plain, trained))
        rows = torch.arange(table.num_embeddings)
        place = serving.names[table.name]
        assert torch.equal(now, serving.tables[place](rows)), "the model measured is the served one"
        assert ((now - was).abs().amax(dim=1) <= error_bound(was, precision)).all()
        bounds.append(float((now - was).abs().max()))
    assert change.largest_error == pytest.approx(max(bounds))
    assert f"embeddings in {precision}" in change.sentence()


def test_float32_changes_nothing(run_dir: Path) -> None:
    trained = load_trained(run_dir)
    _, change = reduced(trained, "fp32")
    assert change.bytes_before == change.bytes_after
    assert "instead of" not in change.sentence()


def test_a_weight_beyond_the_bound_is_refused(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precisions, "error_bound", lambda weight, _: torch.zeros(len(weight)))
    with pytest.raises(PrecisionExceeded, match=r"table 'user', row \d+: stored in int4"):
        reduced(load_trained(run_dir), "int4")
