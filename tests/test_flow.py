"""Raw files to a served score: the whole flow once, for real, on generated clicks."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from starlette.testclient import TestClient

from feature_store.document import read_json
from pipelines.datasets.synthetic import SyntheticConfig, generate
from recsys import run as stages
from recsys.cli import main
from recsys.experiment import Experiment, load
from recsys.export.bundle import Bundle
from recsys.export.predictor import Predictor
from recsys.export.server import create_app
from recsys.run import RunSummary
from recsys.rundir import prepare_run
from recsys.trained import batches, load_trained
from recsys.training.log import read_metrics

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@dataclass(frozen=True)
class Flow:
    """One experiment that ran."""

    folder: Path
    experiment: Experiment
    summary: RunSummary


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    folder = tmp_path_factory.mktemp("flow")
    generate(SyntheticConfig(rows=40_000, users=400, items=150), folder / "clicks")
    experiment = load(
        ROOT / "examples" / "synthetic_din.yaml",
        [
            f"data.path={folder / 'clicks'}/*.parquet",
            f"data.store={folder / 'store'}",
            "training.epochs=3",
            "training.batch_size=500",
        ],
    )
    assert experiment.training.scaling.num_workers == 2, "two workers under a real local Ray"
    return Flow(folder, experiment, stages.run(experiment, root=folder / "runs"))


def test_the_model_beats_both_baselines_and_stays_below_the_planted_bound(flow: Flow) -> None:
    test = flow.summary.report["splits"]["test"]["metrics"]
    baselines = flow.summary.report["baselines"]
    best = max(b["splits"]["test"]["metrics"]["auc"] for b in baselines.values())
    truth = json.loads((flow.folder / "clicks" / "truth.json").read_text())
    assert best + 0.02 < test["auc"] < truth["bayes_auc"] + 0.02


def test_the_report_has_the_shape_that_programs_read(flow: Flow) -> None:
    report = read_json(flow.summary.folder / "report.json")
    test = report["splits"]["test"]
    assert test["rows"] == flow.summary.build.version.rows["test"]
    assert {"auc", "logloss", "ne", "gauc", "calibration"} <= set(test["metrics"])
    assert all(math.isfinite(test["metrics"][n]) for n in ("auc", "logloss", "ne", "calibration"))
    assert set(report["baselines"]) == {"global_rate", "user_item_rates"}
    assert report["experiment"]["name"] == "synthetic_din"
    assert report["versions"]["torchrec"]
    assert (flow.summary.folder / "report.html").stat().st_size > 10_000


def test_the_bundle_scores_raw_rows_as_the_trained_model_does(flow: Flow) -> None:
    """Encoded rows through the trainer's model = the same rows, raw, through the program."""
    trained = load_trained(flow.summary.folder)
    raw = trained.version.raw_sample()
    encoded = trained.version.fitted.encode(raw.lazy()).collect()
    first = trained.version.scan("test").head(raw.height).collect().select(encoded.columns)
    assert encoded.equals(first), "the raw sample is the beginning of the test split"
    batch = next(batches(trained, "test"))
    expected = trained.model.ranker(batch).sigmoid()[: raw.height, 0].tolist()
    assert Predictor(flow.summary.bundle).score(raw)[:, 0].tolist() == pytest.approx(
        expected, abs=1e-5
    )


def test_the_server_answers_as_batch_scoring_does(flow: Flow) -> None:
    predictor = Predictor(flow.summary.bundle)
    raw, golden = Bundle.open(flow.summary.bundle).golden()
    rows = raw.select(predictor.signature.names).head(5).to_dicts()
    answer = TestClient(create_app(predictor)).post("/predict", json={"rows": rows})
    assert answer.status_code == 200, answer.text
    assert answer.json()["scores"] == pytest.approx(golden[:5, 0].tolist(), abs=1e-5)


def test_an_unchanged_run_reuses_every_stage(flow: Flow) -> None:
    heard: list[str] = []
    again = stages.run(
        flow.experiment,
        root=flow.folder / "runs",
        progress=lambda stage, message, done=None, total=None: heard.append(f"{stage} {message}"),
    )
    assert again.reused == ("build", "train", "evaluate", "export")
    assert again.folder == flow.summary.folder
    assert "train unchanged, reused" in heard


def test_a_changed_experiment_gets_a_folder_of_its_own_on_the_same_version(flow: Flow) -> None:
    changed = flow.experiment.model_copy(
        update={"training": flow.experiment.training.model_copy(update={"seed": 1})}
    )
    version = stages.build_features(changed).version
    assert version.number == flow.summary.build.version.number
    folder = prepare_run(changed, version, flow.folder / "other-runs")
    assert folder.name != flow.summary.folder.name


def test_the_run_says_what_it_did_while_it_trained(flow: Flow) -> None:
    lines = read_metrics(flow.summary.folder)
    validations = [line for line in lines if line["split"] == "valid"]
    assert [line["epoch"] for line in validations] == [1, 2, 3]
    assert all(line["loss"] > 0 for line in lines if line["split"] == "train")
    assert list((flow.summary.folder / "tensorboard").glob("events*"))


def test_a_file_is_scored_from_the_command_line(flow: Flow, tmp_path: Path) -> None:
    bundle = flow.summary.bundle
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(bundle), str(bundle / "golden.parquet"), str(tmp_path / "out.csv")])
    assert ended.value.code == 0
    scores = pl.read_csv(tmp_path / "out.csv")["clicked"].to_list()
    _, golden = Bundle.open(bundle).golden()
    assert scores == pytest.approx(golden[:, 0].tolist(), abs=1e-5)
