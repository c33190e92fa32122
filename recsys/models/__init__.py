"""The models, one file each: a new one is its file and its lines here."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from feature_store.features import Layout
from recsys.embeddings.collection import AbstractEmbeddings
from recsys.models.din import DIN, DINConfig
from recsys.models.dnn import DNN, DNNConfig
from recsys.models.ranker import AbstractRanker

MODELS: dict[str, Callable[[Layout, AbstractEmbeddings, Any], AbstractRanker]] = {
    "din": DIN,
    "dnn": DNN,
}

ModelConfig = Annotated[DINConfig | DNNConfig, Field(discriminator="kind")]


def ranker(config: ModelConfig, layout: Layout, embeddings: AbstractEmbeddings) -> AbstractRanker:
    """The model a configuration names."""
    return MODELS[config.kind](layout, embeddings, config)
