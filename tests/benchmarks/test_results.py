"""Benchmark figures: one JSON line each, with what they were measured on."""

import json
from pathlib import Path

import pytest

from benchmarks.results import Results


def test_every_figure_is_one_line_on_stdout_and_in_a_new_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Results("features", folder=tmp_path).record("stale", 1.0, "s")
    capsys.readouterr()
    results = Results("features", data="a log", folder=tmp_path)
    results.record("build", 2.5, "rows/s", target=0.35, met=True, peer="bare pass", ratio=0.5)
    results.record("memory", 1.0, "GB")
    lines = (tmp_path / "features.jsonl").read_text().splitlines()
    run, *figures = map(json.loads, lines)
    assert run["benchmark"] == "features"
    assert run["data"] == "a log"
    assert run["machine"]["cores"] >= run["machine"]["usable_cores"] >= 1
    assert {"python", "polars", "pyarrow", "deltalake"} <= set(run["versions"])
    assert figures[0] == {
        "name": "build",
        "value": 2.5,
        "unit": "rows/s",
        "target": 0.35,
        "met": True,
        "peer": "bare pass",
        "ratio": 0.5,
    }
    assert list(figures[1]) == list(figures[0])
    assert capsys.readouterr().out.splitlines() == lines[1:]


def test_quick_figures_go_to_a_file_of_their_own(tmp_path: Path) -> None:
    Results("features", folder=tmp_path)
    Results("features", quick=True, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "features-quick.jsonl",
        "features.jsonl",
    ]


def test_a_figure_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        Results("features", folder=tmp_path).record("x", float("nan"), "s")
