"""A log with a missing or damaged entry: named, and every other version opens."""

from pathlib import Path

import pytest
from support.versioned import NAME, read_all, write

from feature_store import commits
from feature_store.commits import LogDamaged
from feature_store.store import Store, VersionNotFound


def three_versions(folder: Path) -> tuple[Store, list[Path]]:
    store = Store(folder)
    for fingerprint in "abc":
        write(store, fingerprint)
    return store, [commits.entry(folder / NAME / "table", number) for number in range(3)]


def test_a_missing_entry_takes_no_other_version_with_it(tmp_path: Path) -> None:
    store, entries = three_versions(tmp_path)
    entries[1].unlink()
    with pytest.raises(VersionNotFound, match=rf"version 1 .*{entries[1].name} is missing"):
        store.open(NAME, 1)
    assert read_all(store.open(NAME, 0)) == read_all(store.open(NAME, 2)) == 40
    assert store.open(NAME).number == 2
    assert [entry.state for entry in store.entries(NAME)] == ["present", "damaged", "present"]
    with pytest.raises(LogDamaged, match=rf"{entries[1].name} is missing, so no version"):
        write(store, "d")
    assert commits.numbers(tmp_path / NAME / "table") == [0, 2]
    assert list((tmp_path / NAME / ".building").iterdir()) == []


def test_a_damaged_entry_takes_no_other_version_with_it(tmp_path: Path) -> None:
    store, entries = three_versions(tmp_path)
    whole = entries[2].read_text()
    entries[2].write_text(whole[: len(whole) // 2])
    for number in (None, 2):  # the latest is not passed over in silence
        with pytest.raises(LogDamaged, match=rf"{entries[2].name} is damaged, so version 2"):
            store.open(NAME, number)
    assert read_all(store.open(NAME, 0)) == read_all(store.open(NAME, 1)) == 40
    assert [entry.state for entry in store.entries(NAME)] == ["present", "present", "damaged"]
    with pytest.raises(LogDamaged, match=rf"{entries[2].name} is damaged"):
        write(store, "d")
    entries[2].write_text(whole)
    assert read_all(write(store, "d")) == 40


def test_a_missing_data_file_is_named_and_the_version_is_built_again(tmp_path: Path) -> None:
    store, _ = three_versions(tmp_path)
    gone = store.open(NAME, 1).files("valid")[0]
    gone.unlink()
    with pytest.raises(VersionNotFound, match=rf"version 1 .* lost files: .*{gone.name} is gone"):
        store.open(NAME, 1)
    assert [entry.state for entry in store.entries(NAME)] == ["present", "lost", "present"]
    assert write(store, "b").number == 3
