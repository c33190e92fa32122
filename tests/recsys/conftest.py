"""Encoded rows on disk, one process group of one rank, and the batch that most tests read."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.encoded import LAYOUT, write

from recsys.batch import Batch
from recsys.dataset import BatchReader


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors: more threads only wait for each other, and sums would depend on them."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """500 encoded rows in ten row groups of two files."""
    return tuple(write(tmp_path_factory.mktemp("encoded"), 500))


@pytest.fixture(scope="session")
def valid_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """101 rows of the same kind: no number of ranks divides them."""
    return tuple(write(tmp_path_factory.mktemp("valid"), 101, seed=1))


@pytest.fixture
def batch(files: tuple[Path, ...]) -> Batch:
    """The first 64 rows."""
    return next(BatchReader(files, LAYOUT, batch_size=64).epoch(0))


@pytest.fixture
def one_rank() -> Iterator[None]:
    """This process alone as a process group."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()
