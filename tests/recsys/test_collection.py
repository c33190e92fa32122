"""Vectors by name, against a loop over rows that reads the tables themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.encoded import LAYOUT, MAX_LENGTH
from support.training import CPU, embeddings_of
from support.weighted import WEIGHTED, write_weighted

from feature_store.features import Layout
from recsys.batch import Batch
from recsys.dataset import BatchReader
from recsys.embeddings.collection import Embeddings, SequenceVectors, table_weight
from recsys.embeddings.config import EmbeddingsConfig, FeatureEmbedding
from recsys.embeddings.hashing import hashed_rows
from recsys.embeddings.initial import initialize
from recsys.embeddings.scheme import Space
from recsys.embeddings.tables import Table

CONFIGS = {
    "plain": embeddings_of(),
    "sum": embeddings_of(pooling="sum"),
    "replicated": embeddings_of("data_parallel"),
    "hashed": embeddings_of(num_embeddings=9),
    "widths": EmbeddingsConfig(
        default=FeatureEmbedding(embedding_dim=8, num_embeddings=50),
        features={
            "item": FeatureEmbedding(embedding_dim=4),
            "tags": FeatureEmbedding(embedding_dim=12, optimizer="dense"),
        },
    ),
}


def made(config: EmbeddingsConfig, layout: Layout = LAYOUT) -> Embeddings:
    embeddings = Embeddings(layout, config, CPU)
    tables = embeddings.tables
    initialize(embeddings, tables, seed=1)
    return embeddings


def table_of(embeddings: Embeddings, field: str) -> Table:
    return next(t for t in embeddings.tables if field in [f.name for f in t.fields])


def row_of(encoded: int, space: Space) -> int:
    if not space.hashed:
        return encoded
    return hashed_rows(torch.tensor(encoded), space.num_ids).item()


@pytest.mark.parametrize("name", list(CONFIGS))
def test_vectors_equal_a_loop_over_rows(name: str, batch: Batch) -> None:
    embeddings = made(CONFIGS[name])
    vectors = embeddings(batch.ids)
    assert set(vectors) == {field.name for field in LAYOUT.ids}
    for field in LAYOUT.ids:
        table = table_of(embeddings, field.name)
        sized = next(s for s in embeddings.spaces if s.space.name == field.space)
        weight = table_weight(embeddings, table).detach().numpy()
        for place, ids in enumerate(batch.ids[field.name].to_dense()):
            rows = weight[[row_of(i, sized.space) for i in ids.tolist()]]
            found = vectors[field.name]
            if field.shape == "sequence":
                assert isinstance(found, SequenceVectors)
                values_LD = found.values_BLD[place].detach().numpy()
                assert values_LD.shape == (MAX_LENGTH, table.embedding_dim)
                np.testing.assert_array_equal(values_LD[: len(ids)], rows)
                np.testing.assert_array_equal(values_LD[len(ids) :], 0)
                assert found.mask_BL[place].tolist() == [j < len(ids) for j in range(MAX_LENGTH)]
                continue
            assert isinstance(found, torch.Tensor)
            expected = rows.sum(axis=0)
            if field.shape == "bag" and sized.pooling == "mean":
                expected = expected / max(1, len(ids))
            np.testing.assert_allclose(found[place].detach().numpy(), expected, atol=1e-7)


def test_an_empty_bag_is_the_zero_vector(batch: Batch) -> None:
    vectors = made(CONFIGS["plain"])(batch.ids)
    empty_B = batch.ids["tags"].lengths() == 0
    assert empty_B.any()
    assert isinstance(vectors["tags"], torch.Tensor)
    assert vectors["tags"][empty_B].abs().sum() == 0


def test_a_history_and_its_feature_read_one_table(batch: Batch) -> None:
    embeddings = made(CONFIGS["plain"])
    before = embeddings(batch.ids)
    with torch.no_grad():
        table_weight(embeddings, table_of(embeddings, "item")).add_(1.0)
    after = embeddings(batch.ids)
    torch.testing.assert_close(after["item"], before["item"] + 1.0)
    mask_BL1 = before["history"].mask_BL[:, :, None]
    torch.testing.assert_close(
        after["history"].values_BLD, before["history"].values_BLD + 1.0 * mask_BL1
    )
    assert torch.equal(after["user"], before["user"])


def test_gradients_of_a_mean_are_shared_by_the_bag(batch: Batch) -> None:
    embeddings = made(CONFIGS["plain"])
    embeddings(batch.ids)["tags"].sum().backward()
    weight = table_weight(embeddings, table_of(embeddings, "tags"))
    expected = np.zeros(weight.shape[0])
    for ids in batch.ids["tags"].to_dense():
        for tag in ids.tolist():
            expected[tag] += 1 / len(ids)
    np.testing.assert_allclose(weight.grad[:, 0].numpy(), expected, rtol=1e-5)


@pytest.fixture
def weighted_batch(tmp_path: Path) -> Batch:
    return next(BatchReader(write_weighted(tmp_path, 64), WEIGHTED, batch_size=64).epoch(0))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_weights_weigh_vectors_as_a_loop_over_rows_does(name: str, weighted_batch: Batch) -> None:
    """A bag's sum or mean is weighted, a sequence's positions are multiplied one by one."""
    ids = weighted_batch.ids
    embeddings = made(CONFIGS[name], WEIGHTED)
    vectors = embeddings(ids)
    spaces = {sized.space.name: sized for sized in embeddings.spaces}
    nothing = 0
    for field in ("tags", "history"):
        sized = spaces[WEIGHTED.id_field(field).space]
        weight = table_weight(embeddings, table_of(embeddings, field)).detach().numpy()
        lists = zip(ids[field].to_dense(), ids[field].to_dense_weights(), strict=True)
        for place, (of_row, weights) in enumerate(lists):
            rows = weight[[row_of(i, sized.space) for i in of_row.tolist()]]
            weighed = rows * weights.numpy()[:, None]
            found = vectors[field]
            if isinstance(found, SequenceVectors):
                values_LD = found.values_BLD[place].detach().numpy()
                np.testing.assert_allclose(values_LD[: len(rows)], weighed, atol=1e-7)
                assert found.mask_BL[place].sum() == len(rows)
                continue
            total = weights.sum().item()
            expected = weighed.sum(axis=0)
            if sized.pooling == "mean" and total > 0:
                expected = expected / total
            nothing += total == 0 and len(rows) > 0
            np.testing.assert_allclose(found[place].detach().numpy(), expected, atol=1e-6)
    assert nothing, "some bag has ids whose weights are all 0"


def test_gradients_of_a_weighted_mean_are_shared_by_weight(weighted_batch: Batch) -> None:
    embeddings = made(CONFIGS["plain"], WEIGHTED)
    embeddings(weighted_batch.ids)["tags"].sum().backward()
    weight = table_weight(embeddings, table_of(embeddings, "tags"))
    expected = np.zeros(weight.shape[0])
    tags = weighted_batch.ids["tags"]
    for ids, weights in zip(tags.to_dense(), tags.to_dense_weights(), strict=True):
        for tag, share in zip(ids.tolist(), weights.tolist(), strict=True):
            expected[tag] += share / max(weights.sum().item(), 1e-30)
    np.testing.assert_allclose(weight.grad[:, 0].numpy(), expected, rtol=1e-5)


def test_unweighted_bags_of_a_weighted_layout_stay_pooled_in_the_collection() -> None:
    """Only what is weighted is looked up id by id."""
    layout = Layout(
        ids=(
            *(field for field in WEIGHTED.ids if field.name == "tags"),
            *(
                field.model_copy(update={"name": "plain", "space": "plain"})
                for field in LAYOUT.ids
                if field.name == "tags"
            ),
        ),
        dense=(),
        tasks=("label",),
    )
    embeddings = made(CONFIGS["plain"], layout)
    assert [key.field.name for key in embeddings.pooled_keys] == ["plain"]
