"""The JSON writer: nothing is lost, what is not finite is named."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.document import from_text, read_json, to_text, write_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def same(left, right):
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


@given(st.dictionaries(st.text().filter(lambda k: k != "not_finite"), values))
def test_documents_survive_the_round_trip(document):
    assert same(from_text(to_text(document)), document)
    assert "\n" not in to_text(document, indent=None)


def test_what_is_not_finite_is_null_and_named():
    document = {"auc": math.nan, "a/b": [1.0, -math.inf], "loss": 0.5}
    plain = json.loads(to_text(document))
    assert plain["auc"] is None
    assert plain["a/b"] == [1.0, None]
    assert plain["not_finite"] == {"/auc": "nan", "/a~1b/1": "-inf"}


def test_numpy_values_and_paths_become_plain_json():
    document = {
        "n": np.int64(3),
        "x": np.float32(0.5),
        "v": np.array([1.0, np.nan]),
        "p": Path("a"),
    }
    plain = json.loads(to_text(document))
    assert (plain["n"], plain["x"], plain["v"], plain["p"]) == (3, 0.5, [1.0, None], "a")


def test_a_value_without_a_json_form_is_refused_with_its_place():
    with pytest.raises(TypeError, match="/model/kind: object"):
        to_text({"model": {"kind": object()}})
    with pytest.raises(ValueError, match="not_finite"):
        to_text({"not_finite": 1})


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "report.json"
    write_json({"auc": 0.7}, path)
    with pytest.raises(TypeError):
        write_json({"auc": object()}, path)
    path.with_name("folder.json").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_json({"auc": 1}, path.with_name("folder.json"))
    assert read_json(path) == {"auc": 0.7}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.json", "report.json"]


def test_a_file_that_is_no_document_is_named(tmp_path):
    path = tmp_path / "report.json"
    for text in ("[1]", '{"a"', '{"a": 1, "not_finite": {"/b": "nan"}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"report\.json"):
            read_json(path)
