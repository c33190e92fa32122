"""Rows written through the access are the rows that are looked up and trained next."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.ranks import on_ranks
from support.training import (
    Recipe,
    embeddings_of,
    global_losses,
    optimizer_state,
    scores,
    trainer_of,
    weights,
)

from recsys.embeddings.access import TableAccess
from recsys.training.optimizers import DenseOptimizerConfig, SparseOptimizerConfig
from recsys.training.trainer import TrainingConfig

TABLES = ("user", "item", "city")
NUM_ROWS = {"user": 40, "item": 60, "city": 100}
ROWS = [0, 3, 17, 31, 39]
SHARDINGS: dict[str, dict[str, Any]] = {
    "table_wise": {"sharding": "table_wise"},
    "row_wise": {"sharding": "row_wise"},
    "column_wise": {"sharding": "column_wise"},
    "data_parallel": {"sharding": "data_parallel"},
    "dense": {"optimizer": "dense"},
}


def recipe_of(files: tuple[Path, ...], folder: Path, sharding: str, sparse: str) -> Recipe:
    return Recipe(
        files,
        folder,
        embeddings=embeddings_of(**SHARDINGS[sharding]),
        training=TrainingConfig(
            batch_size=60,
            sparse_optimizer=SparseOptimizerConfig.model_validate({"kind": sparse}),
            dense_optimizer=DenseOptimizerConfig(kind="adam"),
        ),
    )


def _whole(arrays: dict[str, np.ndarray], table: str) -> list[np.ndarray]:
    return [a for name, a in arrays.items() if f"{table}_table" in name and a.ndim]


def _access(trainer: Any) -> TableAccess:
    access = trainer.step.tables
    assert isinstance(access, TableAccess)
    return access


def rewritten(recipe: Recipe) -> dict[str, Any]:
    """Some rows replaced and their state forgotten after a few steps, and steps after that."""
    trainer = trainer_of(recipe)
    global_losses(trainer, 4)
    access, rows_N = _access(trainer), torch.tensor(ROWS)
    before, state_before = weights(trainer), optimizer_state(trainer)
    read = {name: access.read_rows(name, rows_N).numpy() for name in TABLES}
    old_scores = scores(trainer, recipe.files)
    for place, name in enumerate(TABLES):
        values_ND = torch.arange(len(ROWS) * 8.0).reshape(-1, 8) / 64 + place
        access.write_rows(name, rows_N, values_ND)
        access.reset_state(name, rows_N)
    reread = {name: access.read_rows(name, rows_N).numpy() for name in TABLES}
    after, state_after = weights(trainer), optimizer_state(trainer)
    new_scores = scores(trainer, recipe.files)
    losses = global_losses(trainer, 3)
    return {
        "weights": (before, after, weights(trainer)),
        "state": (state_before, state_after),
        "read": (read, reread),
        "scores": (old_scores, new_scores),
        "losses": losses,
    }


@pytest.fixture(scope="module", params=[(s, w) for s in SHARDINGS for w in (1, 2)])
def result(
    request: pytest.FixtureRequest,
    files: tuple[Path, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    sharding, workers = request.param
    recipe = recipe_of(files, tmp_path_factory.mktemp("access"), sharding, "rowwise_adagrad")
    each = on_ranks(workers, rewritten, recipe)
    for rank in each:
        for one, other in zip(rank["read"], each[0]["read"], strict=True):
            for name in TABLES:
                np.testing.assert_array_equal(one[name], other[name])
    return {**each[0], "sharding": sharding}


@pytest.mark.distributed
def test_rows_are_read_as_they_are(result: dict[str, Any]) -> None:
    before = result["weights"][0]
    for name in TABLES:
        (table_RD,) = _whole(before, name)
        np.testing.assert_array_equal(result["read"][0][name], table_RD[ROWS])
        assert np.abs(table_RD[ROWS]).max() > 0


@pytest.mark.distributed
def test_written_rows_are_in_the_model_and_no_others(result: dict[str, Any]) -> None:
    before, after, _ = result["weights"]
    for place, name in enumerate(TABLES):
        (old_RD,), (new_RD,) = _whole(before, name), _whole(after, name)
        expected_RD = old_RD.copy()
        expected_RD[ROWS] = np.arange(len(ROWS) * 8.0).reshape(-1, 8) / 64 + place
        np.testing.assert_array_equal(new_RD, expected_RD.astype(np.float32))
        np.testing.assert_array_equal(result["read"][1][name], new_RD[ROWS])


@pytest.mark.distributed
def test_the_next_forward_pass_reads_what_was_written(result: dict[str, Any]) -> None:
    old, new = result["scores"]
    assert np.abs(old - new).max() > 1e-3


@pytest.mark.distributed
def test_the_optimizer_forgets_those_rows_and_no_others(result: dict[str, Any]) -> None:
    before, after = result["state"]
    for name in TABLES:
        states = _whole(before, name), _whole(after, name)
        assert states[0], "there is state"
        for old, new in zip(*states, strict=True):
            # Column-wise shards keep one accumulator a row each, one below the other.
            num_rows = NUM_ROWS[name]
            for first in range(0, old.shape[0], num_rows):
                part = slice(first, first + num_rows)
                expected = old[part].copy()
                expected[ROWS] = 0
                np.testing.assert_array_equal(new[part], expected)
                assert np.abs(old[part][ROWS]).max() > 0, "some of the rows had been trained"
                assert np.abs(expected).max() > 0, "and so had others"


@pytest.mark.distributed
def test_training_goes_on_from_what_was_written(result: dict[str, Any]) -> None:
    _, after, later = result["weights"]
    for name in TABLES:
        (old_RD,), (new_RD,) = _whole(after, name), _whole(later, name)
        moved = np.abs(old_RD - new_RD).max(axis=1)[ROWS]
        assert moved.any(), "the rows that were written are trained"
        assert moved.max() < 0.5, "from where they were put, 3 steps of at most the rate"
    assert all(np.isfinite(result["losses"]))
