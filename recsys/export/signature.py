"""What a bundle takes and gives: raw columns with their types in, one score per task out.

A raw table from a file or a data frame is brought to the declared types here, losslessly or not at
all; rows of a request are checked value by value in `recsys.export.requests`.
"""

import polars as pl
from pydantic import JsonValue

from feature_store.casting import TextForm, from_column
from feature_store.columns import (
    ColumnType,
    RawColumn,
    SchemaMismatch,
    column_type,
    polars_type,
    require_columns,
)
from feature_store.config import Config
from feature_store.encoding import FittedFeatures
from feature_store.features import FeatureSet
from feature_store.kinds import kind_of
from recsys.export.tensors import input_names


class RowMismatch(ValueError):
    """A raw value that is not of its column's declared type."""


class Column(Config):
    """One raw column that every row must have."""

    name: str
    type: ColumnType
    nullable: bool
    """Nulls were seen in training; a request may have them only then."""
    separator: str | None = None
    """Between the values of a list, where a file carries the list as text."""
    format: str | None = None
    """Of dates and times in text, in strftime's letters; ISO 8601 if absent."""
    example: JsonValue = None
    """A value of a golden row."""

    @property
    def dtype(self) -> pl.DataType:
        """The Polars type the column is encoded from."""
        return polars_type(self.type)

    @property
    def is_list(self) -> bool:
        """Whether a value is a list."""
        return self.type.startswith("list<")


class TextFormat(Config):
    """How the text files of the training data wrote their values: files to score are read alike."""

    separators: dict[str, str] = {}
    """Of list columns, by raw column; the features' own where absent."""
    formats: dict[str, str] = {}
    """Of dates and times, by raw column, in strftime's letters; ISO 8601 where absent."""
    null_values: tuple[str, ...] = ()
    """Texts that mean a missing value, besides the empty one."""


class Signature(Config):
    """A bundle's inputs and outputs; `signature.json`, and the answer to `GET /signature`."""

    columns: tuple[Column, ...]
    tasks: tuple[str, ...]
    """One probability per task and row, in this order."""
    null_values: tuple[str, ...] = ()
    """Texts in files that mean a missing value, besides the empty one."""
    program_inputs: tuple[str, ...]
    """The tensors of the program inside, in their order; see `recsys.export.tensors`."""

    @classmethod
    def of(
        cls, fitted: FittedFeatures, example: pl.DataFrame, text: TextFormat | None = None
    ) -> "Signature":
        """The signature of fitted features.

        Args:
            fitted: Tells the raw columns and their types.
            example: Raw rows; the first gives every column's example.
            text: How text files write the raw columns.
        """
        text = text or TextFormat()
        separators = {**_separators(fitted.feature_set), **text.separators}
        return cls(
            columns=tuple(
                Column(
                    name=column.name,
                    type=column.type,
                    nullable=column.nullable,
                    separator=separators.get(column.name),
                    format=text.formats.get(column.name),
                    example=_example(example, column),
                )
                for column in fitted.columns
            ),
            tasks=fitted.layout.tasks,
            null_values=text.null_values,
            program_inputs=input_names(fitted.layout),
        )

    @property
    def names(self) -> list[str]:
        """Names of the raw columns, in their order."""
        return [column.name for column in self.columns]

    def conform(self, raw: pl.DataFrame, first_row: int = 1) -> pl.DataFrame:
        """The declared columns of a raw table, ready to be encoded; other columns are dropped.

        Values are read as the build reads its sources (`feature_store.casting`). Nulls stay: the
        fitted features say what a missing value means.

        Args:
            raw: Rows as they come from a file or a query.
            first_row: Number of the first row in error messages.

        Raises:
            SchemaMismatch: A column is missing (names the nearest one there is), or of a type that
                cannot be read as the declared one.
            RowMismatch: A value does not fit its column's type; names column, row and value.
        """
        require_columns(raw.schema, dict.fromkeys(self.names, "the bundle"))
        return pl.DataFrame(
            [_conformed(raw[column.name], column, first_row) for column in self.columns]
        )


def _separators(feature_set: FeatureSet) -> dict[str, str]:
    """Separators by raw column; none for a column that two features split differently."""
    found: dict[str, set[str]] = {}
    for feature in feature_set.inputs:
        for column, separator in kind_of(feature).separators(feature).items():
            found.setdefault(column, set()).add(separator)
    return {name: ones.copy().pop() for name, ones in found.items() if len(ones) == 1}


def _example(rows: pl.DataFrame, column: RawColumn) -> JsonValue:
    """The first value there is, as a request would write it."""
    values = rows[column.name].drop_nulls()
    if not len(values):
        return None
    return _json_value(values[0])


def _json_value(value: object) -> JsonValue:
    if isinstance(value, pl.Series):
        return [_json_value(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value).replace(" ", "T")  # dates and times, in ISO form


def _conformed(values: pl.Series, column: Column, first_row: int) -> pl.Series:
    if column_type(column.name, values.dtype) == column.type:
        return values
    if isinstance(values.dtype, pl.Categorical | pl.Enum):
        values = values.cast(pl.String)
    form = TextForm(type=column.type, format=column.format, separator=column.separator or " ")
    expression, may_fail = from_column(column.name, values.dtype, form)
    if values.dtype == pl.String and column.is_list and column.separator is None:
        raise SchemaMismatch(
            f"column {column.name!r} holds text, and the features that read it split text"
            f" differently; give it as {column.type}, from Parquet or JSON lines"
        )
    conformed = values.to_frame(column.name).select(expression.alias(column.name)).to_series()
    if may_fail:
        _check_none_lost(values, conformed, column, first_row)
    return conformed


def _check_none_lost(before: pl.Series, after: pl.Series, column: Column, first_row: int) -> None:
    """Raise where a value could not be read; empty text and NaN are missing values."""
    lost = after.is_null() & before.is_not_null()
    if before.dtype == pl.String:
        lost &= before.str.strip_chars() != ""
    elif before.dtype.is_float():
        lost &= before.is_not_nan()
    if lost.any():
        place = lost.arg_max()
        assert place is not None
        raise RowMismatch(
            f"row {first_row + place}, column {column.name!r}: expected {column.type}, found"
            f" {_json_value(before[place])!r}"
        )
