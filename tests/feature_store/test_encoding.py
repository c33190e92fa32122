"""Fitted features as a whole: rows alone and in batches, saved and loaded, targets, refusals."""

import json
import pickle
import threading
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.encoding import FittedFeatures, FittedFeaturesMismatch, SchemaMismatch
from feature_store.features import (
    Bag,
    Categorical,
    DatePart,
    FeatureSet,
    Label,
    Layout,
    Numeric,
    Sequence,
)
from pipelines.fit import fit

FEATURES = FeatureSet(
    inputs=(
        Numeric(name="price", log1p=True, standardize=True, indicator=True),
        Numeric(name="age"),
        Numeric(name="age_bucket", source="age", num_buckets=3),
        Categorical(name="item", side="item"),
        Categorical(name="user", encoding="hash", side="user"),
        Bag(name="tags", max_length=3),
        Bag(name="hashed_tags", source="tags", encoding="hash"),
        Sequence(name="past", of="item", source="past_items", max_length=2),
        Sequence(name="users", of="user", source="friends", separator=","),
        DatePart(name="hour", source="time", part="hour"),
    ),
    labels=(Label(name="liked", source="rating", threshold=4), Label(name="clicked")),
    weight="importance",
    group="user",
    timestamp="time",
)
TYPES = {
    "price": pl.Float64,
    "age": pl.Int64,
    "item": pl.Int64,
    "user": pl.String,
    "tags": pl.String,
    "past_items": pl.List(pl.Int64),
    "friends": pl.String,
    "time": pl.Int64,
    "rating": pl.Float64,
    "clicked": pl.Boolean,
    "importance": pl.Float64,
}
TRAIN = pl.DataFrame(
    [
        (1.5, 20, 7, "ann", "red blue", [1, 2], "bob", 0, 5.0, True, 1.0),
        (None, 30, 7, "bob", "red", [], None, 3600, 1.0, False, 2.0),
        (0.0, None, 8, None, None, None, "ann,bob", 7200, 4.0, True, 0.5),
        (9.0, 50, None, "", "green red", [7, None], "", 10**9, 3.9, False, 0.0),
    ],
    schema=TYPES,
    orient="row",
)
FITTED = fit(TRAIN.lazy(), FEATURES)

missing = st.none()
rows = st.tuples(
    missing | st.floats(width=64),
    missing | st.integers(-(2**63), 2**63 - 1),
    missing | st.integers(5, 9),
    missing | st.sampled_from(["ann", "bob", "", "new"]),
    missing
    | st.text("rbe dlug", max_size=12)
    | st.sampled_from(["red blue", "green  red new red"]),
    missing | st.lists(missing | st.integers(6, 9), max_size=4),
    missing | st.sampled_from(["ann,bob", ",", "x"]),
    missing | st.integers(-(2**63), 2**63 - 1),
    st.just(1.0),
    st.just(True),
    st.just(1.0),
)


def encode(raw: pl.DataFrame, fitted: FittedFeatures = FITTED) -> pl.DataFrame:
    return fitted.encode(raw.lazy()).collect()


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(rows, min_size=1, max_size=20))
def test_a_row_alone_is_encoded_as_in_any_batch_and_engine(rows):
    raw = pl.DataFrame(rows, schema=TYPES, orient="row")
    batch = encode(raw)
    assert FITTED.encode(raw.lazy()).collect(engine="streaming").equals(batch)
    for i in range(len(raw)):
        assert encode(raw[i : i + 1]).equals(batch[i : i + 1])


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(rows, max_size=20))
def test_every_encoded_column_keeps_the_contract_of_its_shape(rows):
    encoded = encode(pl.DataFrame(rows, schema=TYPES, orient="row"))
    layout = FITTED.layout
    assert set(encoded.columns) == {field.name for field in layout.ids} | set(layout.dense)
    assert sum(encoded.null_count().row(0)) == 0
    for name in layout.dense:
        assert encoded.schema[name] == pl.Float32
        assert encoded[name].is_finite().all()
    for field in layout.ids:
        ids = encoded[field.name]
        assert ids.dtype == (pl.Int64 if field.shape == "single" else pl.List(pl.Int64))
        if field.shape != "single":
            longest = ids.list.len().max() or 0
            assert field.max_length is None or longest <= field.max_length
            ids = ids.explode().drop_nulls()
            assert not (ids == 0).any()
        if field.cardinality is not None:
            assert ids.is_between(0, field.cardinality - 1).all()


def test_numbers_have_the_sides_of_their_features():
    inputs = (
        Numeric(name="price", indicator=True, side="item"),
        Numeric(name="age_bucket", source="age", num_buckets=3, side="item"),
        Numeric(name="age", side="user"),
    )
    layout = fit(TRAIN.lazy(), FeatureSet(inputs=inputs, labels=(Label(name="clicked"),))).layout
    assert layout.dense == ("price", "price__missing", "age")
    assert layout.dense_sides == ("item", "item", "user")
    assert layout.dense_of(("item",)) == (0, 1)
    assert layout.dense_of(("user", "context")) == (2,)
    with pytest.raises(ValueError, match=r"a side for each of \['price', .* found \['item'\]"):
        Layout.model_validate({**layout.model_dump(), "dense_sides": ("item",)})


def test_the_layout_says_shape_side_space_and_size_of_every_column():
    layout = FITTED.layout
    assert layout.dense == ("price", "price__missing", "age")
    assert layout.tasks == ("liked", "clicked")
    assert [
        (f.name, f.shape, f.side, f.space, f.cardinality, f.max_length) for f in layout.ids
    ] == [
        ("age_bucket", "single", "context", "age_bucket", 5, None),
        ("item", "single", "item", "item", 4, None),
        ("user", "single", "user", "user", None, None),
        ("tags", "bag", "context", "tags", 5, 3),
        ("hashed_tags", "bag", "context", "hashed_tags", None, None),
        ("past", "sequence", "user", "item", 4, 2),
        ("users", "sequence", "user", "user", None, 50),
        ("hour", "single", "context", "hour", 26, None),
    ]


def test_the_columns_needed_for_scoring_are_those_of_the_features_alone():
    found = [(column.name, column.type, column.nullable) for column in FITTED.columns]
    assert found == [
        ("price", "float", True),
        ("age", "int", True),
        ("item", "int", True),
        ("user", "string", True),
        ("tags", "string", True),
        ("past_items", "list<int>", True),
        ("friends", "string", True),
        ("time", "int", False),
    ]


def test_a_sequence_has_the_ids_of_the_feature_it_is_of():
    items = encode(TRAIN)["item"].to_list()
    assert items == [2, 2, 3, 0]
    raw = TRAIN.with_columns(past_items=pl.Series([[7], [8], [9], [None]]))
    assert encode(raw)["past"].to_list() == [[2], [3], [1], []]


@pytest.mark.parametrize("dtype", [pl.String, pl.Int32, pl.UInt64, pl.Float64, pl.Decimal(10, 2)])
def test_a_value_has_one_id_whatever_type_it_is_read_as(dtype):
    raw = TRAIN.with_columns(pl.col("item").cast(dtype), pl.col("past_items").cast(pl.List(dtype)))
    assert encode(raw).equals(encode(TRAIN))
    assert fit(raw.lazy(), FEATURES).vocabularies["item"].to_list() == ["7", "8"]


def test_extra_columns_and_their_order_change_nothing():
    raw = TRAIN.select(pl.lit("x").alias("extra"), *reversed(TRAIN.columns))
    assert encode(raw).equals(encode(TRAIN))


def test_all_null_columns_of_no_type_are_missing_everywhere():
    raw = pl.DataFrame({name: [None, None] for name in TRAIN.columns[:8]})
    encoded = encode(raw)
    assert encoded.row(1) == (0.0, 1.0, 0.0, 0, 0, 0, [], [], [], [], 0)


def test_saved_and_loaded_they_encode_alike_with_the_same_fingerprint(tmp_path: Path):
    FITTED.save(tmp_path / "fitted")
    loaded = FittedFeatures.load(tmp_path / "fitted")
    assert loaded.fingerprint == FITTED.fingerprint
    assert loaded.layout == FITTED.layout
    assert loaded.columns == FITTED.columns
    assert encode(TRAIN, loaded).equals(encode(TRAIN))
    loaded.save(tmp_path / "again")
    assert FittedFeatures.load(tmp_path / "again").fingerprint == FITTED.fingerprint


def test_pickled_they_encode_alike_with_the_same_fingerprint():
    encode(TRAIN)
    copy = pickle.loads(pickle.dumps(FITTED))
    assert copy.fingerprint == FITTED.fingerprint
    assert encode(TRAIN, copy).equals(encode(TRAIN))


def test_vocabularies_of_any_text_survive_saving(tmp_path: Path):
    values = ["é", "\x00", '"quoted"', "new\nline", "🙂", "a b"]
    features = FeatureSet(inputs=(Categorical(name="x-1", source="any name.at/all"),))
    raw = pl.DataFrame({"any name.at/all": values})
    fitted = fit(raw.lazy(), features)
    fitted.save(tmp_path)
    assert encode(raw, FittedFeatures.load(tmp_path)).equals(encode(raw, fitted))


def test_every_part_of_what_was_learnt_is_in_the_fingerprint():
    def changed(**parts) -> str:
        kept = {
            name: getattr(FITTED, name)
            for name in ("feature_set", "vocabularies", "boundaries", "moments", "columns")
        }
        return FittedFeatures(**(kept | parts)).fingerprint

    assert changed() == FITTED.fingerprint
    reordered = {**FITTED.vocabularies, "item": FITTED.vocabularies["item"].reverse()}
    fingerprints = {
        FITTED.fingerprint,
        changed(vocabularies=reordered),
        changed(boundaries={"age_bucket": [31.0]}),
        changed(moments={"price": (0.0, 1.0)}),
        changed(columns=FITTED.columns[:-1]),
        changed(library="polars-hash 0"),
        changed(feature_set=FEATURES.model_copy(update={"weight": None})),
    }
    assert len(fingerprints) == 7


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _other_values(path: Path) -> None:
    pl.DataFrame({"item": ["8", "7"]}).write_ipc(path)


def _other_moments(path: Path) -> None:
    saved = json.loads(path.read_text())
    saved["moments"]["price"][0] += 1e-9
    path.write_text(json.dumps(saved))


def _other_format(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 0}))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("features.json", Path.unlink, "features.json is missing"),
        ("features.json", _truncate, "is damaged"),
        ("features.json", _other_format, "is of format 0, this program reads format 2"),
        ("features.json", _other_moments, "expected the fingerprint"),
        ("vocabularies/item.arrow", Path.unlink, "vocabularies/item.arrow is missing"),
        ("vocabularies/item.arrow", _truncate, "damaged|expected the fingerprint"),
        ("vocabularies/item.arrow", _other_values, "expected the fingerprint"),
    ],
)
def test_a_changed_folder_is_refused(tmp_path: Path, file, damage, message):
    FITTED.save(tmp_path)
    damage(tmp_path / file)
    with pytest.raises(FittedFeaturesMismatch, match=message):
        FittedFeatures.load(tmp_path)


def test_a_missing_column_is_named_with_the_nearest():
    with pytest.raises(SchemaMismatch, match=r"feature 'price' .* 'price'.*did you mean 'prices'"):
        FITTED.encode(TRAIN.rename({"price": "prices"}).lazy())


def test_a_column_of_a_wrong_type_is_refused_before_any_row_is_read():
    with pytest.raises(SchemaMismatch, match="'price' has the type String"):
        FITTED.encode(TRAIN.with_columns(pl.col("price").cast(pl.String)).lazy())


def test_threads_may_encode_at_the_same_time():
    fitted = pickle.loads(pickle.dumps(FITTED))
    expected, found = encode(TRAIN), []

    def work() -> None:
        found.extend(encode(TRAIN, fitted).equals(expected) for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 40


def test_targets_are_labels_weight_group_and_time():
    targets = FITTED.encode_targets(TRAIN.lazy()).collect()
    assert targets.schema == {
        "liked": pl.Float32,
        "clicked": pl.Float32,
        "__weight": pl.Float32,
        "__group": pl.Int64,
        "__timestamp": pl.Int64,
    }
    assert targets["liked"].to_list() == [1, 0, 1, 0]
    assert targets["clicked"].to_list() == [1, 0, 1, 0]
    assert targets["__weight"].to_list() == [1, 2, 0.5, 0]
    assert targets["__group"].to_list() == encode(TRAIN)["user"].to_list()
    assert targets["__group"].to_list()[2:] == [0, 0]
    assert targets["__timestamp"].to_list() == [0, 3600, 7200, 10**9]


def test_targets_that_are_not_declared_are_constants():
    features = FeatureSet(inputs=(Numeric(name="age"),), labels=(Label(source="clicked"),))
    targets = fit(TRAIN.lazy(), features).encode_targets(TRAIN.lazy()).collect()
    assert targets.rows()[:2] == [(1.0, 1.0, 0, 0), (0.0, 1.0, 0, 0)]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pl.Series([datetime(1970, 1, 2)], dtype=pl.Datetime("ms")), 86_400_000_000),
        (pl.Series([datetime(1970, 1, 2, tzinfo=UTC)]).dt.convert_time_zone("Asia/Tokyo"),
         86_400_000_000),
        (pl.Series([date(1970, 1, 2)]), 86_400_000_000),
        (pl.Series([1.9]), 1),
        (pl.Series([5], dtype=pl.UInt32), 5),
    ],
    ids=["naive", "zoned", "date", "float", "unsigned"],
)  # fmt: skip
def test_a_time_of_any_type_is_kept_as_an_integer(times, expected):
    raw = pl.DataFrame({"age": [1], "label": [1], "time": times})
    fitted = fit(raw.lazy(), FeatureSet(inputs=(Numeric(name="age"),), timestamp="time"))
    assert fitted.encode_targets(raw.lazy()).collect()["__timestamp"].to_list() == [expected]


@pytest.mark.parametrize("column", ["rating", "importance", "time"])
def test_a_target_of_a_wrong_type_is_refused_by_name(column):
    with pytest.raises(SchemaMismatch, match=f"'{column}' has the"):
        FITTED.encode_targets(TRAIN.with_columns(pl.lit("x").alias(column)).lazy())
