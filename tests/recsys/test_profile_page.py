"""The page on a version: its sections and numbers, what is escaped, that nothing is fetched."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from support.versions import write

from feature_store.document import read_json
from feature_store.features import (
    SPLIT_COLUMN,
    Bag,
    Categorical,
    DatePart,
    FeatureSet,
    Label,
    Numeric,
)
from feature_store.version import Version
from recsys import cli
from recsys.evaluation.profiled import look_at

FEATURES = FeatureSet(
    inputs=(
        Categorical(name="user", encoding="hash"),
        Categorical(name="city"),
        Bag(name="tags", separator="|"),
        Numeric(name="price", indicator=True),
        DatePart(name="hour", source="time", part="hour"),
    ),
    labels=(Label(name="clicked"),),
    timestamp="time",
)
EVIL = "</script><b>Oslo"


def raw_rows(evil: int, num_rows: int = 1200) -> pl.DataFrame:
    random = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "user": [f"u{i}" for i in random.integers(0, 30, num_rows)],
            "city": [EVIL] * evil + ["Rome"] * (num_rows - evil),
            "tags": ["|".join("abc"[: row % 4]) for row in range(num_rows)],
            "price": [None if row % 5 == 0 else float(row % 7) for row in range(num_rows)],
            "time": [1_600_000_000 + row * 400 for row in range(num_rows)],
            "clicked": random.integers(0, 2, num_rows),
            SPLIT_COLUMN: ["train"] * (num_rows - 200) + ["test"] * 200,
        }
    )


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Version, Version]:
    folder = tmp_path_factory.mktemp("store")
    first = write(folder, raw_rows(evil=300), FEATURES, "first")
    return first, write(folder, raw_rows(evil=900), FEATURES, "second")


def page(found: Any, folder: Path) -> tuple[str, dict[str, Any]]:
    """The page's text without its libraries, and its figures."""
    path = folder / "page.html"
    found.write(path, None)
    text = path.read_text()
    body = text[text.index("<body>") : text.index('<script type="application/json"')]
    data = re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    return body, json.loads(data[1])["figures"]


def test_every_feature_has_a_box_and_splits_are_compared(
    versions: tuple[Version, Version], tmp_path: Path
) -> None:
    body, figures = page(look_at(versions[0]), tmp_path)
    for name in ("user", "city", "tags", "price", "hour"):
        assert f"<figcaption>{name}</figcaption>" in body
    assert "From train to test" in body
    bars = [figure["data"][0] for figure in figures.values()]
    assert any(bar["x"] == [0.3, 0.7] for bar in bars)  # of 1,000 training rows
    price = look_at(versions[0]).profile.splits["train"].feature("price")
    assert price.missing == 0.2


def test_text_of_the_data_is_escaped_and_nothing_is_fetched(
    versions: tuple[Version, Version], tmp_path: Path
) -> None:
    body, figures = page(look_at(versions[1], against=versions[0]), tmp_path)
    assert "<b>Oslo" not in body
    assert "&lt;b&gt;Oslo" in body
    labels = [text for f in figures.values() for text in f["layout"]["yaxis"].get("ticktext", [])]
    assert any("Oslo" in label for label in labels)
    assert not any("<" in label for label in labels)
    assert not re.search(r'(src|href)="', body)
    text = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in text


def test_versions_are_compared_from_the_older_to_the_newer(
    versions: tuple[Version, Version], tmp_path: Path
) -> None:
    found = look_at(versions[1], against=versions[0])
    body, _ = page(found, tmp_path)
    assert "From clicks@0 to clicks@1" in body
    changed = found.drifts[0].feature("city")
    # 300 and 900 of 1,200: 1/4 to 3/4, a factor of 3
    assert changed.affected == pytest.approx(1.0)
    only_test = look_at(versions[1], against=versions[0], split="test").drifts[0]
    assert (only_test.reference_rows, only_test.current) == (200, "clicks@1 test")


def test_days_are_drawn(versions: tuple[Version, Version], tmp_path: Path) -> None:
    found = look_at(versions[0], by_day=True)
    body, figures = page(found, tmp_path)
    assert "Day by day" in body
    assert found.days is not None
    heat = next(f for f in figures.values() if f["data"][0]["type"] == "heatmap")
    assert len(heat["data"][0]["x"]) == len(found.days.days)
    assert len(heat["data"][0]["z"]) == len(heat["data"][0]["y"])


def test_two_comparisons_at_once_are_refused(versions: tuple[Version, Version]) -> None:
    with pytest.raises(ValueError, match="choose one"):
        look_at(versions[1], against=versions[0], by_day=True)
    with pytest.raises(ValueError, match="--against"):
        look_at(versions[1], split="train")


def test_the_command_writes_a_page_and_all_numbers(
    versions: tuple[Version, Version], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = versions[0].path.parent
    html, numbers = tmp_path / "a" / "page.html", tmp_path / "numbers.json"
    arguments = ["features", "profile", "clicks@1", "--against", "clicks@0", "--store", str(store)]
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--html", str(html), "--json", str(numbers)])
    assert end.value.code == 0
    said = capsys.readouterr()
    assert "Drift from clicks@0 to clicks@1" in said.out + said.err
    assert html.is_file()
    document = read_json(numbers)
    assert document["version"] == "clicks@1"
    assert document["profile"]["splits"]["train"]["rows"] == 1000
    assert document["drift"][0]["features"][0]["name"] == "city"


def test_a_version_that_is_not_there_is_the_users_to_mend(
    versions: tuple[Version, Version], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["features", "profile", "clicks@7", "--store", str(versions[0].path.parent)])
    assert end.value.code == 2
    assert "no version 7" in capsys.readouterr().err
