"""Crosses, against a loop over plain values."""

from datetime import datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.compatibility import same_ids
from feature_store.encoding import FittedFeatures
from feature_store.features import (
    Bag,
    Categorical,
    Cross,
    DatePart,
    FeatureSet,
    IdField,
    Numeric,
    Sequence,
)
from feature_store.kinds import kind_of
from pipelines.fit import fit

PARTS = (
    Categorical(name="user"),
    Categorical(name="item", source="thing", min_count=2),
    Numeric(name="age", num_buckets=2),
    DatePart(name="hour", source="at", part="hour"),
    Bag(name="tags", max_length=2),
)
FEATURES = FeatureSet(
    inputs=(
        *PARTS,
        Cross(name="pair", of=("user", "item"), min_count=2, side="item"),
        Cross(name="all", of=("user", "age", "hour"), encoding="hash"),
        Cross(name="few", of=("user", "item"), encoding="hash", num_buckets=5),
        Cross(name="tagged", of=("user", "tags", "hour")),
        Cross(name="first", of=("tags", "item"), encoding="hash", num_buckets=1_000_000),
    )
)
SCHEMA = {
    "user": pl.String(),
    "thing": pl.Int64(),
    "age": pl.Float64(),
    "at": pl.Datetime("us"),
    "tags": pl.List(pl.String),
}


def raw(*rows: tuple) -> pl.DataFrame:
    return pl.DataFrame([dict(zip(SCHEMA, row, strict=True)) for row in rows], schema=SCHEMA)


EARLY, LATE = datetime(2024, 1, 1, 5), datetime(2024, 1, 1, 17)
TRAIN = raw(
    ("ann", 1, 10.0, EARLY, ["x", "y"]),
    ("ann", 1, 20.0, EARLY, ["x"]),
    ("ann", 2, 30.0, LATE, ["x", "y", "z"]),
    ("bob", 1, 40.0, LATE, None),
    ("bob", None, None, None, []),
)
FITTED = fit(TRAIN.lazy(), FEATURES)


def encode(frame: pl.DataFrame) -> list[dict]:
    return FITTED.encode(frame.lazy()).collect().to_dicts()


def test_known_combinations_have_ids_by_falling_frequency():
    rows = encode(TRAIN)
    assert [row["pair"] for row in rows] == [2, 2, 1, 1, 0]
    # ann x 5 o'clock is there twice, the others once; ties go by their text: 17 has the id 19, 5 7.
    assert [row["tagged"] for row in rows] == [[2, 5], [2], [3, 4], [], []]


def test_what_is_crossed_is_the_raw_value_and_not_the_id():
    """Item 2 is out of its own vocabulary and item 3 too; their hashes differ all the same."""
    rows = encode(raw(("ann", 2, 1.0, EARLY, ["x"]), ("ann", 3, 1.0, EARLY, ["x"])))
    assert [row["item"] for row in rows] == [1, 1]
    assert rows[0]["first"] != rows[1]["first"]


def test_a_cross_is_missing_where_a_part_is():
    for place in range(2):
        row = ["ann", 1, 10.0, EARLY, ["x", None, ""]]
        assert encode(raw(tuple(row)))[0]["pair"] == 2
        row[place] = None
        (found,) = encode(raw(tuple(row)))
        assert (found["pair"], found["few"]) == (0, 0)
    (found,) = encode(raw(("", 1, float("nan"), None, ["x"])))
    assert (found["pair"], found["all"], found["few"], found["tagged"]) == (0, 0, 0, [])
    assert len(found["first"]) == 1


def test_no_two_combinations_have_one_text():
    """Separators and escapes in the values do not make one combination look like another."""
    features = FeatureSet(
        inputs=(
            Categorical(name="a"),
            Categorical(name="b"),
            Bag(name="c"),
            Cross(name="ab", of=("a", "b")),
            Cross(name="ac", of=("a", "c")),
        )
    )
    signs = ["\x1d", "\x1e", "\x1f", "0", "1", "x", "\x1e1"]
    words = signs + [one + other for one in signs for other in signs]
    frame = pl.DataFrame(
        [{"a": a, "b": b, "c": [b]} for a in words for b in words],
        schema={"a": pl.String(), "b": pl.String(), "c": pl.List(pl.String)},
    )
    fitted = fit(frame.lazy(), features)
    distinct = frame.select("a", "b").n_unique()
    assert len(fitted.vocabularies["ab"]) == len(fitted.vocabularies["ac"]) == distinct
    found = fitted.encode(frame.lazy()).collect()
    assert found.filter(pl.col("ac").list.first() != pl.col("ab")).is_empty()
    assert (found["ac"].list.len() == 1).all()


def test_layout_has_single_ids_and_bags_of_crosses():
    layout = FITTED.layout
    assert layout.id_field("pair") == IdField(
        name="pair", shape="single", side="item", space="pair", cardinality=3
    )
    assert layout.id_field("all").cardinality is None
    assert layout.id_field("few").cardinality == 7
    tagged = layout.id_field("tagged")
    assert (tagged.shape, tagged.max_length) == ("bag", 2)
    hashed = {f.name for f in FEATURES.inputs if kind_of(f).hashed(f)}
    assert hashed == {"all"}, "with buckets a table knows its size"


def test_the_raw_columns_of_a_cross_are_those_of_its_parts():
    cross = FEATURES.feature("tagged")
    assert kind_of(cross).sources(cross, FEATURES) == ("user", "tags", "at")
    assert [column.name for column in FITTED.columns] == list(SCHEMA)


def test_saved_and_loaded_crosses_encode_alike(tmp_path):
    FITTED.save(tmp_path)
    loaded = FittedFeatures.load(tmp_path)
    assert loaded.encode(TRAIN.lazy()).collect().equals(FITTED.encode(TRAIN.lazy()).collect())


WORDS = st.none() | st.sampled_from(["", "ann", "bob", "é", "a\x1fb"])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            WORDS,
            st.none() | st.integers(0, 3),
            st.none() | st.sampled_from([0.0, 15.0, 25.0, float("nan")]),
            st.none() | st.sampled_from([EARLY, LATE]),
            st.none() | st.lists(st.none() | st.sampled_from(["", "x", "y", "z"]), max_size=4),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_equal_ids_mean_equal_combinations_alone_and_in_company(rows):
    """Single crosses against tuples of values; a bag's against a loop over it."""
    found = encode(raw(*rows))
    assert found == [encode(raw(row))[0] for row in rows]
    ids: dict[tuple, int] = {}
    for (user, item, age, at, tags), row in zip(rows, found, strict=True):
        missing = not user or item is None
        assert (row["pair"] == 0) == (row["few"] == 0) == missing
        if not missing:
            assert row["pair"] == (2 if (user, item) == ("ann", 1) else 1)
            assert 2 <= row["few"] < 7
        complete = user and age is not None and age == age and at is not None
        assert (row["all"] != 0) == bool(complete)
        kept = [tag for tag in tags or [] if tag][:2]
        assert len(row["first"]) == (len(kept) if item is not None else 0)
        assert len(row["tagged"]) == (len(kept) if user and at is not None else 0)
        for tag, first in zip(kept, row["first"], strict=False):
            assert ids.setdefault((tag, item), first) == first
    assert len(set(ids.values())) == len(ids)


@pytest.mark.parametrize(
    ("cross", "message"),
    [
        (Cross(name="c", of=("user", "itme")), "is of 'itme', which is no feature; did you mean"),
        (Cross(name="c", of=("user", "height")), "the number 'height', of which no two need be"),
        (Cross(name="c", of=("user", "past")), "is of 'past', a sequence; expected categorical"),
        (Cross(name="c", of=("tags", "words")), "is of the bags 'tags' and 'words'"),
        (Cross(name="c", of=("user", "user")), "names 'user' twice"),
    ],
)
def test_parts_that_cannot_be_crossed_are_refused(cross, message):
    others = (Numeric(name="height"), Bag(name="words"), Sequence(name="past", of="user"))
    with pytest.raises(ValueError, match=message):
        FeatureSet(inputs=(*PARTS, *others, cross))


def test_buckets_are_for_hashes():
    with pytest.raises(ValueError, match="num_buckets is for encoding 'hash'"):
        Cross(name="c", of=("user", "item"), num_buckets=9)


def test_ids_of_a_cross_mean_others_where_the_buckets_of_a_part_do():
    """By vocabulary and by hash; a hash into another number of buckets is another id too."""
    parts = (Numeric(name="age", num_buckets=2), Categorical(name="user"))
    crossed = FeatureSet(
        inputs=(
            *parts,
            Cross(name="listed", of=("age", "user")),
            Cross(name="hashed", of=("age", "user"), encoding="hash"),
            Cross(name="few", of=("user", "age"), encoding="hash", num_buckets=9),
        )
    )
    one = fit(TRAIN.lazy(), crossed)
    older = fit(TRAIN.with_columns(pl.col("age") + 50.0).lazy(), crossed)
    assert one.vocabularies["listed"].equals(older.vocabularies["listed"])
    more = Cross(name="few", of=("user", "age"), encoding="hash", num_buckets=10)
    other = fit(TRAIN.lazy(), crossed.model_copy(update={"inputs": (*crossed.inputs[:-1], more)}))
    for name in ("listed", "hashed", "few"):
        assert same_ids(one, one, name)
        assert not same_ids(one, older, name)
        assert same_ids(one, other, name) == (name != "few")
