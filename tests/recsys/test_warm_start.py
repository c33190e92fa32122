"""One run starts from another one's checkpoint: the whole way, from files to a trained model."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from feature_store.compatibility import IncompatibleVersion
from feature_store.features import IdField, Layout
from recsys import run as stages
from recsys.checkpoint import CheckpointMismatch
from recsys.dataset import BatchReader
from recsys.embeddings.compression.dynamic import Dynamic
from recsys.embeddings.config import EmbeddingsConfig, sized_spaces
from recsys.embeddings.serving import whole_tables
from recsys.experiment import Experiment
from recsys.rundir import RunNotFound, prepare_run, report_folder
from recsys.trained import Trained, batches, load_trained, reading
from recsys.training.log import read_metrics
from recsys.warm_start import fate, told, warm_start

pytestmark = pytest.mark.distributed


def clicks(path: Path, first_item: int, colours: list[str], seed: int) -> Path:
    """A day on which some items are on sale."""
    random = np.random.default_rng(seed)
    size = 1_500
    item = first_item + random.geometric(0.2, size)
    pl.DataFrame(
        {
            "clicked": (random.random(size) < 0.2 + 0.5 * (item % 2)).astype(np.int64),
            "item": [f"item-{i}" for i in item],
            "user": [f"user-{i}" for i in random.integers(0, 20, size)],
            "colour": random.choice(colours, size),
        }
    ).write_parquet(path)
    return path


def experiment_of(
    path: Path,
    folder: Path,
    capacity: int,
    *,
    warm: Path | None = None,
    item: dict[str, Any] | None = None,
    name: str = "daily",
) -> Experiment:
    scheme = item or {
        "kind": "dynamic",
        "capacity": capacity,
        "update_every": 5,
        "half_life": None,
    }
    return Experiment.model_validate(
        {
            "name": name,
            "data": {
                "path": str(path),
                "store": str(folder / "store"),
                "columns": {
                    "clicked": "int",
                    "item": "string",
                    "user": "string",
                    "colour": "string",
                },
                "split": {"by": "random", "test": 0.1, "valid": 0.1},
            },
            "features": {
                "labels": [{"name": "clicked"}],
                "inputs": [
                    {"name": "item", "kind": "categorical", "encoding": "hash"},
                    {"name": "user", "kind": "categorical", "encoding": "hash"},
                    {"name": "colour", "kind": "categorical"},
                ],
            },
            "embeddings": {
                "default": {"embedding_dim": 8},
                "features": {
                    "item": {"scheme": scheme},
                    "user": {"num_embeddings": 50},
                },
            },
            "model": {"kind": "dnn", "mlp": {"hidden": [8]}},
            "training": {
                "batch_size": 60,
                "log_every_steps": 5,
                "max_steps": 20,
                "early_stopping": None,
                "warm_start": None if warm is None else str(warm),
            },
        }
    )


def known(trained: Trained) -> dict[int, torch.Tensor]:
    """The vector of every id that owns a row."""
    scheme = trained.embeddings.schemes_by_space()["item"]
    assert isinstance(scheme, Dynamic)
    owners = scheme.owners
    keys = owners.map.keys[owners.occupied_C]
    table_RD = whole_tables(trained.embeddings)["item_dynamic"]
    (rows,) = scheme.rows(keys)
    return dict(zip(keys.tolist(), table_RD[rows], strict=True))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The first day's run, with room for 8 items; its folder and that of everything."""
    folder = tmp_path_factory.mktemp("days")
    path = clicks(folder / "first.parquet", 0, ["red", "green"], seed=0)
    return stages.train(experiment_of(path, folder, 8), root=folder / "runs"), folder


@pytest.mark.parametrize("capacity", [8, 15, 5])
def test_known_items_keep_their_vectors_at_the_start(
    capacity: int, first: tuple[Path, Path], tmp_path: Path
) -> None:
    """Learning rates of next to nothing show what the run started from."""
    run_dir, folder = first
    day = experiment_of(folder / "first.parquet", folder, capacity, warm=run_dir)
    still = day.training.model_copy(
        update={
            "max_steps": 1,
            "sparse_optimizer": day.training.sparse_optimizer.model_copy(update={"lr": 1e-30}),
            "dense_optimizer": day.training.dense_optimizer.model_copy(update={"lr": 1e-30}),
        }
    )
    again = load_trained(
        stages.train(day.model_copy(update={"training": still}), root=tmp_path / "runs"), "last"
    )
    before, after = load_trained(run_dir), known(again)
    old = known(before)
    assert len(old) == 8
    assert len(after) == min(capacity, 8)
    for i, vector_D in after.items():
        torch.testing.assert_close(vector_D, old[i], rtol=0, atol=0)
    mine, theirs = again.model.state_dict(), before.model.state_dict()
    weights = [n for n in mine if "mlp" in n or "user_table" in n or "colour_table" in n]
    assert len(weights) > 3
    for name in weights:
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=0)
    note = again.checkpoint.state["warm_start"]
    assert note["other_ids"] == []
    assert Path(note["from"]).parent.parent == run_dir


def test_the_next_day_goes_on_and_says_what_happened(first: tuple[Path, Path]) -> None:
    """New items come in, and a vocabulary that has grown starts anew."""
    run_dir, folder = first
    path = clicks(folder / "second.parquet", 6, ["red", "green", "blue"], seed=1)
    day = experiment_of(path, folder, 12, warm=run_dir, name="next_day")
    heard: list[str] = []
    second = stages.train(
        day,
        root=folder / "runs",
        progress=lambda stage, message, done=None, total=None: heard.append(message),
    )
    assert any("other vocabulary or boundaries, so anew: colour" in line for line in heard)
    lines = [line for line in read_metrics(second) if line["split"] == "train"]
    assert len(lines) == 4
    assert lines[-1]["item.occupancy"] == 1.0
    assert sum(line["item.admitted"] for line in lines) >= 4
    assert 0 < lines[0]["item.out_of_vocabulary"] < 1
    assert lines[-1]["item.out_of_vocabulary"] < lines[0]["item.out_of_vocabulary"]
    after, before = known(load_trained(second, "last")), known(load_trained(run_dir))
    assert before.keys() & after.keys(), "some were on sale on both days"
    assert after.keys() - before.keys(), "some are new"


def test_a_run_is_named_by_the_checkpoint_it_starts_from(
    first: tuple[Path, Path], tmp_path: Path
) -> None:
    run_dir, folder = first
    path = folder / "first.parquet"
    version = stages.build_features(experiment_of(path, folder, 8)).version
    cold = prepare_run(experiment_of(path, folder, 8), version, tmp_path)
    warm = experiment_of(path, folder, 8, warm=run_dir)
    assert prepare_run(warm, version, tmp_path) != cold
    assert prepare_run(warm, version, tmp_path) == prepare_run(warm, version, tmp_path)
    start = warm_start(warm, version)
    assert start is not None
    assert told(start).startswith("starting from daily/")
    assert warm_start(experiment_of(path, folder, 8), version) is None


def test_what_cannot_be_started_from_is_refused(first: tuple[Path, Path]) -> None:
    run_dir, folder = first
    path, runs = folder / "first.parquet", folder / "runs"
    with pytest.raises(RunNotFound, match="nowhere is no run"):
        stages.train(experiment_of(path, folder, 8, warm=folder / "nowhere"), root=runs)
    with pytest.raises(ValueError, match=r"latest run of this very experiment.*name one run"):
        stages.train(experiment_of(path, folder, 8, warm=run_dir.parent), root=runs)
    cafe = {"kind": "cafe", "num_hot": 4, "num_shared": 4}
    with pytest.raises(CheckpointMismatch, match=r"'item' was trained as 'dynamic'.*'cafe'"):
        other = experiment_of(path, folder, 8, warm=run_dir, item=cafe, name="other")
        stages.train(other, root=runs)


@pytest.mark.parametrize(
    ("settings", "before", "now", "expected"),
    [
        ({}, 10, 10, "stayed"),
        ({}, 10, 14, "grown"),
        ({"num_embeddings": 8}, 10, 14, "stayed"),  # hashed into as many rows as before
        ({"num_embeddings": 12}, 10, 14, "anew"),  # had a row per id, is hashed now
        ({"num_embeddings": 12}, 10, 12, "grown"),
        ({"scheme": "compositional"}, 10, 14, "anew"),  # what an id is made of depends on how many
        ({"scheme": "compositional"}, 10, 10, "stayed"),
        ({"scheme": {"kind": "dynamic", "capacity": 6}}, 10, 14, "stayed"),  # rows are kept by id
    ],
)
def test_what_becomes_of_a_space_that_has_grown(
    settings: dict[str, Any], before: int, now: int, expected: str
) -> None:
    config = EmbeddingsConfig.model_validate(
        {"default": {"embedding_dim": 4}, "features": {"item": settings}}
    )
    (old,), (new,) = (
        sized_spaces(
            Layout(
                ids=(
                    IdField(
                        name="item", shape="single", side="item", space="item", cardinality=size
                    ),
                ),
                dense=(),
                tasks=("label",),
            ),
            config,
        )
        for size in (before, now)
    )
    assert fate(old, new) == expected


def grown_experiment(
    path: Path, folder: Path, *, warm: Path | None = None, still: bool = False, **more: Any
) -> Experiment:
    """Vocabularies that grow from the last version, and a number that keeps its moments."""
    rate = 1e-30 if still else 0.05
    return Experiment.model_validate(
        {
            "name": "growing",
            "data": {
                "path": str(path),
                "store": str(folder / "growing_store"),
                "columns": {"clicked": "int", "item": "string", "colour": "string"},
                "split": {"by": "random", "test": 0.1, "valid": 0.1},
            },
            "features": {
                "labels": [{"name": "clicked"}],
                "grow_from": "latest",
                "inputs": [
                    {"name": "item", "kind": "categorical"},
                    {"name": "colour", "kind": "categorical"},
                    {"name": "past", "kind": "sequence", "of": "item", "source": "item"},
                ],
                **more,
            },
            "embeddings": {
                "default": {"embedding_dim": 4},
                "features": {"colour": {"scheme": "compositional"}},
            },
            "model": {"kind": "dnn", "mlp": {"hidden": [8]}},
            "training": {
                "batch_size": 60,
                "log_every_steps": 5,
                "max_steps": 1 if still else 20,
                "early_stopping": None,
                "sparse_optimizer": {"lr": rate},
                "dense_optimizer": {"lr": rate},
                "warm_start": None if warm is None else str(warm),
            },
        }
    )


def test_a_grown_vocabulary_keeps_its_rows_and_scores_old_rows_equally(tmp_path: Path) -> None:
    """The second day has new items; its version grew from the first's."""
    first_day = clicks(tmp_path / "first.parquet", 0, ["red", "green"], seed=0)
    second_day = clicks(tmp_path / "second.parquet", 6, ["red", "green"], seed=1)
    run_dir = stages.train(grown_experiment(first_day, tmp_path), root=tmp_path / "runs")
    heard: list[str] = []
    again = stages.train(
        grown_experiment(second_day, tmp_path, warm=run_dir, still=True),
        root=tmp_path / "runs",
        progress=lambda stage, message, done=None, total=None: heard.append(message),
    )
    assert any("grown, known rows taken over: item" in line for line in heard)
    before, after = load_trained(run_dir, "best"), load_trained(again, "last")
    note = after.checkpoint.state["warm_start"]
    assert (note["other_ids"], note["grown"], note["not_there"]) == ([], ["item"], [])
    old_RD = whole_tables(before.embeddings)["item"]
    new_RD = whole_tables(after.embeddings)["item"]
    assert len(new_RD) > len(old_RD)
    torch.testing.assert_close(new_RD[: len(old_RD)], old_RD, rtol=0, atol=0)
    fresh_RD = new_RD[len(old_RD) :]
    assert torch.unique(fresh_RD, dim=0).shape[0] == len(fresh_RD), "each has a row of its own"
    raw = pl.scan_parquet(first_day)
    known = before.version.fitted.vocabularies["item"]
    old_rows = raw.filter(pl.col("item").is_in(known.implode()))
    scores = []
    for trained in (before, after):
        folder = tmp_path / str(trained.version.number)
        folder.mkdir()
        fitted = trained.version.fitted
        schema = old_rows.collect_schema()
        encoded = old_rows.select(*fitted.encoders(schema), *fitted.target_encoders(schema))
        encoded.collect().write_parquet(folder / "rows.parquet")
        reader = BatchReader([folder / "rows.parquet"], trained.version.layout, batch_size=500)
        with torch.no_grad():
            scores.append(torch.cat([trained.model.ranker(b) for b in reader.epoch(0)]))
    assert len(scores[0]) > 1_000
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=0)


def test_a_model_is_measured_on_a_version_that_has_grown_and_on_no_other(tmp_path: Path) -> None:
    days = [clicks(tmp_path / f"{n}.parquet", 6 * n, ["red", "green"], seed=n) for n in range(2)]
    run_dir = stages.train(grown_experiment(days[0], tmp_path, still=True), root=tmp_path / "runs")
    grown = stages.build_features(grown_experiment(days[1], tmp_path)).version
    alone = stages.build_features(grown_experiment(days[1], tmp_path, grow_from=None)).version
    trained = load_trained(run_dir)
    other = reading(trained, grown.number)
    (place,) = [n for n, field in enumerate(other.version.layout.ids) if field.name == "item"]
    seen = torch.cat([batch.ids.to_dict()["item"].values() for batch in batches(other, "train")])
    expected = other.version.fitted.encode(pl.scan_parquet(days[1])).collect()["item"]
    size = len(trained.version.fitted.vocabularies["item"]) + 2
    assert grown.layout.ids[place].cardinality > size
    stored = grown.scan("train").collect()["item"].to_torch()
    assert (stored >= size).any()
    assert seen.tolist() == torch.where(stored < size, stored, 1).tolist()
    assert set(seen.tolist()) <= set(expected.to_list()), "as its own features encode these rows"
    report = stages.evaluate(run_dir, on=grown.number)
    assert report.data.version == grown.number
    folder = report_folder(run_dir, grown.number)
    assert folder.name == f"on-version-{grown.number}"
    assert (folder / "report.json").exists()
    assert not (run_dir / "report.json").exists()
    with pytest.raises(IncompatibleVersion, match=r"growing@0 cannot read growing@2: 'item' has m"):
        stages.evaluate(run_dir, on=alone.number)
