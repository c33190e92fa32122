"""From encoded rows to the tensors a served program takes, without a Python loop over rows.

A program takes, in this order: `dense_BN` float32 and `single_BC` int64 (both present even when
they have no columns), then for every bag and sequence, in the layout's order, its ids `ids_BL`
int64 (zero-padded, L at least 1), `lengths_B` int64 and, if it is weighted, `weights_BL` float32.

Shapes: B rows, N dense numbers, C single-id fields, L longest list of the batch.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from torch import Tensor

from feature_store.features import IdField, Layout

MAX_PADDED_IDS = 4_000_000
"""Ids of one padded field in one run of the program; longer batches are cut in two (32 MB each)."""


def single_fields(layout: Layout) -> tuple[IdField, ...]:
    """The fields that are columns of `single_BC`, in their order there."""
    return tuple(field for field in layout.ids if field.shape == "single")


def list_fields(layout: Layout) -> tuple[IdField, ...]:
    """The bags and sequences, in their order among a program's inputs."""
    return tuple(field for field in layout.ids if field.shape != "single")


def input_names(layout: Layout) -> tuple[str, ...]:
    """Names of a program's inputs, in their order."""
    lists = (f"{f.name}.{part}" for f in list_fields(layout) for part in list_parts(f))
    return ("dense_BN", "single_BC", *lists)


def list_parts(field: IdField) -> tuple[str, ...]:
    """The tensors of a bag or sequence, in their order among a program's inputs."""
    return ("ids_BL", "lengths_B", *(("weights_BL",) if field.weighted else ()))


def by_field(lists: Sequence[Tensor], layout: Layout) -> dict[str, tuple[Tensor, ...]]:
    """A program's inputs after the first two, by field: the tensors of `list_parts`."""
    found, start = {}, 0
    for field in list_fields(layout):
        stop = start + len(list_parts(field))
        found[field.name] = tuple(lists[start:stop])
        start = stop
    return found


def program_inputs(encoded: pl.DataFrame, layout: Layout) -> list[Tensor]:
    """The tensors of encoded rows.

    They are contiguous: a compiled program reads its inputs by the strides it was traced with.
    """
    singles = [field.name for field in single_fields(layout)]
    inputs = [
        _matrix(encoded, list(layout.dense), np.float32),
        _matrix(encoded, singles, np.int64),
    ]
    for field in list_fields(layout):
        inputs.extend(padded(encoded[field.name]))
        if field.weighted:
            inputs.append(padded(encoded[field.weights], np.float32)[0])
    return inputs


def padded(lists: pl.Series, kind: type[np.generic] = np.int64) -> tuple[Tensor, Tensor]:
    """A column of lists as a zero-padded rectangle (B, L) and lengths (B,)."""
    column = lists.rechunk().to_arrow()
    offsets = column.offsets.to_numpy()
    lengths_B = np.diff(offsets).astype(np.int64)
    longest = max(1, int(lengths_B.max(initial=0)))
    ids_BL = np.zeros((len(lengths_B), longest), kind)
    values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
    ids_BL[np.arange(longest) < lengths_B[:, None]] = values.to_numpy()
    return torch.from_numpy(ids_BL), torch.from_numpy(lengths_B)


def fits(encoded: pl.DataFrame, layout: Layout) -> bool:
    """Whether no padded field would hold more than `MAX_PADDED_IDS` ids (one row always fits)."""
    lists = [field.name for field in list_fields(layout)]
    if encoded.height <= 1 or not lists:
        return True
    longest = encoded.select(pl.col(name).list.len().max() for name in lists).row(0)
    return encoded.height * max(longest) <= MAX_PADDED_IDS


def _matrix(encoded: pl.DataFrame, names: list[str], kind: type[np.generic]) -> Tensor:
    if not names:
        return torch.from_numpy(np.zeros((encoded.height, 0), kind))
    values = encoded.select(names).to_numpy(order="c", writable=True)
    assert values.dtype == kind, f"{names} are {values.dtype}, not {kind}"
    return torch.from_numpy(values)
