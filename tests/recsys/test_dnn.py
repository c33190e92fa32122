"""DNN against its formula in NumPy."""

import numpy as np
import torch
from support.encoded import LAYOUT
from support.training import CPU, embeddings_of

from recsys.batch import Batch
from recsys.embeddings.collection import Embeddings, SequenceVectors
from recsys.embeddings.initial import initialize
from recsys.models.dnn import DNN, DNNConfig
from recsys.models.layers import MLPConfig


def made() -> DNN:
    torch.manual_seed(0)
    embeddings = Embeddings(LAYOUT, embeddings_of(), CPU)
    tables = embeddings.tables
    initialize(embeddings, tables, seed=0)
    return DNN(LAYOUT, embeddings, DNNConfig(mlp=MLPConfig(hidden=(6,))))


def test_logits_equal_the_formula(batch: Batch) -> None:
    model = made()
    vectors = model.embeddings(batch.ids)
    names = ("user", "item", "tags", "city")
    parts = [vectors[name].detach().double().numpy() for name in names]
    x = np.concatenate([*parts, batch.dense_BN.double().numpy()], axis=1)
    weight, bias, out, out_bias = (
        p.detach().double().numpy()
        for p in (*model.mlp.linears[0].parameters(), *model.output.parameters())
    )
    expected = np.maximum(x @ weight.T + bias, 0) @ out.T + out_bias
    np.testing.assert_allclose(model(batch).detach().numpy(), expected, atol=1e-6)


def test_it_reads_no_sequence(batch: Batch) -> None:
    model = made()
    vectors = model.embeddings(batch.ids)
    history = vectors["history"]
    assert isinstance(history, SequenceVectors)
    changed = {**vectors, "history": SequenceVectors(history.values_BLD + 1, history.mask_BL)}
    assert torch.equal(model.logits(changed, batch.dense_BN), model.logits(vectors, batch.dense_BN))
