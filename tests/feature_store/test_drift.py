"""Drift against the formulas in plain loops, SciPy, and examples worked by hand."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2
from support.versions import write

from feature_store.drift import (
    Drift,
    affected,
    drift,
    jensen_shannon,
    psi,
    psi_by_chance,
    side,
)
from feature_store.features import SPLIT_COLUMN, Bag, Categorical, FeatureSet, Label, Numeric

LABEL = (Label(name="clicked"),)
COUNTS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=9)


def two_sides(cells: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    before, now = np.array(cells, float).T
    return before + (before.sum() == 0), now + (now.sum() == 0)


@settings(max_examples=60, deadline=None)
@given(COUNTS)
def test_psi_is_its_sum_over_the_cells(cells: list[tuple[int, int]]) -> None:
    before, now = two_sides(cells)
    total = 0.0
    for a, b in zip(before, now, strict=True):
        p = (a + 0.5) / (before.sum() + 0.5 * len(before))
        q = (b + 0.5) / (now.sum() + 0.5 * len(now))
        total += (q - p) * math.log(q / p)
    assert psi(before, now) == pytest.approx(total, abs=1e-12)
    assert psi(before, before) == 0.0


@settings(max_examples=60, deadline=None)
@given(COUNTS)
def test_the_divergence_is_scipys(cells: list[tuple[int, int]]) -> None:
    before, now = two_sides(cells)
    distance = jensenshannon(before, now, base=2)
    assert jensen_shannon(before, now) == pytest.approx(distance**2, abs=1e-9)


def test_measures_by_hand() -> None:
    # 3:1 becomes 1:1. PSI: (1/2 - 3/4) ln(2/3) + (1/2 - 1/4) ln 2 = ln(3) / 4, but for half a row.
    before, now = np.array([75e6, 25e6]), np.array([50e6, 50e6])
    assert psi(before, now) == pytest.approx(math.log(3) / 4, rel=1e-6)
    # H(5/8) - (H(3/4) + H(1/2)) / 2 = 0.954434 - (0.811278 + 1) / 2
    assert jensen_shannon(before, now) == pytest.approx(0.954434 - (0.811278 + 1) / 2, abs=1e-6)
    # The second cell doubled (1/4 to 1/2: half of 3/4); the first fell to 2/3, not beyond 1.5.
    assert affected(before, now) == pytest.approx((0.25 + 0.5) / 2)


def test_an_empty_cell_is_a_large_change_and_a_finite_one() -> None:
    before, now = np.array([99.0, 1.0, 0.0]), np.array([50.0, 0.0, 50.0])
    p, q = [99.5 / 101.5, 1.5 / 101.5, 0.5 / 101.5], [50.5 / 101.5, 0.5 / 101.5, 50.5 / 101.5]
    by_hand = sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert psi(before, now) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(0.3274 + 0.0108 + 2.2735, abs=2e-4)


def test_nothing_shared_is_one_bit_and_all_traffic() -> None:
    before, now = np.array([100.0, 0.0]), np.array([0.0, 100.0])
    assert jensen_shannon(before, now) == pytest.approx(1.0)
    assert affected(before, now) == 1.0


def test_few_rows_are_not_called_a_change() -> None:
    assert affected(np.array([96.0, 4.0]), np.array([92.0, 8.0])) == 0.0  # 1.4 standard errors
    assert affected(np.array([9600.0, 400.0]), np.array([9200.0, 800.0])) == pytest.approx(0.06)


@pytest.mark.parametrize("cells", [2, 3, 11, 103])
def test_chance_is_the_point_of_chi_square(cells: int) -> None:
    exact = (1 / 300 + 1 / 700) * chi2.ppf(0.95, cells - 1)
    assert psi_by_chance(300, 700, cells) == pytest.approx(exact, rel=0.03)


def test_samples_of_one_distribution_stay_below_chance_about_as_often() -> None:
    random = np.random.default_rng(0)
    shares = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
    pairs = [
        (random.multinomial(2000, shares), random.multinomial(500, shares)) for _ in range(400)
    ]
    below = [psi(a * 1.0, b * 1.0) < psi_by_chance(2000, 500, 5) for a, b in pairs]
    assert np.mean(below) == pytest.approx(0.95, abs=0.035)


# --- versions -------------------------------------------------------------------------------------


def labelled(columns: dict[str, list[object]], **more: object) -> pl.DataFrame:
    frame = pl.DataFrame(columns, strict=False)
    clicks = [row % 2 for row in range(frame.height)]
    return frame.with_columns(clicked=pl.Series(clicks), **{SPLIT_COLUMN: pl.lit("train")})


def between(folder: Path, features: FeatureSet, before: pl.DataFrame, now: pl.DataFrame) -> Drift:
    """Drift of two versions, each with what it learnt from its own rows."""
    first = write(folder, before, features, "first")
    second = write(folder, now, features, "second")
    return drift(side(first), side(second))


def city(**settings: object) -> FeatureSet:
    return FeatureSet(
        inputs=(Categorical(name="city", **settings),),  # type: ignore[arg-type]
        labels=LABEL,
    )


def test_values_are_matched_by_their_text(tmp_path: Path) -> None:
    # The most frequent value comes first in a vocabulary: ids are swapped, texts are not.
    before = labelled({"city": ["a"] * 60 + ["b"] * 30 + ["c"] * 10})
    now = labelled({"city": ["b"] * 60 + ["a"] * 30 + ["d"] * 8 + [None] * 2})
    found = between(tmp_path, city(), before, now)
    one = found.feature("city")
    # Cells: missing, unseen, others (empty on both sides, so left out), a, b, c.
    assert one.psi == pytest.approx(
        psi(np.array([0.0, 0, 60, 30, 10]), np.array([2.0, 8, 30, 60, 0]))
    )
    assert one.jensen_shannon == pytest.approx(
        jensenshannon([0, 0, 60, 30, 10], [2, 8, 30, 60, 0], base=2) ** 2
    )
    # Beyond 1.5 and 3 standard errors: a, b and c; unseen grew by 2.89, missing by 1.42.
    assert one.affected == pytest.approx((0.6 + 0.3 + 0.3 + 0.6 + 0.1 + 0.0) / 2)
    assert one.new is not None
    assert (one.new.values, one.new.share, one.new.examples) == (1, pytest.approx(0.08), ("d",))
    assert one.vanished is not None
    assert (one.vanished.values, one.vanished.examples) == (1, ("c",))
    shares = {change.value: (change.reference, change.current) for change in one.changes}
    assert shares["a"] == (0.6, 0.3)
    assert shares["(unseen)"] == (0.0, pytest.approx(0.08))
    assert shares["(missing)"] == (0.0, pytest.approx(0.02))


def test_all_that_is_not_frequent_is_the_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feature_store.drift.MAX_VALUES", 1)
    before = labelled({"city": ["a"] * 50 + ["b"] * 30 + ["c"] * 20})
    now = labelled({"city": ["a"] * 20 + ["b"] * 30 + ["c"] * 50})
    one = between(tmp_path, city(), before, now).feature("city")
    assert one.psi == pytest.approx(psi(np.array([50.0, 50]), np.array([80.0, 20])))


def test_the_luckiest_of_many_rare_values_do_not_drift(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    users = [[f"u{user}" for user in random.integers(0, 1000, 4000)] for _ in range(2)]
    before, now = (labelled({"city": cities}) for cities in users)
    assert not between(tmp_path, city(encoding="hash"), before, now).feature("city").drifted


def test_hashed_values_are_compared_by_their_hash(tmp_path: Path) -> None:
    before = labelled({"city": ["a"] * 50 + ["b"] * 30 + [None] * 20})
    now = labelled({"city": ["a"] * 20 + ["c"] * 60 + [None] * 20})
    one = between(tmp_path, city(encoding="hash"), before, now).feature("city")
    # What the reference does not have is the tail.
    expected = psi(np.array([20.0, 0, 50, 30]), np.array([20.0, 60, 20, 0]))
    assert one.psi == pytest.approx(expected)
    assert (one.new, one.vanished) == (None, None)


def test_a_value_seen_too_seldom_for_a_vocabulary_is_unseen(tmp_path: Path) -> None:
    before = labelled({"city": ["a"] * 60 + ["b"] * 3})
    now = labelled({"city": ["a"] * 40 + ["b"] * 20})
    one = between(tmp_path, city(min_count=5), before, now).feature("city")
    assert one.psi == pytest.approx(psi(np.array([3.0, 60]), np.array([20.0, 40])))
    assert one.new is not None
    assert one.new.examples == ("b",)


def test_numbers_are_compared_before_their_standardisation(tmp_path: Path) -> None:
    features = FeatureSet(
        inputs=(Numeric(name="age", standardize=True, indicator=True),), labels=LABEL
    )
    before = labelled({"age": [float(20 + row % 10) for row in range(1000)]})
    now = labelled({"age": [float(30 + row % 10) for row in range(1000)]})
    same = labelled({"age": [float(20 + row % 10) for row in range(1000)] + [90.0, None]})
    moved = between(tmp_path / "a", features, before, now).feature("age")
    # All are above the largest of ten parts now.
    assert moved.psi == pytest.approx(
        psi(np.array([100.0] * 10 + [0]), np.array([0.0] * 10 + [1000]))
    )
    # Another mean and deviation, and the same numbers: as they stand in the encoded rows, they
    # are all others.
    still = between(tmp_path / "b", features, before, same).feature("age")
    expected = psi(np.array([0.0, *[100] * 10, 0]), np.array([1.0, *[100] * 10, 1]))
    assert still.psi == pytest.approx(expected)
    assert not still.drifted


def test_buckets_of_two_versions_are_compared_between_common_cuts(tmp_path: Path) -> None:
    features = FeatureSet(inputs=(Numeric(name="age", num_buckets=4),), labels=LABEL)
    before = labelled({"age": [row % 4 for row in range(100)]})  # cut at 1, 2, 3
    now = labelled({"age": [2, 2, 3, 5] * 25})  # cut at 3 and 5
    one = between(tmp_path, features, before, now).feature("age")
    # Below 3 and from 3 on: 75 and 25 before, 50 and 50 now.
    assert one.psi == pytest.approx(psi(np.array([75.0, 25]), np.array([50.0, 50])))


def test_buckets_without_a_common_cut_are_not_compared(tmp_path: Path) -> None:
    features = FeatureSet(inputs=(Numeric(name="age", num_buckets=2),), labels=LABEL)
    before, now = labelled({"age": [1, 2] * 50}), labelled({"age": [7, 8] * 50})
    one = between(tmp_path, features, before, now).feature("age")
    assert one.psi is None
    assert one.incomparable is not None
    assert "different places" in one.incomparable


def test_lists_are_compared_by_elements_and_by_length(tmp_path: Path) -> None:
    features = FeatureSet(inputs=(Bag(name="tags", separator="|"),), labels=LABEL)
    before = labelled({"tags": ["a|b"] * 50 + ["a"] * 40 + [""] * 10})
    now = labelled({"tags": ["a|b"] * 50 + ["a|a|b"] * 50})
    found = between(tmp_path, features, before, now)
    values, lengths = found.feature("tags", "values"), found.feature("tags", "lengths")
    # An empty list is one missing entry.
    assert values.psi == pytest.approx(psi(np.array([10.0, 90, 50]), np.array([0.0, 150, 100])))
    by_hand = psi(np.array([10.0, 40, 50, 0]), np.array([0.0, 0, 50, 50]))
    assert lengths.psi == pytest.approx(by_hand)


def test_a_number_that_never_varied_drifts_when_it_does(tmp_path: Path) -> None:
    features = FeatureSet(inputs=(Numeric(name="age", standardize=True),), labels=LABEL)
    before = labelled({"age": [7.1] * 100})
    now = labelled({"age": [7.1] * 60 + [8.0] * 40})
    one = between(tmp_path, features, before, now).feature("age")
    assert one.psi == pytest.approx(psi(np.array([100.0, 0]), np.array([60.0, 40])))
    assert {change.value for change in one.changes} == {"7.1 – 7.1", "above 7.1"}


def test_splits_of_one_version_are_compared_and_labels_too(tmp_path: Path) -> None:
    train = labelled({"city": ["a"] * 80 + ["b"] * 20})
    test = labelled({"city": ["a"] * 10 + ["b"] * 80 + ["z"] * 10}).with_columns(
        pl.lit("test").alias(SPLIT_COLUMN), clicked=pl.lit(1)
    )
    version = write(tmp_path, pl.concat([train, test.cast(train.schema)]), city())
    found = drift(side(version, ("train",)), side(version, ("test",)))
    assert found.reference == "clicks@0 train"
    label = found.feature("clicked")
    assert label.psi == pytest.approx(psi(np.array([50.0, 50]), np.array([0.0, 100])))
    expected = psi(np.array([0.0, 80, 20]), np.array([10.0, 10, 80]))
    assert found.feature("city").psi == pytest.approx(expected)


def test_the_order_is_by_traffic_affected(tmp_path: Path) -> None:
    features = FeatureSet(
        inputs=tuple(Categorical(name=name) for name in ("calm", "wild", "some")), labels=LABEL
    )
    columns = {name: ["a"] * 500 + ["b"] * 500 for name in ("calm", "wild", "some")}
    now = columns | {"wild": ["c"] * 1000, "some": ["a"] * 900 + ["b"] * 100}
    found = between(tmp_path, features, labelled(columns), labelled(now))
    assert [feature.name for feature in found.features] == ["wild", "some", "calm", "clicked"]
    assert found.feature("calm").psi == 0.0


def test_columns_that_one_side_lacks_are_named(tmp_path: Path) -> None:
    rows = labelled({"city": ["a", "b"] * 20, "town": ["a", "b"] * 20})
    both = FeatureSet(inputs=(Categorical(name="city"), Categorical(name="town")), labels=LABEL)
    first = side(write(tmp_path / "a", rows, both))
    second = side(write(tmp_path / "b", rows, city(encoding="hash")))
    found = drift(first, second)
    assert (found.only_reference, found.only_current) == (("town",), ())
    assert "has a vocabulary" in (found.feature("city").incomparable or "")


def test_a_side_without_rows_is_named(tmp_path: Path) -> None:
    version = write(tmp_path, labelled({"city": ["a", "b"] * 20}), city())
    with pytest.raises(ValueError, match=r"clicks@0 test has no rows"):
        drift(side(version), side(version, ("test",)))


def test_a_document_is_read_back(tmp_path: Path) -> None:
    rows = labelled({"city": ["a", "b"] * 20})
    found = between(tmp_path, city(), rows, rows)
    assert Drift.model_validate(found.model_dump(mode="json")) == found
