"""Checkpoints are whole or not there, and load on any number of workers."""

import json
import multiprocessing
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.killed import killed_while_saving
from support.ranks import on_ranks
from support.training import (
    PLAIN_DIN,
    Recipe,
    embeddings_of,
    fitted,
    global_losses,
    optimizer_state,
    scores,
    trainer_of,
    weights,
)

from recsys.checkpoint import (
    Checkpoint,
    CheckpointMismatch,
    CheckpointNotFound,
    Checkpoints,
    load,
    write_atomically,
)
from recsys.models import DINConfig, DNNConfig
from recsys.models.layers import MLPConfig
from recsys.training.trainer import TrainingConfig


def saved(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(folder / "checkpoints")
    for step in steps:
        checkpoints.save(step, {"model": {"w": torch.full((3,), float(step))}}, {"step": step})
    return checkpoints


def test_saved_tensors_and_state_come_back(tmp_path: Path) -> None:
    last = saved(tmp_path, 5, 20, 100).last()
    assert last.step == 100
    assert last.state == {"step": 100}
    tensors = {"model": {"w": torch.zeros(3)}}
    load(last, tensors)
    assert tensors["model"]["w"].tolist() == [100.0] * 3


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    assert [each.step for each in saved(tmp_path, 100, 20, 5).all()] == [5, 20, 100]


def test_an_unfinished_folder_does_not_exist_and_is_replaced(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5, 10)
    (checkpoints.folder / "step-10" / "complete").unlink()
    (checkpoints.folder / "step-10" / "rest").write_text("of a killed run")
    assert checkpoints.last().step == 5
    saved(tmp_path, 10)
    assert checkpoints.last().step == 10
    assert not (checkpoints.folder / "step-10" / "rest").exists()


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3, 4, 5)
    checkpoints.mark_best(2, {"value": 0.7})
    checkpoints.keep(2)
    assert [each.step for each in checkpoints.all()] == [2, 4, 5]
    assert checkpoints.best().step == 2
    checkpoints.mark_best(5, {"value": 0.8})
    checkpoints.keep(1)
    assert [each.step for each in checkpoints.all()] == [5]


def test_the_best_without_a_mark_is_the_last(tmp_path: Path) -> None:
    assert saved(tmp_path, 1, 2).best().step == 2


def test_a_best_one_that_is_gone_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    checkpoints.mark_best(1, {"value": 0.7})
    shutil.rmtree(checkpoints.folder / "step-1")
    with pytest.raises(CheckpointNotFound, match=r"step-1, is gone.*--checkpoint last"):
        checkpoints.best()


def test_no_checkpoint_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="no complete checkpoint; train the run first"):
        Checkpoints(tmp_path).last()


def test_clearing_removes_complete_and_unfinished_ones(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    checkpoints.mark_best(2, {})
    (checkpoints.folder / "step-1" / "complete").unlink()
    checkpoints.clear()
    assert list(checkpoints.folder.iterdir()) == []


@pytest.mark.parametrize(
    "tensors", [{"model": {"w": torch.zeros(4)}}, {"model": {"other": torch.zeros(3)}}]
)
def test_another_model_is_refused(tmp_path: Path, tensors: dict[str, Any]) -> None:
    with pytest.raises(CheckpointMismatch, match=r"step-1 does not fit this model.*w|other"):
        load(saved(tmp_path, 1).last(), tensors)


def test_a_small_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    for text in ("old", "new"):
        write_atomically(path, text)
        assert path.read_text() == text
    assert [each.name for each in tmp_path.iterdir()] == ["best.json"]


# What two workers write, one and three read.

SHARDINGS = ("table_wise", "row_wise", "data_parallel", None)
CASES = {
    **{f"din {sharding}": (PLAIN_DIN, sharding) for sharding in SHARDINGS},
    "din with statistics": (DINConfig(mlp=MLPConfig(hidden=(16,), activation="dice")), None),
}


def recipes(files: tuple[Path, ...], folder: Path) -> dict[str, Recipe]:
    return {
        case: Recipe(
            files,
            folder / case,
            model=model,
            embeddings=embeddings_of(sharding),
            training=TrainingConfig(batch_size=60, max_steps=6),
        )
        for case, (model, sharding) in CASES.items()
    }


def seen(trainer: Any, files: tuple[Path, ...]) -> dict[str, Any]:
    return {
        "scores": scores(trainer, files),
        "weights": weights(trainer),
        "optimizer": optimizer_state(trainer),
        "step": trainer.progress.step,
        "losses": global_losses(trainer, 5),
    }


def written(files: tuple[Path, ...], folder: Path) -> dict[str, dict[str, Any]]:
    return {case: seen(fitted(recipe), files) for case, recipe in recipes(files, folder).items()}


def read(files: tuple[Path, ...], folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for case, recipe in recipes(files, folder).items():
        trainer = trainer_of(recipe)
        trainer.restore(trainer.checkpoints.last())
        found[case] = seen(trainer, files)
    return found


@pytest.fixture(scope="module")
def run(files: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What the writer had, and what 1, 2 and 3 readers have, by number of workers (0: writer)."""
    folder = tmp_path_factory.mktemp("runs")
    results = {0: on_ranks(2, written, files, folder)[0]}
    for world_size in (1, 2, 3):
        results[world_size] = on_ranks(world_size, read, files, folder)[0]
    return results


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("case", list(CASES))
def test_any_number_of_workers_reads_what_two_wrote(
    run: dict[int, Any], case: str, world_size: int
) -> None:
    """Weights and optimizer state to the bit, scores, and the losses of the steps that follow."""
    expected, found = run[0][case], run[world_size][case]
    assert found["step"] == 6
    for part in ("weights", "optimizer"):
        assert set(found[part]) == set(expected[part])
        for name, value in expected[part].items():
            np.testing.assert_array_equal(found[part][name], value, err_msg=name)
    tables = [name for name in expected["optimizer"] if "_table" in name]
    assert len(tables) >= 4
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=0, atol=1e-6)
    assert expected["scores"].std() > 0.01
    if "statistics" not in case:
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=0, atol=1e-5)


# A training that is killed while it saves.

MOMENTS = {
    "before the tensors": 6,
    "before it is complete": 6,
    "while an old one is removed": 6,
}


def killed_recipe(files: tuple[Path, ...], folder: Path) -> Recipe:
    return Recipe(
        files,
        folder,
        model=DNNConfig(mlp=MLPConfig(hidden=(16,), dropout=0.3)),
        training=TrainingConfig(batch_size=60, checkpoint_every_steps=2, epochs=2, max_steps=12),
    )


@pytest.fixture(scope="module")
def killed(
    files: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Checkpoints]:
    """Three trainings, each dead by SIGKILL at its moment of saving; run side by side."""
    context = multiprocessing.get_context("spawn")
    folders = {moment: tmp_path_factory.mktemp("killed") for moment in MOMENTS}
    processes = [
        context.Process(
            target=killed_while_saving, args=(killed_recipe(files, folder), moment, MOMENTS[moment])
        )
        for moment, folder in folders.items()
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == -signal.SIGKILL
    return {moment: Checkpoints(folder / "checkpoints") for moment, folder in folders.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("moment", list(MOMENTS))
def test_a_training_killed_while_saving_resumes_to_the_same_weights(
    files: tuple[Path, ...], tmp_path: Path, killed: dict[str, Checkpoints], moment: str
) -> None:
    checkpoints = killed[moment]
    left = checkpoints.last()
    assert left.step == (6 if moment == "while an old one is removed" else 4)
    load(left, {"model": trainer_of(killed_recipe(files, tmp_path)).model.state_dict()})
    uninterrupted = fitted(killed_recipe(files, tmp_path))
    resumed = fitted(killed_recipe(files, checkpoints.folder.parent), resume=True)
    assert resumed.progress == uninterrupted.progress
    found = weights(resumed)
    for name, value in weights(uninterrupted).items():
        np.testing.assert_array_equal(found[name], value)
    steps = [each.step for each in resumed.checkpoints.all()]
    assert steps == [each.step for each in uninterrupted.checkpoints.all()] == [10, 12]


def test_a_checkpoint_names_what_it_belongs_to(tmp_path: Path) -> None:
    folder = saved(tmp_path, 3).folder / "step-3"
    assert json.loads((folder / "state.json").read_text()) == {"step": 3}
    assert Checkpoint(folder, 3).state == {"step": 3}
