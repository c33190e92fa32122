"""Limits on what a build may write: told, or refused with nothing written."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from feature_store.drift import Drift, psi
from feature_store.features import Bag, Categorical, FeatureSet, Label, Numeric
from feature_store.profile import load
from feature_store.store import Store
from pipelines.build import BuildResult, build
from pipelines.checks import DRIFT_FILE, ChecksFailed, ColumnChecks
from pipelines.sources import DataConfig

FEATURES = FeatureSet(
    inputs=(
        Categorical(name="city"),
        Bag(name="tags", separator="|"),
        Numeric(name="price"),
    ),
    labels=(Label(name="clicked"),),
)


def rows(**columns: list[Any]) -> pl.DataFrame:
    """100 rows; the last 20 are the test split."""
    usual = {
        "city": ["a", "b"] * 50,
        "tags": ["x|y"] * 100,
        "price": [float(row % 10) for row in range(100)],
        "clicked": [row % 4 // 3 for row in range(100)],
    }
    return pl.DataFrame(usual | columns)


def built(
    folder: Path, frame: pl.DataFrame, told: list[str] | None = None, **settings: Any
) -> BuildResult:
    """Build the frame; the files are `train` and `test`."""
    folder.mkdir(exist_ok=True)
    frame[:80].write_parquet(folder / "train.parquet")
    frame[80:].write_parquet(folder / "test.parquet")
    types = {"city": "string", "tags": "string", "price": "float", "clicked": "int"}
    data = DataConfig.model_validate(
        {
            "path": str(folder / "*.parquet"),
            "columns": types,
            "split": {"by": "file", "files": {"train": "train*", "test": "test*"}},
            **settings,
        }
    )
    lines = [] if told is None else told
    return build("clicks", data, FEATURES, Store(folder / "store"), lambda t, *_: lines.append(t))


def versions(folder: Path) -> int:
    store = Store(folder / "store")
    return len(store.history("clicks")) if store.exists("clicks") else 0


def test_what_is_beyond_a_limit_is_refused_and_named(tmp_path: Path) -> None:
    frame = rows(
        city=["a", None] * 40 + ["z"] * 20,
        tags=["x"] * 70 + [""] * 30,
        price=[None] * 40 + [1.0, float("nan")] * 30,
    )
    checks = {
        "*": {"missing": {"warn": 0.1, "fail": 0.4}},
        "city": {"unseen": {"fail": 0.5}, "min_distinct": {"fail": 2, "warn": 5}},
        "clicked": {"label_rate": {"fail": [0.3, 0.5]}},
    }
    with pytest.raises(ChecksFailed) as failed:
        built(tmp_path, frame, checks=checks)
    lines = str(failed.value).splitlines()
    assert "so no version was written" in lines[0]
    assert {line.strip() for line in lines[1:]} == {
        "city in train: share missing is 0.5, allowed at most 0.4",
        "city in train: number of distinct values is 1, allowed at least 2",
        "city in test: share unseen is 1, allowed at most 0.5",
        "tags in test: share missing is 1, allowed at most 0.4",
        # 40 nulls and 20 NaN of 80 rows
        "price in train: share missing is 0.75, allowed at most 0.4",
        "price in test: share missing is 0.5, allowed at most 0.4",
        "clicked in train: rate is 0.25, allowed 0.3 to 0.5",
        "clicked in test: rate is 0.25, allowed 0.3 to 0.5",
    }
    assert versions(tmp_path) == 0
    store = tmp_path / "store" / "clicks"
    assert not list((store / ".building").iterdir())
    assert not list(store.glob("builds/*"))


def test_what_is_worth_a_warning_is_told_and_kept(tmp_path: Path) -> None:
    frame = rows(city=["a", "b", "b", None] * 25)
    checks = {"city": {"missing": {"warn": 0.1, "fail": 0.5}}}
    result = built(tmp_path, frame, checks=checks)
    warnings = (
        "city in train: share missing is 0.25, allowed at most 0.1",
        "city in test: share missing is 0.25, allowed at most 0.1",
    )
    assert result.warnings == warnings
    opened = Store(tmp_path / "store").open("clicks")
    assert tuple(opened.metadata["warnings"]) == warnings
    kept = load(opened.folder)
    assert kept is not None
    assert kept.splits["train"].feature("city").missing == 0.25


def test_warnings_are_told_while_building(tmp_path: Path) -> None:
    told: list[str] = []
    checks = {"city": {"missing": {"warn": 0.1}}}
    built(tmp_path, rows(city=["a", None] * 50), told, checks=checks)
    assert "city in train: share missing is 0.5, allowed at most 0.1" in told


def test_drift_from_the_latest_version_is_refused(tmp_path: Path) -> None:
    checks = {"*": {"psi": {"fail": 0.25}}}
    first = built(tmp_path, rows(), checks=checks)  # nothing to compare with
    assert not first.warnings
    with pytest.raises(ChecksFailed, match=r"city since clicks@0: psi is") as failed:
        built(tmp_path, rows(city=["a", "c"] * 50), checks=checks)
    expected = psi(*(pl.Series(c).cast(pl.Float64).to_numpy() for c in ([0, 50, 50], [50, 50, 0])))
    assert f"psi is {expected:.4g}, allowed at most 0.25" in str(failed.value)
    assert str(failed.value).count("\n") == 1
    assert versions(tmp_path) == 1
    assert built(tmp_path, rows(), checks=checks).version.number == 0


def test_drift_below_the_limit_is_kept_with_the_version(tmp_path: Path) -> None:
    checks = {"*": {"psi": {"fail": 25}, "affected": {"warn": 0.1}}}
    built(tmp_path, rows(), checks=checks)
    second = built(tmp_path, rows(tags=["x|y"] * 40 + ["x|y|z"] * 60), checks=checks)
    assert second.warnings == (
        # All had two: 1 before and 0.4 now, and those with three 0 before and 0.6 now.
        "tags (lengths) since clicks@0: affected is 1, allowed at most 0.1",
        "tags since clicks@0: affected is 0.1154, allowed at most 0.1",
    )
    text = (second.version.folder / DRIFT_FILE).read_text()
    assert Drift.model_validate_json(text).feature("tags", "values").new is not None


def test_what_chance_gives_is_not_held_against_a_build(tmp_path: Path) -> None:
    checks = {"*": {"psi": {"fail": 0.001}}}
    built(tmp_path, rows(), checks=checks)
    moved = rows(city=["a", "b"] * 45 + ["a"] * 10)
    assert built(tmp_path, moved, checks=checks).version.number == 1


def test_a_version_that_is_there_is_checked_again(tmp_path: Path) -> None:
    frame = rows(city=["a", None] * 50)
    built(tmp_path, frame)
    with pytest.raises(ChecksFailed, match=r"found in clicks@0, which was built before"):
        built(tmp_path, frame, checks={"city": {"missing": {"fail": 0.1}}})
    again = built(tmp_path, frame, checks={"city": {"missing": {"warn": 0.1}}})
    assert (again.reused, again.version.number, len(again.warnings)) == (True, 0, 2)


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({"citty": {"missing": {"fail": 0.1}}}, r"'citty' is no feature.*did you mean 'city'"),
        ({"city": {"label_rate": {"fail": [0, 1]}}}, r"label_rate is asked of labels \(clicked\)"),
        ({"clicked": {"unseen": {"fail": 0.1}}}, "unseen is asked of features"),
    ],
)
def test_checks_of_what_is_not_there_are_refused_at_once(
    tmp_path: Path, checks: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        built(tmp_path, rows(), checks=checks)
    assert versions(tmp_path) == 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"missing": {}}, "give warn, fail or both"),
        ({"missing": {"warn": 0.5, "fail": 0.1}}, "it never warns"),
        ({"min_distinct": {"warn": 5, "fail": 10}}, "it never warns"),
        ({"label_rate": {"fail": [0.5, 0.1]}}, "lowest, highest"),
        ({"mising": {"fail": 0.1}}, "mising"),
    ],
)
def test_limits_that_make_no_sense_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ColumnChecks.model_validate(asked)
