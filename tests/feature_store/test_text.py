"""Texts as n-grams, against a loop over words and characters."""

import re
import unicodedata

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.columns import SchemaMismatch
from feature_store.encoding import check_columns
from feature_store.features import FeatureSet, Text
from feature_store.vocabulary import bucket_ids, hash_ids
from pipelines.fit import fit


def encode(feature: Text, *texts: str | None) -> list[list[int]]:
    raw = pl.DataFrame({feature.name: pl.Series(texts, dtype=pl.String)})
    fitted = fit(raw.lazy(), FeatureSet(inputs=(feature,)))
    return fitted.encode(raw.lazy()).collect()[feature.name].to_list()


def ids(grams: list[str], num_buckets: int | None = None) -> list[int]:
    expression = hash_ids(pl.col("g")) if not num_buckets else bucket_ids(pl.col("g"), num_buckets)
    return pl.DataFrame({"g": pl.Series(grams, dtype=pl.String)}).select(expression)["g"].to_list()


def grams_of(feature: Text, text: str) -> list[str]:
    text = unicodedata.normalize("NFC", text)
    if feature.lowercase:
        text = unicodedata.normalize("NFC", text.lower())
    if feature.unit == "word":
        units, between = "".join(c if _is_of_words(c) else " " for c in text).split(), " "
    else:
        units, between = list(re.sub(r"\s+", " ", text)), ""
    runs = [
        between.join(units[start : start + size])
        for size in feature.ngrams
        for start in range(len(units) - size + 1)
    ]
    return runs[: feature.max_length]


def _is_of_words(character: str) -> bool:
    kind = unicodedata.category(character)
    return character.isalpha() or kind[0] == "M" or kind in ("Nd", "Pc")


FEATURES = (
    Text(name="t"),
    Text(name="t", ngrams=(1, 2), max_length=3),
    Text(name="t", ngrams=(2,), lowercase=False),
    Text(name="t", ngrams=(3, 1), unit="character"),
)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.none() | st.text("aB zÀé\u0301\tß中_9-.😀\n", max_size=12), min_size=1, max_size=5)
)
def test_n_grams_are_as_stated_alone_and_in_company(texts):
    for feature in FEATURES:
        found = encode(feature, *texts)
        assert found == [ids(grams_of(feature, text or "")) for text in texts]
        assert found == [encode(feature, text)[0] for text in texts]


def test_words_are_found_whatever_case_and_signs_surround_them():
    feature = Text(name="t", ngrams=(1, 2))
    assert encode(feature, "Hello, WORLD!") == [ids(["hello", "world", "hello world"])]
    assert encode(feature, None, "", " -- ") == [[], [], []]


def test_an_accent_is_one_letter_however_it_was_typed():
    feature = Text(name="t", unit="character", ngrams=(1,))
    composed, apart = encode(feature, "é", "e\u0301")
    assert composed == apart == ids(["é"])


def test_buckets_bound_the_ids_and_leave_those_of_missing_and_unseen_values():
    feature = Text(name="t", num_buckets=3)
    (found,) = encode(feature, " ".join(map(str, range(60))))
    assert set(found) == {2, 3, 4}
    assert found == ids([str(n) for n in range(60)], 3)
    raw = pl.LazyFrame({"t": ["a"]})
    fields = [
        fit(raw, FeatureSet(inputs=(one,))).layout.ids[0] for one in (feature, Text(name="t"))
    ]
    assert [field.cardinality for field in fields] == [5, None]
    assert {field.shape for field in fields} == {"bag"}


@pytest.mark.parametrize("dtype", [pl.Int64(), pl.List(pl.String), pl.Datetime("us")])
def test_a_column_that_is_no_text_is_refused(dtype):
    with pytest.raises(SchemaMismatch, match="text feature 't' needs a column of text, but 't'"):
        check_columns(FeatureSet(inputs=(Text(name="t"),)), {"t": dtype})


def test_sizes_of_n_grams_are_at_least_one():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Text(name="t", ngrams=(0,))
