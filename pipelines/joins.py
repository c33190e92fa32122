"""Side tables with one row per key, joined to rows that need not fit into memory.

The side table is held in memory, the rows stream past it in their order.
"""

import polars as pl

from feature_store.features import ROW_COLUMN
from pipelines.reading import Table
from pipelines.rejection import Rejection, content_of

_SHOWN_KEYS = 3


def joined(
    frame: pl.LazyFrame, side: Table, on: str, path: str
) -> tuple[pl.LazyFrame, int, list[Rejection]]:
    """The rows with the side table's columns, nulls where they have no partner.

    Args:
        frame: The rows, with the key in the same type as the side table has it.
        side: The side table, with its `__row`.
        on: The column of both that holds the key.
        path: Names the side table in errors.

    Returns:
        The rows in their order, how many have a partner, and the rows of the side table that have
        no key.

    Raises:
        ValueError: A key names more than one row, or no row has a partner.
    """
    key = pl.col(on)
    is_missing = key.is_null()
    if side.frame.collect_schema()[on].is_float():
        is_missing |= key.is_nan()
    rows = side.frame.collect(engine="streaming")
    partners = rows.filter(~is_missing).drop(ROW_COLUMN)
    keys = partners.get_column(on)
    twice = keys.filter(keys.is_duplicated())
    if len(twice):
        raise ValueError(
            f"{path}: the key {on!r} is to name one row, but {twice[0]!r} names"
            f" {(twice == twice[0]).sum()}; {twice.n_unique()} keys are there more than once"
        )
    keyless = [
        Rejection(
            *side.places.of(row[ROW_COLUMN]),
            kind=f"no key {on}",
            reason=f"the key {on!r} is missing",
            content=content_of(row),
        )
        for row in rows.filter(is_missing).iter_rows(named=True)
    ]
    matched = key.is_in(keys.implode()).fill_null(False).sum()
    num_matched = frame.select(matched).collect(engine="streaming").item()
    if num_matched == 0:
        raise ValueError(
            f"{path}: no row has a partner under the key {on!r}; its first keys are"
            f" {keys.head(_SHOWN_KEYS).to_list()}; is it the right file and column?"
        )
    result = frame.join(partners.lazy(), on=on, how="left", maintain_order="left")
    return result, num_matched, keyless
