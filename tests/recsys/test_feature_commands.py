"""What `recsys features` prints of versions, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.versioned import NAME, fitted_to, raw_rows, write

from feature_store.store import Store
from recsys import cli


@pytest.fixture
def features(capfd: Any, tmp_path: Path, monkeypatch: Any) -> Any:
    """Runs `recsys features` on a store of two versions, of which the second grew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    store = Store(tmp_path / "store")
    write(store, "first", raw_rows())
    write(store, "second", raw_rows(seed=5, first_item=3), base=fitted_to(raw_rows()))

    def run(*arguments: str, expect: int = 0) -> str:
        with pytest.raises(SystemExit) as end:
            cli.main(["features", *arguments])
        found = capfd.readouterr()
        assert end.value.code == expect, found.err
        return found.err if expect else found.out

    return run


def test_a_table_and_its_versions_are_listed_and_shown(features: Any) -> None:
    (listed,) = json.loads(features("list", "--json"))
    assert (listed["name"], listed["version"]) == (NAME, 1)
    assert NAME in features("list")
    (file,) = Store("store").open(NAME).files("test")
    gone = file.rename(file.with_suffix(".gone"))
    assert f"lost files: {file} is gone" in features("list").replace(str(Path.cwd()) + "/", "")
    gone.rename(file)
    shown = json.loads(features("show", f"{NAME}@0", "--json"))
    assert shown["metadata"]["fingerprint"] == "first"
    assert shown["vocabularies"]["item"] > 0
    text = features("show", NAME)
    assert f"{NAME}@1" in text
    assert "64-bit hash" in text
    states = [entry["data"] for entry in json.loads(features("history", NAME, "--json"))]
    assert states == ["present", "present"]


def test_a_difference_says_what_grew_and_whether_a_model_can_read_it(features: Any) -> None:
    found = json.loads(features("diff", f"{NAME}@0", f"{NAME}@1", "--json"))
    change = found["vocabularies"]["item"]
    assert change["after"] - change["before"] == change["added"] > 0
    assert change["removed"] == 0
    assert not change["ids_moved"]
    assert len(change["added_examples"]) == min(5, change["added"])
    assert found["compatibility"]["is_compatible"]
    assert "A model of clicks@0 can read clicks@1." in features("diff", "clicks@0", "clicks@1")
    back = features("diff", "clicks@1", "clicks@0")
    assert "A model of clicks@1 cannot read clicks@0:" in back
    assert "'item' had" in back


def test_a_vacuum_keeps_what_runs_name_and_says_what_went(features: Any, tmp_path: Path) -> None:
    assert "no folder runs" in features("vacuum", NAME, "--keep", "1", expect=2)
    run = tmp_path / "runs" / "daily" / "abc"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"version": "first"}))
    kept = json.loads(features("vacuum", NAME, "--keep", "1", "--json"))
    assert kept["removed"] == []
    assert kept["kept"][0]["why"] == "named by runs/daily/abc"
    (run / "run.json").unlink()
    would = features("vacuum", NAME, "--keep", "1", "--dry-run")
    assert "Would remove clicks@0" in would
    went = features("vacuum", NAME, "--keep", "1")
    assert "Keep    clicks@1: the latest" in went
    assert "Removed 1 version, " in went
    assert "removed" in features("history", NAME)
    assert "was removed by `recsys features vacuum`" in features("show", "clicks@0", expect=2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["show", "clicks@x"], "'clicks@x' names no version: expected NAME or NAME@NUMBER"),
        (["show", "clicks@9"], "has no version 9"),
        (["history", "click"], "did you mean 'clicks'?"),
        (["vacuum", "clicks", "--no-runs"], "say what may go"),
        (["vacuum", "clicks", "--no-runs", "--older-than", "soon"], "such as 30d"),
        (["list", "--store", "elsewhere"], "there is no feature table in the store elsewhere"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    features: Any, arguments: list[str], expected: str
) -> None:
    assert expected in features(*arguments, expect=2)
