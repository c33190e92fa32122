"""Grown features against a loop over raw rows: no old id moves, whatever the new rows hold."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.versioned import FEATURES, fitted_to, raw_rows

from feature_store.compatibility import compare
from feature_store.features import SPLIT_COLUMN, Categorical, FeatureSet, Label
from pipelines.fit import fit

ITEMS = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=30)


def rows_of(items: list[str]) -> pl.LazyFrame:
    return pl.LazyFrame({"item": items, "clicked": [i % 2 for i in range(len(items))]})


@settings(deadline=None, max_examples=20)
@given(old=ITEMS, new=ITEMS, min_count=st.integers(1, 3), max_size=st.none() | st.integers(1, 8))
def test_old_values_keep_their_ids_and_new_ones_follow_by_frequency(
    old: list[str], new: list[str], min_count: int, max_size: int | None
) -> None:
    features = FeatureSet(
        inputs=(Categorical(name="item", min_count=min_count, max_size=max_size),),
        labels=(Label(name="clicked"),),
    )
    base = fit(rows_of(old), features)
    grown = fit(rows_of(new), features, base=base)
    expected = base.vocabularies["item"].to_list()
    counts = Counter(value for value in new if value not in expected)
    for value, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        if count >= min_count and (max_size is None or len(expected) < max_size):
            expected.append(value)
    assert grown.vocabularies["item"].to_list() == expected
    assert compare(base, grown).is_compatible


def test_no_old_value_goes_where_max_size_has_become_too_small() -> None:
    features = FeatureSet(inputs=(Categorical(name="item"),), labels=(Label(name="clicked"),))
    base = fit(rows_of(list("aabbc")), features)
    small = FeatureSet(
        inputs=(Categorical(name="item", max_size=2),), labels=(Label(name="clicked"),)
    )
    grown = fit(rows_of(list("ddd")), small, base=base)
    assert grown.vocabularies["item"].to_list() == ["a", "b", "c"]


def test_numbers_stay_as_they_were_unless_refitted_or_declared_otherwise() -> None:
    base, other = fitted_to(raw_rows()), raw_rows(seed=5)
    alone = fitted_to(other)
    assert alone.moments != base.moments
    grown = fitted_to(other, base=base)
    assert grown.moments == base.moments
    assert grown.boundaries == base.boundaries
    refit = FEATURES.model_copy(update={"grow_from": 0, "refit_numbers": True})
    again = fitted_to(other, refit, base=base)
    assert again.moments == alone.moments
    assert again.boundaries == alone.boundaries
    assert again.vocabularies["item"].equals(grown.vocabularies["item"])
    inputs = list(FEATURES.inputs)
    inputs[2] = inputs[2].model_copy(update={"log1p": True})
    logged = FEATURES.model_copy(update={"inputs": tuple(inputs)})
    changed = fitted_to(other, logged, base=base)
    assert changed.moments == fitted_to(other, logged).moments
    assert changed.boundaries == base.boundaries


def test_rows_of_old_values_are_encoded_as_they_were() -> None:
    old, new = raw_rows(), raw_rows(seed=5, first_item=3)
    base = fitted_to(old)
    grown = fitted_to(new, base=base)
    assert len(grown.vocabularies["item"]) > len(base.vocabularies["item"])
    rows = old.lazy().drop(SPLIT_COLUMN)
    assert grown.encode(rows).collect().equals(base.encode(rows).collect())


def test_refitting_without_growing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"refit_numbers .* features\.grow_from, which is absent"):
        FeatureSet(inputs=(Categorical(name="item"),), refit_numbers=True)
