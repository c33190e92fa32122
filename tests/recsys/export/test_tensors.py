import polars as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import served

from recsys.export import tensors

LISTS = st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6), min_size=1, max_size=8)


@given(LISTS, st.integers(0, 3))
def test_padded_ids_are_the_lists_zeros_after_them(lists, start):
    column = pl.Series(lists, dtype=pl.List(pl.Int64))[start:]
    ids_BL, lengths_B = tensors.padded(column)
    assert lengths_B.tolist() == [len(ids) for ids in lists[start:]]
    width = max([1, *(len(ids) for ids in lists[start:])])
    assert ids_BL.tolist() == [ids + [0] * (width - len(ids)) for ids in lists[start:]]


def test_padded_ids_of_a_column_in_several_chunks_keep_their_rows():
    one, other = pl.Series([[1, 2], []]), pl.Series([[3]])
    ids_BL, lengths_B = tensors.padded(one.append(other))
    assert (ids_BL.tolist(), lengths_B.tolist()) == ([[1, 2], [0, 0], [3, 0]], [2, 0, 1])


def test_inputs_are_contiguous_and_hold_the_columns_in_the_layouts_order(features):
    encoded = features.encode(served.rows(9).lazy()).collect()
    # The order of the encoded columns must not matter, only their names.
    inputs = tensors.program_inputs(encoded.select(reversed(encoded.columns)), features.layout)
    named = dict(zip(tensors.input_names(features.layout), inputs, strict=True))
    assert all(tensor.is_contiguous() for tensor in inputs)
    singles = [field.name for field in features.layout.ids if field.shape == "single"]
    for place, name in enumerate(singles):
        assert named["single_BC"][:, place].tolist() == encoded[name].to_list()
    for place, name in enumerate(features.layout.dense):
        assert named["dense_BN"][:, place].tolist() == encoded[name].to_list()
    assert named["history.lengths_B"].tolist() == encoded["history"].list.len().to_list()


def test_columns_that_a_layout_lacks_become_matrices_of_no_width(features):
    layout = features.layout.model_copy(update={"ids": (), "dense": ()})
    encoded = features.encode(served.rows(4).lazy()).collect()
    dense_BN, single_BC = tensors.program_inputs(encoded, layout)
    assert (dense_BN.shape, dense_BN.dtype) == ((4, 0), torch.float32)
    assert (single_BC.shape, single_BC.dtype) == ((4, 0), torch.int64)
