"""Numbers by the hash of a value: look-ups against a dict, missing values, combined keys."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store import keyed
from feature_store.columns import SchemaMismatch


def keys(frame: pl.DataFrame, *names: str) -> list[int]:
    return frame.select(keyed.key_of("this", names, frame.schema)).to_series().to_list()


def table(numbers: dict[int, float]) -> pl.DataFrame:
    frame = pl.DataFrame(
        {keyed.KEY: list(numbers), keyed.VALUE: list(numbers.values())},
        schema={keyed.KEY: pl.Int64, keyed.VALUE: pl.Float32},
    )
    return frame.sort(keyed.KEY)


@settings(max_examples=20, deadline=None)
@given(
    known=st.dictionaries(
        st.integers(-(2**63), 2**63 - 1), st.floats(width=32, allow_nan=False), max_size=9
    ),
    wanted=st.lists(st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, -1]), max_size=9),
    missing=st.floats(width=32, allow_nan=False),
)
def test_a_look_up_gives_what_a_dict_gives_and_the_missing_number_otherwise(known, wanted, missing):
    known[0] = missing
    frame = pl.DataFrame({"key": pl.Series([*wanted, *known], dtype=pl.Int64)})
    expression = keyed.looked_up(pl.col("key"), table(known))
    expected = [known.get(key, missing) for key in frame["key"]]
    found = frame.select(expression)
    assert found["key"].to_list() == expected
    assert frame.lazy().select(expression).collect(engine="streaming").equals(found)
    alone = [frame[i : i + 1].select(expression).item() for i in range(frame.height)]
    assert alone == expected


def test_equal_values_have_one_key_in_whatever_type_they_come():
    texts = pl.DataFrame({"v": ["3", "0", "", None]})
    floats = pl.DataFrame({"v": [3.0, -0.0, float("nan"), float("inf")]})
    assert keys(texts, "v") == keys(floats, "v")
    assert keys(texts, "v")[2:] == [0, 0]
    assert keys(texts, "v")[:2] == keys(pl.DataFrame({"v": [3, 0]}), "v")


def test_a_combination_has_its_own_key_whose_parts_cannot_run_into_each_other():
    frame = pl.DataFrame({"a": ["x", "xy", "y", "x", ""], "b": ["yz", "z", "x", "yz", "z"]})
    found = keys(frame, "a", "b")
    assert found[0] == found[3]
    assert len(set(found[:3])) == 3
    assert found[4] == 0
    assert keys(frame, "b", "a")[0] != found[0]


def test_a_combination_is_missing_where_any_part_is():
    frame = pl.DataFrame({"a": ["x", None, "x"], "b": [1.0, 1.0, float("nan")]})
    assert [key == 0 for key in keys(frame, "a", "b")] == [False, True, True]


def test_lists_have_no_key():
    with pytest.raises(SchemaMismatch, match="this needs one value a row, but 'a' has the type L"):
        keys(pl.DataFrame({"a": [[1]]}), "a")


def test_keys_of_many_values_are_all_different():
    frame = pl.DataFrame({"a": np.arange(100_000)})
    assert len(set(keys(frame, "a"))) == 100_000
