"""Ids from vocabularies and hashes, against plain Python and the reference of xxHash."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store import vocabulary

# xxhsum -H64 of the same bytes (xxHash 0.8, seed 0), unsigned.
REFERENCE = {
    "a": 0xD24EC4F1A98C6E5B,
    "abc": 0x44BC2CF5AD770999,
    "Nobody inspects the spammish repetition": 0xFBCEA83C8A378BF1,
}


def ids(expression_of, values: list[str | None]) -> list[int]:
    frame = pl.DataFrame({"text": pl.Series(values, dtype=pl.String)})
    return frame.select(expression_of(pl.col("text"))).to_series().to_list()


def test_hashes_are_the_reference_xxhash64_as_signed_bits():
    signed = [value - 2**64 if value >= 2**63 else value for value in REFERENCE.values()]
    assert ids(vocabulary.hash_ids, list(REFERENCE)) == signed


def test_null_and_empty_text_hash_to_missing():
    assert ids(vocabulary.hash_ids, [None, "", "a"])[:2] == [0, 0]


def test_a_changed_hash_library_is_refused(monkeypatch):
    vocabulary.check_hash_library()
    monkeypatch.setitem(vocabulary._KNOWN_HASHES, "abc", 1)
    with pytest.raises(RuntimeError, match="hashes differently from xxHash64"):
        vocabulary.check_hash_library()


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.text(min_size=1, max_size=4), unique=True, max_size=300),
    texts=st.lists(st.none() | st.text(max_size=4), max_size=30),
)
def test_vocabulary_ids_are_positions_from_two_on(values, texts):
    index = vocabulary.index(pl.Series("v", values, dtype=pl.String))
    texts = texts + values
    expected = [
        0 if text is None or text == "" else values.index(text) + 2 if text in values else 1
        for text in texts
    ]
    assert ids(lambda text: vocabulary.vocabulary_ids(text, index), texts) == expected


def test_values_like_the_placeholder_keep_their_ids():
    values = ["\x00", "\x00\x00", "x"]
    index = vocabulary.index(pl.Series("v", values))
    texts = [*values, "\x00\x00\x00", "\x00\x00\x00\x00"]
    assert ids(lambda text: vocabulary.vocabulary_ids(text, index), texts) == [2, 3, 4, 1, 1]


@pytest.mark.parametrize("size", [253, 254, 255, 65_533, 65_534, 65_535])
def test_ids_do_not_wrap_where_the_width_of_the_index_changes(size):
    values = pl.Series("v", range(size)).cast(pl.String)
    index = vocabulary.index(values)
    found = ids(lambda text: vocabulary.vocabulary_ids(text, index), ["0", str(size - 1), "x"])
    assert found == [2, size + 1, 1]


def test_a_digest_sees_every_value_its_bounds_and_its_order():
    digests = {
        vocabulary.digest(pl.Series("v", values, dtype=pl.String))
        for values in ([], ["ab"], ["a", "b"], ["b", "a"], ["a", "b", "c"], ["é"], ["a", ""])
    }
    assert len(digests) == 7
    chunked = pl.concat([pl.Series(["a"]), pl.Series(["b"])], rechunk=False)
    assert vocabulary.digest(chunked) == vocabulary.digest(pl.Series(["a", "b"]))
