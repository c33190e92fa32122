"""Precomputed vectors: their numbers in order, and what is no vector."""

import math

import polars as pl
import pytest
from pydantic import ValidationError

from feature_store.encoding import FittedFeatures, SchemaMismatch
from feature_store.features import FeatureSet, Numeric, Vector
from feature_store.kinds import faults_of
from feature_store.store import Store
from pipelines.build import build
from pipelines.fit import fit
from pipelines.sources import DataConfig

NAN, INF = math.nan, math.inf


def fitted(feature: Vector, dtype: pl.DataType | None = None) -> FittedFeatures:
    vectors = pl.Series("v", [[0.5] * feature.dim] * 2, dtype=dtype or pl.List(pl.Float64))
    rows = pl.DataFrame({"v": vectors, "label": [0, 1]})
    return fit(rows.lazy(), FeatureSet(inputs=(feature,)))


def encode(feature: Vector, vectors: pl.Series) -> list[tuple[float, ...]]:
    raw = pl.DataFrame({"v": vectors})
    return fitted(feature).encode(raw.lazy()).collect().rows()


def test_every_dimension_is_a_float32_column_in_order():
    layout = fitted(Vector(name="v", dim=3, indicator=True, side="item")).layout
    assert layout.dense == ("v__0", "v__1", "v__2", "v__missing")
    assert layout.dense_sides == ("item",) * 4
    assert layout.ids == ()
    rows = encode(Vector(name="v", dim=3), pl.Series([[1.5, -2.0, 0.1], [3.0, 0.0, 1e-30]]))
    assert rows[0] == (1.5, -2.0, pytest.approx(0.1, rel=1e-7))
    assert rows[1] == (3.0, 0.0, pytest.approx(1e-30, rel=1e-6))


@pytest.mark.parametrize(
    "missing",
    [None, [], [1.0], [1.0, 2.0, 3.0], [NAN, 1.0], [INF, 1.0], [1.0, None], [1.0, 1e300]],
)
def test_what_is_no_vector_is_missing_as_a_whole(missing):
    feature = Vector(name="v", dim=2, default=7.0, indicator=True)
    rows = encode(feature, pl.Series([[1.0, 2.0], missing], dtype=pl.List(pl.Float64)))
    assert rows == [(1.0, 2.0, 0.0), (7.0, 7.0, 1.0)]


@pytest.mark.parametrize(
    "dtype", [pl.List(pl.Int64), pl.List(pl.Float32), pl.Array(pl.Float32, 2), pl.Array(pl.Int8, 2)]
)
def test_lists_of_any_numbers_are_read_alike(dtype):
    rows = encode(Vector(name="v", dim=2), pl.Series([[1, 2], [3, -4]], dtype=dtype))
    assert rows == [(1.0, 2.0), (3.0, -4.0)]


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (pl.List(pl.String), "needs lists of 2 numbers, but 'v' has the type List"),
        (pl.List(pl.Boolean), "needs lists of 2 numbers"),
        (pl.Float64, "needs lists of 2 numbers, but 'v' has the type Float64"),
        (pl.Array(pl.Float32, 3), "has 2 dimensions, but 'v' holds lists of 3; set dim to 3"),
    ],
)
def test_a_column_that_holds_no_vectors_is_refused(dtype, said):
    with pytest.raises(SchemaMismatch, match=f"vector 'v' {said}"):
        fitted(Vector(name="v", dim=2)).encode(pl.LazyFrame(schema={"v": dtype}))


@pytest.mark.parametrize("dim", [0, -1, 10_000])
def test_a_vector_has_some_dimensions_and_not_too_many(dim):
    with pytest.raises(ValidationError, match="dim"):
        Vector(name="v", dim=dim)


def test_its_columns_cannot_be_taken_for_another_feature():
    with pytest.raises(ValidationError, match=r"vector 'v' .*'v__1'"):
        FeatureSet(inputs=(Vector(name="v", dim=2), Numeric(name="v__1")))


def test_a_build_rejects_a_row_with_a_vector_of_another_length_and_says_why(tmp_path):
    frame = pl.DataFrame({"v": [[1.0, 2.0], [3.0], None, [5.0, 6.0]] * 30, "label": [0, 1] * 60})
    frame = frame.with_columns(
        v=pl.when(pl.int_range(pl.len()) > 3).then([0.0, 1.0]).otherwise("v")
    )
    frame.write_parquet(tmp_path / "log.parquet")
    data = DataConfig.model_validate(
        {"path": str(tmp_path / "log.parquet"), "columns": {"v": "list<float>", "label": "int"}}
    )
    features = FeatureSet(inputs=(Vector(name="v", dim=2, indicator=True),))
    result = build("clicks", data, features, Store(tmp_path / "store"))
    [row] = pl.read_csv(result.rejected_path).rows(named=True)
    assert (row["file"], row["line"]) == (str(tmp_path / "log.parquet"), 2)
    expected = "vector 'v': expected a list of 2 numbers or nothing, found [3.0] in 'v'"
    assert row["reason"] == expected
    assert sum(result.version.rows.values()) == 119


def test_a_row_to_score_with_a_vector_of_another_length_is_found():
    features = fitted(Vector(name="v", dim=2))
    raw = pl.DataFrame({"v": [[1.0, 2.0], None, [3.0], []]}, schema={"v": pl.List(pl.Float64)})
    [fault] = faults_of(features.feature_set, raw.schema)
    assert raw.select(fault.is_bad).to_series().to_list() == [False, False, True, True]
    assert (fault.what, fault.column) == ("vector 'v'", "v")
