"""A YAML file as plain values that remember the line they came from.

Read by the rules of YAML 1.2's core schema: `on`, `yes` and `2024-01-01` are text, `1e-3` is a
number (PyYAML follows 1.1, where they are two booleans, a date and text). A key that stands
twice in one mapping is an error: one of the two would be dropped in silence.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from feature_store.features import nearest

Value = Any
"""dict with text keys, list, str, int, float, bool or None."""
KeyPath = tuple[str | int, ...]

_SCALARS = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """Reads by the rules of `_SCALARS` alone."""


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read back as text."""


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, (_pattern, _first) in _SCALARS.items():
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration, and where."""

    place: str
    """`file:line`, or the override that brought the value."""
    key: str
    """Dotted path; empty for the file as a whole."""
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.key, self.message) if part)


class ExperimentError(ValueError):
    """A configuration that cannot be used; lists every problem found."""

    def __init__(self, title: str, problems: list[Problem]) -> None:
        self.problems = problems
        lines = [f"  {problem}" for problem in problems]
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{title}: {count}", *lines]))


@dataclass
class Document:
    """The values of a file after its overrides, and the place each came from."""

    name: str
    value: Value
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Where a value stands; the nearest enclosing one's place for what is not in the file."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.name)


def read(path: Path) -> Document:
    """Parse a file.

    Raises:
        FileNotFoundError: there is none; names similar files beside it.
        ExperimentError: broken YAML, a key twice, not a mapping.
    """
    if not path.is_file():
        beside = sorted(str(p) for p in path.parent.glob("*.y*ml"))
        raise FileNotFoundError(f"no such file: {path}; {nearest(str(path), beside)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        problem = Problem(str(path), "", f"byte {error.start} is not UTF-8 text")
        raise ExperimentError(str(path), [problem]) from error
    return parse(text, str(path))


def parse(text: str, name: str) -> Document:
    """Parse a text; `name` stands for the file in messages.

    Raises:
        ExperimentError: broken YAML, a key twice, not a mapping.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        document = Document(name, None)
        problems: list[Problem] = []
        if isinstance(node, yaml.MappingNode):
            document.value = _convert(node, (), document, problems)
        else:
            problems.append(Problem(name, "", "expected sections such as `data:`, found none"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise ExperimentError(name, [Problem(place, "", f"not valid YAML: {what}")]) from error
    except yaml.YAMLError as error:
        what = str(error).splitlines()[0]
        raise ExperimentError(name, [Problem(name, "", f"not valid YAML: {what}")]) from error
    if problems:
        raise ExperimentError(name, problems)
    return document


def _convert(
    node: yaml.Node, path: KeyPath, document: Document, problems: list[Problem], depth: int = 0
) -> Value:
    place = f"{document.name}:{node.start_mark.line + 1}"
    document.places.setdefault(path, place)
    if depth > 50:
        problems.append(Problem(place, dotted(path), "nested too deeply (an alias of itself?)"))
        return None
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Value] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else str(key_node.tag)
            inner = (*path, key)
            key_place = f"{document.name}:{key_node.start_mark.line + 1}"
            if key in mapping:
                first = document.places[inner].rsplit(":", 1)[-1]
                problems.append(
                    Problem(
                        key_place, dotted(inner), f"the key stands twice, first in line {first}"
                    )
                )
            document.places[inner] = key_place
            mapping[key] = _convert(value_node, inner, document, problems, depth + 1)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [
            _convert(item, (*path, index), document, problems, depth + 1)
            for index, item in enumerate(node.value)
        ]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node)


def _scalar(node: yaml.ScalarNode) -> Value:
    kind = node.tag.rsplit(":", 1)[-1]
    if kind == "null":
        return None
    if kind == "bool":
        return node.value.lower() == "true"
    if kind == "int":
        digits = node.value.replace("_", "")
        return int(digits, 16) if digits.lower().startswith("0x") else int(digits)
    if kind == "float":
        return float(
            node.value.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan")
        )
    return node.value


def override(document: Document, assignment: str) -> None:
    """Set one value: `a.b=c`, `a[0].b=c`, or `a.name.b=c` where `a` lists things with names.

    The value is read as YAML, so numbers, lists and `null` are what they look like. Keys that do
    not exist are added here and judged by the validation that follows, as in the file; the index
    after the last item of a list adds an item.

    Raises:
        ExperimentError: not of that form, or a list item that does not exist.
    """
    place = f"--set {assignment}"
    steps, value = _assignment(assignment, place)
    container = document.value
    path: KeyPath = ()
    for depth, step in enumerate(steps):
        is_last = depth == len(steps) - 1
        try:
            key = _step(container, step, may_append=is_last)
        except ValueError as error:
            problem = Problem(place, ".".join(steps[: depth + 1]), str(error))
            raise ExperimentError("overrides", [problem]) from error
        path = (*path, key)
        if is_last:
            _forget(document, path)
            document.places[path] = place
            if isinstance(container, list) and key == len(container):
                container.append(value)
            else:
                container[key] = value
        elif isinstance(container, dict) and container.get(key) is None:
            container[key] = {}
            document.places[path] = place
        container = container[key]


def _assignment(text: str, place: str) -> tuple[list[str], Value]:
    """The steps of an override's path, and its value."""
    key, equals, value_text = text.partition("=")
    steps = [step for step in re.split(r"[.\[\]]+", key.strip()) if step]
    if not equals or not steps:
        problem = Problem(place, "", "expected key.path=value, such as training.epochs=2")
        raise ExperimentError("overrides", [problem])
    try:
        node = yaml.compose(value_text, Loader=_Loader)
    except yaml.YAMLError as error:
        problem = Problem(place, key, f"the value is not valid YAML: {value_text!r}")
        raise ExperimentError("overrides", [problem]) from error
    if node is None:
        return steps, None
    problems: list[Problem] = []
    value = _convert(node, (), Document(place, None), problems)
    if problems:
        raise ExperimentError("overrides", problems)
    return steps, value


def _step(container: Value, step: str, *, may_append: bool) -> str | int:
    """The key or index that one step of an override means in a container."""
    if isinstance(container, dict):
        return step
    if not isinstance(container, list):
        reason = f"{container!r} stands here, a single value without keys"
        raise ValueError(reason)  # noqa: TRY004  the user's value, not the caller's type
    if step.isdigit() and int(step) < len(container) + may_append:
        return int(step)
    names = [item.get("name") if isinstance(item, dict) else None for item in container]
    if step not in names:
        known = [str(name) for name in names if name is not None]
        raise ValueError(
            f"the list of {len(container)} has no item {step!r}; {nearest(step, known)}"
        )
    return names.index(step)


def _forget(document: Document, path: KeyPath) -> None:
    """Drop the places of a value that is replaced."""
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]


def dotted(path: KeyPath) -> str:
    """`features.inputs[0].name`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def dump(value: Value) -> str:
    """Plain values as YAML that `parse` reads back to the same values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
