"""Bytes by hand; the contract test over all schemes holds them to what is stored."""

import torch
from support.encoded import LAYOUT
from support.training import embeddings_of

from recsys.embeddings.collection import Embeddings
from recsys.embeddings.config import EmbeddingsConfig, FeatureEmbedding
from recsys.training.account import account, full_bytes
from recsys.training.optimizers import DenseOptimizerConfig, SparseOptimizerConfig
from recsys.training.trainer import TrainingConfig

META = torch.device("meta")


def test_plain_tables() -> None:
    embeddings = Embeddings(LAYOUT, embeddings_of(), META)
    sizes = {size.name: size for size in account(embeddings, TrainingConfig())}
    assert list(sizes) == ["user", "item", "tags", "city"]
    item = sizes["item"]
    assert (item.scheme, item.is_table, item.fields) == ("full", True, ("history", "item"))
    assert item.parameter_bytes == item.serving_bytes == 60 * 8 * 4
    assert item.optimizer_bytes == 60 * 4
    assert full_bytes(embeddings) == (40 + 60 + 12 + 100) * 8 * 4


def test_compressed_tables_and_their_optimizers() -> None:
    default = FeatureEmbedding(
        embedding_dim=8, num_embeddings=100, optimizer="dense",
        scheme={"kind": "compositional", "num_collisions": 10},
    )  # fmt: skip
    embeddings = Embeddings(LAYOUT, EmbeddingsConfig(default=default), META)
    training = TrainingConfig(
        sparse_optimizer=SparseOptimizerConfig(kind="sgd"),
        dense_optimizer=DenseOptimizerConfig(kind="adam"),
    )
    sizes = {size.name: size for size in account(embeddings, training)}
    # 60 items: 10 remainders, 6 quotients; 12 tags would take 10 + 2 rows and stay whole.
    assert sizes["item_remainder"].parameter_bytes == 10 * 8 * 4
    assert sizes["item_quotient"].parameter_bytes == 6 * 8 * 4
    assert sizes["item_quotient"].optimizer_bytes == 2 * 6 * 8 * 4
    assert sizes["tags"].parameter_bytes == 12 * 8 * 4
    assert full_bytes(embeddings) == (40 + 60 + 12 + 100) * 8 * 4
