"""Who needs a version: found in the files that runs and bundles really write."""

import json
from pathlib import Path

import pytest

from recsys import named_versions as named
from recsys.export import bundle
from recsys.named_versions import named_versions
from recsys.rundir import RUN_FILE


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def test_files_are_named_as_those_who_write_them_do() -> None:
    assert named.RUN_FILE == RUN_FILE
    assert named.MANIFEST == bundle.MANIFEST


def test_runs_their_bundles_and_bundles_elsewhere_are_found(tmp_path: Path) -> None:
    runs, bundles = tmp_path / "runs", tmp_path / "bundles"
    write(runs / "daily" / "abc" / RUN_FILE, {"version": "f1", "version_number": 3})
    write(runs / "grid" / "cells" / "x" / "def" / RUN_FILE, {"version": "f2"})
    info = {"info": {"version": {"number": 4, "of": "f3"}}}
    write(runs / "daily" / "abc" / "bundle" / bundle.MANIFEST, info)
    write(bundles / "live" / bundle.MANIFEST, {"info": {"version": {"number": 5, "of": "f4"}}})
    found = named_versions([runs], [bundles])
    assert found == {
        "f1": str(runs / "daily" / "abc"),
        "f2": str(runs / "grid" / "cells" / "x" / "def"),
        "f3": str(runs / "daily" / "abc" / "bundle"),
        "f4": str(bundles / "live"),
    }


@pytest.mark.parametrize("content", ["{", "{}", '{"version": 3}', "[]"])
def test_a_file_that_cannot_be_read_stops_everything(tmp_path: Path, content: str) -> None:
    path = tmp_path / "runs" / "x" / RUN_FILE
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=r"run\.json does not say which version"):
        named_versions([tmp_path / "runs"])


def test_a_folder_that_is_not_there_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nothing to look for runs"):
        named_versions([tmp_path / "nothing"])
