"""`recsys explain` on a run that was trained: whose weights, of which rows, in which file."""

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import TypeAdapter
from support.encoded import LAYOUT, rows
from support.training import embeddings_of
from torch import Tensor

from feature_store.columns import SchemaMismatch
from feature_store.document import read_json
from feature_store.features import ROW_COLUMN, WEIGHT_COLUMN
from recsys import cli, explain
from recsys import run as stages
from recsys.embeddings.collection import Embeddings, Vectors
from recsys.embeddings.initial import initialize
from recsys.embeddings.serving import serving_form, whole_tables
from recsys.experiment import load
from recsys.explain import (
    EXPLANATION_FILE,
    Explainer,
    NoWeights,
    file_rows,
    served_batch,
    split_rows,
)
from recsys.export.signature import RowMismatch
from recsys.models import ModelConfig, ranker
from recsys.models.ranker import AbstractRanker, FieldWeights, pooled_vector, sequence_vectors
from recsys.trained import Trained, batches, load_trained

EXPERIMENT = """
name: explained
data:
  path: {folder}/rows/*.parquet
  store: {folder}/store
  columns: {{click: int, user: string, item: int, seen: "list<int>", price: float, w: float}}
  split: {{by: random, test: 0.3, valid: 0.1}}
features:
  labels: [{{name: click}}]
  weight: w
  inputs:
    - {{name: user, kind: categorical}}
    - {{name: item, kind: categorical}}
    - {{name: history, kind: sequence, of: item, source: seen, max_length: 4}}
    - {{name: price, kind: numeric, indicator: true}}
embeddings: {{default: {{embedding_dim: 8}}}}
model: {{kind: dnn, mlp: {{hidden: [16]}}}}
training:
  epochs: 12
  batch_size: 64
  sparse_optimizer: {{lr: 0.05}}
  dense_optimizer: {{lr: 0.01}}
"""


def raw(rows: int, seed: int = 0) -> pl.DataFrame:
    """Clicks follow the item and nothing else."""
    random = np.random.default_rng(seed)
    item = random.integers(0, 10, rows)
    return pl.DataFrame(
        {
            "click": (random.random(rows) < 0.1 + 0.8 * (item % 2)).astype(np.int64),
            "user": [f"u{n}" for n in random.integers(0, 4, rows)],
            "item": item,
            "seen": pl.Series([random.integers(0, 10, n).tolist() for n in item % 6]),
            "price": [None if n < 0.1 else n for n in random.random(rows)],
            "w": random.integers(1, 3, rows).astype(float),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    (folder / "rows").mkdir()
    raw(1500).write_parquet(folder / "rows" / "all.parquet")
    (folder / "explained.yaml").write_text(EXPERIMENT.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def run_dir(folder: Path) -> Path:
    return stages.train(load(folder / "explained.yaml"), root=folder / "runs")


class Attentive(AbstractRanker):
    """Weights that can be told from the vectors by hand."""

    def logits(self, vectors: Vectors, dense_BN: Tensor) -> Tensor:
        return pooled_vector(vectors, "item").sum(dim=1, keepdim=True)

    def explanation(self, vectors: Vectors, dense_BN: Tensor) -> tuple[FieldWeights, ...]:
        user_BD, item_BD = (pooled_vector(vectors, name) for name in ("user", "item"))
        history = sequence_vectors(vectors, "history")
        positions = tuple(f"history {n}" for n in range(history.values_BLD.shape[1]))
        dots_BL = torch.einsum("bd,bld->bl", item_BD, history.values_BLD)
        pair_B12 = torch.stack([(user_BD * item_BD).sum(dim=1), dense_BN[:, 0]], dim=1)[:, None]
        return (
            FieldWeights("interest", ("item",), positions, dots_BL[:, None]),
            FieldWeights("pair", ("user",), ("item", "price"), pair_B12),
        )


@pytest.fixture
def attentive(run_dir: Path) -> Trained:
    trained = load_trained(run_dir)
    trained.model.ranker = Attentive(trained.version.layout, trained.embeddings)
    return trained


def test_logits_are_those_of_the_evaluation(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "PIECE_ROWS", 100)
    trained = load_trained(run_dir)
    encoded = trained.version.scan("test").collect()
    with torch.no_grad():
        expected = torch.cat([trained.model.ranker(batch) for batch in batches(trained, "test")])
    torch.testing.assert_close(torch.from_numpy(Explainer(trained).logits(encoded)), expected)


def test_the_feature_that_decides_is_first_and_the_others_lose_nothing(run_dir: Path) -> None:
    found = explain.explain(run_dir, repeats=3)
    (click,) = found.importance
    assert click.fields[0].field == "item" and click.fields[0].drop > 0.3
    drops = {each.field: each.drop for each in click.fields}
    assert set(drops) == {"user", "item", "history", "price"}
    assert all(abs(drops[name]) < 0.05 for name in ("user", "price"))
    assert drops["history"] == 0.0  # a DNN reads no sequence, though the items' table has its ids
    assert (found.weights, found.source) == ((), "test split")
    written = read_json(run_dir / EXPLANATION_FILE)
    assert written["importance"][0]["fields"][0]["drop"] == click.fields[0].drop


def test_rows_of_a_split_are_drawn_with_their_numbers(run_dir: Path) -> None:
    version = load_trained(run_dir).version
    some = split_rows(version, "test", 20, seed=3)
    numbers = some[ROW_COLUMN].to_list()
    assert len(set(numbers)) == 20 and numbers == sorted(numbers)
    whole = version.scan("test").collect()
    assert some.drop(ROW_COLUMN).equals(whole[numbers])
    assert numbers != split_rows(version, "test", 20, seed=4)[ROW_COLUMN].to_list()
    assert split_rows(version, "test", 10**6, seed=3).height == version.rows["test"]


def encoded_by(trained: Trained, given: pl.DataFrame) -> pl.DataFrame:
    return trained.version.fitted.encode(given.lazy()).collect()


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_raw_rows_are_encoded_as_in_training(run_dir: Path, tmp_path: Path, ending: str) -> None:
    trained, path = load_trained(run_dir), tmp_path / f"rows.{ending}"
    given = raw(50, seed=9)
    if ending == "parquet":
        given.write_parquet(path)
    elif ending == "csv":
        seen = pl.col("seen").list.eval(pl.element().cast(pl.String)).list.join(" ")
        given.with_columns(seen).write_csv(path)
    else:
        given.write_ndjson(path)
    found = file_rows(trained, path, labelled=True)
    expected = encoded_by(trained, given)
    assert found.select(expected.columns).equals(expected)
    assert found["click"].to_list() == given["click"].to_list()
    assert found[WEIGHT_COLUMN].to_list() == given["w"].to_list()
    assert found[ROW_COLUMN].to_list() == list(range(50))


def test_rows_without_labels_have_weights_all_the_same(run_dir: Path, tmp_path: Path) -> None:
    trained, path = load_trained(run_dir), tmp_path / "rows.parquet"
    raw(20, seed=9).drop("click", "w").write_parquet(path)
    found = file_rows(trained, path, labelled=False)
    assert found["item"].equals(encoded_by(trained, raw(20, seed=9))["item"])
    assert "click" not in found.columns and found.height == 20


def test_weights_are_averaged_over_rows_as_a_loop_would(
    attentive: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions are the same in every piece, whatever its longest list."""
    monkeypatch.setattr(explain, "PIECE_ROWS", 7)
    encoded = split_rows(attentive.version, "test", 60, seed=0)
    found = Explainer(attentive).explanation(encoded, "rows", repeats=0)
    interest, pair = found.weights
    assert interest.fields == tuple(f"history {n}" for n in range(4))
    tables = {name: table.numpy() for name, table in whole_tables(attentive.embeddings).items()}
    totals, products = np.zeros((1, 4)), np.zeros((1, 2))
    for row in encoded.iter_rows(named=True):
        item = tables["item"][row["item"]]
        for place, seen in enumerate(row["history"]):
            totals[0, place] += item @ tables["item"][seen]
        products[0] += [tables["user"][row["user"]] @ item, row["price"]]
    np.testing.assert_allclose(interest.mean_RM, totals / 60, atol=1e-5)
    np.testing.assert_allclose(pair.mean_RM, products / 60, atol=1e-5)
    assert found.importance == ()


def test_weights_of_every_row_go_to_a_file(attentive: Trained, tmp_path: Path) -> None:
    encoded = split_rows(attentive.version, "test", 30, seed=1)
    path = tmp_path / "weights.parquet"
    found = Explainer(attentive).explanation(encoded, "rows", repeats=0, output=path)
    lines = pl.read_parquet(path)
    assert lines.height == 30 * (4 + 2)
    assert lines["row"].unique().sort().to_list() == encoded[ROW_COLUMN].to_list()
    means = lines.group_by("title", "line", "field", maintain_order=True).agg(
        pl.col("weight").cast(pl.Float64).mean()
    )
    for each in found.weights:
        of_title = means.filter(pl.col("title") == each.title)
        assert tuple(of_title["field"]) == each.fields
        np.testing.assert_allclose(of_title["weight"], each.mean_RM[0], rtol=1e-5, atol=1e-7)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.parquet"]


def test_a_failure_leaves_no_half_file(attentive: Trained, tmp_path: Path) -> None:
    encoded = split_rows(attentive.version, "test", 30, seed=1)
    with pytest.raises(pl.exceptions.ColumnNotFoundError):
        Explainer(attentive).explanation(
            encoded.drop(ROW_COLUMN), "rows", repeats=0, output=tmp_path / "weights.parquet"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_weights_is_named_with_those_that_have_some(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(explain.MODELS, "attentive", Attentive)
    expected = r"model.kind dnn mixes .*kinds that have some: .*attentive"
    with pytest.raises(NoWeights, match=expected):
        explain.explain(run_dir, weights_only=True)
    with pytest.raises(NoWeights, match=expected):
        explain.explain(run_dir, output=tmp_path / "weights.parquet")
    assert "dnn" not in explain.kinds_with_weights()


def test_bad_rows_are_named(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    raw(10).drop("click").write_parquet(path)
    with pytest.raises(SchemaMismatch, match=r"'click'.*--weights reads the weights"):
        explain.explain(run_dir, rows=path)
    raw(10).drop("item").write_parquet(path)
    with pytest.raises(SchemaMismatch, match="no column 'item'"):
        explain.explain(run_dir, rows=path)
    raw(10).with_columns(click=pl.Series([0, 1] * 4 + [1, 2])).write_parquet(path)
    with pytest.raises(RowMismatch, match=r"row 10, label 'click': expected 0 or 1, found 2"):
        explain.explain(run_dir, rows=path)
    raw(10).with_columns(click=1).write_parquet(path)
    with pytest.raises(ValueError, match=r"10 rows of .*'click': every row has label 1"):
        explain.explain(run_dir, rows=path)
    raw(10).head(0).write_parquet(path)
    with pytest.raises(ValueError, match="there are no rows to explain"):
        explain.explain(run_dir, rows=path)
    with pytest.raises(FileNotFoundError, match=r"absent.csv"):
        explain.explain(run_dir, rows=tmp_path / "absent.csv")
    with pytest.raises(ValueError, match=r"written as Parquet"):
        explain.explain(run_dir, output=tmp_path / "weights.csv")


def test_the_command_shows_features_by_importance(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    seen = pl.col("seen").list.eval(pl.element().cast(pl.String)).list.join(" ")
    raw(300, seed=5).with_columns(seen).write_csv(path)
    with pytest.raises(SystemExit) as end:
        cli.main(["explain", str(run_dir.parent), "--rows", str(path), "--repeats", "2"])
    assert not end.value.code
    shown = capsys.readouterr().out
    assert f"300 of {path}, 2 shuffles" in shown
    lines = [line.split() for line in shown.splitlines()]
    fields = [line[0] for line in lines if line and line[0] in ("user", "item", "price", "history")]
    assert fields[0] == "item" and len(fields) == 4
    assert json.loads((run_dir / EXPLANATION_FILE).read_text())["rows"] == 300
    with pytest.raises(SystemExit) as end:
        cli.main(["explain", str(run_dir), "--weights"])
    assert end.value.code == 2
    assert "model.kind dnn mixes" in capsys.readouterr().err


def test_the_report_has_the_section_unless_it_is_switched_off(folder: Path, run_dir: Path) -> None:
    report = stages.evaluate(run_dir)
    assert report.explanation is not None
    assert report.explanation.rows == load_trained(run_dir).version.rows["test"] < 2000
    written = read_json(run_dir / "report.json")["explanation"]
    assert written["importance"][0]["fields"][0]["field"] == "item"
    assert "What the model rests on" in (run_dir / "report.html").read_text()
    settings = (run_dir / "experiment.yaml").read_text()
    off = re.sub(r"explain:\n +rows: 2000\n +repeats: 3", "explain: null", settings)
    assert off != settings
    (run_dir / "experiment.yaml").write_text(off)
    try:
        assert stages.evaluate(run_dir).explanation is None
        assert read_json(run_dir / "report.json")["explanation"] is None
        assert "What the model rests on" not in (run_dir / "report.html").read_text()
    finally:
        (run_dir / "experiment.yaml").write_text(settings)


@pytest.mark.parametrize("kind", explain.kinds_with_weights())
def test_every_model_names_its_weights_alike_whatever_the_rows(kind: str) -> None:
    """So that pieces add up: lines and fields are those of the model, not of the longest list."""
    torch.manual_seed(0)
    embeddings = Embeddings(LAYOUT, embeddings_of(), torch.device("cpu"))
    initialize(embeddings, embeddings.tables, seed=0)
    config = TypeAdapter(ModelConfig).validate_python({"kind": kind})
    model = ranker(config, LAYOUT, embeddings).eval()
    serving, encoded = serving_form(embeddings), rows(40)
    short = encoded.with_columns(pl.col("history").list.head(1), pl.col("tags").list.head(1))
    found = []
    for piece in (encoded, short, encoded[:1]):
        batch = served_batch(piece, LAYOUT)
        with torch.no_grad():
            weights = model.explanation(serving(batch.ids), batch.dense_BN)
        for each in weights:
            assert each.values_BRM.shape == (piece.height, len(each.rows), len(each.fields))
            assert torch.isfinite(each.values_BRM).all()
        found.append([each[:3] for each in weights])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == len(found[0])
    known = {field.name for field in LAYOUT.ids} | set(LAYOUT.dense)
    for _, _, fields in found[0]:
        assert {field.partition("[")[0] for field in fields} <= known
