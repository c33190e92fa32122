"""Statistics by value: a number for each value, or combination of values, seen in training.

Values are known by a stable 64-bit hash, so that a table needs 12 bytes for each and no text: among
a million of them, two have the same hash with a chance of 3 in 100 million. A statistic is a table
of the columns `key` (int64, rising) and `value` (float32). Key 0 is always there: a missing value,
whose number unseen values have too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from feature_store import columns
from feature_store.columns import SchemaMismatch
from feature_store.features import MISSING_ID
from feature_store.vocabulary import hash_ids

KEY, VALUE = "key", "value"

_SORTED_FROM = 4096
"""Look-ups from which sorting them pays."""


def key_of(what: str, names: Sequence[str], schema: Mapping[str, pl.DataType]) -> pl.Expr:
    """The int64 by which the value of a column, or of several together, is known.

    MISSING_ID where any of them is missing: null, NaN, infinite or the empty text.

    Args:
        what: Whose key it is, for messages.
        names: Raw columns.
        schema: Their types.

    Raises:
        SchemaMismatch: A column holds lists, or values that no feature can read.
    """
    ids = []
    for name in names:
        if columns.is_list(schema[name]):
            raise SchemaMismatch(
                f"{what} needs one value a row, but {name!r} has the type {schema[name]}"
            )
        columns.column_type(name, schema[name])
        ids.append(hash_ids(columns.canonical_text(pl.col(name), schema[name])))
    if len(ids) == 1:
        return ids[0]
    # Texts of the hashes: no text of one column can look like the end of one and the next's start.
    together = hash_ids(pl.concat_str([one.cast(pl.String) for one in ids], separator=","))
    missing = pl.any_horizontal([one == MISSING_ID for one in ids])
    return pl.when(missing).then(pl.lit(MISSING_ID, pl.Int64)).otherwise(together)


def looked_up(key: pl.Expr, table: pl.DataFrame) -> pl.Expr:
    """The float32 of each key; of a key that is not there, that of MISSING_ID."""
    found = LookUp(table.get_column(KEY).to_numpy(), table.get_column(VALUE).to_numpy())
    return key.map_batches(found, return_dtype=pl.Float32(), is_elementwise=True)


@dataclass(frozen=True, eq=False)
class LookUp:
    """The values of keys; a class, so that it can be sent to another process."""

    keys: np.ndarray
    """Rising, int64 (K,); MISSING_ID is among them."""
    values: np.ndarray
    """float32 (K,)."""

    def __call__(self, wanted: pl.Series) -> pl.Series:
        """float32 of int64 keys."""
        # Polars may put nulls where a `when` around this will not take the result.
        keys = wanted.fill_null(MISSING_ID).to_numpy()
        return pl.Series(wanted.name, self.values[places(self.keys, keys)])


def places(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted key is among rising ones; where it is not, the place of MISSING_ID."""
    if len(wanted) > _SORTED_FROM:
        # In order, neighbours lie in the cache: several times as fast as at random.
        order = np.argsort(wanted)
        found = np.empty(len(wanted), np.intp)
        found[order] = np.searchsorted(keys, wanted[order])
    else:
        found = np.searchsorted(keys, wanted)
    found = np.minimum(found, len(keys) - 1)
    missing = np.searchsorted(keys, MISSING_ID)
    return np.where(keys[found] == wanted, found, missing)
