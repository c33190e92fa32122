"""Independent work as Ray tasks: one that fails stops nothing, and a build is the same there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import ray
from support.parts import NotingMapper, worked

from feature_store.features import (
    Bag,
    Categorical,
    FeatureSet,
    History,
    Label,
    Numeric,
    Sequence,
)
from feature_store.store import Store, Version
from pipelines import parts
from pipelines.build import build
from pipelines.mapping import Mapper, in_process
from pipelines.sources import DataConfig
from recsys.training.launch import WorkerFailed
from recsys.training.tasks import RayMapper, ray_mapper, run_tasks

FEATURES = FeatureSet(
    inputs=(
        Categorical(name="user", side="user"),
        Categorical(name="item", min_count=2, side="item"),
        Categorical(name="hashed", source="item", encoding="hash"),
        Bag(name="tags", max_length=2),
        Numeric(name="price", standardize=True),
        Numeric(name="cut", source="price", num_buckets=5),
        Sequence(name="clicked_items", of="item", max_length=3, history=History(by="user")),
    ),
    labels=(Label(name="clicked"),),
    group="user",
    timestamp="time",
)
COLUMNS = {
    "user": "string", "item": "string", "tags": "string",
    "price": "float", "time": "int", "clicked": "int",
}  # fmt: skip
NUM_FILES = 3


def write_log(folder: Path, ending: str) -> DataConfig:
    """A log of some files, a few of whose rows cannot be used."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(NUM_FILES):
        size = 150 + number
        items = random.integers(0, 15, size)
        frame = pl.DataFrame(
            {
                "user": [f"u{i}" for i in random.integers(0, 20, size)],
                "item": [f"i{i}" if i else None for i in items],
                "tags": [f"t{i % 4} t{i % 3}" for i in items],
                "price": random.lognormal(size=size),
                "time": random.permutation(size) + 1000 * number,
                "clicked": random.integers(0, 2, size),
            }
        )
        frame = frame.with_columns(
            pl.when(pl.int_range(pl.len()) == 7).then(2).otherwise("clicked").alias("clicked")
        )
        path = folder / f"part-{number}.{ending}"
        frame.write_csv(path) if ending == "csv" else frame.write_parquet(path)
    values = {"path": f"{folder}/*.{ending}", "columns": COLUMNS, "max_rejected": 0.05}
    return DataConfig.model_validate({**values, "split": {"by": "time"}})


def content(version: Version) -> dict[str, Any]:
    """All that a version holds, but for the name of its build and when it was made."""

    def plain(path: Path) -> str:
        return str(path.relative_to(version.path)).replace(version.build, "build")

    splits = [file for split in version.rows for file in version.files(split)]
    beside = [file for file in version.folder.rglob("*") if file.is_file()]
    return {
        "files": {plain(file): file.read_bytes() for file in (*splits, *beside)},
        "rows": version.rows,
        "fingerprint": version.fingerprint,
        "fitted": version.fitted.fingerprint,
        "rejected": version.metadata["rejected_reasons"],
    }


@pytest.fixture(scope="module")
def two_processes() -> Iterator[None]:
    """A Ray of two CPUs on this machine, whose workers find `support`, too."""
    tests = {"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env=tests,
    )
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def a_part_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "FEWEST_ROWS", 1)


def built(data: DataConfig, folder: Path, mapper: Mapper) -> dict[str, Any]:
    return content(build("log", data, FEATURES, Store(folder), mapper=mapper).version)


@pytest.mark.distributed
def test_every_argument_has_a_result_or_its_error(two_processes: None) -> None:
    found = dict(run_tasks(worked, [0, 1, 2, 3]))
    assert (found[0], found[3]) == (0, 30)
    assert isinstance(found[1], Exception) and "one cannot be" in str(found[1])
    assert isinstance(found[2], Exception)
    assert sorted(found) == [0, 1, 2, 3]


@pytest.mark.distributed
def test_a_mapper_keeps_the_order_and_raises_what_a_task_raised(two_processes: None) -> None:
    with ray_mapper(None, retries=1) as mapper:
        assert list(mapper(worked, [4, 3, 0])) == [40, 30, 0]
        with pytest.raises(ValueError, match=r"^one cannot be$"):
            list(mapper(worked, [0, 1]))
        with pytest.raises(WorkerFailed, match="worked on 2 died 2 times"):
            list(mapper(worked, [2]))


@pytest.mark.distributed
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_build_is_the_same_bit_for_bit_wherever_it_runs(
    two_processes: None, tmp_path: Path, ending: str
) -> None:
    data = write_log(tmp_path / "log", ending)
    here = built(data, tmp_path / "here", in_process)
    assert len([name for name in here["files"] if "split=train" in name]) == NUM_FILES
    assert here["rejected"] == {"label 'clicked': not 0 or 1": NUM_FILES}
    for cpus in (1, 2):  # two tasks at once, then one after the other
        assert built(data, tmp_path / f"ray-{cpus}", RayMapper(cpus, retries=0)) == here


@pytest.mark.distributed
@pytest.mark.parametrize("dies_in", ["GatherTexts", "WriteRows"])
def test_a_lost_worker_costs_its_part_only(
    two_processes: None, tmp_path: Path, dies_in: str
) -> None:
    data = write_log(tmp_path / "log", "parquet")
    here = built(data, tmp_path / "here", in_process)
    (tmp_path / "noted").mkdir()
    mapper = NotingMapper(RayMapper(1, retries=1), tmp_path / "noted", dies_in)
    assert built(data, tmp_path / "ray", mapper) == here
    begun = mapper.begun()
    twice = [name for name, times in begun.items() if times == 2]
    assert [name.split("-")[1:] for name in twice] == [[dies_in, "1"]]
    assert set(begun.values()) == {1, 2}
    assert len(begun) > 3 * NUM_FILES


@pytest.mark.distributed
def test_a_part_whose_worker_dies_every_time_is_named(two_processes: None, tmp_path: Path) -> None:
    data = write_log(tmp_path / "log", "parquet")
    (tmp_path / "noted").mkdir()
    mapper = NotingMapper(RayMapper(1, retries=0), tmp_path / "noted", "WriteRows")
    with pytest.raises(WorkerFailed, match=r"rows 150 to 301 \(part-1\.parquet"):
        build("log", data, FEATURES, Store(tmp_path / "store"), mapper=mapper)
    assert not (tmp_path / "store" / "log" / "table").exists()
    assert list((tmp_path / "store" / "log" / ".building").iterdir()) == []
