"""Frequencies and target encodings: against counts in plain loops."""

import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from feature_store.encoding import FittedFeatures, SchemaMismatch
from feature_store.features import FeatureSet, Frequency, Label, TargetEncoding
from pipelines.fit import fit

SCHEMA = {"a": pl.String, "b": pl.Int64, "label": pl.Int64}

rows = st.tuples(
    st.none() | st.sampled_from(["x", "y", "", "é", "e\u0301", "x\x00"]),
    st.none() | st.integers(0, 2),
    st.integers(0, 1),
)
logs = st.lists(rows, min_size=1, max_size=30)


def fitted(feature: Frequency | TargetEncoding, log: list[tuple]) -> FittedFeatures:
    train = pl.DataFrame(log, schema=SCHEMA, orient="row")
    return fit(train.lazy(), FeatureSet(inputs=(feature,)))


def encode(features: FittedFeatures, values: list[tuple]) -> list[float]:
    raw = pl.DataFrame([(*value, 0) for value in values], schema=SCHEMA, orient="row")
    return features.encode(raw.lazy()).collect()["f"].to_list()


def present(value: tuple, together: bool) -> bool:
    return value[0] not in (None, "") and (not together or value[1] is not None)


@settings(max_examples=15, deadline=None)
@given(log=logs, together=st.booleans(), scale=st.sampled_from(["log1p", "share"]))
def test_frequencies_are_counts_of_the_training_rows(log, together, scale):
    others = ("b",) if together else ()
    features = fitted(Frequency(name="f", source="a", together_with=others, scale=scale), log)
    values = [(row[0], row[1] if together else None) for row in log]
    counts = Counter(value for value in values if present(value, together))
    for value, number in zip(values, encode(features, values), strict=True):
        count = counts[value]
        expected = math.log1p(count) if scale == "log1p" else count / len(log)
        assert number == np.float32(expected)


@settings(max_examples=15, deadline=None)
@given(log=logs, together=st.booleans(), smoothing=st.sampled_from([0.0, 1.0, 20.0]))
def test_served_target_encodings_are_smoothed_rates_of_all_training_rows(log, together, smoothing):
    others = ("b",) if together else ()
    feature = TargetEncoding(name="f", source="a", together_with=others, smoothing=smoothing)
    values = [(row[0], row[1] if together else None) for row in log]
    prior = sum(row[2] for row in log) / len(log)
    found = encode(fitted(feature, log), [*values, ("new", 9)])
    for value, number in zip([*values, ("new", 9)], found, strict=True):
        labels = [row[2] for other, row in zip(values, log, strict=True) if other == value]
        if not present(value, together) or not labels:
            assert number == np.float32(prior)
        else:
            rate = (sum(labels) + smoothing * prior) / (len(labels) + smoothing)
            assert number == pytest.approx(rate, rel=1e-6)


def test_unseen_and_missing_values_have_no_frequency():
    features = fitted(Frequency(name="f", source="a"), [("x", 1, 0), (None, 1, 1), ("", 1, 1)])
    assert encode(features, [("z", 1), (None, 1), ("", 1)]) == [0.0, 0.0, 0.0]


def test_the_rate_is_that_of_the_named_label():
    train = pl.DataFrame({"a": ["x", "x"], "click": [1, 1], "stars": [2.0, 5.0]})
    labels = (Label(name="click"), Label(name="liked", source="stars", threshold=4))
    for label, expected in ((None, 1.0), ("click", 1.0), ("liked", 0.5)):
        feature = TargetEncoding(name="f", source="a", label=label)
        features = fit(train.lazy(), FeatureSet(inputs=(feature,), labels=labels))
        assert features.encode(train.lazy()).collect()["f"].to_list() == [expected] * 2


def test_the_raw_columns_of_the_combination_are_needed_and_the_label_is_not():
    feature = TargetEncoding(name="f", source="a", together_with=("b",))
    features = fitted(feature, [("x", 1, 0), ("y", 1, 1)])
    assert [column.name for column in features.columns] == ["a", "b"]
    with pytest.raises(SchemaMismatch, match=r"feature 'f' needs the column 'b'"):
        features.encode(pl.LazyFrame({"a": ["x"]}))


def test_statistics_are_kept_with_the_fitted_features(tmp_path):
    feature = TargetEncoding(name="f", source="a")
    features = fitted(feature, [("x", 1, 0), ("y", 1, 1), ("y", 2, 1)])
    features.save(tmp_path)
    loaded = FittedFeatures.load(tmp_path)
    assert loaded.fingerprint == features.fingerprint
    assert encode(loaded, [("y", 1), ("z", 1)]) == encode(features, [("y", 1), ("z", 1)])
    other = fitted(feature, [("x", 1, 1), ("y", 1, 0), ("y", 2, 1)])
    assert other.fingerprint != features.fingerprint


@pytest.mark.parametrize(
    "feature", [Frequency(name="f", source="a"), TargetEncoding(name="f", source="a")]
)
def test_lists_are_no_value(feature):
    train = pl.LazyFrame({"a": [["x"], ["y"]], "label": [0, 1]})
    with pytest.raises(SchemaMismatch, match=f"{feature.kind} 'f' needs one value a row"):
        fit(train, FeatureSet(inputs=(feature,)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label": "klick"}, r"target_encoding 'f'.*'klick'; did you mean 'click'"),
        ({"folds": 1}, "folds"),
        ({"smoothing": -1.0}, "smoothing"),
        ({"smoothing": math.inf}, "smoothing"),
        ({"source": "clicked"}, r"target_encoding 'f' reads 'clicked'.*label 'click'"),
        ({"together_with": ("clicked",)}, r"target_encoding 'f' reads 'clicked'.*label 'click'"),
        ({"together_with": ("a",)}, r"names the column 'a' twice"),
    ],
)
def test_what_cannot_be_fitted_is_refused(settings, said):
    inputs = ({"kind": "target_encoding", "name": "f", "source": "a", **settings},)
    with pytest.raises(ValidationError, match=said):
        FeatureSet.model_validate(
            {"inputs": inputs, "labels": [{"name": "click", "source": "clicked"}]}
        )
