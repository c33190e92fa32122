"""The rule by which a model of one version may read another, clause by clause."""

from dataclasses import replace

import polars as pl
import pytest
from support.versioned import FEATURES, fitted_to, raw_rows

from feature_store.compatibility import IncompatibleVersion, compare, same_ids
from feature_store.encoding import FittedFeatures
from feature_store.features import Categorical, FeatureSet, Label, Numeric

BEFORE = fitted_to(raw_rows())


def with_inputs(*inputs: object) -> FeatureSet:
    return FEATURES.model_copy(update={"inputs": inputs})


def changed(feature: int, **update: object) -> FeatureSet:
    inputs = list(FEATURES.inputs)
    inputs[feature] = inputs[feature].model_copy(update=update)
    return with_inputs(*inputs)


def grown_by(*values: str) -> FittedFeatures:
    words = pl.concat([BEFORE.vocabularies["item"], pl.Series("item", values)])
    return replace(BEFORE, vocabularies={"item": words})


def test_equal_features_are_compatible_and_nothing_has_grown() -> None:
    found = compare(BEFORE, fitted_to(raw_rows()))
    assert found.is_compatible
    assert found.grown == {}
    assert found.added == ()
    found.require("a model", "a version")


def test_a_vocabulary_that_goes_on_is_compatible_one_way_only() -> None:
    longer = grown_by("new", "newer")
    found = compare(BEFORE, longer)
    size = len(BEFORE.vocabularies["item"])
    assert found.is_compatible
    assert found.grown == {"item": (size, size + 2)}
    assert same_ids(BEFORE, longer, "item")
    back = compare(longer, BEFORE)
    assert not back.is_compatible
    assert str(back.breaks[0]) == (
        f"'item' had {size + 2} values in its vocabulary, has only {size}"
    )
    assert not same_ids(longer, BEFORE, "item")


def test_a_value_with_another_id_is_named_with_both() -> None:
    words = BEFORE.vocabularies["item"]
    swapped = replace(BEFORE, vocabularies={"item": words.gather([1, 0, *range(2, len(words))])})
    (change,) = compare(BEFORE, swapped).breaks
    assert str(change) == (
        f"'item' has moved ids: the value {words[0]!r} had the id 2 and has another id, 3"
    )
    gone = replace(BEFORE, vocabularies={"item": words.gather([2, 1, *range(3, len(words))])})
    (change,) = compare(BEFORE, gone).breaks
    assert "and has none" in str(change)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (with_inputs(*FEATURES.inputs[1:]), "'item' is gone"),
        (changed(0, source="user"), "'item' had source None, has 'user'"),
        (changed(2, log1p=True), "'price' had log1p False, has True"),
        (
            with_inputs(*FEATURES.inputs[:2], Categorical(name="price"), FEATURES.inputs[3]),
            "'price' was numeric, is categorical",
        ),
        (changed(3, num_buckets=2), "'level' had num_buckets 3, has 2"),
        (
            FEATURES.model_copy(update={"labels": (Label(name="bought", source="clicked"),)}),
            "'clicked' is gone",
        ),
        (
            FEATURES.model_copy(update={"labels": (Label(name="clicked", threshold=1.0),)}),
            "'clicked' had threshold None, has 1.0",
        ),
    ],
)
def test_what_is_gone_or_declared_otherwise_breaks(features: FeatureSet, expected: str) -> None:
    found = compare(BEFORE, fitted_to(raw_rows(), features))
    assert expected in [str(change) for change in found.breaks]
    with pytest.raises(IncompatibleVersion, match=r"run x cannot read clicks@2: .*grow_from"):
        found.require("run x", "clicks@2")


def test_limits_of_a_vocabulary_and_further_features_are_no_matter() -> None:
    more = with_inputs(
        FEATURES.inputs[0].model_copy(update={"min_count": 2, "max_size": 999}),
        *FEATURES.inputs[1:],
        Numeric(name="more", source="price"),
    )
    after = replace(BEFORE, feature_set=more)
    found = compare(BEFORE, after)
    assert found.is_compatible
    assert found.added == ("more",)


def test_other_numbers_break_where_they_were_learnt() -> None:
    other = fitted_to(raw_rows(seed=3))
    broken = {change.feature for change in compare(BEFORE, other).breaks}
    assert {"price", "level"} <= broken
    table = pl.DataFrame({"key": [1], "value": [0.5]})
    with_table = replace(BEFORE, tables={"price": table})
    same = replace(BEFORE, tables={"price": table.clone()})
    assert compare(with_table, same).is_compatible
    (change,) = compare(with_table, BEFORE).breaks
    assert str(change) == "'price' has learnt other values"


def test_a_derived_column_of_another_expression_breaks_what_reads_it() -> None:
    derived = {"price": "cost * 2"}
    mine = replace(BEFORE, feature_set=FEATURES.model_copy(update={"derived": derived}))
    theirs = replace(BEFORE, feature_set=FEATURES.model_copy(update={"derived": {"price": "cost"}}))
    assert compare(mine, mine).is_compatible
    price, level = compare(mine, theirs).breaks
    assert str(price) == "'price' read 'price' as cost * 2, which is read as cost now"
    assert level.feature == "level"
    price, level = compare(BEFORE, mine).breaks
    assert price.what == "read 'price' as a raw column, which is read as cost * 2 now"


def test_a_raw_column_of_another_type_and_another_hash_break() -> None:
    columns = [
        column.model_copy(update={"type": "int"}) if column.name == "item" else column
        for column in BEFORE.columns
    ]
    (change,) = compare(BEFORE, replace(BEFORE, columns=tuple(columns))).breaks
    assert str(change) == "'item' was a raw column of type string, is of type int"
    (change,) = compare(BEFORE, replace(BEFORE, library="other 1.0")).breaks
    assert change.feature == "user"
    assert "is by other 1.0" in change.what
