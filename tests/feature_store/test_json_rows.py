"""JSON is read in the declared types; lines read at once and one by one give the same values."""

import json
from datetime import date, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.casting import TextForm
from feature_store.json_rows import Decoded, JsonRows

BAD = b"\n{bad"
"""Has the whole block looked at line by line."""


def decoded(block: str | bytes, columns: dict[str, Any], **fields: str) -> Decoded:
    forms = {
        name: form if isinstance(form, TextForm) else TextForm(type=form)
        for name, form in columns.items()
    }
    places = {name: fields.get(name, name) for name in columns}
    rows = JsonRows(forms, places, ["-"])
    return rows.decode(block.encode() if isinstance(block, str) else block)


def both_ways(block: str, columns: dict[str, Any], **fields: str) -> list[tuple[Any, ...]]:
    """The rows of a block, which a line that cannot be read beside them must not change."""
    at_once = decoded(block, columns, **fields)
    one_by_one = decoded(block.encode().removesuffix(b"\n") + BAD, columns, **fields)
    assert at_once.failures == []
    assert [failure.kind for failure in one_by_one.failures] == ["not JSON"]
    assert at_once.frame.schema == one_by_one.frame.schema
    assert at_once.frame.equals(one_by_one.frame)
    return at_once.frame.rows()


def test_values_have_the_declared_types() -> None:
    columns = {
        "text": "string",
        "whole": "int",
        "real": "float",
        "yes": "bool",
        "day": "date",
        "at": "datetime",
        "tags": "list<string>",
        "sizes": "list<int>",
    }
    row = {
        "text": "é \n\u0000",
        "whole": -7,
        "real": 0.1,
        "yes": True,
        "day": "2026-11-01",
        "at": "2026-11-01T10:00:00Z",
        "tags": ["a", ""],
        "sizes": [1, None],
        "other": {"x": [1]},
    }
    block = "\n".join(json.dumps(row) for _ in range(2)) + "\n"
    want = (
        "é \n\u0000",
        -7,
        0.1,
        True,
        date(2026, 11, 1),
        datetime(2026, 11, 1, 10),
        ["a", ""],
        [1, None],
    )
    assert both_ways(block, columns) == [(0, *want), (1, *want)]


def test_a_value_may_come_as_another_kind_of_json() -> None:
    columns = {"id": "string", "n": "int", "x": "float", "y": "bool", "l": "list<int>"}
    block = (
        '{"id": 3, "n": "4", "x": "1.5", "y": "no", "l": "1 2"}\n'
        '{"id": 3.0, "n": 5.0, "x": true, "y": 1, "l": ["7", 8.0]}\n'
        '{"id": true, "n": false, "x": 2, "y": false, "l": []}\n'
        '{"id": 0.25, "n": 1e3, "x": 3, "y": "t", "l": null}\n'
    )
    assert decoded(block, columns).frame.rows() == [
        (0, "3", 4, 1.5, False, [1, 2]),
        (1, "3", 5, 1.0, True, [7, 8]),
        (2, "true", 0, 2.0, False, []),
        (3, "0.25", 1000, 3.0, True, None),
    ]


def test_large_integers_keep_their_digits() -> None:
    columns = {"id": "string", "n": "int"}
    block = '{"id": 9007199254740993, "n": 9007199254740993}\n{"id": 1.5, "n": 2}\n'
    assert both_ways(block, columns)[0] == (0, "9007199254740993", 9007199254740993)


def test_absent_null_and_empty_values_are_missing() -> None:
    block = '{"a": "", "b": 1}\n{"b": 2}\n{"a": null, "b": 3}\n{"a": "-", "b": 4}\n{"a": "x"}\n'
    assert both_ways(block, {"a": "string", "b": "int"}) == [
        (0, None, 1),
        (1, None, 2),
        (2, None, 3),
        (3, None, 4),
        (4, "x", None),
    ]


def test_nested_fields_are_named_by_their_path_and_missing_where_it_ends() -> None:
    block = (
        '{"u": {"id": 7, "at": {"city": "Rom"}}, "y": 1}\n'
        '{"u": {"id": 8, "at": null}, "y": 0}\n{"u": null, "y": 1}\n{"y": 0}\n'
    )
    columns = {"user": "string", "city": "string", "y": "int"}
    assert both_ways(block, columns, user="u.id", city="u.at.city") == [
        (0, "7", "Rom", 1),
        (1, "8", None, 0),
        (2, None, None, 1),
        (3, None, None, 0),
    ]
    assert decoded('{"u": 3, "y": 1}', columns, user="u.id").frame.rows() == [(0, None, None, 1)]
    flat = '{"u.id": "flat", "u": {"id": "deep"}}\n{"u": {"id": "deep"}}'
    assert both_ways(flat, {"user": "string"}, user="u.id") == [(0, "flat"), (1, "deep")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"s": {"a": 1}}', "column 's': expected a string, found {\"a\": 1}"),
        ('{"s": [1]}', "column 's': expected a string, found [1]"),
        ('{"n": "x"}', "column 'n': expected an int, found \"x\""),
        ('{"n": 1.5}', "column 'n': expected an int, found 1.5"),
        ('{"n": 12345678901234567890}', "expected an int, found 12345678901234567890"),
        ('{"d": 20261101}', "column 'd': expected a date, found 20261101"),
        ('{"l": [1, "x"]}', "column 'l': expected a list<int>, found [1, \"x\"]"),
        ('{"l": [[1]]}', "column 'l': expected a list<int>, found [[1]]"),
        ('{"l": 3}', "column 'l': expected a list<int>, found 3"),
        (r'{"s": "\ud800"}', "column 's': expected a string"),
        ("[1]", "expected an object of fields, found [1]"),
        ('{"s": 1}{"s": 2}', "no JSON: Extra data"),
        ('{"s": ', "no JSON: Expecting value"),
        ("{}", "no value in any column"),
        ("  ", "an empty line"),
    ],
)
def test_a_line_that_cannot_be_read_is_told_with_its_reason(line: str, reason: str) -> None:
    columns = {"s": "string", "n": "int", "d": "date", "l": "list<int>"}
    got = decoded(f'{{"s": "a"}}\n{line}\n{{"s": "b"}}\n', columns)
    assert got.frame.rows() == [(0, "a", None, None, None), (2, "b", None, None, None)]
    [failure] = got.failures
    assert (failure.line, reason in failure.reason) == (1, True), failure.reason


def test_bytes_that_are_no_utf8_are_told() -> None:
    got = decoded(b'{"s": "a"}\n{"s": "\xff"}\n', {"s": "string"})
    assert [(f.line, f.kind, f.content) for f in got.failures] == [
        (1, "not UTF-8", r'{"s": "\xff"}')
    ]


def test_objects_that_share_or_break_lines_are_no_rows() -> None:
    got = decoded('{"s":"a"}{"s":"b"}\n{"s":\n"c"}\n{"s":"d"}\n', {"s": "string"})
    assert got.frame.rows() == [(3, "d")]
    assert [failure.line for failure in got.failures] == [0, 1, 2]


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["1", "2.0", "2026-11-01", "1 2", "", "-", "nan"]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.just({"a": 1}))
TYPES = st.sampled_from(["string", "int", "float", "bool", "date", "list<int>", "list<string>"])


@pytest.mark.parametrize("few", [1, 2, 500])
def test_bad_lines_among_many_take_no_others_with_them(
    monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr("feature_store.json_rows._WORTH_LINES", few)
    monkeypatch.setattr("feature_store.json_rows._RETRIED_LINES", 3 * few)
    bad = {0: "{bad}", 700: '{"n": 1.5}', 701: "", 1400: '{"n": {}}', 1403: "[]", 2999: '{"n"}'}
    lines = [bad.get(i, f'{{"n": {i}, "s": "{i}"}}') for i in range(3000)]
    got = decoded("\n".join(lines) + "\n", {"n": "int", "s": "string"})
    assert got.frame.rows() == [(i, i, str(i)) for i in range(3000) if i not in bad]
    assert [failure.line for failure in got.failures] == sorted(bad)


@settings(max_examples=40, deadline=None)
@given(
    few=st.sampled_from([1, 2, 200]),
    types=st.tuples(TYPES, TYPES),
    rows=st.lists(
        st.fixed_dictionaries({}, optional={"a": VALUES, "b": VALUES}), min_size=1, max_size=6
    ),
)
def test_a_line_is_read_alike_whatever_stands_beside_it(
    few: int, types: tuple[str, str], rows: list[dict[str, Any]]
) -> None:
    columns = dict(zip("ab", types, strict=True))
    lines = [json.dumps(row) for row in rows]
    alone = [decoded(line, columns) for line in lines]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("feature_store.json_rows._WORTH_LINES", few)
        patch.setattr("feature_store.json_rows._RETRIED_LINES", few)
        together = decoded("\n".join(lines), columns)
    rows_alone = [d.frame.drop("__line") for d in alone]
    assert together.frame.drop("__line").equals(pl.concat(rows_alone))
    kept = [place for place, d in enumerate(alone) if len(d.frame)]
    assert together.frame["__line"].to_list() == kept
    assert [f.reason for f in together.failures] == [f.reason for d in alone for f in d.failures]
