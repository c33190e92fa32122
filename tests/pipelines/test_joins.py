"""Side tables add their columns by key; what is wrong with their keys is told."""

from pathlib import Path

import polars as pl
import pytest
from support.raw import HEADER, read_raw

from feature_store.features import Categorical, FeatureSet, Label
from pipelines.rejection import TooManyRejected
from pipelines.sources import Source

FEATURES = FeatureSet(
    inputs=(Categorical(name="user"), Categorical(name="city")), labels=(Label(name="clicked"),)
)

IN_MEMORY = "0.0 0.3 1.0"
"""The colour of the nodes of Polars' plans that hold all rows in memory."""


def joined(
    folder: Path, side: pl.DataFrame, key: str = "string", allowed: float = 0.01
) -> tuple[list[tuple[object, ...]], Source]:
    side.write_parquet(folder / "users.parquet")
    (folder / "log.csv").write_text(HEADER.replace("price,", "") + "1,1\n2,0\n,1\n1,0\n")
    join = {
        "path": str(folder / "users.parquet"),
        "on": "user",
        "columns": {"user": key, "city": "string"},
    }
    columns = {"user": key, "clicked": "int"}
    return read_raw(
        folder,
        folder / "log.csv",
        FEATURES,
        columns=columns,
        joins=[join],
        max_rejected=allowed,
    )


def test_rows_of_a_side_table_without_a_key_are_kept_aside(tmp_path: Path) -> None:
    side = pl.DataFrame({"user": ["1", None, "3", None], "city": ["Rom", "Ulm", "Bern", "Bonn"]})
    rows, source = joined(tmp_path, side, allowed=0.5)
    assert [row[1:] for row in rows] == [
        ("1", 1, "Rom"),
        ("2", 0, None),
        (None, 1, None),
        ("1", 0, "Rom"),
    ]
    assert [(r.line, r.reason) for r in source.side_rejections] == [
        (2, "the key 'user' is missing"),
        (4, "the key 'user' is missing"),
    ]
    assert '"Ulm"' in source.side_rejections[0].content
    assert list(source.unmatched.values()) == [2]


def test_too_many_rows_without_a_key_are_an_error(tmp_path: Path) -> None:
    side = pl.DataFrame({"user": ["1", None], "city": ["Rom", "Ulm"]})
    with pytest.raises(TooManyRejected, match=r"users\.parquet:2: the key 'user' is missing"):
        joined(tmp_path, side)


def test_a_key_that_is_not_a_number_is_none(tmp_path: Path) -> None:
    side = pl.DataFrame({"user": [1.0, float("nan"), float("nan")], "city": ["Rom", "Ulm", "Bern"]})
    rows, source = joined(tmp_path, side, "float", allowed=0.9)
    assert [row[3] for row in rows] == ["Rom", None, None, "Rom"]
    assert [r.line for r in source.side_rejections] == [2, 3]


def test_a_key_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    side = pl.DataFrame({"user": [1, 2, 1], "city": ["Rom", "Ulm", "Bern"]})
    with pytest.raises(ValueError, match="'user' is to name one row, but 1 names 2; 1 keys are"):
        joined(tmp_path, side, "int")


def test_the_rows_stream_past_the_side_table(tmp_path: Path) -> None:
    side = pl.DataFrame({"user": ["1", "3"], "city": ["Rom", "Bern"]})
    _, source = joined(tmp_path, side)
    plan = source.frame.show_graph(
        engine="streaming", plan_stage="physical", raw_output=True, show=False
    )
    assert plan is not None
    assert "equi-join" in plan
    assert f'fillcolor="{IN_MEMORY}"' not in plan
