"""The serving form of the embeddings gives the training form's vectors from plain tensors."""

from pathlib import Path

import pytest
import torch
from support.encoded import LAYOUT
from support.padding import padded_ids
from support.training import CPU, embeddings_of
from support.weighted import WEIGHTED, write_weighted

from feature_store.features import Layout
from recsys.batch import Batch
from recsys.dataset import BatchReader
from recsys.embeddings.collection import Embeddings, SequenceVectors
from recsys.embeddings.config import EmbeddingsConfig
from recsys.embeddings.initial import initialize
from recsys.embeddings.serving import PaddedIds, ServingEmbeddings, serving_form

CONFIGS = {
    "mean": embeddings_of(),
    "sum": embeddings_of(pooling="sum"),
    "replicated": embeddings_of("data_parallel"),
    "hashed": embeddings_of(num_embeddings=9),
}


def both(config: EmbeddingsConfig, layout: Layout = LAYOUT) -> tuple[Embeddings, ServingEmbeddings]:
    embeddings = Embeddings(layout, config, CPU)
    tables = embeddings.tables
    initialize(embeddings, tables, seed=2)
    return embeddings, serving_form(embeddings)


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("extra", [0, 3])
def test_serving_vectors_equal_training_vectors(name: str, extra: int, batch: Batch) -> None:
    """Lists may be padded further than the longest one."""
    training, serving = both(CONFIGS[name])
    expected, found = training(batch.ids), serving(padded_ids(batch.ids, extra))
    assert set(found) == set(expected)
    for field in LAYOUT.ids:
        one, other = found[field.name], expected[field.name]
        if field.shape == "sequence":
            assert isinstance(one, SequenceVectors)
            length = min(one.mask_BL.shape[1], other.mask_BL.shape[1])
            assert torch.equal(one.mask_BL[:, :length], other.mask_BL[:, :length])
            assert not one.mask_BL[:, length:].any()
            assert torch.equal(one.values_BLD[:, :length], other.values_BLD[:, :length])
            assert one.values_BLD[:, length:].abs().sum() == 0
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def test_what_stands_in_the_padding_changes_nothing(batch: Batch) -> None:
    _, serving = both(CONFIGS["mean"])
    clean = padded_ids(batch.ids, 2)
    dirty = {}
    for name, (ids_BL, lengths_B, _) in clean.items():
        padding_BL = torch.arange(ids_BL.shape[1])[None, :] >= lengths_B[:, None]
        dirty[name] = PaddedIds(ids_BL.masked_fill(padding_BL, 5), lengths_B)
    for name, vector in serving(clean).items():
        other = serving(dirty)[name]
        if isinstance(vector, SequenceVectors):
            assert torch.equal(vector.values_BLD, other.values_BLD)
        else:
            assert torch.equal(vector, other)


def test_weights_are_shared_and_not_trained() -> None:
    training, serving = both(CONFIGS["mean"])
    assert not any(tensor.requires_grad for tensor in serving.state_dict(keep_vars=True).values())
    pointers = {parameter.data_ptr() for parameter in training.parameters()}
    assert {buffer.data_ptr() for buffer in serving.buffers()} == pointers


@pytest.mark.parametrize("name", list(CONFIGS))
def test_weights_weigh_alike_in_training_and_in_serving(name: str, tmp_path: Path) -> None:
    reader = BatchReader(write_weighted(tmp_path, 40), WEIGHTED, batch_size=40)
    ids = next(reader.epoch(0)).ids
    training, serving = both(CONFIGS[name], WEIGHTED)
    expected, found = training(ids), serving(padded_ids(ids, 2))
    for field in WEIGHTED.ids:
        one, other = found[field.name], expected[field.name]
        if isinstance(one, SequenceVectors):
            length = other.mask_BL.shape[1]
            one, other = one.values_BLD[:, :length], other.values_BLD[:, : one.mask_BL.shape[1]]
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
