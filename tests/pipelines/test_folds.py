"""Out-of-fold target encoding: against plain loops, on noise, and in a build."""

import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from feature_store.compatibility import compare
from feature_store.features import (
    ROW_COLUMN,
    SPLIT_COLUMN,
    Categorical,
    FeatureSet,
    Label,
    TargetEncoding,
)
from feature_store.store import Store
from pipelines.build import build
from pipelines.fit import fit
from pipelines.folds import fold_of, out_of_fold
from pipelines.sources import DataConfig

SCHEMA = {ROW_COLUMN: pl.Int64, "a": pl.String, "b": pl.Int64, "label": pl.Int64}

logs = st.lists(
    st.tuples(
        st.none() | st.sampled_from(["x", "y", "z", ""]),
        st.none() | st.integers(0, 1),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=40,
)


def features_of(**settings: object) -> FeatureSet:
    return FeatureSet(inputs=(TargetEncoding.model_validate({"name": "f", **settings}),))


def trained(train: pl.DataFrame, features: FeatureSet) -> pl.DataFrame:
    """The training rows as a build encodes them."""
    encoders = fit(train.lazy(), features).encoders(train.schema)
    rows = train.with_columns(pl.lit("train").alias(SPLIT_COLUMN))
    return rows.select(out_of_fold(encoders, train.lazy(), features))


def folds(rows: list[int], number: int) -> list[int]:
    frame = pl.DataFrame({ROW_COLUMN: rows}, schema={ROW_COLUMN: pl.Int64})
    return frame.select(fold_of(number)).to_series().to_list()


@settings(max_examples=25, deadline=None)
@given(
    log=logs,
    together=st.booleans(),
    number=st.integers(2, 6),
    smoothing=st.sampled_from([0.0, 0.5, 20.0]),
    first=st.integers(0, 2**40),
)
def test_a_training_row_gets_the_rate_of_the_other_folds(log, together, number, smoothing, first):
    train = pl.DataFrame(
        [(first + place, *row) for place, row in enumerate(log)], schema=SCHEMA, orient="row"
    )
    features = features_of(
        source="a", together_with=["b"] if together else [], folds=number, smoothing=smoothing
    )
    found = trained(train, features)["f"].to_list()
    own = folds(train[ROW_COLUMN].to_list(), number)
    values = [(a, b if together else 0) for a, b, _ in log]
    labels = [label for *_, label in log]
    prior = sum(labels) / len(labels)
    for value, fold, number_found in zip(values, own, found, strict=True):
        others = [
            label
            for other, label, theirs in zip(values, labels, own, strict=True)
            if other == value and theirs != fold
        ]
        weight = len(others) + smoothing
        if value[0] in (None, "") or value[1] is None or not weight:
            assert number_found == np.float32(prior)
        else:
            expected = (sum(others) + smoothing * prior) / weight
            assert number_found == pytest.approx(expected, rel=1e-6)


def test_folds_are_those_of_the_row_number_for_ever():
    assert folds(list(range(12)), 5) == [1, 3, 2, 2, 4, 0, 0, 0, 2, 4, 0, 4]
    shares = np.bincount(folds(list(range(20_000)), 5)) / 20_000
    assert np.abs(shares - 0.2).max() < 0.02


def test_it_does_not_matter_who_encodes_which_rows():
    random = np.random.default_rng(0)
    train = pl.DataFrame(
        {
            ROW_COLUMN: range(500),
            "a": random.integers(0, 40, 500),
            "label": random.integers(0, 2, 500),
        }
    )
    features = features_of(source="a")
    whole = trained(train, features)
    encoders = fit(train.lazy(), features).encoders(train.schema)
    both = pickle.loads(pickle.dumps(out_of_fold(encoders, train.lazy(), features)))
    rows = train.with_columns(pl.lit("train").alias(SPLIT_COLUMN))
    for part in (rows[:7], rows[7:300], rows[300:]):
        found = part.lazy().select(both).collect(engine="streaming")
        assert found.equals(whole[part[ROW_COLUMN].to_list()])


def test_noise_leaks_its_own_label_in_fold_and_not_out_of_fold():
    random = np.random.default_rng(1)
    noise, labels = random.integers(0, 3000, 10_000), random.integers(0, 2, 10_000)
    train = pl.DataFrame({ROW_COLUMN: range(10_000), "a": noise, "label": labels})
    features = features_of(source="a", smoothing=1.0)
    served = fit(train.lazy(), features).encode(train.lazy()).collect()["f"]
    assert roc_auc_score(labels, served) > 0.7
    assert roc_auc_score(labels, trained(train, features)["f"]) == pytest.approx(0.5, abs=0.03)


def test_a_real_signal_is_kept_out_of_fold():
    random = np.random.default_rng(2)
    values = random.integers(0, 20, 5000)
    labels = (random.random(5000) < values / 20).astype(int)
    train = pl.DataFrame({ROW_COLUMN: range(5000), "a": values, "label": labels})
    assert roc_auc_score(labels, trained(train, features_of(source="a"))["f"]) > 0.75


def log(folder: Path, seed: int = 0) -> DataConfig:
    random = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "shop": [f"s{i}" for i in random.integers(0, 60, 600)],
            "time": random.permutation(600),
            "clicked": random.integers(0, 2, 600),
        }
    )
    frame.write_csv(folder / "log.csv")
    columns = {"shop": "string", "time": "int", "clicked": "int"}
    return DataConfig.model_validate(
        {"path": str(folder / "log.csv"), "columns": columns, "split": {"by": "time"}}
    )


RATE = FeatureSet(
    inputs=(
        Categorical(name="shop"),
        TargetEncoding(name="rate", source="place"),
    ),
    labels=(Label(name="clicked"),),
    timestamp="time",
    derived={"place": "UPPER(shop)"},
)


def test_a_build_writes_out_of_fold_rates_for_training_rows_alone(tmp_path):
    data = log(tmp_path)
    version = build("clicks", data, RATE, Store(tmp_path / "store")).version
    raw = pl.read_csv(tmp_path / "log.csv").with_row_index(ROW_COLUMN)
    raw = raw.with_columns(pl.col(ROW_COLUMN).cast(pl.Int64))
    train = raw.filter(pl.col("time") < 480)
    by_row = dict(zip(train[ROW_COLUMN], folds(train[ROW_COLUMN].to_list(), 5), strict=True))
    prior = train["clicked"].mean()
    expected = []
    for row, shop, _, _ in train.rows():
        others = train.filter(
            (pl.col("shop") == shop) & pl.col(ROW_COLUMN).replace_strict(by_row).ne(by_row[row])
        )["clicked"]
        expected.append((others.sum() + 20 * prior) / (len(others) + 20))
    assert np.allclose(version.scan("train").collect()["rate"], expected, atol=1e-6)
    for split, bounds in (("valid", (480, 540)), ("test", (540, 600))):
        mine = raw.filter(pl.col("time").is_between(*bounds, closed="left"))
        served = version.fitted.encode(mine.lazy()).collect()
        assert version.scan(split).select(served.columns).collect().equals(served)


def test_a_version_that_grows_gets_rates_of_its_own_rows(tmp_path):
    old, new = (
        pl.DataFrame({"a": ["x"] * 4, "label": labels}) for labels in ([1, 1, 1, 0], [0, 0, 0, 1])
    )
    features = features_of(source="a", smoothing=0.0)
    base = fit(old.lazy(), features)
    grown = fit(new.lazy(), features.model_copy(update={"grow_from": "latest"}), base=base)
    assert base.encode(new.lazy()).collect()["f"][0] == 0.75
    assert grown.encode(new.lazy()).collect()["f"][0] == 0.25
    assert compare(base, grown).is_compatible


def test_a_derived_column_must_not_have_the_name_of_a_column_of_the_data(tmp_path):
    features = RATE.model_copy(update={"derived": {"time": "UPPER(shop)", "place": "shop"}})
    features = features.model_copy(update={"timestamp": None})
    data = log(tmp_path).model_copy(update={"split": DataConfig.model_fields["split"].default})
    with pytest.raises(ValueError, match=r"features.derived.time: the data have a column"):
        build("clicks", data, features, Store(tmp_path / "store"))
