"""Reading YAML with line numbers, and overrides."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.yaml_source import ExperimentError, dotted, dump, override, parse, read

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12),
    st.sampled_from(["on", "yes", "1e3", "1_000", "2024-01-01", "~", "", "0x1f", ".5", "=", "- a"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abcdef_onyes", min_size=1, max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abcdefgh", min_size=1, max_size=6), VALUES, max_size=5))
def test_what_is_dumped_is_read_back_equal(value):
    document = parse(dump(value) if value else "{}", "x.yaml")
    assert document.value == value
    assert repr(document.value) == repr(value)  # 1 is not 1.0 and not True


def test_words_of_older_yaml_stay_text_and_exponents_are_numbers():
    text = (
        "on: no\nday: 2024-01-31\nrate: 1e-3\nbig: 1_000_000\nhex: 0x10\nnone:\nten: 010\nt: 1:30"
    )
    assert parse(text, "x.yaml").value == {
        "on": "no",
        "day": "2024-01-31",
        "rate": 0.001,
        "big": 1000000,
        "hex": 16,
        "none": None,
        "ten": 10,
        "t": "1:30",
    }
    assert math.isinf(parse("a: -.inf", "x.yaml").value["a"])


def test_every_value_knows_its_line():
    document = parse("a: 1\nb:\n  - name: x\n    c: 2\n\n  - name: y\n", "x.yaml")
    assert document.place(("b", 0, "c")) == "x.yaml:4"
    assert document.place(("b", 1)) == "x.yaml:6"
    assert document.place(("b",)) == "x.yaml:2"
    assert document.place(("b", 1, "absent")) == "x.yaml:6"


def test_a_key_that_stands_twice_is_an_error_that_names_both_lines():
    with pytest.raises(ExperimentError, match=r"x\.yaml:3: a\.b: .*twice, first in line 2"):
        parse("a:\n  b: 1\n  b: 2\n", "x.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2", r"x\.yaml:\d: not valid YAML"),
        ("a: 1\n  b: 2", r"x\.yaml:2: not valid YAML"),
        ("a:\n\tb: 1", r"x\.yaml:2: not valid YAML: .*"),
        ("a: 1\n---\nb: 2", r"not valid YAML"),
        ("- 1\n- 2", "expected sections"),
        ("", "expected sections"),
        ("a: &a\n  b: *a", "nested too deeply"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_broken_text_is_an_error_with_its_line(text, expected):
    with pytest.raises(ExperimentError, match=expected):
        parse(text, "x.yaml")


def test_a_missing_file_is_named_with_the_file_beside_it(tmp_path):
    (tmp_path / "movie.yaml").write_text("a: 1")
    with pytest.raises(
        FileNotFoundError, match=r"no such file: .*move\.yaml; did you mean .*movie"
    ):
        read(tmp_path / "move.yaml")


def test_bytes_that_are_not_text_are_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(ExperimentError, match="byte 3 is not UTF-8"):
        read(tmp_path / "x.yaml")


def document():
    return parse("t: {epochs: 1}\nf:\n- name: x\n  n: 1\n- name: y\n", "x.yaml")


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("t.epochs=2", ("t", "epochs"), 2),
        ("t.rate=1e-3", ("t", "rate"), 0.001),
        ("t.words=[a, 1, null]", ("t", "words"), ["a", 1, None]),
        ("t.text=a=b", ("t", "text"), "a=b"),
        ("t.nothing=", ("t", "nothing"), None),
        ("new.deep.key=true", ("new", "deep", "key"), True),
        ("f[1].n=5", ("f", 1, "n"), 5),
        ("f.1.n=5", ("f", 1, "n"), 5),
        ("f.y.n=5", ("f", 1, "n"), 5),
        ("f[x].n=5", ("f", 0, "n"), 5),
        ("f[2]={name: z}", ("f", 2), {"name": "z"}),
    ],
)
def test_an_override_sets_one_value_and_is_named_as_its_place(assignment, path, value):
    changed = document()
    override(changed, assignment)
    found = changed.value
    for step in path:
        found = found[step]
    assert found == value
    assert changed.place(path) == f"--set {assignment}"
    assert changed.place(("f", 0, "name")) == "x.yaml:3"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("t.epochs", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("f.z.n=1", "the list of 2 has no item 'z'; known: x, y"),
        ("f[2].n=1", "the list of 2 has no item '2'"),
        ("f[7]=1", "the list of 2 has no item '7'"),
        ("t.epochs.more=1", "1 stands here, a single value without keys"),
        ("t.epochs=[1", "not valid YAML: '.1'"),
    ],
)
def test_an_impossible_override_says_why(assignment, expected):
    with pytest.raises(ExperimentError, match=expected):
        override(document(), assignment)


def test_paths_are_written_as_a_user_writes_them():
    assert dotted(("features", "inputs", 3, "of")) == "features.inputs[3].of"
    assert dotted(()) == ""
