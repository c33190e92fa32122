"""Scores beyond chance, against sums over every outcome, and the order of 3MR by hand."""

import math
from collections import Counter

import numpy as np
import pytest

from pipelines import outrank
from pipelines.outrank import Labels, Pair, compact, joint_tally, redundancy, score, select, tally


def h(share: float) -> float:
    """Entropy of a coin, in nats."""
    return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)


def chance(rows: int, positives: int, count: int) -> float:
    """Mean entropy of `count` labels drawn without replacement: every outcome, by its odds."""
    whole = math.comb(rows, count)
    return sum(
        math.comb(positives, hits) * math.comb(rows - positives, count - hits) / whole
        * h(hits / count)
        for hits in range(min(count, positives) + 1)
        if count - hits <= rows - positives
    )  # fmt: skip


def value(column: np.ndarray, labels: Labels) -> float:
    """S of any column."""
    return score(tally(compact(column), labels), labels).value


def brute_force(column: list[int], labels: list[bool]) -> float:
    """S of the docstring, value by value."""
    total = 0.0
    for value, count in Counter(column).items():
        if count == 1:
            continue
        hits = sum(y for x, y in zip(column, labels, strict=True) if x == value)
        expected = chance(len(labels), sum(labels), count)
        total += count / len(labels) * (expected - h(hits / count))
    return total


@pytest.mark.parametrize("num_values", [1, 2, 7, 60, 200])
def test_the_score_is_the_sum_over_every_outcome(num_values: int) -> None:
    random = np.random.default_rng(num_values)
    column = random.integers(0, num_values, 200)
    labels = random.random(200) < np.where(column % 3 == 0, 0.6, 0.2)
    found = value(column, Labels(labels))
    assert found == pytest.approx(brute_force(column.tolist(), labels.tolist()), abs=1e-9)


def test_large_counts_are_expanded_as_exactly_as_they_are_summed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = Labels(np.random.default_rng(0).random(20_000) < 0.03)
    counts = np.array([2100, 5000, 19_999])
    expanded = labels.chance(counts)
    monkeypatch.setattr(outrank, "_MOST_SUPPORT", 1 << 20)
    summed = Labels(labels.values).chance(counts)
    np.testing.assert_allclose(expanded[0], summed[0], rtol=0, atol=2e-6)
    np.testing.assert_allclose(expanded[1][:-1], summed[1][:-1], rtol=0.05)


def test_a_random_feature_scores_nothing_whatever_its_cardinality() -> None:
    random = np.random.default_rng(1)
    labels = Labels(random.random(5000) < 0.1)
    for num_values in (3, 50, 1000):
        columns = [compact(random.integers(0, num_values, 5000)) for _ in range(100)]
        found = [score(tally(column, labels), labels) for column in columns]
        scores = [each.value for each in found]
        error = float(np.std(scores)) / math.sqrt(len(scores))
        assert abs(np.mean(scores)) < 4 * error
        spread = np.mean([each.noise for each in found])
        assert np.std(scores) == pytest.approx(spread, rel=0.35)
        # The plain information of such a column is far above zero.
        assert abs(np.mean(scores)) < 0.02 * labels.entropy


def test_a_column_that_names_every_row_tells_nothing() -> None:
    labels = Labels(np.arange(100) % 2 == 0)
    assert value(np.arange(100), labels) == 0.0


def test_pairs_of_hashes_are_counted_without_a_collision() -> None:
    random = np.random.default_rng(2)
    first, second = (random.integers(-(2**63), 2**63 - 1, 40)[random.integers(0, 40, 500)]
                     for _ in range(2))  # fmt: skip
    labels = Labels(random.random(500) < 0.5)
    found = joint_tally(compact(first), compact(second), labels)
    rows = list(zip(first.tolist(), second.tolist(), strict=True))
    clicks = Counter(row for row, clicked in zip(rows, labels.values, strict=True) if clicked)
    expected = sorted((count, clicks[row]) for row, count in Counter(rows).items())
    assert sorted(zip(found.counts.tolist(), found.hits.tolist(), strict=True)) == expected


def test_two_bits_that_only_count_together_are_found_as_a_pair() -> None:
    random = np.random.default_rng(3)
    a, b = random.integers(0, 2, (2, 4000))
    labels = Labels((a ^ b).astype(bool))
    assert abs(value(a, labels)) < 0.001
    both = score(joint_tally(compact(a), compact(b), labels), labels)
    assert both.value == pytest.approx(math.log(2), abs=0.002)


def test_redundancy_is_all_of_a_copy_and_nothing_of_a_stranger() -> None:
    random = np.random.default_rng(4)
    labels = Labels(np.zeros(5000, bool))

    def of(first: np.ndarray, second: np.ndarray) -> float:
        one, other = compact(first), compact(second)
        both = joint_tally(one, other, labels).entropy
        apart = joint_tally(one, random.permutation(other), labels).entropy
        entropies = (tally(column, labels).entropy for column in (one, other))
        return redundancy(*entropies, both, apart)

    column = random.integers(0, 500, 5000)
    assert of(column, column) == pytest.approx(1)
    assert of(column % 4, column) == pytest.approx(1)
    assert of(column, random.integers(0, 500, 5000)) < 0.01
    assert of(column, np.zeros(5000, np.int64)) == 0.0


def test_the_order_weighs_what_is_known_already_against_what_pairs_tell() -> None:
    # Scaled: relevance 1, 0.8, 0.5, 0. The copy of the best comes after the weaker stranger, and
    # the useless one, which with the best tells most, before both.
    relevance = [10.0, 8.0, 5.0, 0.0]
    pairs = [
        Pair(0, 1, relation=0.0, redundancy=1.0),
        Pair(0, 2, relation=2.0, redundancy=0.0),
        Pair(0, 3, relation=4.0, redundancy=0.0),
        Pair(1, 2, relation=0.0, redundancy=0.0),
        Pair(1, 3, relation=0.0, redundancy=0.0),
        Pair(2, 3, relation=0.0, redundancy=0.0),
    ]
    # After 0: 1 has 0.8 - 1 + 0, 2 has 0.5 - 0 + 0.5, 3 has 0 - 0 + 1: a tie, the first declared.
    # After 0, 2: 1 has 0.8 - 0.5 + 0, 3 has 0 - 0 + 0.5.
    assert select(relevance, pairs) == [0, 2, 3, 1]
    assert select(relevance, []) == [0, 1, 2, 3]
