"""Raw rows of every kind of column, features fitted on them, and rankers in serving form."""

from collections.abc import Callable
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import torch

from feature_store.encoding import FittedFeatures
from feature_store.features import (
    Bag,
    Categorical,
    DatePart,
    FeatureSet,
    History,
    Label,
    Numeric,
    Sequence,
)
from pipelines.fit import fit
from recsys.embeddings.collection import Embeddings, table_weight
from recsys.embeddings.config import EmbeddingsConfig, FeatureEmbedding
from recsys.embeddings.serving import PaddedIds, ServedBatch, serving_form
from recsys.models import DINConfig, DNNConfig, ranker
from recsys.models.ranker import AbstractRanker

FEATURES = FeatureSet(
    inputs=(
        Categorical(name="user", encoding="hash", side="user"),
        Categorical(name="item", side="item", min_count=2),
        Categorical(name="member", side="user"),
        Bag(name="genres", source="genre_text", separator="|", side="item"),
        Bag(name="tags", encoding="hash", side="item", separator=";"),
        Sequence(name="history", of="item", max_length=5, source="seen"),
        Numeric(name="price", log1p=True, standardize=True, indicator=True),
        Numeric(name="age", num_buckets=4),
        DatePart(name="hour", source="clicked", part="hour"),
    ),
    labels=(Label(name="click"),),
)


def rows(num_rows: int, seed: int = 0) -> pl.DataFrame:
    """Random raw rows; `member` and `price` have nulls, the others none."""
    random = np.random.default_rng(seed)

    def ints(most: int) -> list[int]:
        return random.integers(0, most, num_rows).tolist()

    words = np.array(["action", "comedy", "drama", "Žánr"])
    prices = random.lognormal(size=num_rows).round(2).tolist()
    start = datetime(2024, 2, 29)
    return pl.DataFrame(
        {
            "user": [f"u{i}" for i in ints(200)],
            "item": ints(30),
            "member": [[True, False, None][i] for i in ints(3)],
            "genre_text": ["|".join(random.choice(words, n)) for n in ints(4)],
            "tags": [random.choice(words, n).tolist() for n in ints(3)],
            "seen": pl.Series(
                [random.integers(0, 30, n).tolist() for n in ints(9)], dtype=pl.List(pl.Int64)
            ),
            "price": [None if i == 0 else price for i, price in zip(ints(10), prices, strict=True)],
            "age": ints(90),
            "clicked": [start + timedelta(minutes=i) for i in ints(100_000)],
            "click": ints(2),
        },
        schema_overrides={"member": pl.Boolean, "price": pl.Float64, "tags": pl.List(pl.String)},
    )


def fitted(
    tasks: tuple[str, ...] = ("click",), names: tuple[str, ...] | None = None
) -> FittedFeatures:
    """Features (all, or those of some names) fitted on 500 rows."""
    labels = tuple(Label(name=task, source="click") for task in tasks)
    inputs = tuple(f for f in FEATURES.inputs if names is None or f.name in names)
    return fit(rows(500).lazy(), FeatureSet(inputs=inputs, labels=labels))


LIST_FEATURES = FeatureSet(
    inputs=(
        Categorical(name="item", side="item"),
        Bag(name="likes", source="liked", weights="strength", of="item"),
        Sequence(
            name="past",
            of="item",
            source="seen",
            max_length=5,
            gaps=12,
            weights="relevance",
            history=History(by="item"),
        ),
    ),
    labels=(Label(name="click"),),
    timestamp="clicked",
)
"""Lists with weights and with gaps in time, as scoring gets them."""


def list_rows(num_rows: int, seed: int = 0) -> pl.DataFrame:
    """Random raw rows of `LIST_FEATURES`, as they are after histories were gathered."""
    random = np.random.default_rng(seed)
    liked, seen = (random.integers(0, 6, num_rows) for _ in range(2))
    start = datetime(2024, 2, 29)
    items, floats = pl.List(pl.Int64), pl.List(pl.Float64)

    def lists(lengths: np.ndarray, draw: Callable[[int], list]) -> list[list]:
        return [draw(length) for length in lengths.tolist()]

    def ids(length: int) -> list[int]:
        return random.integers(0, 30, length).tolist()

    def weights(length: int) -> list[float]:
        return random.random(length).tolist()

    def times(length: int) -> list[datetime]:
        return [start - timedelta(seconds=int(s)) for s in random.integers(1, 4000, length)]

    return pl.DataFrame(
        {
            "item": random.integers(0, 30, num_rows),
            "liked": pl.Series(lists(liked, ids), dtype=items),
            "strength": pl.Series(lists(liked, weights), dtype=floats),
            "seen": pl.Series(lists(seen, ids), dtype=items),
            "seen__weight": pl.Series(lists(seen, weights), dtype=floats),
            "seen__time": pl.Series(lists(seen, times), dtype=pl.List(pl.Datetime("us"))),
            "clicked": [start] * num_rows,
            "click": random.integers(0, 2, num_rows),
        }
    )


def fitted_lists() -> FittedFeatures:
    """`LIST_FEATURES`, fitted."""
    return fit(list_rows(300).lazy(), LIST_FEATURES)


def served_ranker(features: FittedFeatures, kind: str = "din") -> AbstractRanker:
    """A ranker with random weights, large enough that every input shows in its scores."""
    torch.manual_seed(0)
    config = EmbeddingsConfig(default=FeatureEmbedding(embedding_dim=8, num_embeddings=50))
    embeddings = Embeddings(features.layout, config, torch.device("cpu"))
    for table in embeddings.tables:
        torch.nn.init.normal_(table_weight(embeddings, table))
    model_config = {"din": DINConfig(), "dnn": DNNConfig()}[kind]
    made = ranker(model_config, features.layout, serving_form(embeddings)).eval()
    with torch.no_grad():
        made.output.weight.mul_(20.0)
    return made


def trained_scores(features: FittedFeatures, model: AbstractRanker, raw: pl.DataFrame) -> list:
    """Scores by the model itself, row by row, from ids and numbers read out of Polars values."""
    encoded = features.encode(raw.lazy()).collect()
    scores = []
    for row in encoded.iter_rows(named=True):
        ids = {}
        for field in features.layout.ids:
            values = row[field.name] if field.shape != "single" else [row[field.name]]
            lengths = torch.tensor([len(values)])
            weights = torch.tensor([row[field.weights] or [0.0]]) if field.weighted else None
            ids[field.name] = PaddedIds(torch.tensor([values or [0]]), lengths, weights)
        dense = torch.tensor([[row[name] for name in features.layout.dense]])
        with torch.no_grad():
            scores.append(torch.sigmoid(model(ServedBatch(ids, dense)))[0].tolist())
    return scores
