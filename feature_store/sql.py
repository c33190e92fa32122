"""SQL expressions that give a row its value from that row alone.

Polars parses SQL into its own expressions. Whatever looks beyond the row (an aggregate, a window, a
subquery), at the clock, or at how the other rows are written would give a row another value online,
alone, than it had among the rows of a build; so only what is known to stay within the row is let
through: a list of what is allowed, checked against the parsed expression.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import Any

import polars as pl

_FUNCTIONS = {
    "Abs", "Atan2", "Ceil", "Coalesce", "Exp", "FillNull", "Floor", "Log", "Log1p", "MaxHorizontal",
    "MinHorizontal", "Round", "Sign",
}  # fmt: skip
"""Functions without a family of which each gives a row its value from that row."""
_FAMILIES: dict[str, set[str] | None] = {
    "Bitwise": {"CountOnes"},
    "Boolean": {"IsNull", "IsNotNull", "IsNan", "IsNotNan", "IsFinite", "IsInfinite", "Not"},
    "ListExpr": None,
    "Pow": None,
    "Sql": None,
    "StringExpr": None,
    "TemporalExpr": None,
    "Trigonometry": None,
}
"""Families of functions, and which of them work row by row (None: all; a list is one value)."""
_BEYOND_THE_ROW = {
    "Agg": "an aggregate",
    "Any": "an aggregate",
    "Len": "an aggregate",
    "Quantile": "an aggregate",
    "Correlation": "an aggregate",
    "Over": "a window",
    "Rank": "a window",
    "Shift": "a window",
    "Explode": "a change of the number of rows",
    "SubPlan": "a subquery",
}
_REFUSED = {
    "Alias": "uses AS; the name stands before the expression",
    "Selector": "names several columns at once; name each",
    "NullCount": "uses an aggregate, which looks at other rows too",
    "StructExpr": "names a table or a struct before a column; name the column alone",
}
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_CLOCK = re.compile(r"\b(now\s*\(|(current|local)_?(timestamp|date|time)\b)", re.IGNORECASE)
_SUBQUERY = re.compile(r"\bselect\b", re.IGNORECASE)

_PARTS = {"BinaryExpr": ("left", "right"), "Ternary": ("predicate", "truthy", "falsy")}

_PLAIN_VALUES: dict[str, Any] = {
    "String": "1",
    "Int64": 1,
    "Float64": 1.0,
    "Boolean": True,
    "Date": date(2000, 1, 1),
    "Datetime": datetime(2000, 1, 1),
}


class InvalidExpression(ValueError):
    """Text that is no SQL expression, or one that does not give a row its value from that row."""


@dataclass(frozen=True, eq=False)
class RowExpression:
    """A parsed expression."""

    text: str
    expression: pl.Expr
    columns: tuple[str, ...]
    """The columns that it reads."""

    def type_over(self, schema: Mapping[str, pl.DataType]) -> pl.DataType:
        """The type of the expression over columns of these types.

        Found by computing it for two rows, one of plain values and one of nulls: some errors show
        nowhere but there.

        Raises:
            InvalidExpression: It cannot be computed from such columns.
        """
        return _type_over(self, tuple(schema[name] for name in self.columns))


@lru_cache(maxsize=1024)
def parse(text: str) -> RowExpression:
    """A SQL expression that gives each row its value from that row alone.

    Raises:
        InvalidExpression: It is no expression, or it needs more than one row; says what is wrong.
    """
    bare = _QUOTED.sub("''", text)
    if _CLOCK.search(bare):
        raise _beyond(text, "the clock")
    if _SUBQUERY.search(bare):
        raise _beyond(text, "a subquery")
    try:
        expression = pl.sql_expr(text)
        tree = json.loads(expression.meta.serialize(format="json"))
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise InvalidExpression(f"{text!r} is no SQL expression over columns: {reason}") from error
    for refusal in _refusals(text, tree):
        raise refusal
    columns = tuple(dict.fromkeys(expression.meta.root_names()))
    if not columns:
        raise InvalidExpression(
            f"{text!r} reads no column, so it is the same for all rows; name a column (texts stand"
            " in single quotes, names in double ones)"
        )
    return RowExpression(text, expression, columns)


@lru_cache(maxsize=1024)
def _type_over(parsed: RowExpression, types: tuple[pl.DataType, ...]) -> pl.DataType:
    schema = dict(zip(parsed.columns, types, strict=True))
    probe = pl.DataFrame(
        {name: pl.Series([_plain(dtype), None], dtype=dtype) for name, dtype in schema.items()}
    )
    chosen = probe.lazy().select(parsed.expression.alias("value"))
    described = ", ".join(f"{name}: {dtype}" for name, dtype in schema.items())
    try:
        planned, found = chosen.collect_schema()["value"], chosen.collect().schema["value"]
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise InvalidExpression(
            f"{parsed.text!r} cannot be computed from {described}: {reason}"
        ) from error
    if planned != found:
        raise InvalidExpression(
            f"{parsed.text!r} over {described} is {planned} to Polars' planner and {found} when"
            " computed; convert its parts by TRY_CAST(... AS ...)"
        )
    return found


def _beyond(text: str, what: str) -> InvalidExpression:
    return InvalidExpression(
        f"{text!r} uses {what}, but a row must get its value from that row alone, so that it gets"
        " the same one in a request: no aggregates, windows, subqueries, random numbers or clocks"
    )


def _refusals(text: str, node: Any) -> Iterator[InvalidExpression]:
    """What in a parsed expression is not known to stay within a row."""
    kind, content = _named(node)
    if kind == "Function":
        family, name = _named(content["function"])
        name = _named(name)[0]
        if name == "Strptime":
            yield InvalidExpression(
                f"{text!r} reads a text as a time, which fails on a text that is none; declare the"
                " column as a date or datetime under data.columns"
            )
        elif (
            name in ("Contains", "Find") and family == "StringExpr" and not _has_fixed_text(content)
        ):
            yield InvalidExpression(
                f"{text!r} takes a pattern from a column, which fails on a text that is no pattern;"
                " write the pattern into the expression"
            )
        elif family in _FAMILIES:
            allowed = _FAMILIES[family]
            if allowed is not None and name not in allowed:
                yield _refusal(text, name)
        elif family not in _FUNCTIONS:
            yield _refusal(text, family)
        for argument in content["input"]:
            yield from _refusals(text, argument)
    elif kind == "Cast":
        # NOT casts its argument; what is no bool, number or null is refused when types are known.
        if content["options"] == "Strict" and content["dtype"] != {"Literal": "Boolean"}:
            yield InvalidExpression(
                f"{text!r} uses CAST, which fails on a value that does not fit; write TRY_CAST,"
                " which gives null there"
            )
        yield from _refusals(text, content["expr"])
    elif kind in _PARTS:
        for part in _PARTS[kind]:
            yield from _refusals(text, content[part])
    elif kind not in ("Column", "Literal"):
        yield _refusal(text, kind)


def _has_fixed_text(call: Any) -> bool:
    return all(_named(argument)[0] == "Literal" for argument in call["input"][1:])


def _refusal(text: str, what: str) -> InvalidExpression:
    if what in _REFUSED:
        return InvalidExpression(f"{text!r} {_REFUSED[what]}")
    if what in _BEYOND_THE_ROW:
        return _beyond(text, _BEYOND_THE_ROW[what])
    return InvalidExpression(
        f"{text!r} uses {what}, which is not among the operations known to give a row its value"
        " from that row alone"
    )


def _named(node: Any) -> tuple[str, Any]:
    """The name of a node or function, and what it has inside."""
    if isinstance(node, dict) and len(node) == 1:
        return next(iter(node.items()))
    return (node, "") if isinstance(node, str) else ("", "")


def _plain(dtype: pl.DataType) -> Any:
    if isinstance(dtype, pl.List):
        inner = dtype.inner
        return [_plain(inner() if isinstance(inner, type) else inner)]
    return _PLAIN_VALUES[str(dtype.base_type())]
