"""Statistics put together from parts, against the same of all rows at once."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines import partial
from pipelines.partial import Chosen, GatherNumbers, GatherTexts, MergeTexts, Moments, read_texts
from pipelines.parts import Part
from pipelines.ranked import Ranked, Run


def parts_of(*frames: pl.DataFrame) -> list[Part]:
    return [Part(n, 0, len(frame), frame.lazy(), "file") for n, frame in enumerate(frames)]


def test_moments_of_parts_are_those_of_all_numbers() -> None:
    random = np.random.default_rng(0)
    # A mean far above the deviation: sums of squares would lose all of it.
    pieces = [random.normal(1e9, 1.0, size) for size in (10_000, 1, 0, 4_096, 777)]
    merged = Moments.merged([Moments.of(piece) for piece in pieces])
    whole = np.concatenate(pieces)
    exact = math.fsum(whole) / len(whole)
    assert merged.count == len(whole)
    assert merged.mean == pytest.approx(exact, rel=1e-15)
    deviation = math.sqrt(math.fsum((whole - exact) ** 2) / len(whole))
    assert merged.deviation == pytest.approx(deviation, rel=1e-7)


def test_moments_of_nothing_and_of_numbers_too_large_to_square() -> None:
    assert Moments.merged([]) == Moments(0, 0.0, 0.0)
    assert Moments.merged([]).deviation == 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        huge = Moments.of(np.array([1e300, -1e300]))
    assert (huge.mean, huge.deviation) == (0.0, math.inf)


def test_numbers_of_a_part_come_without_missing_values(tmp_path: Path) -> None:
    parts = parts_of(pl.DataFrame({"n": [1.0, None, 3.0]}), pl.DataFrame({"n": [3.0, 2.0, None]}))
    gather = GatherNumbers({"n": pl.col("n")}, {"n": pl.col("n")}, tmp_path)
    found = [gather(part) for part in parts]
    assert Moments.merged([one.moments["n"] for one in found]).mean == 2.25
    ranked = Ranked([Run.load(one.runs["n"]) for one in found])
    assert [ranked.at(place) for place in range(len(ranked))] == [1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(("min_count", "max_size"), [(1, None), (2, None), (1, 3), (3, 2)])
def test_a_vocabulary_is_counted_over_all_parts(
    tmp_path: Path, min_count: int, max_size: int | None
) -> None:
    random = np.random.default_rng(1)
    values = [None, "", "é", "z", *(f"v{i}" for i in range(40))]
    frames = [
        pl.DataFrame({"c": [values[i] for i in random.integers(0, len(values), 60)]})
        for _ in range(3)
    ]
    partials = [GatherTexts({"c": pl.col("c")}, tmp_path)(part)["c"] for part in parts_of(*frames)]
    path = MergeTexts(tmp_path)(Chosen("c", partials, min_count, max_size))
    counts = Counter(value for frame in frames for value in frame["c"] if value)
    kept = [value for value, count in counts.items() if count >= min_count]
    kept.sort(key=lambda value: (-counts[value], value.encode()))
    assert read_texts(path, "c").to_list() == kept[:max_size]


def test_a_vocabulary_that_outgrows_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pl.DataFrame({"c": [f"value {i}" for i in range(1000)]})
    gather = GatherTexts({"c": pl.col("c")}, tmp_path)
    texts = [gather(part)["c"] for part in parts_of(frame)]
    monkeypatch.setattr(partial, "memory_bytes", lambda: 3 * texts[0].stat().st_size - 1)
    with pytest.raises(ValueError, match=r"feature 'c': its vocabulary .* set encoding: hash"):
        MergeTexts(tmp_path)(Chosen("c", texts, 1, None))
    monkeypatch.setattr(partial, "memory_bytes", lambda: 3 * texts[0].stat().st_size)
    assert read_texts(MergeTexts(tmp_path)(Chosen("c", texts, 1, None)), "c").len() == 1000


def test_texts_of_several_columns_may_be_of_different_number(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": ["x", "", None], "b": [["p", "q"], [], ["p"]], "n": [None] * 3})
    texts = {
        "a": pl.col("a"),
        "b": pl.col("b").explode(),
        "n": pl.col("n").cast(pl.String),
    }
    (part,) = parts_of(frame)
    found = {
        name: pl.read_ipc(path).select("value", "len").rows()
        for name, path in GatherTexts(texts, tmp_path)(part).items()
    }
    assert {name: sorted(rows) for name, rows in found.items()} == {
        "a": [("x", 1)],
        "b": [("p", 2), ("q", 1)],
        "n": [],
    }
