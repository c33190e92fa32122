"""Ranks and order statistics of numbers in sorted runs, against the whole array sorted."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ranked import Ranked, Run

FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324]),
)
INTEGERS = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None, max_examples=30)
@given(
    st.one_of(
        st.lists(st.lists(FLOATS, max_size=8), min_size=1, max_size=4),
        st.lists(st.lists(INTEGERS, max_size=8), min_size=1, max_size=4),
    ).filter(any)
)
def test_places_and_ranks_are_those_of_the_sorted_whole(lists: list[list[float]]) -> None:
    dtype = pl.Float64() if any(isinstance(v, float) for run in lists for v in run) else pl.Int64()
    ranked = Ranked([Run.of(pl.Series(run, dtype=dtype)) for run in lists])
    whole = sorted(value for run in lists for value in run)
    assert len(ranked) == len(whole)
    assert (ranked.smallest, ranked.largest) == (whole[0], whole[-1])
    assert [ranked.at(place) for place in range(len(whole))] == whole
    assert ranked.num_distinct() == len(set(whole))
    for value in whole:
        assert ranked.below(value) == sum(other < value for other in whole)
        assert ranked.up_to(value) == sum(other <= value for other in whole)


def test_a_saved_run_stays_on_disk(tmp_path: Path) -> None:
    Run.of(pl.Series([3.0, 1.0, 3.0])).save(tmp_path / "run")
    loaded = Run.load(tmp_path / "run")
    assert isinstance(loaded.values, np.memmap)
    assert (loaded.values.tolist(), loaded.ends.tolist()) == ([1.0, 3.0], [1, 3])


def test_there_is_no_number_beyond_the_last() -> None:
    with pytest.raises(IndexError, match="place 2 of 2"):
        Ranked([Run.of(pl.Series([1, 2]))]).at(2)
