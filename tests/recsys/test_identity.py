"""A checkpoint says under which schemes it was written."""

import json
from pathlib import Path

import pytest
import torch
from support.encoded import LAYOUT

from recsys.checkpoint import COMPLETE, STATE, Checkpoint, CheckpointMismatch
from recsys.embeddings.collection import Embeddings
from recsys.embeddings.config import EmbeddingsConfig, FeatureEmbedding
from recsys.embeddings.identity import STATE_KEY, require_schemes, scheme_names


def embeddings(**schemes: str) -> Embeddings:
    default = FeatureEmbedding(embedding_dim=8, num_embeddings=100)
    features = {name: FeatureEmbedding(scheme=scheme) for name, scheme in schemes.items()}
    config = EmbeddingsConfig(default=default, features=features)
    return Embeddings(LAYOUT, config, torch.device("meta"))


def saved(folder: Path, state: dict) -> Checkpoint:
    (folder / STATE).write_text(json.dumps(state))
    (folder / COMPLETE).touch()
    return Checkpoint(folder, 1)


def test_the_same_schemes_load(tmp_path: Path) -> None:
    same = embeddings(item="compositional")
    names = scheme_names(same)
    assert names == {"user": "full", "item": "compositional", "tags": "full", "city": "full"}
    require_schemes(saved(tmp_path, {STATE_KEY: names}), same)


def test_another_scheme_names_both(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, {STATE_KEY: scheme_names(embeddings(item="compositional"))})
    with pytest.raises(
        CheckpointMismatch, match="'item' was trained as 'compositional' and is loaded as 'full'"
    ):
        require_schemes(checkpoint, embeddings())
