"""One raw table, whatever its files are: typed rows with their place, and unreadable ones aside.

The header or footer of every file is read before any of them is: a file that does not fit is known
before there is work to lose. Text is staged as typed Parquet; Parquet and Arrow are read where they
lie.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import polars as pl

from feature_store.columns import SchemaMismatch
from feature_store.features import ROW_COLUMN, nearest
from pipelines.delimited import Delimited, Staged
from pipelines.files import AnyFile
from pipelines.json_lines import JsonLines
from pipelines.mapping import Mapper, in_process
from pipelines.parts import FileRows
from pipelines.rejection import Rejection, content_of
from pipelines.tables import SourceFile, TableConfig, table_files
from pipelines.typed import UNREADABLE, Typed, fixed_value, scan, typed

OnProgress = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is done, and how much there is if known."""


@dataclass(frozen=True)
class Places:
    """Where a `__row` is in its file."""

    files: list[AnyFile]
    first_rows: list[int]
    first_lines: list[int]
    """The line of the first row in each file."""

    def begins(self) -> list[tuple[AnyFile, int]]:
        """The files with the `__row` where each begins."""
        return list(zip(self.files, self.first_rows, strict=True))

    def of(self, row: int) -> tuple[str, int]:
        """File and line of a row."""
        index = max(i for i, first in enumerate(self.first_rows) if first <= row)
        return str(self.files[index]), row - self.first_rows[index] + self.first_lines[index]


@dataclass(frozen=True)
class Table:
    """A raw table, not yet read where its files are typed."""

    files: list[FileRows]
    """In their order; with a limit, those that it reaches."""
    num_rows: int
    """With those that cannot be read."""
    rejections: list[Rejection]
    places: Places

    @property
    def frame(self) -> pl.LazyFrame:
        """`__row` and the columns, file after file."""
        frames = [
            file.frame.with_columns(pl.col(ROW_COLUMN) + first)
            for file, first in zip(self.files, self.places.first_rows, strict=True)
        ]
        return frames[0] if len(frames) == 1 else pl.concat(frames)


def read_table(
    table: TableConfig,
    names: list[str],
    folder: Path,
    limit: int | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Table:
    """Open a table and read it; see `open_table` and `OpenTable.read`."""
    return open_table(table, names).read(folder, limit, on_progress)


def open_table(table: TableConfig, names: list[str]) -> "OpenTable":
    """Read the headers and footers of a table's files.

    Args:
        table: Its files and columns.
        names: The columns to read.

    Raises:
        FileNotFoundError: There is no such file.
        SchemaMismatch: A file does not have the declared columns, in a type that can be read.
        ValueError: A file is empty, damaged or cut.
    """
    return OpenTable(table, names, [_opened(source, table, names) for source in table_files(table)])


Opened = Delimited | JsonLines | Typed


@dataclass(frozen=True)
class OpenTable:
    """A table whose files fit."""

    table: TableConfig
    names: list[str]
    opened: list[Opened]

    def read(
        self,
        folder: Path,
        limit: int | None = None,
        on_progress: OnProgress = lambda *_: None,
        mapper: Mapper = in_process,
    ) -> Table:
        """Stage what is text, and find the rows that cannot be read.

        Args:
            folder: For staged files; must stay as long as the frames are used.
            limit: Read about so many of the first rows only.
            on_progress: Told of rows of text that were read.
            mapper: Works off the files of text, if there is no limit.

        Raises:
            SchemaMismatch: No line of JSON has a field.
            ValueError: A file is damaged or cut.
        """
        table, names, opened = self.table, self.names, self.opened
        read: list[FileRows] = []
        first_rows: list[int] = []
        rejections: list[Rejection] = []
        fields: set[str] = set()
        missing = {name for one in opened if isinstance(one, JsonLines) for name in names}
        num_rows = 0
        texts = [one for one in opened if not isinstance(one, Typed)]
        every = mapper(_staged, [_Staging(one, names, folder) for one in texts])
        for one in opened:
            left = None if limit is None else limit - num_rows
            if left is not None and left <= 0:
                break
            if isinstance(one, Typed):
                rows, rejected = _lazily(one, table, names, left)
                missing -= set(names)
            else:
                on_progress(f"reading {one.file.name}", num_rows, None)
                target, staged = (
                    next(every) if left is None else _staged(_Staging(one, names, folder, left))
                )
                frame = _with_fixed(pl.scan_parquet(target, glob=False), one, table, names)
                rows = FileRows(one.file.name, frame, staged.num_lines, staged=True)
                rejected = staged.rejected
                missing -= staged.present | set(one.fixed)
                fields |= staged.fields
            read.append(rows)
            first_rows.append(num_rows)
            rejections += rejected
            num_rows += rows.num_rows
        if missing and limit is None and num_rows:
            raise _no_field(opened, sorted(missing)[0], fields)
        reached = opened[: len(read)]
        places = Places([o.file for o in reached], first_rows, [o.first_line for o in reached])
        return Table(read, num_rows, rejections, places)


@dataclass(frozen=True)
class _Staging:
    """A job: a file of text."""

    one: Delimited | JsonLines
    names: list[str]
    folder: Path
    limit: int | None = None

    def __str__(self) -> str:
        return str(self.one.file)


def _staged(job: _Staging) -> tuple[Path, Staged]:
    # A name of its own: a process that is taken for dead may still be writing.
    target = job.folder / f"{uuid4().hex}.parquet"
    names = [name for name in job.names if name not in job.one.fixed]
    return target, job.one.stage(names, target, job.limit)


def _opened(source: SourceFile, table: TableConfig, names: list[str]) -> Opened:
    if source.format in ("csv", "tsv"):
        return Delimited(source, table)
    if source.format == "jsonl":
        return JsonLines(source, table)
    return typed(source, table, names)


def _with_fixed(
    frame: pl.LazyFrame, one: Delimited | JsonLines, table: TableConfig, names: list[str]
) -> pl.LazyFrame:
    """The staged rows with the columns that the file's folders give."""
    fixed = [fixed_value(one.source, table, name) for name in names if name in one.fixed]
    values = [pl.lit(value.first(), value.dtype).alias(value.name) for value in fixed]
    return frame.with_columns(values).select(ROW_COLUMN, *names)


def _lazily(
    one: Typed, table: TableConfig, names: list[str], limit: int | None
) -> tuple[FileRows, list[Rejection]]:
    frame = scan(one, table, names)
    num_rows = one.num_rows
    if limit is not None:
        frame, num_rows = frame.head(limit), min(limit, num_rows)
    if UNREADABLE not in frame.collect_schema():
        return FileRows(one.file.name, frame, num_rows, staged=False), []
    failed = pl.col(UNREADABLE).is_not_null()
    bad = frame.filter(failed).collect(engine="streaming")
    rejections = [
        Rejection(
            str(one.file),
            row[ROW_COLUMN] + 1,
            kind=f"{row[UNREADABLE]}: unreadable",
            reason=f"column {row[UNREADABLE]!r}: cannot be read as"
            f" {table.columns[row[UNREADABLE]].type}",
            content=content_of(row),
        )
        for row in bad.iter_rows(named=True)
    ]
    # Rows that are left out have no place any more that could be counted.
    good = frame.filter(~failed) if rejections else frame
    rows = FileRows(one.file.name, good.drop(UNREADABLE), num_rows, staged=bool(rejections))
    return rows, rejections


def _no_field(opened: list[Opened], name: str, fields: set[str]) -> SchemaMismatch:
    files = [one for one in opened if isinstance(one, JsonLines)]
    field = files[0].fields[name]
    others = "" if len(files) == 1 else f" and in {len(files) - 1} more files"
    hint = nearest(field, sorted(fields))
    return SchemaMismatch(f"{files[0].file} has no field {field!r} in any line{others}; {hint}")
