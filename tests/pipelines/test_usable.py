"""Rows whose lists do not fit each other are put aside, with the reason; builds with such lists."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_store.columns import SchemaMismatch
from feature_store.features import (
    ROW_COLUMN,
    SPLITS,
    Bag,
    Categorical,
    Cross,
    FeatureSet,
    History,
    Label,
    Sequence,
    Text,
)
from feature_store.store import Store
from pipelines.build import build
from pipelines.sources import DataConfig
from pipelines.usable import unusable

FEATURES = FeatureSet(
    inputs=(
        Categorical(name="item", side="item"),
        Bag(name="tags", weights="strength"),
        Sequence(
            name="past", of="item", max_length=3, gaps=20, weights="dwell",
            history=History(by="user"),
        ),
        Cross(name="tagged", of=("tags", "item")),
        Text(name="title", num_buckets=50),
    ),
    labels=(Label(name="clicked"),),
    timestamp="time",
)  # fmt: skip
COLUMNS = {
    "user": "string", "item": "string", "tags": "list<string>", "strength": "list<float>",
    "dwell": "float", "title": "string", "time": "int", "clicked": "int",
}  # fmt: skip


def log(num_rows: int = 60) -> pl.DataFrame:
    random = np.random.default_rng(0)
    lengths = random.integers(0, 4, num_rows)
    return pl.DataFrame(
        {
            "user": [f"u{i}" for i in random.integers(0, 4, num_rows)],
            "item": [f"i{i}" for i in random.integers(0, 6, num_rows)],
            "tags": [[f"t{i}" for i in random.integers(0, 5, n)] for n in lengths],
            "strength": [random.random(n).round(3).tolist() for n in lengths],
            "dwell": random.random(num_rows).round(3),
            "title": ["a title" for _ in range(num_rows)],
            "time": 1000 + random.permutation(num_rows) * 7,
            "clicked": random.integers(0, 2, num_rows),
        },
        schema_overrides={"tags": pl.List(pl.String), "strength": pl.List(pl.Float64)},
    )


def built(folder: Path, frame: pl.DataFrame, **changes: object):
    frame.write_parquet(folder / "log.parquet")
    values = {"path": str(folder / "log.parquet"), "columns": COLUMNS, "split": {"by": "time"}}
    data = DataConfig.model_validate(values | changes)
    return build("lists", data, FEATURES, Store(folder / "store"))


@pytest.mark.parametrize(
    ("change", "column", "reason"),
    [
        ({"strength": [1.0]}, "strength",
         "weights of 'tags': expected as many as there are values in 'tags'"),
        ({"strength": None}, "strength", "expected as many as there are values in 'tags'"),
        ({"strength": [1.0, -0.5]}, "strength",
         "weights of 'tags': expected finite numbers that are not negative"),
        ({"strength": [1.0, float("nan")]}, "strength", "expected finite numbers"),
        ({"dwell": -1.0}, "dwell",
         "weights of 'past': expected a finite number that is not negative, found -1.0"),
        ({"dwell": None}, "dwell", "not negative, found nothing"),
    ],
)  # fmt: skip
def test_a_row_whose_weights_are_none_is_put_aside(change, column, reason):
    good = {"tags": ["x", "y"], "strength": [1.0, 0.0], "dwell": 2.0, "clicked": 1, "time": 5}
    schema = {**log().schema, "time": pl.Int64(), ROW_COLUMN: pl.Int64()}
    rows = [{**dict.fromkeys(schema), **good, ROW_COLUMN: number} for number in range(3)]
    rows[1] |= change
    frame = pl.LazyFrame(rows, schema=schema)
    found = unusable(frame, FEATURES, lambda row: ("clicks.csv", row + 2))
    assert set(found) == {1}
    assert (found[1].file, found[1].line) == ("clicks.csv", 3)
    assert reason in found[1].reason
    assert found[1].reason.endswith(f" in {column!r}")


def test_a_build_puts_such_rows_aside_and_gathers_weights_and_gaps(tmp_path: Path) -> None:
    """Histories against a loop over the log's rows in the order of their times."""
    frame = log().with_row_index("row")
    bad = frame["row"] == 11
    broken = frame.with_columns(
        dwell=pl.when(bad).then(-2.0).otherwise(pl.col("dwell")),
    ).drop("row")
    result = built(tmp_path, broken, max_rejected=0.05)
    assert result.rows_rejected == 1
    version = result.version
    item_ids = {v: i + 2 for i, v in enumerate(version.fitted.vocabularies["item"])}
    expected = []
    known: dict[str, list[tuple]] = defaultdict(list)
    for row in frame.filter(~bad).sort("time").iter_rows(named=True):
        past = known[row["user"]][-3:]
        gaps = [2 + min(19, int(np.log2(row["time"] - time + 1))) for _, _, time in past]
        expected.append(
            {
                "__timestamp": row["time"],
                "past": [item_ids.get(item, 1) for item, _, _ in past],
                "past__weight": np.float32([weight for _, weight, _ in past]).tolist(),
                "past__gap": gaps,
                "tags__weight": np.float32(row["strength"]).tolist(),
            }
        )
        known[row["user"]].append((row["item"], row["dwell"], row["time"]))
    found = pl.concat([version.scan(split) for split in SPLITS]).sort("__timestamp").collect()
    assert found.select(expected[0].keys()).to_dicts() == expected
    assert found["tags__weight"].list.len().equals(found["tags"].list.len())
    names = [column.name for column in version.fitted.columns]
    assert names == [
        "item", "tags", "strength", "past", "past__weight", "past__time", "time", "title",
    ]  # fmt: skip
    sample = version.raw_sample()
    again = version.fitted.encode(sample.lazy()).collect()
    last = version.scan("test").select(again.columns).head(len(again)).collect()
    assert again.equals(last)
    json.loads((version.folder / "features" / "features.json").read_text())


def test_a_weight_column_of_texts_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    frame = log().with_columns(strength=pl.lit("1.0"))
    with pytest.raises(SchemaMismatch, match="declare the column as list<float>"):
        built(tmp_path, frame, columns={**COLUMNS, "strength": "string"})


def test_more_distinct_values_than_allowed_are_an_error_that_writes_nothing(tmp_path: Path) -> None:
    inputs = tuple(
        feature.model_copy(update={"max_distinct": 5}) if feature.name == "item" else feature
        for feature in FEATURES.inputs
    )
    log().write_parquet(tmp_path / "log.parquet")
    data = DataConfig.model_validate(
        {"path": str(tmp_path / "log.parquet"), "columns": COLUMNS, "split": {"by": "time"}}
    )
    store = Store(tmp_path / "store")
    features = FEATURES.model_copy(update={"inputs": inputs})
    message = r"feature 'item': the training split has 6 distinct values, more than max_distinct"
    with pytest.raises(ValueError, match=message):
        build("lists", data, features, store)
    assert not store.exists("lists")
