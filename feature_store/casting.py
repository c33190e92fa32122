"""Raw values in the declared types: from text, or from the types a typed file has.

Used where a build reads its sources and where a bundle scores files, so that both read alike.
"""

from datetime import date
from typing import Annotated

import polars as pl
from pydantic import Field, model_validator

from feature_store.columns import (
    ColumnType,
    SchemaMismatch,
    canonical_text,
    column_type,
    polars_type,
    utc,
)
from feature_store.config import Config

_TRUE, _FALSE = ("true", "t", "yes", "1"), ("false", "f", "no", "0")
_LARGEST_EXACT_INTEGER = 2.0**53
_ISO = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")
_FIRST, _LAST = date(1, 1, 1), date(9999, 12, 31)
"""Years beyond have no ISO text of four digits, and no date in Python."""


class TextForm(Config):
    """How text carries the values of one raw column."""

    type: ColumnType
    format: str | None = None
    """Of dates and datetimes, in strftime's letters; ISO 8601 if absent."""
    separator: Annotated[str, Field(min_length=1)] = " "
    """Between the elements of a list."""

    @model_validator(mode="after")
    def _format_can_be_read(self) -> "TextForm":
        if self.format is None:
            return self
        if not self.type.endswith(("date", "datetime", "date>", "datetime>")):
            raise ValueError(f"format {self.format!r} is for dates and datetimes, not {self.type}")
        try:
            pl.select(from_text(pl.lit("?"), self))
        except pl.exceptions.ComputeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"format {self.format!r} cannot be used: {reason}") from error
        return self


def from_text(text: pl.Expr, column: TextForm) -> pl.Expr:
    """Text in the declared type; null where it is null or cannot be read so.

    Numbers, bools and dates may have white space around them; text is taken as it stands.
    """
    if not column.type.startswith("list<"):
        return _scalar(text, column.type, column.format)
    inner = column.type.removeprefix("list<").removesuffix(">")
    elements = pl.element()
    parsed = text.str.split(column.separator).list.eval(
        _scalar(elements.filter(elements != ""), inner, column.format)
    )
    if inner == "string":
        return parsed
    # One element that cannot be read makes the list unreadable.
    return pl.when(parsed.list.eval(pl.element().is_null()).list.any()).then(None).otherwise(parsed)


def from_column(name: str, dtype: pl.DataType, column: TextForm) -> tuple[pl.Expr, bool]:
    """A column of a typed file in the declared type, and whether values may fail to be read so.

    Raises:
        SchemaMismatch: The type in the file cannot be read as the declared one.
    """
    value, wanted = pl.col(name), polars_type(column.type)
    found = column_type(name, dtype)
    if isinstance(dtype, pl.Datetime):
        value = utc(value, dtype)
    if found == column.type or isinstance(dtype, pl.Null):
        return (value if dtype == wanted else value.cast(wanted)), False
    if found == "string":
        return from_text(pl.when(value != "").then(value), column), True
    if column.type == "string" and not found.startswith("list<"):
        return canonical_text(value, dtype), False
    if (found, column.type) in {("int", "float"), ("bool", "int"), ("bool", "float")}:
        return value.cast(wanted), False
    if (found, column.type) == ("date", "datetime"):
        return value.cast(wanted), False
    if (found, column.type) == ("float", "int"):
        return _integral(value), True
    if (found, column.type) == ("list<float>", "list<int>"):
        whole = value.list.eval(_integral(pl.element()))
        # One element that is no integer makes the list unreadable.
        lost = whole.list.drop_nulls().list.len() < value.list.drop_nulls().list.len()
        return pl.when(~lost).then(whole), True
    if found == "list<int>" and column.type in ("list<float>", "list<string>"):
        return value.cast(wanted), False
    if found == "int" and column.type == "bool":
        return pl.when(value.is_in([0, 1])).then(value.cast(pl.Boolean)), True
    raise SchemaMismatch(
        f"column {name!r} holds {found} ({dtype}), which cannot be read as {column.type};"
        f" declare it as {found}"
    )


def _scalar(text: pl.Expr, kind: str, layout: str | None) -> pl.Expr:
    if kind == "string":
        return text
    stripped = text.str.strip_chars()
    if kind == "int":
        exact = stripped.cast(pl.Int64, strict=False)
        return pl.coalesce(exact, _integral(stripped.cast(pl.Float64, strict=False)))
    if kind == "float":
        return stripped.cast(pl.Float64, strict=False)
    if kind == "bool":
        lower = stripped.str.to_lowercase()
        return pl.when(lower.is_in(_TRUE)).then(True).when(lower.is_in(_FALSE)).then(False)
    if kind == "date":
        day = stripped.str.to_date(layout or "%Y-%m-%d", strict=False)
        return pl.when(day.is_between(_FIRST, _LAST)).then(day)
    moment = _datetime(stripped, layout)
    return pl.when((moment >= _FIRST) & (moment.cast(pl.Date) <= _LAST)).then(moment)


def _integral(value: pl.Expr) -> pl.Expr:
    """A float as an integer where it is one; text such as `881250949.0` is one."""
    exact = (value == value.floor()) & (value.abs() <= _LARGEST_EXACT_INTEGER)
    return pl.when(exact).then(value).cast(pl.Int64, strict=False)


def _datetime(text: pl.Expr, layout: str | None) -> pl.Expr:
    """A time in UTC without zone, microseconds; text without a zone is UTC already."""
    wanted = pl.Datetime("us")
    if layout is not None and "%z" in layout.replace(":", "").replace("#", ""):
        return _without_zone(text.str.to_datetime(layout, time_unit="us", strict=False))
    if layout is not None:
        return text.str.to_datetime(layout, time_unit="us", strict=False)
    plain = text.str.replace("T", " ", literal=True)
    zoned = plain.str.replace("Z$", "+00:00")
    return pl.coalesce(
        *(plain.str.to_datetime(iso, time_unit="us", strict=False) for iso in _ISO),
        *(
            _without_zone(zoned.str.to_datetime(f"{iso}%:z", time_unit="us", strict=False))
            for iso in _ISO
        ),
        plain.str.to_date("%Y-%m-%d", strict=False).cast(wanted),
    )


def _without_zone(value: pl.Expr) -> pl.Expr:
    return value.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
