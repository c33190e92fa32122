"""The same function in this process and under a real local Ray."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch.distributed as dist
from support.launched import fail, tell
from support.training import CPU

from recsys.training.launch import WorkerFailed, launch
from recsys.training.scaling import ScalingConfig


def test_one_worker_runs_in_this_process_inside_a_group(tmp_path: Path) -> None:
    launch(tell, tmp_path, ScalingConfig(), tmp_path)
    assert (tmp_path / "rank-0").read_text() == "0 1 gloo cpu 1.0"
    assert not dist.is_initialized()


def test_an_error_in_this_process_is_itself_and_leaves_no_group(tmp_path: Path) -> None:
    def broken(argument: Path, device: object) -> None:
        assert device == CPU
        raise KeyError(argument.name)

    with pytest.raises(KeyError, match=tmp_path.name):
        launch(broken, tmp_path, ScalingConfig(), tmp_path)
    assert not dist.is_initialized()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    # The workers are given as functions of this folder of tests, which no package installs.
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(map(str, (root, root / "tests")))
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()


@pytest.mark.distributed
@pytest.mark.usefixtures("cluster")
def test_two_workers_under_ray_and_a_worker_that_fails(tmp_path: Path) -> None:
    launch(tell, tmp_path, ScalingConfig(num_workers=2), tmp_path)
    told = [(tmp_path / f"rank-{rank}").read_text() for rank in range(2)]
    assert told == ["0 2 gloo cpu 2.0", "1 2 gloo cpu 2.0"]
    assert ray.is_initialized()  # a cluster that was there before stays

    with pytest.raises(WorkerFailed, match="no feature 'colour' in") as caught:
        launch(fail, tmp_path, ScalingConfig(num_workers=2), tmp_path)
    assert caught.value.__cause__ is not None
