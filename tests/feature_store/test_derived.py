"""Derived columns: computed in the one encoder, from raw columns in whatever type they come."""

from datetime import date, datetime

import polars as pl
import pytest
from pydantic import ValidationError

from feature_store.compatibility import compare, declared_alike
from feature_store.encoding import FittedFeatures, SchemaMismatch
from feature_store.features import FeatureSet
from pipelines.fit import fit

TRAIN = pl.DataFrame(
    {
        "price": [10.0, None, 30.0, 8.0],
        "nights": [2, 3, 0, None],
        "city": ["Brno", "Praha", None, "Brno"],
        "from": [date(2024, 5, 1), date(2024, 5, 2), None, date(2024, 6, 1)],
        "flag": [1, 0, 1, 0],
        "label": [1, 0, 1, 0],
    },
    schema_overrides={"flag": pl.Int8, "nights": pl.Int8},
)


def fitted(derived: dict[str, str], *inputs: dict[str, object]) -> FittedFeatures:
    features = FeatureSet.model_validate({"inputs": inputs, "derived": derived})
    return fit(TRAIN.lazy(), features)


def encode(features: FittedFeatures, raw: pl.DataFrame = TRAIN) -> pl.DataFrame:
    return features.encode(raw.lazy()).collect()


def test_every_kind_of_feature_may_read_one():
    features = fitted(
        {
            "per_night": "price / NULLIF(nights, 0)",
            "where": "LOWER(city) || '-' || STRFTIME(\"from\", '%m')",
            "words": "STRING_TO_ARRAY(city, 'a')",
            "cheap": "price < 10",
        },
        {"kind": "numeric", "name": "per_night", "default": -1.0},
        {"kind": "numeric", "name": "part", "source": "per_night", "num_buckets": 2},
        {"kind": "categorical", "name": "where"},
        {"kind": "categorical", "name": "cheap", "encoding": "hash"},
        {"kind": "bag", "name": "words"},
        {"kind": "frequency", "name": "f", "source": "where", "together_with": ["cheap"]},
    )
    assert [column.name for column in features.columns] == ["price", "nights", "city", "from"]
    found = encode(features)
    assert found["per_night"].to_list() == [5.0, -1.0, -1.0, -1.0]
    assert features.vocabularies["where"].to_list() == ["brno-05", "brno-06", "praha-05"]
    assert found["where"].to_list() == [2, 4, 0, 3]
    assert sorted(features.vocabularies["words"]) == ["Brno", "Pr", "h"]
    assert found["words"].list.len().to_list() == [1, 2, 0, 1]


def test_a_row_alone_and_saved_features_give_the_same(tmp_path):
    features = fitted({"x": "nights * flag + LENGTH(city)"}, {"kind": "numeric", "name": "x"})
    whole = encode(features)
    features.save(tmp_path)
    loaded = FittedFeatures.load(tmp_path)
    for row in range(TRAIN.height):
        assert encode(loaded, TRAIN[row : row + 1]).equals(whole[row : row + 1])


def test_integers_of_few_bits_do_not_run_over():
    features = fitted({"x": "nights * 100"}, {"kind": "numeric", "name": "x"})
    assert encode(features)["x"].to_list() == [200.0, 300.0, 0.0, 0.0]
    wide = TRAIN.with_columns(pl.col("nights").cast(pl.Float64))
    text = TRAIN.with_columns(pl.col("nights").cast(pl.String))
    assert encode(features, wide).equals(encode(features))
    assert encode(features, text).equals(encode(features))
    assert encode(features, TRAIN.with_columns(nights=None))["x"].to_list() == [0.0] * 4


def test_a_raw_column_of_the_same_name_is_not_taken_for_it():
    features = fitted({"x": "nights + 1"}, {"kind": "numeric", "name": "x"})
    assert encode(features, TRAIN.with_columns(x=99)).equals(encode(features))


def test_a_time_beyond_the_calendar_is_missing():
    features = fitted(
        {"moment": "TRY_CAST(nights * 1000000000000000000 AS TIMESTAMP)"},
        {"kind": "date_part", "name": "year", "source": "moment", "part": "year"},
        {"kind": "categorical", "name": "moment"},
    )
    assert encode(features)["year"].to_list() == [0, 0, 2, 0]
    assert features.vocabularies["moment"].to_list() == ["1970-01-01 00:00:00.000000"]


def test_one_that_no_feature_reads_needs_no_column():
    features = fitted({"x": "nowhere + 1"}, {"kind": "numeric", "name": "price"})
    assert [column.name for column in features.columns] == ["price"]
    assert encode(features)["price"].to_list() == [10.0, 0.0, 30.0, 8.0]


def test_a_missing_raw_column_is_named_with_the_feature_that_needs_it():
    features = fitted({"x": "nights + flag"}, {"kind": "numeric", "name": "n", "source": "x"})
    with pytest.raises(SchemaMismatch, match=r"feature 'n' needs the column 'flag'"):
        encode(features, TRAIN.drop("flag"))
    with pytest.raises(SchemaMismatch, match=r"features.derived.x needs the column 'weeks'"):
        fitted({"x": "weeks + 1"}, {"kind": "numeric", "name": "x"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("city + 1", r"features.derived.x: 'city \+ 1' cannot be computed from city: String"),
        ('"from" - "from"', r"features.derived.x: .* gives Duration.*which no feature can read"),
    ],
)
def test_a_type_error_names_the_expression(text, said):
    with pytest.raises(SchemaMismatch, match=said):
        fitted({"x": text}, {"kind": "numeric", "name": "x"})


def test_a_value_that_is_not_of_the_trained_type_is_an_error():
    features = fitted({"x": "nights + 1"}, {"kind": "numeric", "name": "x"})
    with pytest.raises(SchemaMismatch, match="column 'nights' holds datetime"):
        encode(features, TRAIN.with_columns(nights=datetime(2024, 1, 1)))


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"derived": {"x": "SUM(price)"}}, r"features.derived.x: 'SUM\(price\)' uses an aggregate"),
        ({"derived": {"x": "price +"}}, r"features.derived.x: 'price \+' is no SQL expression"),
        ({"derived": {"x y": "price"}}, r"features.derived.x y: a name is a letter"),
        (
            {"derived": {"x": "y + 1", "y": "price"}},
            r"features.derived.x: 'y \+ 1' reads 'y', which is derived itself",
        ),
        ({"derived": {"x": "x + 1"}}, r"features.derived.x: 'x \+ 1' reads 'x'"),
        (
            {"derived": {"x": "price * label"}},
            r"features.derived.x: 'price \* label' reads 'label', from which the label 'label'",
        ),
        (
            {"derived": {"x": "stars"}, "labels": [{"name": "liked", "source": "stars"}]},
            r"features.derived.x: 'stars' reads 'stars', from which the label 'liked'",
        ),
        (
            {"derived": {"x": "price"}, "labels": [{"name": "high", "source": "x"}]},
            r"features.labels \('high'\): 'x' is derived",
        ),
        ({"derived": {"x": "price"}, "weight": "x"}, "features.weight: 'x' is derived"),
        ({"derived": {"x": "price"}, "timestamp": "x"}, "features.timestamp: 'x' is derived"),
        ({"derived": {"x": "price"}, "group": "x"}, "features.group: 'x' is derived"),
        (
            {
                "derived": {"x": "price"},
                "timestamp": "time",
                "inputs": [
                    {"kind": "categorical", "name": "city", "source": "x"},
                    {"kind": "sequence", "name": "past", "of": "city", "history": {"by": "user"}},
                ],
            },
            r"features.inputs \('past', the source of 'city'\): 'x' is derived",
        ),
        (
            {
                "derived": {"x": "price"},
                "timestamp": "time",
                "inputs": [
                    {"kind": "categorical", "name": "city"},
                    {"kind": "sequence", "name": "past", "of": "city", "history": {"by": "x"}},
                ],
            },
            r"features.inputs \('past', history.by\): 'x' is derived",
        ),
    ],
)
def test_what_cannot_be_derived_is_refused_when_it_is_declared(features, said):
    inputs = [{"kind": "numeric", "name": "price"}]
    with pytest.raises(ValidationError, match=said):
        FeatureSet.model_validate({"inputs": inputs, **features})


def test_another_expression_makes_another_feature():
    inputs = ({"kind": "categorical", "name": "x"}, {"kind": "categorical", "name": "city"})
    before = fitted({"x": "LOWER(city)"}, *inputs)
    after = fitted({"x": "UPPER(city)"}, *inputs)
    assert declared_alike(before.feature_set, after.feature_set) == {"city", "label"}
    assert declared_alike(before.feature_set, before.feature_set) == {"x", "city", "label"}
    broken = {change.feature: change.what for change in compare(before, after).breaks}
    assert list(broken) == ["x"]
    same_names = fitted({"x": "LOWER(city)"}, {"kind": "categorical", "name": "x", "side": "item"})
    assert not compare(before, same_names).is_compatible
    assert compare(before, before).is_compatible
