"""What pydantic found wrong, in the user's words: the line, the key, and the nearest right one."""

import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from feature_store.features import nearest
from recsys.yaml_source import Document, ExperimentError, KeyPath, Problem, Value, dotted

Model = TypeVar("Model", bound=BaseModel)


def validated(document: Document, owner: type[Model]) -> Model:
    """The document's values as a configuration.

    Values are judged strictly, as JSON: "3" is no integer and 1 is not true.

    Raises:
        ExperimentError: lists every problem with its line.
    """
    try:
        return owner.model_validate_json(json.dumps(document.value), strict=True)
    except ValidationError as error:
        raise ExperimentError(document.name, problems_of(error, document, owner)) from error


def problems_of(
    error: ValidationError, document: Document, owner: type[BaseModel]
) -> list[Problem]:
    """Every problem of a failed validation of `document` against `owner`, in the file's order."""
    found: dict[tuple[str, str], Problem] = {}
    for details in error.errors():
        problem = _problem(details, document, owner)
        # A union reports the same place once for each of its members.
        found.setdefault((problem.place, problem.key), problem)
    return list(found.values())


def _problem(details: ErrorDetails, document: Document, owner: type[BaseModel]) -> Problem:
    path = _path_in(document.value, details)
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        known = _keys_at(owner, path[:-1], document.value)
        message = f"unknown key; {nearest(str(path[-1]), known)}"
    elif kind == "missing":
        message = "is missing"
    elif kind == "union_tag_not_found":
        path = (*path, str(context["discriminator"]).strip("'"))
        message = f"is missing; one of {', '.join(_tags_at(owner, path[:-1], document.value))}"
    elif kind == "union_tag_invalid":
        path = (*path, str(context["discriminator"]).strip("'"))
        tags = [tag.strip("' ") for tag in str(context["expected_tags"]).split(",")]
        message = f"no such kind {context['tag']!r}; {nearest(str(context['tag']), tags)}"
    elif kind in ("value_error", "assertion_error"):
        message = str(context["error"])
        path = _named_in(message, document.value, path)
    elif "input" in details and details["msg"].startswith("Input should"):
        message = f"{_expected(details)}, found {_shown(details['input'])}"
    else:
        message = details["msg"]
    return Problem(document.place(path), dotted(path), message)


_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "a valid tuple": "a list",
    "a valid dictionary": "a section",
    "an object": "a section",
}


def _expected(details: ErrorDetails) -> str:
    text = details["msg"].removeprefix("Input should be ").removeprefix("Input should ")
    given = details["input"]
    if details["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", text)
        close = get_close_matches(str(given), choices, n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        return f"expected one of {', '.join(choices) or text}{guess}"
    return f"expected {_WORDS.get(text, text)}"


def _shown(value: Value) -> str:
    names = {dict: "a section", list: "a list", str: "text", bool: "true or false"}
    text = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    kind = names.get(type(value))
    return f"{text} ({kind})" if kind else "nothing" if value is None else text


def _path_in(value: Value, details: ErrorDetails) -> KeyPath:
    """An error's location without the steps pydantic adds for the members of unions."""
    path: KeyPath = ()
    steps = details["loc"]
    for position, step in enumerate(steps):
        is_key = isinstance(value, dict) and step in value
        is_index = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if is_key or is_index:
            path, value = (*path, step), value[step]
        elif details["type"] == "missing" and position == len(steps) - 1:
            path = (*path, step)
    return path


def _named_in(message: str, root: Value, path: KeyPath) -> KeyPath:
    """The value under `path` that a message quotes, so that its line can be told.

    Follows the quoted words in turn, each beside the last one: "sequence 'history' is a history
    of 'movie'" leads to that sequence's `of`. A word that stands twice means its last place.
    """
    scope, found = path, path
    for word in re.findall(r"'([^']+)'", message):
        hits = [inner for inner, scalar in _scalars(_at(root, scope)) if scalar == word]
        if hits:
            found = (*scope, *hits[-1])
            scope = found[:-1]
    return found


def _at(value: Value, path: KeyPath) -> Value:
    for step in path:
        value = value[step]
    return value


def _scalars(value: Value) -> Iterator[tuple[KeyPath, Value]]:
    """Every single value inside, with its path; keys count as the value they lead to."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (key,), key
            yield from (((key, *path), scalar) for path, scalar in _scalars(inner))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from (((index, *path), scalar) for path, scalar in _scalars(inner))
    else:
        yield (), value


def _keys_at(owner: type[BaseModel], path: KeyPath, value: Value) -> list[str]:
    """The keys that may stand at a path of a document."""
    return sorted({name for model in _models_at(owner, path, value) for name in model.model_fields})


def _tags_at(owner: type[BaseModel], path: KeyPath, value: Value) -> list[str]:
    """The kinds that may stand at a path where a `kind` is missing."""
    models = _models_at(owner, path, value)
    return [
        str(model.model_fields["kind"].default) for model in models if "kind" in model.model_fields
    ]


def _models_at(owner: type[BaseModel], path: KeyPath, value: Value) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [owner]
    annotations: list[Any] = [owner]
    for step in path:
        annotations = [inner for a in annotations for inner in _inside(a, step)]
        value = _at(value, (step,)) if isinstance(value, dict | list) else None
        models = [model for a in annotations for model in _members(a)]
        kind = value.get("kind") if isinstance(value, dict) else None
        models = [m for m in models if _is_of_kind(m, kind)] or models
        if models:
            annotations = [*models]
    return models


def _is_of_kind(model: type[BaseModel], kind: Value) -> bool:
    field = model.model_fields.get("kind")
    return kind is not None and field is not None and kind in get_args(field.annotation)


def _inside(annotation: Any, step: str | int) -> list[Any]:
    """The annotations of what a step leads to inside a value of this annotation."""
    found: list[Any] = []
    for member in _alternatives(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            field = member.model_fields.get(str(step))
            found += [field.annotation] if field is not None else []
        elif get_origin(member) is dict:
            found.append(get_args(member)[1])
        elif get_origin(member) in (list, tuple, set, frozenset):
            found.append(get_args(member)[0])
    return found


def _members(annotation: Any) -> list[type[BaseModel]]:
    """The models an annotation allows."""
    return [
        member
        for member in _alternatives(annotation)
        if isinstance(member, type) and issubclass(member, BaseModel)
    ]


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, through Annotated and type aliases."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [inner for member in get_args(annotation) for inner in _alternatives(member)]
    return [annotation]
