"""Where a table lies changes neither what it holds at first nor what it learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support.encoded import LAYOUT
from support.ranks import on_ranks
from support.training import (
    CPU,
    PLAIN_DIN,
    PLAIN_DNN,
    Recipe,
    embeddings_of,
    global_losses,
    trainer_of,
    weights,
)
from torch import nn

from recsys.dataset import BatchReader
from recsys.embeddings.collection import Embeddings, SequenceVectors
from recsys.embeddings.config import EmbeddingsConfig, FeatureEmbedding
from recsys.embeddings.initial import initialize
from recsys.embeddings.sharding import TopologyConfig, explain, plan, shard, worker_bytes
from recsys.training.optimizers import SparseOptimizerConfig
from recsys.training.trainer import TrainingConfig

SHARDINGS = (None, "table_wise", "row_wise", "column_wise", "data_parallel", "dense")
MODELS = {"dnn": PLAIN_DNN, "din": PLAIN_DIN}
CASES = [(kind, sharding) for kind in MODELS for sharding in SHARDINGS]


def recipe_of(kind: str, sharding: str | None, files: tuple[Path, ...]) -> Recipe:
    embeddings = (
        embeddings_of(None, optimizer="dense") if sharding == "dense" else embeddings_of(sharding)
    )
    # One accumulator a row of each column-wise shard is not the one of the whole row.
    sparse = "adagrad" if sharding == "column_wise" else "rowwise_adagrad"
    return Recipe(
        files,
        Path("unused"),
        model=MODELS[kind],
        embeddings=embeddings,
        training=TrainingConfig(batch_size=60, sparse_optimizer=SparseOptimizerConfig(kind=sparse)),
    )


def trained(files: tuple[Path, ...]) -> dict[tuple[str, str | None], dict[str, Any]]:
    """Every case on these ranks: weights at first and after one step, losses of 20 steps."""
    found = {}
    for kind, sharding in CASES:
        trainer = trainer_of(recipe_of(kind, sharding, files))
        first = weights(trainer)
        losses = global_losses(trainer, 1)
        after = weights(trainer)
        trainer = trainer_of(recipe_of(kind, sharding, files))
        losses = global_losses(trainer, 20)
        found[kind, sharding] = {"first": first, "after": after, "losses": losses}
    return found


@pytest.fixture(scope="module")
def one(files: tuple[Path, ...]) -> dict:
    return on_ranks(1, trained, files)[0]


@pytest.fixture(scope="module")
def two(files: tuple[Path, ...]) -> dict:
    return on_ranks(2, trained, files)[0]


@pytest.mark.distributed
@pytest.mark.parametrize(("kind", "sharding"), CASES)
def test_two_workers_train_as_one_does(one: dict, two: dict, kind: str, sharding: str) -> None:
    """Same global batches, same losses, under every sharding type."""
    expected, found = one[kind, sharding]["losses"], two[kind, sharding]["losses"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert len(set(expected)) == 20


@pytest.mark.distributed
@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("sharding", [None, "row_wise", "data_parallel"])
def test_sharding_does_not_change_what_is_learned(
    one: dict, two: dict, kind: str, sharding: str
) -> None:
    """Column-wise and dense tables are trained by other optimizers here."""
    same_optimizer = kind, "table_wise"
    np.testing.assert_allclose(
        two[kind, sharding]["losses"], one[same_optimizer]["losses"], rtol=0, atol=1e-5
    )


@pytest.mark.distributed
@pytest.mark.parametrize("world", ["one", "two"])
@pytest.mark.parametrize(("kind", "sharding"), CASES)
def test_every_table_and_layer_moves_in_one_step(
    request: pytest.FixtureRequest, world: str, kind: str, sharding: str
) -> None:
    case = request.getfixturevalue(world)[kind, sharding]
    assert sum("_table" in name for name in case["first"]) == 4
    for name, before in case["first"].items():
        moved = np.abs(case["after"][name] - before).max()
        # Only a bias may stand still by chance; a table must not.
        assert moved > 0, f"{name} has not been trained"


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_initial_rows_do_not_depend_on_the_workers(one: dict, two: dict, sharding: str) -> None:
    expected = by_table(one["din", "table_wise"]["first"])
    for case in (one, two):
        found = by_table(case["din", sharding]["first"])
        assert set(found) == {"user_table", "item_table", "tags_table", "city_table"}
        for table, rows in found.items():
            np.testing.assert_array_equal(rows, expected[table])
            assert rows.std() > 0.01


def by_table(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    parts = {part: name for name in state for part in name.split(".") if part.endswith("_table")}
    return {table: state[name] for table, name in parts.items()}


def looked_up(files: tuple[Path, ...], sharding: str) -> dict[str, np.ndarray]:
    """Largest difference between sharded and unsharded vectors by field, on this rank's rows."""
    config = embeddings_of(sharding)
    batch = next(
        BatchReader(
            files, LAYOUT, batch_size=80, rank=dist.get_rank(), world_size=dist.get_world_size()
        ).epoch(0)
    )
    plain = Embeddings(LAYOUT, config, CPU)
    tables = plain.tables
    initialize(plain, tables, seed=3)
    meta = nn.ModuleList([Embeddings(LAYOUT, config, torch.device("meta"))])
    chosen = plan(meta, tables, device=CPU, world_size=dist.get_world_size(), batch_size=40)
    sharded = shard(meta, chosen, tables, device=CPU, seed=3)
    expected, found = plain(batch.ids), sharded.module[0](batch.ids)
    assert list(found) and set(found) == set(expected)
    differences = {}
    for name, value in expected.items():
        if isinstance(value, SequenceVectors):
            assert torch.equal(value.mask_BL, found[name].mask_BL)
            value, other = value.values_BLD, found[name].values_BLD
        else:
            other = found[name]
        assert value.abs().sum() > 0
        differences[name] = float((value - other).detach().abs().max())
    return differences


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", ["row_wise", "table_wise", "column_wise"])
def test_sharded_vectors_equal_unsharded_ones(files: tuple[Path, ...], sharding: str) -> None:
    """Row-wise pooled tables too, which TorchRec does not list for CPU."""
    for differences in on_ranks(2, looked_up, files, sharding):
        # A bag's vectors are added in another order.
        assert differences.pop("tags") < 1e-7
        assert differences == dict.fromkeys(differences, 0.0)
        assert set(differences) == {"user", "item", "history", "city"}


def planned(sharding: str | None, world_size: int, memory_gib: float | None = None) -> list:
    meta = Embeddings(LAYOUT, embeddings_of(sharding), torch.device("meta"))
    tables = meta.tables
    topology = TopologyConfig(memory_gib=memory_gib)
    chosen = plan(meta, tables, device=CPU, world_size=world_size, batch_size=32, topology=topology)
    return explain(chosen, tables)


def test_a_plan_explains_every_table_without_a_process_group() -> None:
    placements = planned("row_wise", 2)
    assert [p.table for p in placements] == ["user", "item", "tags", "city"]
    assert {p.sharding_type for p in placements} == {"row_wise"}
    assert {p.ranks for p in placements} == {(0, 1)}
    city = placements[3]
    assert (city.num_embeddings, city.embedding_dim, city.size_bytes) == (100, 8, 3200)


def test_replicated_tables_are_explained_as_such() -> None:
    assert {(p.sharding_type, p.ranks) for p in planned("data_parallel", 2)} == {
        ("data_parallel", ())
    }


POOLED = LAYOUT.model_copy(
    update={"ids": tuple(field for field in LAYOUT.ids if field.shape != "sequence")}
)
MIXED = ("table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise",
         "grid_shard")  # fmt: skip


def pooled_losses(files: tuple[Path, ...]) -> dict[str, list[float]]:
    """Losses of ten steps of a model without sequences, by sharding type."""
    found = {}
    for sharding in MIXED:
        training = TrainingConfig(
            batch_size=60, sparse_optimizer=SparseOptimizerConfig(kind="adagrad")
        )
        recipe = Recipe(
            files,
            Path("unused"),
            layout=POOLED,
            embeddings=embeddings_of(sharding),
            training=training,
        )
        found[sharding] = global_losses(trainer_of(recipe), 10)
    return found


@pytest.mark.distributed
def test_every_type_trains_pooled_tables_alike_on_any_number_of_workers(
    files: tuple[Path, ...],
) -> None:
    one, two = (on_ranks(workers, pooled_losses, files)[0] for workers in (1, 2))
    expected = one["table_wise"]
    assert len(set(expected)) == 10
    for losses in (*one.values(), *two.values()):
        np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sharding", ["table_row_wise", "table_column_wise", "grid_shard"])
def test_a_table_with_sequences_says_how_it_can_be_sharded(sharding: str) -> None:
    with pytest.raises(ValueError, match=r"'item' is read one vector an id.*row_wise"):
        planned(sharding, 2)


def test_a_plan_tells_bytes_of_each_worker_in_words() -> None:
    placements = planned("row_wise", 2)
    city = placements[3]
    assert city.worker_bytes == (1600, 1600)
    assert city.sentence() == (
        "city (100 rows x 8) is cut by rows over workers 0, 1, 1,600 bytes each"
    )
    rows = [p.num_embeddings for p in placements]
    assert sum(worker_bytes(placements, 2)) == sum(rows) * 8 * 4
    replicated = planned("data_parallel", 2)
    assert worker_bytes(replicated, 2) == (sum(rows) * 8 * 4,) * 2
    assert "whole on every worker" in replicated[0].sentence()
    (user, *_) = planned("table_wise", 2)
    assert f"lies on worker {user.ranks[0]}" in user.sentence()


def test_tables_that_fit_nowhere_are_an_error_that_says_what_to_do() -> None:
    huge = EmbeddingsConfig(default=FeatureEmbedding(embedding_dim=64, num_embeddings=10**8))
    meta = Embeddings(LAYOUT, huge, torch.device("meta"))
    tables = meta.tables
    with pytest.raises(
        ValueError,
        match=r"fits 2 worker.*the table 'city' takes 25,600,000,000 bytes, even cut by rows",
    ):
        plan(
            meta,
            tables,
            device=CPU,
            world_size=2,
            batch_size=32,
            topology=TopologyConfig(memory_gib=1),
        )
