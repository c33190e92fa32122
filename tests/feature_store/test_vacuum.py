"""Removing versions: what is needed stays, and a kill leaves versions whole or removed."""

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from support.versioned import NAME, age, read_all, write

from feature_store.store import Store, Version, VersionNotFound
from feature_store.vacuum import parse_age, vacuum

MOST_POINTS = 100


def nobody() -> dict[str, str]:
    return {}


def states(store: Store) -> list[str]:
    return [entry.state for entry in store.entries(NAME)]


def files_of(folder: Path, version: Version) -> list[Path]:
    return [path for path in folder.rglob("*") if version.build in str(path) and path.is_file()]


def test_all_but_the_newest_go_and_say_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    builds = [write(store, f) for f in "abcd"]
    sizes = [sum(p.stat().st_size for p in files_of(tmp_path, v)) for v in builds]
    numbers = [version.number for version in builds]
    removed = builds[:2]
    last = builds[-1].fitted.fingerprint
    folder = builds[0].path
    paths = [files_of(tmp_path, version) for version in removed]
    del builds, removed
    dry = vacuum(store, NAME, keep=2, named=nobody, dry_run=True)
    assert states(store) == ["present"] * 4
    done = vacuum(store, NAME, keep=2, named=nobody)
    assert dry == done
    assert [(each.number, each.size_bytes) for each in done.removed] == [
        (numbers[0], sizes[0]),
        (numbers[1], sizes[1]),
    ]
    assert done.size_bytes == sum(sizes[:2]) > 0
    assert [(each.number, each.why) for each in done.kept] == [
        (2, "among the newest 2"),
        (3, "the latest"),
    ]
    assert not any(path.exists() for each in paths for path in each)
    assert states(store) == ["removed", "removed", "present", "present"]
    with pytest.raises(VersionNotFound, match=r"version 0 of 'clicks' was removed by `recsys"):
        store.open(NAME, 0)
    assert [version.number for version in store.history(NAME)] == [2, 3]
    assert read_all(store.open(NAME)) == 40
    assert store.open(NAME).fitted.fingerprint == last
    assert store.find(NAME, "a") is None
    assert read_all(write(store, "a")) == 40  # and it can be built again
    assert DeltaTable(str(folder / "table")).to_pyarrow_table().num_rows == 40


def test_what_is_named_or_young_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for fingerprint in "abc":
        write(store, fingerprint)
    for number, days in ((0, 40), (1, 40), (2, 1)):
        age(tmp_path, number, datetime.now(UTC) - timedelta(days=days))
    write(store, "d")
    done = vacuum(
        store, NAME, older_than=parse_age("30d"), named=lambda: {"a": "runs/x", "d": "runs/y"}
    )
    assert [each.number for each in done.removed] == [1]
    why = {each.number: each.why for each in done.kept}
    assert why[0] == "named by runs/x"
    assert "too young" in why[2]
    assert why[3] == "the latest"


def test_something_must_be_said_to_go() -> None:
    with pytest.raises(ValueError, match=r"--keep.*--older-than"):
        vacuum(Store("nowhere"), NAME, named=nobody)
    with pytest.raises(ValueError, match=r"--keep 0: the latest version always stays"):
        vacuum(Store("nowhere"), NAME, keep=0, named=nobody)
    with pytest.raises(ValueError, match=r"'a month': expected a number with h, d or w"):
        parse_age("a month")
    assert parse_age("2w") == timedelta(days=14)


def test_a_version_that_somebody_has_open_stays_until_they_are_done(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store, "a")
    write(store, "b")
    reader = store.open(NAME, 0)
    copied = pickle.loads(pickle.dumps(reader))
    for holder in ("both", "the copy"):
        if holder == "the copy":
            del reader
        done = vacuum(store, NAME, keep=1, named=nobody)
        assert not done.removed
        assert done.kept[0].why == "open in some process", holder
    assert read_all(copied) == 40
    del copied
    assert [each.number for each in vacuum(store, NAME, keep=1, named=nobody).removed] == [0]


def test_who_names_versions_is_asked_when_nobody_can_open_them_any_more(tmp_path: Path) -> None:
    """A training that began before has its name written down by then."""
    store = Store(tmp_path)
    write(store, "a")
    write(store, "b")

    def named() -> dict[str, str]:
        context = multiprocessing.get_context("fork")
        other = context.Process(target=store.open, args=(NAME, 0))
        other.start()
        other.join(0.3)
        assert other.exitcode is None, "it opened what is about to go"
        other.terminate()
        other.join()
        return {"a": "a run"}

    assert not vacuum(store, NAME, keep=1, named=named).removed
    assert read_all(store.open(NAME, 0)) == 40


def vacuum_until(folder: Path, point: int) -> None:
    """Die at the point-th time that the store's files are changed."""
    touched = 0

    def die(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal touched
        changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir") or (
            event == "open" and arguments[1] not in (None, "r", "rb")
        )
        # shutil.rmtree names a file without its folder.
        if changes and (str(folder) in str(arguments[0]) or event in ("os.remove", "os.rmdir")):
            touched += 1
            if touched == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    vacuum(Store(folder), NAME, keep=1, named=nobody)


def test_a_kill_at_any_point_leaves_every_version_whole_or_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    # Removing needs no thread of Polars, so a plain fork does, and saves the imports.
    context = multiprocessing.get_context("fork")
    builds = [write(store, fingerprint).build for fingerprint in "ab"]
    point, half_done = 0, 0
    while True:
        point += 1
        assert point < MOST_POINTS, "it never ends"
        child = context.Process(target=vacuum_until, args=(tmp_path, point))
        child.start()
        child.join(60)
        for entry in store.entries(NAME):
            assert entry.state in ("present", "removed")
            if entry.state == "present":
                assert read_all(store.open(NAME, entry.number)) == 40
        assert states(store)[-1] == "present"
        left = [p for p in tmp_path.rglob("*") if builds[0] in str(p) and p.is_file()]
        half_done += states(store)[0] == "removed" and bool(left)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    assert point > 5, "too few points to mean anything"
    assert half_done, "none died while files went"
    assert states(store) == ["removed", "present"]
    assert [path for path in tmp_path.rglob("*") if builds[0] in str(path)] == []


def build_again_and_again(folder: Path, barrier: Any, letters: str) -> None:
    barrier.wait()
    for letter in letters:
        assert read_all(write(Store(folder), letter)) == 40


def vacuum_again_and_again(folder: Path, barrier: Any, stop: Callable[[], bool]) -> None:
    barrier.wait()
    while not stop():
        vacuum(Store(folder), NAME, keep=1, named=nobody)


def test_builds_and_vacuums_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store, "first")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    barrier, over = context.Barrier(3), context.Event()
    builders = [
        context.Process(target=build_again_and_again, args=(tmp_path, barrier, letters))
        for letters in ("abcab", "xyazb")
    ]
    cleaner = context.Process(target=vacuum_again_and_again, args=(tmp_path, barrier, over.is_set))
    for process in (*builders, cleaner):
        process.start()
    for builder in builders:
        builder.join(120)
    over.set()
    cleaner.join(60)
    assert [process.exitcode for process in (*builders, cleaner)] == [0, 0, 0]
    assert set(states(store)) == {"present", "removed"}
    assert read_all(store.open(NAME)) == 40
    vacuum(store, NAME, keep=1, named=nobody)
    assert states(store).count("present") == 1
