"""kill -9 anywhere in a build: the last version opens, nothing is half there, the next works."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import polars as pl

from feature_store.features import Categorical, FeatureSet, Label
from feature_store.store import Store
from pipelines.build import build
from pipelines.sources import DataConfig, OnProgress

FEATURES = FeatureSet(inputs=(Categorical(name="item"),), labels=(Label(name="clicked"),))
ROWS = {"old": 300, "new": 400}
EVENTS = ("os.rename", "os.mkdir", "os.remove", "open")
STAGES = (
    "reading new.csv",
    "gathering histories and splitting",
    "counting rows and labels",
    "fitting features",
    "encoding and writing",
)
MOST_POINTS = 24
"""That are tried out of those where a build touches the store; the last ones all are."""
LAST_POINTS = 10


def write_log(folder: Path, name: str) -> None:
    random = np.random.default_rng(0)
    items = [f"{name}{i}" for i in random.integers(0, 20, ROWS[name])]
    clicks = random.integers(0, 2, ROWS[name])
    pl.DataFrame({"item": items, "clicked": clicks}).write_csv(folder / f"{name}.csv")


def build_log(folder: Path, name: str, on_progress: OnProgress = lambda *_: None) -> None:
    data = DataConfig.model_validate(
        {"path": str(folder / f"{name}.csv"), "columns": {"item": "string", "clicked": "int"}}
    )
    build("clicks", data, FEATURES, Store(folder / "store"), on_progress)


def build_until(folder: Path, point: int | str) -> None:
    """Build "new" and die at the point-th time that the store's files are touched, or in a stage.

    The file `touched` tells how often that was, if the build comes to its end.
    """
    touched = 0

    def die(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal touched
        if event in EVENTS and str(folder / "store") in str(arguments[0]):
            touched += 1
            if touched == point:
                os.kill(os.getpid(), signal.SIGKILL)

    def die_in_stage(stage: str, done: int, total: int | None) -> None:
        if stage == point and (done or stage != STAGES[-1]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    build_log(folder, "new", die_in_stage)
    (folder / "touched").write_text(str(touched))


def rows_of_latest(folder: Path) -> int:
    """Rows of the latest version, every value read, with its fitted features."""
    version = Store(folder / "store").open("clicks")
    num_rows = sum(version.scan(split).collect().height for split in version.rows)
    assert num_rows == sum(version.rows.values())
    assert len(version.fitted.vocabularies["item"]) > 0
    assert len(version.raw_sample()) > 0
    return num_rows


def run(folder: Path, point: int | str) -> int | None:
    """The exit code of a process that builds until a point."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports once
    child = context.Process(target=build_until, args=(folder, point))
    child.start()
    child.join(60)
    return child.exitcode


def points(folder: Path) -> list[int | str]:
    """Every stage, and some of the moments at which an undisturbed build touches the store."""
    folder.mkdir()
    for name in ROWS:
        write_log(folder, name)
    build_log(folder, "old")
    assert run(folder, 0) == 0
    touched = int((folder / "touched").read_text())
    assert touched > LAST_POINTS, "too few points to mean anything"
    step = -(-touched // (MOST_POINTS - LAST_POINTS))
    some = {*range(1, touched, step), *range(touched - LAST_POINTS + 1, touched + 1)}
    return [*STAGES, *sorted(some)]


def test_a_build_killed_at_any_point_leaves_the_last_version_and_the_next_build_works(
    tmp_path: Path,
) -> None:
    for name in ROWS:
        write_log(tmp_path, name)
    build_log(tmp_path, "old")
    committed = False
    for point in points(tmp_path / "undisturbed"):
        code = run(tmp_path, point)
        if code == 0:  # it found the version of a build that died after its commit
            assert committed
            break
        assert code == -signal.SIGKILL
        committed = committed or rows_of_latest(tmp_path) == ROWS["new"]
        assert rows_of_latest(tmp_path) == ROWS["new" if committed else "old"]
    assert run(tmp_path, 0) == 0
    assert rows_of_latest(tmp_path) == ROWS["new"]
    store = Store(tmp_path / "store")
    versions = store.history("clicks")
    assert len(versions) == 2

    with store.workspace("clicks"):
        pass  # sweeps what the last dead build left
    folder = tmp_path / "store" / "clicks"
    kept = {path.name for path in (folder / "builds").iterdir()}
    assert kept == {version.build for version in versions}
    files = {f for version in versions for split in version.rows for f in version.files(split)}
    assert set((folder / "table").glob("split=*/*")) == files
    assert list((folder / ".building").iterdir()) == []
