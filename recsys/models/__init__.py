"""The models, one file each: a new one is its file and its lines here."""

from typing import Annotated

from pydantic import Field
from torch import nn

from feature_store.features import Layout
from recsys.models.din import DIN, DINConfig
from recsys.models.dnn import DNN, DNNConfig
from recsys.models.ranker import AbstractRanker

MODELS: dict[str, type[AbstractRanker]] = {"din": DIN, "dnn": DNN}

ModelConfig = Annotated[DINConfig | DNNConfig, Field(discriminator="kind")]


def ranker(config: ModelConfig, layout: Layout, embeddings: nn.Module) -> AbstractRanker:
    """The model a configuration names."""
    return MODELS[config.kind](layout, embeddings, config)
