"""Independent work as Ray tasks: one that fails stops nothing."""

import os

import pytest

from recsys.training.tasks import run_tasks


def worked(argument: int) -> int:
    if argument == 1:
        raise ValueError("one cannot be")
    if argument == 2:
        os._exit(3)
    return 10 * argument


@pytest.mark.distributed
def test_every_argument_has_a_result_or_its_error() -> None:
    found = dict(run_tasks(worked, [0, 1, 2, 3]))
    assert (found[0], found[3]) == (0, 30)
    assert isinstance(found[1], Exception) and "one cannot be" in str(found[1])
    assert isinstance(found[2], Exception)
    assert sorted(found) == [0, 1, 2, 3]
