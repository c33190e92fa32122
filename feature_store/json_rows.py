"""Lines of JSON objects as columns of the declared types, with the lines that cannot be read.

A value is read as it would be from a typed file: `3` and `"3"` are an int as well as a text. A
field that is absent or null is a missing value. Blocks in which every value has the kind that the
first lines of the block have are read by Arrow at once; any other block goes line by line, which
gives the same values and the reason of every line that is left out.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.json

from feature_store.casting import TextForm, from_column, from_text
from feature_store.columns import SchemaMismatch, polars_type

LINE = "__line"
NO_VALUES = "no values"
_NOT_JSON = "not JSON"
_SAMPLED_LINES = 20
_WORTH_LINES = 200
"""So many good lines before a bad one are read at once."""
_LOOKED_AT_LINES = 1000
"""So many lines are read one by one where bad ones stand close together."""
_RETRIED_LINES = 5000
"""So many lines are tried at once after a bad one."""
_ROW_OF_ERROR = re.compile(r" in row (\d+)")
_SHOWN_CHARACTERS = 60
_END_INTEGER = 2.0**63
_NATURAL: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "date": pa.string(),
    "datetime": pa.string(),
}


@dataclass(frozen=True)
class Failure:
    """A line that cannot be read."""

    line: int
    """0-based within the block."""
    kind: str
    """The reason without its particulars."""
    reason: str
    content: str

    @property
    def is_malformed(self) -> bool:
        """It is no JSON at all, as a line that was cut is none."""
        return self.kind == _NOT_JSON


@dataclass(frozen=True)
class Decoded:
    """A block of lines."""

    frame: pl.DataFrame
    """`__line`, 0-based within the block, and the columns of the lines that can be read."""
    failures: list[Failure]
    fields: frozenset[str]
    """Some of the fields that there are; nested ones as `user.id`."""


_Piece = tuple[pl.DataFrame, list[Failure]]
"""Some lines of a block, as `Decoded` has them."""


class _Unfit(ValueError):
    """A value that the declared type has no room for."""


class JsonRows:
    """Reads blocks of lines.

    Args:
        columns: The declared types by column name.
        fields: The field of each column; `user.id` is the field `id` of the object `user` where no
            field is called `user.id`.
        null_values: Texts that mean a missing value, besides the empty one.
    """

    def __init__(
        self,
        columns: Mapping[str, TextForm],
        fields: Mapping[str, str],
        null_values: Sequence[str] = (),
    ) -> None:
        self.columns = dict(columns)
        self.paths = {name: _paths(fields[name]) for name in columns}
        self.missing = ["", *null_values]
        types = {name: polars_type(form.type) for name, form in self.columns.items()}
        self.none = pl.DataFrame(schema={LINE: pl.Int64(), **types})

    def decode(self, block: bytes) -> Decoded:
        """The rows of complete lines; the last one may lack its end."""
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n")
        lines = block.removesuffix(b"\n").split(b"\n")
        sample = [found for line in lines[:_SAMPLED_LINES] if (found := _object(line)) is not None]
        fields = frozenset(name for found in sample for name in _fields(found))
        schema = self._schema(sample)
        pieces = []
        start = 0
        odd = _suspicious(lines)
        if len(odd) > 1 + len(lines) // _WORTH_LINES:
            odd, schema = [], None
        for end in [*odd, len(lines)]:
            # In the lines before it no object goes on in the next line, and none holds two.
            pieces += self._decoded(lines, start, end, schema)
            if end < len(lines):
                pieces.append(self._line_by_line(lines[end : end + 1], end))
            start = end + 1
        failures = [failure for _, failed in pieces for failure in failed]
        frames = [frame for frame, _ in pieces if len(frame)]
        return Decoded(pl.concat(frames) if frames else self.none, failures, fields)

    def _decoded(
        self, lines: list[bytes], start: int, end: int, schema: pa.Schema | None
    ) -> list[_Piece]:
        """Lines that may be read at once, but for some of them."""
        pieces: list[_Piece] = []
        until = end
        while start < end or not pieces:
            until = min(until, end)
            found = None if schema is None else self._at_once(lines[start:until], start, schema)
            if isinstance(found, int) and found >= _WORTH_LINES:
                good = start + found
                pieces += self._decoded(lines, start, good, schema)
                pieces.append(self._line_by_line(lines[good : good + 1], good))
                start = good + 1
            elif isinstance(found, pl.DataFrame):
                pieces.append((found, []))
                start = until
            else:
                # To read the few lines before the next bad one at once would cost more than this.
                near = min(end, start + _LOOKED_AT_LINES)
                pieces.append(self._line_by_line(lines[start:near], start))
                start = near
            until = start + _RETRIED_LINES
        return pieces

    def _at_once(
        self, lines: list[bytes], start: int, schema: pa.Schema
    ) -> pl.DataFrame | int | None:
        """All lines; or the number of the first one that cannot be read so; or None: any may be."""
        if not lines:
            return self.none
        block = b"\n".join(lines)
        if not _is_utf8(block):
            return None
        try:
            table = pyarrow.json.read_json(
                pa.BufferReader(block),
                read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
                parse_options=pyarrow.json.ParseOptions(
                    explicit_schema=schema, unexpected_field_behavior="ignore"
                ),
            )
        except pa.ArrowInvalid as error:
            row = _ROW_OF_ERROR.search(str(error))
            return None if row is None else int(row[1])
        if table.num_rows != len(lines):
            return None
        leaves = self._leaves(pl.DataFrame(table))
        try:
            values = [
                from_column(name, leaves.schema[name], form)[0].alias(name)
                for name, form in self.columns.items()
            ]
        except SchemaMismatch:
            return None
        typed = leaves.select(values)
        wrong = [typed[name].is_null() & leaves[name].is_not_null() for name in typed.columns]
        empty = typed.select(pl.all_horizontal(pl.all().is_null())).to_series()
        bad = pl.select(pl.any_horizontal([empty, *wrong])).to_series().arg_true()
        if len(bad):
            return int(bad[0])
        numbers = pl.Series(LINE, range(start, start + len(lines)), pl.Int64)
        return typed.insert_column(0, numbers)

    def _schema(self, sample: list[dict[str, Any]]) -> pa.Schema | None:
        """What Arrow is to expect; None if there is no telling."""
        tree: dict[str, Any] = {}
        for name, form in self.columns.items():
            for path in self.paths[name]:
                kind = _arrow_type(form, [_at(found, path) for found in sample])
                if kind is None or not _plant(tree, path, kind):
                    return None
        return pa.schema([pa.field(key, _grown(kind)) for key, kind in tree.items()])

    def _leaves(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The values of the columns as they stand in the lines."""
        leaves = frame.select(
            pl.coalesce(_field(path) for path in paths).alias(name)
            for name, paths in self.paths.items()
        )
        texts = pl.col(pl.String)
        return leaves.with_columns(pl.when(~texts.is_in(self.missing)).then(texts))

    def _line_by_line(self, lines: list[bytes], start: int) -> _Piece:
        failures: list[Failure] = []
        numbers: list[int] = []
        texts: dict[str, list[Any]] = {name: [] for name in self.columns}
        for number, line in enumerate(lines, start):
            row = self._texts(number, line)
            if isinstance(row, Failure):
                failures.append(row)
                continue
            numbers.append(number)
            for name, text in row.items():
                texts[name].append(text)
        if not numbers:
            return self.none, failures
        columns, lost = [], []
        for name, form in self.columns.items():
            column, failed = _typed(name, texts[name], form)
            columns.append(column)
            lost.append(failed)
        frame = pl.DataFrame([pl.Series(LINE, numbers, pl.Int64), *columns])
        bad = (
            pl.select(pl.any_horizontal(lost)).to_series() if lost else pl.Series(dtype=pl.Boolean)
        )
        for place in bad.arg_true():
            name = next(n for n, f in zip(self.columns, lost, strict=True) if f[place])
            line = lines[numbers[place] - start]
            value = self._value(json.loads(line), name)
            failures.append(_unfit(numbers[place], name, self.columns[name], value, line))
        failures.sort(key=lambda failure: failure.line)
        return frame.filter(~bad), failures

    def _texts(self, number: int, line: bytes) -> dict[str, Any] | Failure:
        """The values of one line as text, lists as lists of text."""
        try:
            found = json.loads(line)
        except ValueError as error:
            if not line.strip():
                return Failure(number, NO_VALUES, "an empty line", "")
            kind = "not UTF-8" if isinstance(error, UnicodeDecodeError) else _NOT_JSON
            return Failure(number, kind, f"no JSON: {error}", _shown(line))
        if not isinstance(found, dict):
            reason = f"expected an object of fields, found {_described(found)}"
            return Failure(number, "no JSON object", reason, _shown(line))
        texts = {}
        for name, form in self.columns.items():
            value = self._value(found, name)
            try:
                texts[name] = _text(value, form, self.missing)
            except _Unfit:
                return _unfit(number, name, form, value, line)
        if all(text is None for text in texts.values()):
            return Failure(number, NO_VALUES, "no value in any column", _shown(line))
        return texts

    def _value(self, found: dict[str, Any], name: str) -> Any:
        values = (_at(found, path) for path in self.paths[name])
        return next((value for value in values if value is not None), None)


def _suspicious(lines: list[bytes]) -> list[int]:
    """Lines that do not begin and end as an object does."""
    return [n for n, line in enumerate(lines) if line[:1] != b"{" or line[-1:] != b"}"]


def _paths(field: str) -> list[tuple[str, ...]]:
    whole = (field,)
    parts = tuple(field.split("."))
    return [whole] if parts == whole or not all(parts) else [whole, parts]


def _at(found: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = found
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _fields(found: Mapping[str, Any], before: str = "") -> list[str]:
    names = []
    for key, value in found.items():
        names.append(before + key)
        if isinstance(value, dict):
            names += _fields(value, f"{before}{key}.")
    return names


def _field(path: tuple[str, ...]) -> pl.Expr:
    value = pl.col(path[0])
    for key in path[1:]:
        value = value.struct.field(key)
    return value


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _plant(tree: dict[str, Any], path: tuple[str, ...], kind: pa.DataType) -> bool:
    """Put a leaf into a tree of fields; False if it stands where another one grows."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            return False
    if path[-1] in tree:
        return bool(tree[path[-1]] == kind)
    tree[path[-1]] = kind
    return True


def _grown(kind: Any) -> pa.DataType:
    if not isinstance(kind, dict):
        return kind
    return pa.struct([pa.field(key, _grown(inner)) for key, inner in kind.items()])


def _arrow_type(form: TextForm, values: list[Any]) -> pa.DataType | None:
    inner = form.type.removeprefix("list<").removesuffix(">")
    present = [value for value in values if value is not None]
    if form.type == inner or any(not isinstance(value, list) for value in present):
        return _scalar_type(inner, present)
    kind = _scalar_type(inner, [item for value in present for item in value if item is not None])
    return None if kind is None else pa.list_(kind)


def _scalar_type(declared: str, values: list[Any]) -> pa.DataType | None:
    kinds = {type(value) for value in values}
    if not kinds:
        return _NATURAL[declared]
    if kinds <= {int, float} and declared == "float":
        return pa.float64()
    if len(kinds) > 1:
        return None
    # Other floats are left to the closer look: as float64 large integers between them would lose
    # their last digits.
    return {str: pa.string(), int: pa.int64(), bool: pa.bool_()}.get(kinds.pop())


def _text(value: Any, form: TextForm, missing: list[str]) -> Any:
    if not form.type.startswith("list<"):
        return _scalar_text(value, form.type, missing)
    inner = form.type.removeprefix("list<").removesuffix(">")
    if isinstance(value, str):
        if value in missing:
            return None
        value = [element for element in value.split(form.separator) if element]
    elif value is not None and not isinstance(value, list):
        raise _Unfit
    return None if value is None else [_scalar_text(element, inner, []) for element in value]


def _scalar_text(value: Any, declared: str, missing: list[str]) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        if not _is_unicode(value):
            raise _Unfit
        return None if value in missing else value
    if isinstance(value, dict | list) or declared in ("date", "datetime"):
        raise _Unfit
    if isinstance(value, bool):
        return str(int(value)) if declared in ("int", "float") else str(value).lower()
    if isinstance(value, int):
        return str(value)
    return _float_text(value, declared)


def _float_text(value: float, declared: str) -> str | None:
    """As `columns.canonical_text` writes it."""
    if declared == "bool":
        raise _Unfit
    if declared == "float":
        return repr(value)
    if value != value or value in (float("inf"), float("-inf")):
        return None
    if value == int(value) and abs(value) < _END_INTEGER:
        return str(int(value))
    text = repr(value)
    return text if "e" not in text else pl.Series([value]).cast(pl.String)[0]


def _typed(name: str, texts: list[Any], form: TextForm) -> tuple[pl.Series, pl.Series]:
    """Texts in the declared type, and where they cannot be read so."""
    if not form.type.startswith("list<"):
        given = pl.Series(name, texts, pl.String)
        typed = pl.select(from_text(pl.lit(given), form).alias(name)).to_series()
        return typed, typed.is_null() & given.is_not_null()
    inner = TextForm(
        type=form.type.removeprefix("list<").removesuffix(">"),  # type: ignore[arg-type]
        format=form.format,
    )
    given = pl.Series(name, texts, pl.List(pl.String))
    typed = given.list.eval(from_text(pl.element(), inner)).cast(polars_type(form.type))
    lost = typed.list.drop_nulls().list.len() < given.list.drop_nulls().list.len()
    return typed, lost.fill_null(False)


def _unfit(number: int, name: str, form: TextForm, value: Any, line: bytes) -> Failure:
    article = "an" if form.type[0] in "aeiou" else "a"
    return Failure(
        number,
        f"{name}: not {article} {form.type}",
        f"column {name!r}: expected {article} {form.type}, found {_described(value)}",
        _shown(line),
    )


def _described(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _shown(line: bytes) -> str:
    return line.decode(errors="backslashreplace")


def _is_utf8(block: bytes) -> bool:
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_unicode(text: str) -> bool:
    """JSON may carry halves of surrogate pairs, which are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
