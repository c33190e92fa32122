"""CSV and TSV files as typed Parquet parts; lines that cannot be read are kept aside.

Lines are cut into fields by Arrow's reader, as bytes and in order, so that every reason can name
its line; a value is text only once it is valid UTF-8, and has its type only once it can be read so.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from feature_store.casting import from_text
from feature_store.columns import SchemaMismatch, polars_type
from feature_store.features import ROW_COLUMN, nearest
from pipelines.files import AnyFile, open_stream
from pipelines.rejection import Rejection
from pipelines.tables import SourceFile, TableConfig

_BLOCK_BYTES = 1 << 23
_HEADER_BYTES = 1 << 20
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_NAMED = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar", " ": "a space"}
_LINE = "__line"
_NO_VALUES = "no values"
_SHOWN_CHARACTERS = 60
_QUOTE_SIGNS = ("newlines_in_values", "straddling")
"""In Arrow's message when a quoted value runs over the end of a block."""


class UnreadableFile(ValueError):
    """A file is damaged, or is not what it is said to be."""


@dataclass
class Staged:
    """What became of one text file."""

    num_lines: int = 0
    """Lines of data, with those that are rejected."""
    rejected: list[Rejection] = field(default_factory=list)
    present: set[str] = field(default_factory=set)
    """Of JSON lines: columns whose field was seen."""
    fields: set[str] = field(default_factory=set)
    """Of JSON lines: some of the fields that there are."""


def staged_writer(target: Path, table: TableConfig, names: Sequence[str]) -> pq.ParquetWriter:
    """A Parquet file for the rows of one text file: `__row` and the columns as declared."""
    types = {name: polars_type(table.columns[name].type) for name in names}
    empty = pl.DataFrame(schema={ROW_COLUMN: pl.Int64(), **types})
    schema = empty.to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    return pq.ParquetWriter(target, schema, compression="lz4")


class Delimited:
    """One text file, its first line read.

    Args:
        source: The file; it may be compressed.
        table: What the user says of it.

    Raises:
        SchemaMismatch: Columns are missing, named twice, or the separator is wrong.
        UnreadableFile: It is damaged, or no text in UTF-8.
    """

    def __init__(self, source: SourceFile, table: TableConfig) -> None:
        self.file: AnyFile = source.file
        self.source = source
        self.table = table
        self.separator = table.separator or _SEPARATORS[source.format]
        self.quoting = source.format == "csv" if table.quoting is None else table.quoting
        self.first_line = 2 if table.header else 1
        self.num_physical_lines = 0
        fields = self._first_fields()
        self.num_fields = len(fields)
        self.places = self._named(fields) if table.header else self._placed(fields)
        self.fixed = [name for name in table.columns if name not in self.places]

    def stage(self, names: Sequence[str], target: Path, limit: int | None = None) -> Staged:
        """Write the rows that can be read as Parquet, with their `__row`.

        Args:
            names: Columns to read.
            target: The Parquet file.
            limit: Stop after about so many lines.
        """
        staged = Staged()
        with staged_writer(target, self.table, names) as writer:
            for texts in self._texts(names, staged):
                row = (pl.col(_LINE) - self.first_line).alias(ROW_COLUMN)
                good = self._typed(texts, staged).select(row, *names)
                writer.write_table(good.to_arrow(compat_level=pl.CompatLevel.oldest()))
                if limit is not None and staged.num_lines >= limit:
                    break
            else:
                self._require_one_line_a_row(staged)
        self._forget_empty_end(staged)
        return staged

    def _texts(self, names: Sequence[str], staged: Staged) -> Iterator[pl.DataFrame]:
        """Blocks of lines as text columns, with the number of each line."""
        ragged: list[int] = []
        after = self.first_line
        for block in self._blocks(names, ragged, staged):
            if not block.num_rows:
                continue
            numbers = np.arange(after, after + block.num_rows + len(ragged))
            numbers = numbers[~np.isin(numbers, ragged)][: block.num_rows]
            after = int(numbers[-1]) + 1
            ragged[:] = [number for number in ragged if number >= after]
            staged.num_lines = after - self.first_line
            yield self._decoded(block, names, numbers, staged)
        if ragged:
            staged.num_lines = max(ragged) + 1 - self.first_line

    def _blocks(
        self, names: Sequence[str], ragged: list[int], staged: Staged
    ) -> Iterator[pa.RecordBatch]:
        """Blocks of the file as bytes; lines with another number of fields go into `ragged`."""

        def reject(row: pc.InvalidRow) -> str:
            ragged.append(row.number)
            kind = "wrong number of fields"
            reason = f"expected {row.expected_columns} fields, found {row.actual_columns}"
            staged.rejected.append(Rejection(str(self.file), row.number, kind, reason, row.text))
            return "skip"

        places = [str(self.places[name]) for name in names]
        try:
            with (
                self._open() as stream,
                pc.open_csv(
                    stream,
                    # Threads would lose the numbers of rejected lines.
                    read_options=pc.ReadOptions(
                        column_names=[str(place) for place in range(self.num_fields)],
                        skip_rows=1 if self.table.header else 0,
                        block_size=_BLOCK_BYTES,
                        use_threads=False,
                    ),
                    parse_options=pc.ParseOptions(
                        delimiter=self.separator,
                        quote_char='"' if self.quoting else False,
                        newlines_in_values=self.table.multiline,
                        ignore_empty_lines=False,
                        invalid_row_handler=reject,
                    ),
                    convert_options=pc.ConvertOptions(
                        column_types=dict.fromkeys(places, pa.binary()),
                        include_columns=places,
                        strings_can_be_null=False,
                    ),
                ) as reader,
            ):
                yield from reader
                self.num_physical_lines = stream.num_lines
        except (pa.ArrowInvalid, OSError) as error:
            if any(sign in str(error) for sign in _QUOTE_SIGNS):
                self._fail_at_quote("lines run into each other")
            self._fail(error)

    def _decoded(
        self, block: pa.RecordBatch, names: Sequence[str], numbers: np.ndarray, staged: Staged
    ) -> pl.DataFrame:
        """The block as text, without the lines whose bytes are not UTF-8."""
        columns: list[pa.Array] = []
        wrong: dict[int, str] = {}
        for name, column in zip(names, block.columns, strict=True):
            try:
                columns.append(column.cast(pa.string()))
            except pa.ArrowInvalid:
                values = column.to_pylist()
                for row, value in enumerate(values):
                    if not _is_utf8(value):
                        wrong.setdefault(row, f"column {name!r} is not UTF-8: {_bytes(value)}")
                columns.append(pa.array([v if _is_utf8(v) else b"" for v in values], pa.string()))
        for row, reason in sorted(wrong.items()):
            content = f"{self.separator}".join(_bytes(c[row].as_py()) for c in block.columns)
            line = int(numbers[row])
            staged.rejected.append(Rejection(str(self.file), line, "not UTF-8", reason, content))
        texts = pl.DataFrame(dict(zip(names, columns, strict=True)))
        missing = ["", *self.table.null_values]
        texts = texts.select(pl.when(~pl.all().is_in(missing)).then(pl.all()))
        texts = texts.with_columns(pl.Series(_LINE, numbers, pl.Int64))
        return texts if not wrong else texts[np.setdiff1d(np.arange(len(texts)), list(wrong))]

    def _typed(self, texts: pl.DataFrame, staged: Staged) -> pl.DataFrame:
        """The rows that have the declared types; the others are rejected."""
        names = [name for name in texts.columns if name != _LINE]
        typed = texts.with_columns(
            from_text(pl.col(n), self.table.columns[n]).alias(n) for n in names
        )
        lost = pl.DataFrame(
            [typed[name].is_null() & texts[name].is_not_null() for name in names]
        ).with_columns(texts.select(pl.all_horizontal(pl.col(names).is_null()).alias(_LINE)))
        bad = lost.select(pl.any_horizontal(pl.all())).to_series()
        if not bad.any():
            return typed
        rows = zip(texts.filter(bad).iter_rows(named=True), lost.filter(bad).rows(), strict=True)
        for values, failed in rows:
            line = values.pop(_LINE)
            kind, reason = _NO_VALUES, "no value in any column"
            if not failed[-1]:
                name = names[failed.index(True)]
                kind = f"{name}: not {_named_type(self.table.columns[name].type)}"
                reason = (
                    f"column {name!r}: expected {_named_type(self.table.columns[name].type)},"
                    f" found {_shortened(values[name])!r}"
                )
            content = json.dumps(values, ensure_ascii=False)
            staged.rejected.append(Rejection(str(self.file), line, kind, reason, content))
        return typed.filter(~bad)

    def _require_one_line_a_row(self, staged: Staged) -> None:
        """A quote that is never closed would swallow the rows after it in silence."""
        num_lines = self.first_line - 1 + staged.num_lines
        if self.table.multiline or not self.quoting or num_lines == self.num_physical_lines:
            return
        self._fail_at_quote(f"{self.num_physical_lines:,} lines make {num_lines:,} rows")

    def _fail_at_quote(self, symptom: str) -> NoReturn:
        with self._open() as stream:
            lines = enumerate(io.BufferedReader(stream), 1)
            odd = next((number for number, line in lines if line.count(b'"') % 2), None)
        raise UnreadableFile(
            f"{self.file}: {symptom}: a quote is opened in line {odd} and not closed there; mend"
            " it, or set multiline: true if values hold line breaks, or quoting: false if quotes"
            " are text"
        )

    def _open(self) -> "_Lines":
        return _Lines(open_stream(self.file))

    def _forget_empty_end(self, staged: Staged) -> None:
        """Lines without values at the end of a file are no rows, so not rejected ones either."""
        staged.rejected.sort(key=lambda rejection: rejection.line)
        last = staged.num_lines + self.first_line - 1
        while staged.rejected and staged.rejected[-1].kind == _NO_VALUES:
            if staged.rejected[-1].line != last:
                break
            staged.rejected.pop()
            staged.num_lines -= 1
            last -= 1

    def _first_fields(self) -> list[str]:
        try:
            with self._open() as stream:
                head = stream.read(_HEADER_BYTES).removeprefix(b"\xef\xbb\xbf")
        except (pa.ArrowInvalid, OSError) as error:
            self._fail(error)
        line = head.split(b"\n", 1)[0].removesuffix(b"\r")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            if self.table.header:
                self._fail(error)
            text = line.decode(errors="replace")
        if self.quoting:
            fields = next(csv.reader([text], delimiter=self.separator), [])
        else:
            fields = text.split(self.separator)
        needed = [c.column if c.column is not None else n for n, c in self.table.columns.items()]
        if len(fields) <= 1 < len(needed) or (len(fields) <= 1 and fields != needed):
            self._require_separator(text)
        return fields

    def _require_separator(self, line: str) -> None:
        others = [s for s in _NAMED if s != self.separator and s in line]
        if others:
            likely = max(others, key=line.count)
            raise SchemaMismatch(
                f"{self.file}: the first line has no {self.separator!r} but"
                f" {line.count(likely)} times {likely!r}: {_shortened(line)!r}; if"
                f" {_NAMED[likely]} separates the fields, set separator: {json.dumps(likely)}"
            )

    def _named(self, header: list[str]) -> dict[str, int]:
        """Places of the columns by the names in the header."""
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            places = [i + 1 for i, name in enumerate(header) if name == twice[0]]
            raise SchemaMismatch(
                f"{self.file}: the header names the column {twice[0]!r} {len(places)} times (fields"
                f" {', '.join(map(str, places))}); rename all but one"
            )
        places_by_name = {}
        for name, column in self.table.columns.items():
            wanted = name if column.column is None else str(column.column)
            if wanted not in header and wanted in self.source.partition:
                continue
            if wanted not in header:
                raise SchemaMismatch(
                    f"{self.file} has no column {wanted!r}; {nearest(wanted, header)}"
                )
            places_by_name[name] = header.index(wanted)
        return places_by_name

    def _placed(self, fields: list[str]) -> dict[str, int]:
        """Places of the columns of a file without header."""
        declared = [column.column for column in self.table.columns.values()]
        places = [p if isinstance(p, int) else i for i, p in enumerate(declared)]
        in_order = declared[0] is None
        if max(places) >= len(fields) or (in_order and len(places) != len(fields)):
            expected = f"{len(places)}" if in_order else f"at least {max(places) + 1}"
            raise SchemaMismatch(
                f"{self.file}: expected {expected} fields, as data.columns declares, found"
                f" {len(fields)} in the first line; declare all columns in the order of the file,"
                " or give each one its place (`column`)"
            )
        return dict(zip(self.table.columns, places, strict=True))

    def _fail(self, error: Exception) -> NoReturn:
        raise UnreadableFile(f"{self.file} cannot be read as text: {error}") from error


class _Lines(io.RawIOBase):
    """The bytes of a stream, with a count of their lines."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self._breaks = 0
        self._last = b""

    @property
    def num_lines(self) -> int:
        """Lines so far; one without an end is a line too."""
        return self._breaks + (self._last not in (b"", b"\n"))

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        block = self._stream.read(None if size is None or size < 0 else size)
        self._breaks += block.count(b"\n")
        self._last = block[-1:] or self._last
        return block

    def readinto(self, buffer: Any) -> int:
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _bytes(value: bytes) -> str:
    return _shortened(value.decode(errors="backslashreplace"))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _named_type(type_name: str) -> str:
    """`an int`, `a float`."""
    return f"{'an' if type_name[0] in 'aeiou' else 'a'} {type_name}"
