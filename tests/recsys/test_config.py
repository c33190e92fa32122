"""Which tables a layout needs, and what a user may say of them."""

import pytest
from pydantic import ValidationError
from support.encoded import LAYOUT, NUM_ITEMS, NUM_USERS
from support.training import tables_of

from feature_store.features import IdField, Layout
from recsys.embeddings.compression.full import FullConfig
from recsys.embeddings.config import EmbeddingsConfig, FeatureEmbedding, sized_spaces
from recsys.embeddings.tables import Table


def by_name(config: EmbeddingsConfig) -> dict[str, Table]:
    return {table.name: table for table in tables_of(LAYOUT, config)}


def test_fields_of_one_space_share_a_table() -> None:
    tables = by_name(EmbeddingsConfig(default=FeatureEmbedding(num_embeddings=100)))
    assert list(tables) == ["user", "item", "tags", "city"]
    assert [field.name for field in tables["item"].fields] == ["history", "item"]
    assert tables["item"].per_id
    assert not tables["user"].per_id


@pytest.mark.parametrize(
    ("asked", "rows", "hashed"),
    [(None, NUM_USERS, False), (1000, NUM_USERS, False), (NUM_USERS, NUM_USERS, False),
     (NUM_USERS - 1, NUM_USERS - 1, True), (2, 2, True)],
)  # fmt: skip
def test_a_vocabulary_is_hashed_only_into_fewer_rows(
    asked: int | None, rows: int, hashed: bool
) -> None:
    features = {"user": FeatureEmbedding(num_embeddings=asked)}
    default = FeatureEmbedding(num_embeddings=10)
    if asked is None:
        features, default = {}, FeatureEmbedding()
        features["city"] = FeatureEmbedding(num_embeddings=10)
    config = EmbeddingsConfig(default=default, features=features)
    user = by_name(config)["user"]
    assert user.num_embeddings == rows
    space = next(s.space for s in sized_spaces(LAYOUT, config) if s.space.name == "user")
    assert (space.num_ids, space.hashed) == (rows, hashed)


def test_a_hashed_feature_needs_a_size() -> None:
    with pytest.raises(ValueError, match=r"'city' is hashed.*embeddings\.features\.city"):
        by_name(EmbeddingsConfig())


def test_settings_of_an_unknown_feature_name_the_nearest() -> None:
    config = EmbeddingsConfig(features={"itm": FeatureEmbedding()})
    with pytest.raises(ValueError, match=r"embeddings\.features\.itm.*did you mean 'item'\?"):
        by_name(config)


def test_settings_of_a_sequence_are_those_of_its_feature() -> None:
    config = EmbeddingsConfig(features={"history": FeatureEmbedding()})
    with pytest.raises(ValueError, match="uses the table of its `of` feature"):
        by_name(config)


def test_a_feature_says_only_what_differs_from_the_default() -> None:
    config = EmbeddingsConfig(
        default=FeatureEmbedding(embedding_dim=32, num_embeddings=50, pooling="sum"),
        features={"item": FeatureEmbedding(embedding_dim=8)},
    )
    tables = by_name(config)
    assert tables["item"].embedding_dim == 8
    poolings = {s.space.name: s.pooling for s in sized_spaces(LAYOUT, config)}
    assert poolings["item"] == "sum"
    assert tables["item"].num_embeddings == 50 < NUM_ITEMS
    assert tables["tags"].embedding_dim == 32
    assert tables["item"].num_parameters == 400


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sharding_types": ()}, "empty"),
        ({"sharding_types": ("data_parallel", "row_wise")}, "name it alone"),
        ({"sharding_types": ("row_wise",), "optimizer": "dense"}, "cannot apply"),
        ({"sharding_types": ("diagonal",)}, "sharding_types"),
        ({"embedding_dim": 0}, "greater than 0"),
        ({"num_embeddings": 1}, "greater than or equal to 2"),
        ({"num_embedings": 5}, "num_embedings"),
    ],
)
def test_contradictions_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FeatureEmbedding(**settings)


def test_replicated_tables_are_the_dense_and_the_data_parallel_ones() -> None:
    assert FeatureEmbedding(optimizer="dense").replicated
    assert FeatureEmbedding(sharding_types=("data_parallel",)).replicated
    assert not FeatureEmbedding().replicated


def test_a_layout_of_numbers_has_no_tables() -> None:
    assert tables_of(Layout(ids=(), dense=("age",), tasks=("label",)), EmbeddingsConfig()) == ()


def test_a_table_may_be_called_as_a_method_of_a_dict() -> None:
    field = IdField(name="keys", shape="single", side="item", space="keys", cardinality=5)
    (table,) = tables_of(Layout(ids=(field,), dense=(), tasks=("label",)), EmbeddingsConfig())
    assert (table.name, table.parameter) == ("keys", "keys_table")


def test_what_a_feature_leaves_to_the_default_stays_so_when_written_and_read() -> None:
    config = EmbeddingsConfig(
        default=FeatureEmbedding(embedding_dim=32, scheme="compositional"),
        features={
            "item": FeatureEmbedding(init_range=0.5),
            "user": FeatureEmbedding(scheme=FullConfig()),
        },
    )
    for mode in ("json", "python"):
        again = EmbeddingsConfig.model_validate(config.model_dump(mode=mode))
        assert again == config
        item, user = again.of("item"), again.of("user")
        assert (item.embedding_dim, item.init_range) == (32, 0.5)
        assert item.scheme == config.default.scheme
        assert (user.embedding_dim, user.scheme) == (32, FullConfig())
