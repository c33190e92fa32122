"""`recsys embeddings analyse` on a run that was trained."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from feature_store.document import read_json
from recsys import cli
from recsys import run as stages
from recsys.analyse import ANALYSIS_FILE, analyse, seen_ids
from recsys.experiment import load
from recsys.trained import load_trained

EXPERIMENT = """
name: shared
data:
  path: {folder}/*.parquet
  store: {folder}/store
  columns: {{click: int, user: string, item: int, words: string}}
  split: {{by: random, test: 0.1, valid: 0.1}}
features:
  labels: [{{name: click}}]
  inputs:
    - {{name: user, kind: categorical, encoding: hash}}
    - {{name: item, kind: categorical}}
    - {{name: words, kind: bag}}
embeddings:
  default:
    embedding_dim: 8
    num_embeddings: 100
    scheme: {{kind: unified, num_rows: 40, whole_share: 0}}
model: {{kind: dnn, mlp: {{hidden: [6]}}}}
training: {{epochs: 2, batch_size: 64}}
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 600 rows, trained in this process."""
    folder = tmp_path_factory.mktemp("analyse")
    random = np.random.default_rng(0)
    item = random.integers(0, 30, 600)
    frame = pl.DataFrame(
        {
            "click": (random.random(600) < 0.2 + 0.6 * (item % 2)).astype(np.int64),
            "user": [f"u{n}" for n in random.integers(0, 50, 600)],
            "item": item,
            "words": [" ".join(random.choice(list("abcde"), n)) for n in item % 4],
        }
    )
    frame.write_parquet(folder / "rows.parquet")
    (folder / "shared.yaml").write_text(EXPERIMENT.format(folder=folder))
    return stages.train(load(folder / "shared.yaml"), root=folder / "runs")


def test_ids_are_all_of_a_vocabulary_and_those_seen_of_a_hash(run_dir: Path) -> None:
    version = load_trained(run_dir).version
    rows = version.scan("train").collect()
    fields = {field.name: field for field in version.layout.ids}
    user = seen_ids(version, [fields["user"]], "train")
    assert sorted(user.ids_N.tolist()) == sorted(rows["user"].unique().to_list())
    words = seen_ids(version, [fields["words"]], "train")
    assert words.ids_N.tolist() == list(range(fields["words"].cardinality or 0))
    flat = [number for bag in rows["words"].to_list() for number in bag]
    assert words.counts_N.tolist() == np.bincount(flat, minlength=len(words.ids_N)).tolist()


def test_a_run_is_measured_as_it_was_trained(run_dir: Path) -> None:
    found = analyse(run_dir)
    trained = load_trained(run_dir)
    assert [each.space for each in found.collisions] == ["user", "item", "words"]
    item = found.collisions[1]
    rows = torch.stack(trained.embeddings.schemes_by_space()["item"].rows(torch.arange(32)), 1)
    counts = np.unique(rows.numpy(), axis=0, return_counts=True)[1]
    assert item.ids.every_row == pytest.approx(counts[counts > 1].sum() / 32)
    # Weights of the first layer as they are in the checkpoint: unit by unit, chunk by chunk.
    weights = trained.model.state_dict()["ranker.mlp.linears.0.weight"].numpy()
    degrees = []
    for one in (weights[:, 0:4], weights[:, 4:8]):
        for other in (weights[:, 8:12], weights[:, 12:16]):
            norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            degrees.append(np.degrees(np.arccos((one * other).sum(1) / norms)).mean())
    assert found.angles[0].degrees == pytest.approx(np.mean(degrees), rel=1e-4)
    assert [norms.table for norms in found.norms] == ["unified"]
    assert read_json(run_dir / ANALYSIS_FILE)["mean_degrees"] == found.mean_degrees


def test_the_command_shows_what_it_writes(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / ANALYSIS_FILE).unlink(missing_ok=True)
    with pytest.raises(SystemExit) as end:
        cli.main(["embeddings", "analyse", str(run_dir.parent), "--split", "valid"])
    assert not end.value.code
    shown = capsys.readouterr().out
    assert "of the valid split's rows" in shown
    assert "degrees, the mean over all pairs of features" in shown
    assert read_json(run_dir / ANALYSIS_FILE)["split"] == "valid"


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no run"):
        analyse(tmp_path)
