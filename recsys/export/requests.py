"""JSON rows of a request (or of a JSON lines file) to a raw table, checked value by value.

A check runs over a column at once where all is well; only a column with a problem is looked at row
by row, to name it.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Any, Literal, NamedTuple

import polars as pl

from feature_store.casting import TextForm, from_text
from feature_store.encoding import FittedFeatures
from feature_store.features import nearest
from feature_store.kinds import faults_of
from recsys.export.signature import Column, Signature

TimeKind = Literal["date", "datetime"]

MAX_PROBLEMS = 20
_SMALLEST_INT, _END_INT = -(2**63), 2**63


class Problem(NamedTuple):
    """One thing wrong with a request."""

    row: int | None
    """Position of the row in the request, from 0; None: the request as a whole."""
    field: str | None
    expected: str
    found: str

    def __str__(self) -> str:
        place = [f"row {self.row}"] if self.row is not None else []
        place += [f"field {self.field!r}"] if self.field is not None else []
        return f"{', '.join(place) or 'request'}: expected {self.expected}, found {self.found}"


class InvalidRows(ValueError):
    """Rows that do not fit the signature.

    Attributes:
        problems: At most `MAX_PROBLEMS` of them.
    """

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems[:MAX_PROBLEMS]
        super().__init__("; ".join(str(problem) for problem in self.problems))


def table(
    rows: Sequence[object], signature: Signature, *, strict: bool = True, first_row: int = 0
) -> pl.DataFrame:
    """A raw table of JSON rows.

    Args:
        rows: JSON objects with a value for every column of the signature.
        signature: The columns and their types.
        strict: Refuse further fields, and nulls where training had none.
        first_row: Number of the first row in error messages.

    Raises:
        InvalidRows: Names row, field, what was expected and what was found.
    """
    problems = _shape_problems(rows, signature, strict)
    if not problems:
        columns = []
        for column in signature.columns:
            values: list[Any] = [row[column.name] for row in rows]  # type: ignore[index]
            found = _value_problems(values, column, strict)
            problems += found
            if not found:
                columns.append(_series(values, column))
        if not problems:
            return pl.DataFrame(columns)
    numbered = sorted(problems, key=lambda p: p.row or 0)[:MAX_PROBLEMS]
    raise InvalidRows([p._replace(row=(p.row or 0) + first_row) for p in numbered])


def given(
    rows: Sequence[object], columns: Sequence[Column]
) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
    """A raw table of what JSON rows bring, where not every row must bring every column.

    Args:
        rows: JSON objects.
        columns: The columns that rows may bring, and their types.

    Returns:
        The columns that any row brings, null where a row does not; and for those that some rows do
        not bring, which do.

    Raises:
        InvalidRows: Names row, field, what was expected and what was found.
    """
    names = [column.name for column in columns]
    problems = []
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            problems.append(Problem(place, None, "an object of fields", described(row)))
        elif row.keys() - names:
            problems += [
                Problem(place, name, "no such field", f"{described(row[name])}; {hint}")
                for name in row
                if name not in names
                for hint in [nearest(name, names)]
            ]
    if problems:
        raise InvalidRows(problems)
    found, brought = [], {}
    for column in columns:
        places = [p for p, row in enumerate(rows) if column.name in row]  # type: ignore[operator]
        if not places:
            continue
        values = [rows[place][column.name] for place in places]  # type: ignore[index]
        wrong = _value_problems(values, column, strict=True)
        problems += [problem._replace(row=places[problem.row or 0]) for problem in wrong]
        if wrong:
            continue
        series = _series(values, column)
        if len(places) < len(rows):
            index = pl.Series([None] * len(rows), dtype=pl.UInt32)
            index = index.scatter(places, range(len(places)))
            series, brought[column.name] = series.gather(index), index.is_not_null()
        found.append(series)
    if problems:
        raise InvalidRows(sorted(problems, key=lambda problem: problem.row or 0))
    return pl.DataFrame(found, height=len(rows)), brought


def unusable(raw: pl.DataFrame, fitted: FittedFeatures) -> list[Problem]:
    """What a build would have rejected rows for: lists that do not fit each other, for example.

    Args:
        raw: Rows in the types of the signature.
        fitted: The features that are to encode them.
    """
    faults = faults_of(fitted.feature_set, raw.schema)
    if not faults:
        return []
    flags = raw.select(f.is_bad.alias(str(place)) for place, f in enumerate(faults))
    return [
        Problem(row, fault.column, f"{fault.expected} ({fault.what})", described(value))
        for place, fault in enumerate(faults)
        for row in flags[str(place)].arg_true().head(MAX_PROBLEMS)
        for value in raw[fault.column].slice(row, 1).to_list()
    ]


def _shape_problems(rows: Sequence[object], signature: Signature, strict: bool) -> list[Problem]:
    """Rows that are no objects, and missing or further fields."""
    names = signature.names
    expected = set(names)
    problems: list[Problem] = []
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            problems.append(Problem(place, None, "an object of fields", described(row)))
        elif row.keys() != expected:
            for name in names:
                if name not in row:
                    column = next(c for c in signature.columns if c.name == name)
                    found = f"no such field; {nearest(name, list(row))}"
                    problems.append(Problem(place, name, expected_of(column), found))
            if strict:
                problems += [
                    Problem(place, name, "no such field", f"{described(row[name])}; {hint}")
                    for name in row
                    if name not in expected
                    for hint in [nearest(name, names)]
                ]
        if len(problems) >= MAX_PROBLEMS:
            break
    return problems


def _value_problems(values: list[Any], column: Column, strict: bool) -> list[Problem]:
    fits = _FITS[column.type.removeprefix("list<").removesuffix(">")]
    nullable = column.nullable or not strict
    if _all_fit(values, column, fits, nullable):
        return []
    problems = []
    for place, value in enumerate(values):
        if not _all_fit([value], column, fits, nullable):
            problems.append(
                Problem(place, column.name, expected_of(column), _found(value, column, fits))
            )
            if len(problems) >= MAX_PROBLEMS:
                break
    return problems


def _all_fit(
    values: list[Any], column: Column, fits: Callable[[list[Any]], bool], nullable: bool
) -> bool:
    if None in values:
        if not nullable:
            return False
        values = [value for value in values if value is not None]
    if not column.is_list:
        return fits(values)
    if not set(map(type, values)) <= {list}:
        return False
    return fits([item for value in values for item in value])


def _found(value: object, column: Column, fits: Callable[[list[Any]], bool]) -> str:
    if column.is_list and isinstance(value, list):
        wrong = next(place for place, item in enumerate(value) if not fits([item]))
        return f"{described(value[wrong])} at position {wrong} of the list"
    return described(value)


def expected_of(column: Column) -> str:
    """What a field must hold, in the user's words."""
    inner = column.type.removeprefix("list<").removesuffix(">")
    words = f"a list of {_PLURAL[inner]}" if column.is_list else _SINGULAR[inner]
    return f"{words} or null" if column.nullable else words


def described(value: object) -> str:
    """A JSON value with its type, cut short, for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the bool {str(value).lower()}"
    if isinstance(value, int | float):
        kind = "number"
    elif isinstance(value, str):
        kind = "text"
    else:
        kind = "list" if isinstance(value, list) else "object"
    text = repr(value)
    return f"the {kind} {text if len(text) <= 60 else text[:57] + '...'}"


def _are_ints(values: list[Any]) -> bool:
    # type() and not isinstance(): a bool is an int to Python and no number to a user.
    if not set(map(type, values)) <= {int}:
        return False
    return not values or (min(values) >= _SMALLEST_INT and max(values) < _END_INT)


def _are_floats(values: list[Any]) -> bool:
    if not set(map(type, values)) <= {int, float}:
        return False
    try:
        return all(map(math.isfinite, values))
    except OverflowError:  # an int beyond every float
        return False


def _are_texts(values: list[Any]) -> bool:
    return set(map(type, values)) <= {str} and _is_unicode(values)


def _is_unicode(values: list[str]) -> bool:
    """Whether texts can be written as UTF-8: JSON may carry halves of surrogate pairs."""
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return False
    return True


def _are_bools(values: list[Any]) -> bool:
    return set(map(type, values)) <= {bool}


def _are_dates(values: list[Any]) -> bool:
    return _are_texts(values) and None not in _times(values, "date")


def _are_datetimes(values: list[Any]) -> bool:
    return _are_texts(values) and None not in _times(values, "datetime")


def _times(texts: list[str], kind: TimeKind) -> list[date | None]:
    """Texts as dates, or as times in UTC without a zone, read as files are; None for no time.

    The usual forms are read by Python, which is far quicker for a few of them; all others by what
    reads files, so that nothing is a time in one place only.
    """
    read = [_usual(text, kind) for text in texts]
    odd = [place for place, time in enumerate(read) if time is None]
    if odd:
        others = pl.DataFrame({"": [texts[place] for place in odd]})
        found = others.select(from_text(pl.col(""), TextForm(type=kind))).to_series()
        for place, time in zip(odd, found.to_list(), strict=True):
            read[place] = time
    return read


def _usual(text: str, kind: TimeKind) -> date | None:
    if not _USUAL[kind].fullmatch(text):
        return None
    try:
        if kind == "date":
            return date.fromisoformat(text)
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
    except (ValueError, OverflowError):
        return None


_TIMES: dict[str, TimeKind] = {"date": "date", "datetime": "datetime"}
_USUAL = {
    "date": re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}"),
    "datetime": re.compile(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
        r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
    ),
}

_FITS: dict[str, Callable[[list[Any]], bool]] = {
    "string": _are_texts,
    "int": _are_ints,
    "float": _are_floats,
    "bool": _are_bools,
    "date": _are_dates,
    "datetime": _are_datetimes,
}
_SINGULAR = {
    "string": "text",
    "int": "an integer of 64 bits",
    "float": "a finite number",
    "bool": "true or false",
    "date": "a date such as '2025-01-31'",
    "datetime": "a time such as '2025-01-31T12:00:00Z'",
}
_PLURAL = {
    "string": "texts",
    "int": "integers of 64 bits",
    "float": "finite numbers",
    "bool": "true and false",
    "date": "dates such as '2025-01-31'",
    "datetime": "times such as '2025-01-31T12:00:00Z'",
}


def _series(values: list[Any], column: Column) -> pl.Series:
    inner = column.type.removeprefix("list<").removesuffix(">")
    if inner == "float" or inner in _TIMES:
        there = [item for value in values for item in _items(value)]
        # Floats too: an integer beyond 64 bits is a number to JSON, but not to Polars.
        read: Iterator[Any] = iter(
            [float(item) for item in there] if inner == "float" else _times(there, _TIMES[inner])
        )
        values = [_with_items(value, read) for value in values]
    return pl.Series(column.name, values, dtype=column.dtype)


def _items(value: Any) -> list[Any]:
    """The values in a value of a column: those of a list, itself, or none."""
    return [item for item in (value if isinstance(value, list) else [value]) if item is not None]


def _with_items(value: Any, read: Iterator[Any]) -> Any:
    """The same value, with what was read of its items."""
    if isinstance(value, list):
        return [None if item is None else next(read) for item in value]
    return None if value is None else next(read)
