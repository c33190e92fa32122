"""No room on the disk: a clear error, the last version intact, nothing left behind."""

import errno
import multiprocessing
import resource
import signal
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_store.features import Categorical, FeatureSet, Label
from feature_store.store import Store
from pipelines.build import build
from pipelines.disk import DiskFull, told_if_full
from pipelines.sources import DataConfig

FEATURES = FeatureSet(inputs=(Categorical(name="item"),), labels=(Label(name="clicked"),))
ROWS = {"small": 200, "large": 40_000}


def build_log(folder: Path, name: str) -> None:
    random = np.random.default_rng(0)
    items = [f"{name} {i}" for i in random.integers(0, 10**9, ROWS[name])]
    clicks = random.integers(0, 2, ROWS[name])
    path = folder / f"{name}.parquet"
    if not path.exists():
        pl.DataFrame({"item": items, "clicked": clicks}).write_parquet(path)
    data = DataConfig.model_validate(
        {"path": str(path), "columns": {"item": "string", "clicked": "int"}}
    )
    build("clicks", data, FEATURES, Store(folder / "store"))


def build_with_little_room(folder: Path, name: str, room: int) -> None:
    """Write the error to a file, as a process of little room."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        build_log(folder, name)
    except DiskFull as error:
        (folder / "error").write_text(str(error))


@pytest.mark.parametrize("room", [60_000, 400_000, 1_000_000])
def test_a_build_without_room_says_so_and_leaves_the_last_version(
    tmp_path: Path, room: int
) -> None:
    build_log(tmp_path, "small")
    random = np.random.default_rng(0)
    items = [f"large {i}" for i in random.integers(0, 10**9, ROWS["large"])]
    clicks = random.integers(0, 2, ROWS["large"])
    pl.DataFrame({"item": items, "clicked": clicks}).write_parquet(tmp_path / "large.parquet")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports once
    child = context.Process(target=build_with_little_room, args=(tmp_path, "large", room))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    error = (tmp_path / "error").read_text()
    assert error.startswith(f"{tmp_path / 'store'}: there is no room left to write")
    assert "File too large" in error
    store = Store(tmp_path / "store")
    version = store.open("clicks")
    assert sum(version.scan(split).collect().height for split in version.rows) == ROWS["small"]
    assert len(store.history("clicks")) == 1
    assert list((tmp_path / "store" / "clicks" / ".building").iterdir()) == []
    files = {file for split in version.rows for file in version.files(split)}
    assert set((tmp_path / "store" / "clicks" / "table").glob("split=*/*")) == files
    assert [path.name for path in (tmp_path / "store" / "clicks" / "builds").iterdir()] == [
        version.build
    ]


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="busy"), told_if_full(tmp_path):
        raise OSError(errno.EBUSY, "busy")
    with pytest.raises(DiskFull, match="GB free"), told_if_full(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
