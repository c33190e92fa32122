"""What two versions differ in, each part by hand."""

from pathlib import Path

from support.versioned import FEATURES, raw_rows, write

from feature_store.difference import difference
from feature_store.features import Bag
from feature_store.store import Store


def test_equal_versions_differ_in_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    found = difference(write(store, "a"), write(store, "b"))
    assert (found.configuration, found.schema, found.vocabularies) == ({}, {}, {})
    assert (found.rows, found.sources, found.code) == ({}, {}, None)
    assert found.compatibility.is_compatible


def test_columns_vocabularies_and_rows_are_told_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = write(store, "a", raw_rows(40))
    inputs = (FEATURES.inputs[0], Bag(name="price", source="user"))
    features = FEATURES.model_copy(update={"inputs": inputs})
    second = write(store, "b", raw_rows(43, first_item=2), features=features)
    found = difference(first, second)
    assert found.schema == {
        "user": ("Int64", None),
        "price": ("Float32", "List(Int64)"),
        "level": ("Int64", None),
    }
    assert found.rows == {"train": (14, 15), "valid": (13, 14), "test": (13, 14)}
    old, new = (v.fitted.vocabularies["item"].to_list() for v in (first, second))
    change = found.vocabularies["item"]
    assert (change.before, change.after) == (len(old), len(new))
    assert change.added_examples == tuple(value for value in new if value not in old)
    assert change.removed_examples == tuple(value for value in old if value not in new)
    assert change.ids_moved == any(new.index(v) != old.index(v) for v in old if v in new)
    price = found.vocabularies["price"]
    assert (price.before, price.removed, price.ids_moved) == (0, 0, False)
    assert price.after == price.added > 1
    assert price.added_examples[0] == "user"  # the most frequent word
    assert {str(change) for change in found.compatibility.breaks} >= {
        "'user' is gone",
        "'level' is gone",
        "'price' was numeric, is bag",
    }
