"""A batch keeps its content wherever it goes."""

from dataclasses import fields

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.batch import Batch


def assert_same(found: Batch, expected: Batch) -> None:
    for field in fields(Batch):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, KeyedJaggedTensor):
            assert one.keys() == other.keys()
            assert one.length_per_key() == other.length_per_key()
            assert one.stride() == other.stride()
            assert torch.equal(one.values().cpu(), other.values())
            assert torch.equal(one.lengths().cpu(), other.lengths())
        else:
            assert one.dtype == other.dtype
            assert torch.equal(one.cpu(), other)


def test_moving_keeps_every_field(batch: Batch) -> None:
    moved = batch.to(torch.device("cpu"), non_blocking=True)
    assert moved is not batch
    assert_same(moved, batch)


def test_moving_moves_every_field(batch: Batch) -> None:
    moved = batch.to(torch.device("meta"))
    assert moved.ids.values().device.type == "meta"
    for field in fields(Batch):
        if field.name != "ids":
            assert getattr(moved, field.name).device.type == "meta", field.name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_memory_and_a_gpu_hold_the_same_rows(batch: Batch) -> None:
    pinned = batch.pin_memory()
    assert pinned.ids.values().is_pinned()
    assert pinned.dense_BN.is_pinned()
    assert_same(pinned, batch)
    moved = pinned.to(torch.device("cuda"), non_blocking=True)
    moved.record_stream(torch.cuda.current_stream())
    torch.cuda.synchronize()
    assert moved.ids.values().is_cuda
    assert_same(moved, batch)
