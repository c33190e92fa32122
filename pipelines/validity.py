"""Side tables whose rows hold from a time on: each row is joined to what was valid at its time."""

from dataclasses import dataclass

import polars as pl

from feature_store.columns import require_columns
from feature_store.encoding import row_key
from feature_store.features import MISSING_ID, ROW_COLUMN, FeatureSet, TimeUnit
from feature_store.windows import KEY, TIME, nanoseconds, valid_at
from pipelines.leakage import Leak
from pipelines.reading import Table
from pipelines.rejection import Rejection, content_of
from pipelines.usable import shown

_PARTNER = "__partner"


class NoTimestamp(ValueError):
    """Rows are to be joined as of their time, and nothing says what that is."""


def time_of_rows(feature_set: FeatureSet, what: str) -> str:
    """The raw column with the rows' time.

    Raises:
        NoTimestamp: features.timestamp is not set.
    """
    if feature_set.timestamp is None:
        raise NoTimestamp(f"{what} needs features.timestamp: name the column with the rows' time")
    return feature_set.timestamp


@dataclass(frozen=True)
class Validity:
    """How a side table tells from when its rows are valid."""

    path: str
    """Names the side table in errors."""
    on: str
    """The key's column, in the rows too."""
    as_of: str
    """The column with the time."""
    unit: TimeUnit
    """Of that time, if it is a number."""
    time_unit: TimeUnit
    """Of the rows' time, likewise."""


@dataclass(frozen=True)
class JoinedAsOf:
    """What became of both sides."""

    frame: pl.LazyFrame
    """The rows, each with its partner's columns."""
    num_found: int
    """Rows with a partner."""
    rejections: list[Rejection]
    """Rows of the side table without a key or a time."""
    latest: pl.LazyFrame
    """The row of every key that is valid at the newest row's time."""


def joined_as_of(
    frame: pl.LazyFrame,
    side: Table,
    validity: Validity,
    feature_set: FeatureSet,
    *,
    all_rows: bool = True,
) -> JoinedAsOf:
    """The rows with the latest row of their key that was valid at their time.

    Args:
        frame: The rows, which keep their order.
        side: The side table.
        validity: How it tells from when a row is valid.
        feature_set: Names the rows' time.
        all_rows: They are not just the first of the log, so some should have a partner.

    Raises:
        Leak: All of the side table lies after the rows.
        ValueError: Two rows of one key are valid from the same time, or no row has a partner.
    """
    name = time_of_rows(feature_set, f"the join with {validity.path} as of {validity.as_of!r}")
    schema = frame.collect_schema()
    require_columns(schema, {name: "features.timestamp", validity.on: f"the join {validity.path}"})
    partners, rejections = _partners(side, validity)
    _require_one_row(partners, validity)
    key = row_key(validity.on, schema[validity.on])
    time = nanoseconds(name, schema[name], validity.time_unit)
    times = frame.select(key.alias(KEY), time.alias(TIME)).collect(engine="streaming")
    places = valid_at(times, partners.select(KEY, TIME)).alias(_PARTNER).cast(pl.UInt32)
    num_found = len(places) - places.null_count()
    if all_rows and not num_found:
        _refuse(times, partners, validity, name)
    known = partners.drop(KEY, TIME, ROW_COLUMN, validity.on).with_row_index(_PARTNER).lazy()
    placed = pl.concat([frame, places.to_frame().lazy()], how="horizontal")
    joined = placed.join(known, on=_PARTNER, how="left", maintain_order="left").drop(_PARTNER)
    valid = partners.filter(pl.col(TIME) <= times.get_column(TIME).max()).sort(KEY, TIME)
    latest = valid.unique(KEY, keep="last", maintain_order=True).drop(KEY, TIME, ROW_COLUMN)
    return JoinedAsOf(joined, num_found, rejections, latest.lazy())


def _partners(side: Table, validity: Validity) -> tuple[pl.DataFrame, list[Rejection]]:
    """The rows with a key and a time, and the others."""
    schema = side.frame.collect_schema()
    what = f"joins, as_of of {validity.path}"
    time = nanoseconds(validity.as_of, schema[validity.as_of], validity.unit, what)
    key = row_key(validity.on, schema[validity.on])
    rows = side.frame.with_columns(key.alias(KEY), time.alias(TIME)).collect(engine="streaming")
    usable = (pl.col(KEY) != MISSING_ID) & pl.col(TIME).is_not_null()
    rejections = []
    for row in rows.filter(~usable).iter_rows(named=True):
        kind, reason = "key: missing", f"the key {validity.on!r} is missing"
        if row[KEY] != MISSING_ID:
            name = validity.as_of
            kind = "as_of: not a time"
            reason = f"as_of: expected a time, found {shown(row[name])} in {name!r}"
        place = side.places.of(row[ROW_COLUMN])
        rejections.append(Rejection(*place, kind=kind, reason=reason, content=content_of(row)))
    return rows.filter(usable), rejections


def _require_one_row(partners: pl.DataFrame, validity: Validity) -> None:
    twice = partners.filter(pl.struct(KEY, TIME).is_duplicated())
    if len(twice):
        raise ValueError(
            f"{validity.path}: the key {validity.on!r} is to name one row at a time, but"
            f" {twice[validity.on][0]!r} at {twice[validity.as_of][0]} names several;"
            f" {twice.select(KEY, TIME).n_unique()} such pairs are there more than once"
        )


def _refuse(
    times: pl.DataFrame, partners: pl.DataFrame, validity: Validity, timestamp: str
) -> None:
    """Tell why no row has a partner."""
    first, newest = partners.get_column(TIME).min(), times.get_column(TIME).max()
    if first is not None and newest is not None and first > newest:  # type: ignore[operator]
        raise Leak(
            f"{validity.path}: all of its times ({validity.as_of!r}) lie after the newest row"
            f" ({timestamp!r}), so nothing of it was known at any row; is it the right file, and"
            " is the unit of its times right?"
        )
    raise ValueError(
        f"{validity.path}: no row has a partner under the key {validity.on!r} at or before its"
        f" time; its first keys are {partners[validity.on].head(3).to_list()}; is it the right"
        " file and column?"
    )
