"""A raw table as a user describes it: where its files are, in which format, with which columns."""

import glob
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from feature_store.casting import TextForm
from feature_store.columns import ColumnType
from feature_store.config import Config
from feature_store.features import nearest

Format = Literal["csv", "tsv", "parquet"]

_ENDINGS: dict[str, Format] = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")


class ColumnConfig(TextForm):
    """One raw column: its type and where it is in the file."""

    column: str | int | None = None
    """Name in the file, or 0-based place where the file has no header; the name itself if absent,
    and without a header the place in the order of declaration."""


def _named_type(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


Column = Annotated[
    ColumnConfig, BeforeValidator(_named_type, json_schema_input_type=ColumnConfig | ColumnType)
]
"""A column, or its type alone."""


class TableConfig(Config):
    """Files of one format with the same columns."""

    path: str | tuple[str, ...]
    """A file, a pattern (`clicks/*.parquet`), a folder, or several of them; read in this order,
    the files of a pattern or folder by name."""
    format: Format | None = None
    """By the ending of the first file if absent; text may be compressed (`.csv.gz`)."""
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Between fields; a comma for csv and a tab for tsv if absent."""
    header: bool = True
    """The first line of a text file names the columns."""
    quoting: bool | None = None
    """Text fields may stand in double quotes; so for csv and not for tsv if absent."""
    multiline: bool = False
    """Quoted values may hold line breaks; without it, one that does is an error, since a quote
    that is never closed looks the same and would swallow rows."""
    null_values: tuple[str, ...] = ()
    """Texts that mean a missing value, besides the empty one."""
    columns: Annotated[dict[str, Column], Field(min_length=1)]
    """Raw columns by the name that features use; the type alone will do (`user: string`)."""

    @model_validator(mode="after")
    def _places_fit(self) -> "TableConfig":
        places = [column.column for column in self.columns.values()]
        for name, place in zip(self.columns, places, strict=True):
            if isinstance(place, int) and (self.header or place < 0):
                raise ValueError(
                    f"column {name!r}: a place ({place}) is for files without a header and counts"
                    " from 0; give the name of the column in the file"
                )
            if isinstance(place, str) and not self.header:
                raise ValueError(
                    f"column {name!r}: the files have no header that could name {place!r}; give"
                    " the 0-based place, or declare the columns in the order of the file"
                )
        if not self.header and None in places and places.count(None) != len(places):
            raise ValueError(
                "without a header, give the place (`column`) of every column or of none"
            )
        return self


def source_files(path: str | tuple[str, ...]) -> list[Path]:
    """The files that a path, a pattern, a folder or several of them name.

    Raises:
        FileNotFoundError: Nothing is there under one of the names.
        ValueError: A file is empty.
    """
    files: list[Path] = []
    for entry in (path,) if isinstance(path, str) else path:
        files += _matches(entry)
    for file in files:
        if file.stat().st_size == 0:
            raise ValueError(f"{file} is empty; expected rows")
    return files


def format_of(table: TableConfig, file: Path) -> Format:
    """The declared format, or the one the file's ending says.

    Raises:
        ValueError: The ending says nothing.
    """
    if table.format is not None:
        return table.format
    name = file.with_suffix("") if file.suffix in _COMPRESSED else file
    if name.suffix not in _ENDINGS:
        raise ValueError(
            f"{file}: the ending does not tell the format; set `format` to csv, tsv or parquet"
        )
    return _ENDINGS[name.suffix]


def _matches(entry: str) -> list[Path]:
    path = Path(entry)
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.is_file() and p.name[0] not in "._")
        if not inside:
            raise FileNotFoundError(f"the folder {entry} holds no files")
        return inside
    matches = [Path(match) for match in sorted(glob.glob(entry, recursive=True))]  # noqa: PTH207 - absolute patterns too
    found = [match for match in matches if match.is_file()]
    if found:
        return found
    if glob.has_magic(entry):
        raise FileNotFoundError(f"no file matches {entry}")
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = f"; {nearest(path.name, beside)}" if beside else f"; there is no folder {path.parent}"
    raise FileNotFoundError(f"there is no file {entry}{hint}")
