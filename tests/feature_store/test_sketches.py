"""Summaries agree with the exact answer within their bounds, and merge like the streams do."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store import sketches
from feature_store.sketches import HeavyHitters, HyperLogLog, NumberBins

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def splitmix64(value: int) -> int:
    """The reference in whole numbers (Steele, Lea & Flood 2014, fig. 10, as published in C)."""
    mask = 2**64 - 1
    z = (value + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_mixing_is_splitmix64() -> None:
    values = np.array([0, 1, -1, 2**63 - 1, -(2**63), 123456789])
    assert sketches.mixed(values).tolist() == [splitmix64(int(v) % 2**64) for v in values]
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the first output of the published generator


@pytest.mark.parametrize("distinct", [0, 1, 5, 300, 20_000, 400_000])
def test_distinct_values_are_estimated_within_three_standard_errors(distinct: int) -> None:
    sketch = HyperLogLog()
    values = np.arange(distinct) * 7919
    sketch.add(values)
    sketch.add(values[: distinct // 2])  # again: nothing new
    error = 3 * 1.04 / np.sqrt(1 << sketches.HASH_BITS)
    assert sketch.estimate() == pytest.approx(distinct, rel=error, abs=0.5)


def test_a_register_holds_the_place_of_the_first_bit() -> None:
    values = np.array([3, 10, 77])
    sketch = HyperLogLog()
    sketch.add(values)
    expected = np.zeros(1 << 14, int)
    for value in values.tolist():
        bits = f"{splitmix64(value):064b}"
        place, tail = int(bits[:14], 2), bits[14:]
        expected[place] = max(expected[place], (tail + "1").index("1") + 1)
    assert sketch.ranks_M.tolist() == expected.tolist()


def test_merged_registers_are_those_of_all_values() -> None:
    both, first, second = HyperLogLog(), HyperLogLog(), HyperLogLog()
    values = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 5000)
    both.add(values)
    first.add(values[:3000])
    second.add(values[2000:])
    first.merge(second)
    assert np.array_equal(first.ranks_M, both.ranks_M)


def counted(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids, places = np.unique(values, return_inverse=True)
    return ids, np.bincount(places), np.bincount(places, labels)[:, None]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), min_size=1), min_size=1, max_size=6))
def test_counts_of_frequent_values_are_low_by_no_more_than_the_bound(
    batches: list[list[int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketches, "HEAVY_HITTERS", 4)
        summary = HeavyHitters(num_tasks=1)
        for batch in batches:
            values = np.array(batch)
            summary.add(*counted(values, values % 2))
        exact = Counter(value for batch in batches for value in batch)
        found = dict(zip(summary.ids_K.tolist(), summary.rows_K.tolist(), strict=True))
        assert len(found) <= 4
        assert summary.error * 5 <= exact.total()
        for value, rows in exact.items():
            assert rows - summary.error <= found.get(value, 0) <= rows
        odd = summary.ids_K % 2 == 1
        assert summary.positives_KT[:, 0].tolist() == (summary.rows_K * odd).tolist()


def test_halves_merge_into_the_whole_where_all_fits() -> None:
    values = np.random.default_rng(1).integers(0, 100, 1000)
    whole, first, second = (HeavyHitters(1) for _ in range(3))
    whole.add(*counted(values, values * 1.0))
    first.add(*counted(values[:400], values[:400] * 1.0))
    second.add(*counted(values[400:], values[400:] * 1.0))
    first.merge(second)
    assert first.rows_K.tolist() == whole.rows_K.tolist() == np.bincount(values).tolist()
    assert first.positives_KT.tolist() == whole.positives_KT.tolist()
    assert first.error == 0


def bins_of(numbers: list[float]) -> NumberBins:
    bins = NumberBins(1)
    array = np.array(numbers, np.float32)
    bins.add(array, np.ones((1, len(array))))
    return bins


@settings(max_examples=60, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=50), st.floats(0, 1))
def test_quantiles_are_near_those_of_the_sorted_numbers(numbers: list[float], share: float) -> None:
    ordered = sorted(np.array(numbers, np.float32).tolist())
    exact = ordered[max(int(np.ceil(share * len(ordered))), 1) - 1]
    (found,) = bins_of(numbers).quantiles([share])
    if share not in (0.0, 1.0):  # a subnormal number has fewer bits to keep
        assert found == pytest.approx(exact, rel=1 / 256, abs=1e-38)
    else:
        assert found == exact


@settings(max_examples=30, deadline=None)
@given(st.lists(FLOATS, min_size=1), st.lists(FLOATS, min_size=1))
def test_bins_of_two_streams_add_up(first: list[float], second: list[float]) -> None:
    merged, whole = bins_of(first), bins_of(first + second)
    merged.merge(bins_of(second))
    assert np.array_equal(merged.rows_B, whole.rows_B)
    assert (merged.smallest, merged.largest) == (whole.smallest, whole.largest)
    bins = whole.occupied()
    assert np.all(bins.high_B[:-1] < bins.low_B[1:])  # in order, without overlap
    assert bins.rows_B.sum() == len(first) + len(second)


def test_small_integers_have_bins_of_their_own() -> None:
    numbers = [*range(-512, 513), -0.0]
    bins = bins_of(numbers).occupied()
    assert bins.near_B.tolist() == list(range(-512, 513))
    assert bins.rows_B.tolist() == [1] * 512 + [2] + [1] * 512


def test_parts_have_as_many_rows_where_no_number_repeats() -> None:
    bins = bins_of(list(range(100))).occupied()
    assert bins.cut(10) == [9, 19, 29, 39, 49, 59, 69, 79, 89, 99]
    lumped = bins_of([0.0] * 75 + list(range(1, 26))).occupied()
    assert lumped.cut(4) == [0, 25]
