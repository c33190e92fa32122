"""From raw files to a version: what is built, what is found again, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from feature_store.features import (
    SPLIT_COLUMN,
    SPLITS,
    Categorical,
    FeatureSet,
    History,
    Label,
    Numeric,
    Sequence,
)
from feature_store.selection import SCHEMA, SelectionMismatch
from feature_store.store import Store
from pipelines.build import BuildResult, build
from pipelines.identity import SourceChanged
from pipelines.rejection import TooManyRejected
from pipelines.sources import DataConfig

FEATURES = FeatureSet(
    inputs=(
        Categorical(name="user", side="user"),
        Categorical(name="item", side="item"),
        Numeric(name="price", standardize=True),
        Sequence(name="clicked_items", of="item", max_length=3, history=History(by="user")),
    ),
    labels=(Label(name="clicked"),),
    group="user",
    timestamp="time",
)
COLUMNS = {"user": "string", "item": "string", "price": "float", "time": "int", "clicked": "int"}


def log(num_rows: int = 400, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": [f"u{i}" for i in random.integers(0, 20, num_rows)],
            "item": [f"i{i}" for i in random.integers(0, 15, num_rows)],
            "price": random.lognormal(size=num_rows).round(3),
            "time": random.permutation(num_rows) + 1000,
            "clicked": random.integers(0, 2, num_rows),
        }
    )


def config(folder: Path, frame: pl.DataFrame | None = None, **changes: Any) -> DataConfig:
    path = folder / "log.csv"
    if frame is not None:
        frame.write_csv(path)
    values = {"path": str(path), "columns": COLUMNS, "split": {"by": "time"}, **changes}
    return DataConfig.model_validate(values)


def built(folder: Path, data: DataConfig, features: FeatureSet = FEATURES) -> BuildResult:
    return build("clicks", data, features, Store(folder / "store"))


def test_a_version_holds_every_row_encoded_by_what_was_fitted_to_the_training_rows(
    tmp_path: Path,
) -> None:
    raw = log()
    result = built(tmp_path, config(tmp_path, raw))
    version = result.version
    assert (result.reused, result.rows_in, result.rows_rejected) == (False, 400, 0)
    assert version.rows == {"train": 320, "valid": 40, "test": 40}

    train = raw.filter(pl.col("time") < 1320)
    mean, std = train["price"].mean(), train["price"].std(ddof=0)
    items = train["item"].value_counts().sort("count", "item", descending=[True, False])["item"]
    ids = {item: place + 2 for place, item in enumerate(items)}
    for split, bounds in zip(SPLITS, [(1000, 1320), (1320, 1360), (1360, 1400)], strict=True):
        got = version.scan(split).collect()
        mine = raw.filter(pl.col("time").is_between(*bounds, closed="left"))
        assert got["__timestamp"].to_list() == mine["time"].to_list()
        assert got["item"].to_list() == [ids.get(item, 1) for item in mine["item"]]
        assert np.allclose(got["price"], (mine["price"] - mean) / std, atol=1e-5)
        assert got["clicked"].to_list() == mine["clicked"].to_list()
        for user, time, past in zip(mine["user"], mine["time"], got["clicked_items"], strict=True):
            earlier = raw.filter((pl.col("user") == user) & (pl.col("time") < time)).sort("time")
            assert past.to_list() == [ids.get(item, 1) for item in earlier["item"][-3:]]


def test_a_version_tells_where_it_comes_from(tmp_path: Path) -> None:
    import hashlib

    version = built(tmp_path, config(tmp_path, log())).version
    [source] = version.metadata["sources"]
    content = (tmp_path / "log.csv").read_bytes()
    assert source["sha256"] == hashlib.sha256(content).hexdigest()
    assert source["size_bytes"] == len(content)
    assert source["path"] == str(tmp_path / "log.csv")
    assert version.metadata["rows_in"] == 400
    assert version.metadata["libraries"]["polars"] == pl.__version__


def test_a_sample_of_raw_rows_encodes_to_the_rows_of_the_last_split(tmp_path: Path) -> None:
    version = built(tmp_path, config(tmp_path, log())).version
    again = version.fitted.encode(version.raw_sample().lazy()).collect()
    assert again.equals(version.scan("test").select(again.columns).collect())
    assert len(again) == 40


def test_an_unchanged_build_is_found_and_every_change_builds_anew(tmp_path: Path) -> None:
    raw = log()
    first = built(tmp_path, config(tmp_path, raw))
    assert built(tmp_path, config(tmp_path)).reused
    (tmp_path / "log.csv").touch()
    assert built(tmp_path, config(tmp_path)).reused
    moved = tmp_path / "elsewhere.csv"
    (tmp_path / "log.csv").rename(moved)
    found = built(tmp_path, config(tmp_path, path=str(moved)))
    assert (found.reused, found.version.number) == (True, first.version.number)

    changed = raw.with_columns(price=pl.col("price") + 1)
    assert not built(tmp_path, config(tmp_path, changed)).reused
    assert not built(tmp_path, config(tmp_path, split={"by": "random"})).reused
    fewer = FEATURES.model_copy(update={"inputs": FEATURES.inputs[:3]})
    assert not built(tmp_path, config(tmp_path), fewer).reused
    assert len(Store(tmp_path / "store").history("clicks")) == 4
    again = built(tmp_path, config(tmp_path, raw))
    assert (again.reused, again.version.number) == (True, first.version.number)


def test_a_file_of_the_same_size_and_another_content_is_not_taken_for_the_old_one(
    tmp_path: Path,
) -> None:
    built(tmp_path, config(tmp_path, log()))
    path = tmp_path / "log.csv"
    text = path.read_text()
    path.write_text(text.replace("u1,", "u2,"))
    assert not built(tmp_path, config(tmp_path)).reused


def test_equal_builds_are_equal_to_the_bit(tmp_path: Path) -> None:
    versions = []
    for store in ("one", "two"):
        (tmp_path / store).mkdir()
        versions.append(built(tmp_path / store, config(tmp_path, log())).version)
    one, two = versions
    assert one.fingerprint == two.fingerprint
    assert one.fitted.fingerprint == two.fitted.fingerprint
    for split in SPLITS:
        assert one.scan(split).collect().equals(two.scan(split).collect())


def test_few_bad_rows_are_kept_aside_with_their_reason(tmp_path: Path) -> None:
    log().write_csv(tmp_path / "log.csv")
    with (tmp_path / "log.csv").open("a") as file:
        file.write("u1,i1,cheap,2000,1\nu1,i1,1.0,2001,3\n")
    result = built(tmp_path, config(tmp_path))
    assert (result.rows_in, result.rows_rejected) == (402, 2)
    assert sum(result.version.rows.values()) == 400
    assert result.rejected_path is not None
    kept = pl.read_csv(result.rejected_path)
    assert kept["line"].to_list() == [402, 403]
    assert kept["file"].unique().to_list() == [str(tmp_path / "log.csv")]
    assert kept["reason"].to_list() == [
        "column 'price': expected a float, found 'cheap'",
        "label 'clicked': expected 0 or 1, found 3 in 'clicked'",
    ]
    assert result.version.metadata["rejected_reasons"] == {
        "price: not a float": 1,
        "label 'clicked': not 0 or 1": 1,
    }
    again = built(tmp_path, config(tmp_path))
    assert (again.reused, again.rows_rejected) == (True, 2)
    assert again.rejected_path == result.rejected_path


def test_too_many_bad_rows_are_an_error_that_keeps_them_and_writes_no_version(
    tmp_path: Path,
) -> None:
    log().with_columns(price=pl.lit("cheap")).write_csv(tmp_path / "log.csv")
    with pytest.raises(TooManyRejected) as error:
        built(tmp_path, config(tmp_path))
    message = str(error.value)
    assert "400 of 400 rows (100.00%) cannot be used" in message
    assert "data.max_rejected = 1.00%" in message
    assert "log.csv:2: column 'price': expected a float, found 'cheap'" in message
    assert "and 397 more" in message
    [kept] = (tmp_path / "store" / "clicks" / "rejected").iterdir()
    assert str(kept) in message
    assert len(pl.read_csv(kept)) == 400
    assert not Store(tmp_path / "store").exists("clicks")


def test_more_bad_rows_may_be_allowed(tmp_path: Path) -> None:
    raw = log().with_columns(
        price=pl.when(pl.int_range(400) < 40).then(pl.lit("x")).otherwise("price")
    )
    result = built(tmp_path, config(tmp_path, raw, max_rejected=0.1))
    assert (result.rows_in, result.rows_rejected) == (400, 40)


@pytest.mark.parametrize("only", [0, 1])
def test_one_class_only_is_an_error(tmp_path: Path, only: int) -> None:
    raw = log().with_columns(clicked=pl.lit(only))
    with pytest.raises(
        ValueError, match=rf"'clicked' is {only} in all 320 training rows.*one class"
    ):
        built(tmp_path, config(tmp_path, raw))
    assert not Store(tmp_path / "store").exists("clicks")


def test_a_threshold_that_leaves_one_class_is_named(tmp_path: Path) -> None:
    label = Label(name="dear", source="price", threshold=1e9)
    features = FEATURES.model_copy(update={"labels": (label,)})
    data = config(tmp_path, log(), leakage={"allow": ["price"]})
    with pytest.raises(ValueError, match=r"'dear' is 0 .*check 'price' and the threshold 1e\+09"):
        built(tmp_path, data, features)


FILES = {"by": "file", "files": {"train": "train.*", "valid": "valid.*", "test": "test.*"}}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_are_split_by_their_files_and_only_the_training_files_are_fitted(
    tmp_path: Path, ending: str
) -> None:
    # Rows that cannot be used leave gaps in the numbering; files are read test, train, valid.
    raw = log(300).with_columns(clicked=pl.Series([7, *([0, 1] * 150)])[:300])
    parts = {"train": raw[:200], "valid": raw[200:260], "test": raw[260:]}
    parts["test"] = parts["test"].with_columns(
        item=pl.lit("new"), clicked=pl.Series([5] + [1] * 39)
    )
    for name, part in parts.items():
        if ending == "csv":
            part.write_csv(tmp_path / f"{name}.csv")
        else:
            part.write_parquet(tmp_path / f"{name}.parquet")
    data = config(tmp_path, path=str(tmp_path / f"t*.{ending}"), split=FILES)
    with pytest.raises(ValueError, match=r"split\.files\.valid: 'valid\.\*' fits none of the 2"):
        built(tmp_path, data)
    data = config(tmp_path, path=str(tmp_path / f"*.{ending}"), split=FILES)
    data = data.model_copy(update={"max_rejected": 0.1})
    version = built(tmp_path, data).version
    assert version.rows == {"train": 199, "valid": 60, "test": 39}
    for name in SPLITS:
        times = parts[name].filter(pl.col("clicked") < 2)["time"].to_list()
        assert version.scan(name).collect()["__timestamp"].to_list() == times
    assert version.scan("test").collect()["item"].to_list() == [1] * 39
    prices = version.scan("train").collect()["price"]
    assert prices.mean() == pytest.approx(0, abs=1e-5)
    assert prices.std(ddof=0) == pytest.approx(1, abs=1e-5)


def test_the_names_of_files_count_where_they_decide_the_split(tmp_path: Path) -> None:
    one, two = tmp_path / "1-train.csv", tmp_path / "2-test.csv"
    log(50, seed=1).write_csv(one)
    log(40, seed=2).write_csv(two)
    split = {"by": "file", "files": {"train": "*train*", "test": "*test*"}}
    data = config(tmp_path, path=str(tmp_path / "*.csv"), split=split)
    assert built(tmp_path, data).version.rows == {"train": 50, "valid": 0, "test": 40}
    assert built(tmp_path, data).reused
    one.rename(tmp_path / "1-test.csv")
    two.rename(tmp_path / "2-train.csv")
    swapped = built(tmp_path, data)
    assert not swapped.reused
    assert swapped.version.rows == {"train": 40, "valid": 0, "test": 50}


def test_a_file_that_gives_its_split_no_rows_is_an_error(tmp_path: Path) -> None:
    log().write_csv(tmp_path / "train.csv")
    log().write_csv(tmp_path / "test.csv")
    log()[:0].write_csv(tmp_path / "valid.csv")
    data = config(tmp_path, path=str(tmp_path / "*.csv"), split=FILES)
    with pytest.raises(ValueError, match=r"files\.valid: no usable rows in the files that fit"):
        built(tmp_path, data)


def test_a_split_that_leaves_no_training_rows_is_an_error(tmp_path: Path) -> None:
    data = config(tmp_path, log(), split={"by": "time", "test_from": 0})
    with pytest.raises(ValueError, match=r"no rows for train"):
        built(tmp_path, data)


def test_a_history_longer_than_its_length_keeps_the_most_recent(tmp_path: Path) -> None:
    raw = log().with_columns(user=pl.lit("u1"))
    version = built(tmp_path, config(tmp_path, raw)).version
    lengths = version.scan("train").sort("__timestamp").select(pl.col("clicked_items").list.len())
    assert lengths.collect().to_series().to_list() == [0, 1, 2] + [3] * 317


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    built(tmp_path, config(tmp_path, log()))
    table = tmp_path / "store" / "clicks"
    before = sorted(path for path in table.rglob("*"))
    bad = log().with_columns(clicked=pl.lit(1))
    with pytest.raises(ValueError, match="one class"):
        built(tmp_path, config(tmp_path, bad))
    assert sorted(path for path in table.rglob("*")) == before


def test_a_file_that_changes_while_it_is_read_writes_no_version(tmp_path: Path) -> None:
    data = config(tmp_path, log())

    def append(stage: str, done: int, total: int | None) -> None:
        if stage.startswith("fitting"):
            with (tmp_path / "log.csv").open("a") as file:
                file.write("u1,i1,1.0,2000,1\n")

    with pytest.raises(SourceChanged, match=r"log\.csv was changed while it was read"):
        build("clicks", data, FEATURES, Store(tmp_path / "store"), append)
    assert not Store(tmp_path / "store").exists("clicks")


def test_progress_names_the_stages_and_counts_all_rows(tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    data = config(tmp_path, log())
    build("clicks", data, FEATURES, Store(tmp_path / "store"), lambda *step: told.append(step))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == [
        "identifying log.csv",
        "reading log.csv",
        "gathering histories and splitting",
        "counting rows and labels",
        "fitting features",
        "encoding and writing",
    ]
    assert told[-1] == ("encoding and writing", 400, 400)


def test_parquet_gives_the_same_version_as_text(tmp_path: Path) -> None:
    text = built(tmp_path, config(tmp_path, log())).version
    log().write_parquet(tmp_path / "log.parquet")
    binary = built(tmp_path, config(tmp_path, path=str(tmp_path / "log.parquet"))).version
    for split in SPLITS:
        assert text.scan(split).collect().equals(binary.scan(split).collect())
    assert SPLIT_COLUMN not in text.scan("train").collect_schema()


def test_many_rows_keep_their_order_within_their_split(tmp_path: Path) -> None:
    num_rows = 700_000
    random = np.random.default_rng(0)
    pl.DataFrame(
        {
            "item": random.integers(0, 9, num_rows),
            "time": np.arange(num_rows),
            "clicked": random.integers(0, 2, num_rows),
        }
    ).write_parquet(tmp_path / "log.parquet", row_group_size=50_000)
    features = FeatureSet(
        inputs=(Categorical(name="item"),), labels=(Label(name="clicked"),), timestamp="time"
    )
    data = config(
        tmp_path,
        path=str(tmp_path / "log.parquet"),
        columns={"item": "int", "time": "int", "clicked": "int"},
        split={"by": "random", "test": 0.3, "valid": 0.3},
    )
    version = built(tmp_path, data, features).version
    times = [version.scan(split).select("__timestamp").collect().to_series() for split in SPLITS]
    assert all(column.is_sorted() for column in times)
    assert pl.concat(times).sort().equals(pl.Series("__timestamp", np.arange(num_rows)))


def test_real_criteo_rows_are_read_as_they_stand(tmp_path: Path) -> None:
    path = Path(__file__).parents[3] / "shared" / "data" / "criteo" / "criteo_10k.txt"
    if not path.exists():
        pytest.skip(f"the Criteo sample is not there: {path}")
    counts, categories = [f"I{i + 1}" for i in range(13)], [f"C{i + 1}" for i in range(26)]
    features = FeatureSet(
        inputs=(
            *(Numeric(name=name, indicator=True) for name in counts),
            *(Categorical(name=name) for name in categories),
        ),
        labels=(Label(name="label"),),
    )
    columns = {
        "label": "int",
        **dict.fromkeys(counts, "int"),
        **dict.fromkeys(categories, "string"),
    }
    data = DataConfig.model_validate(
        {
            "path": str(path),
            "format": "tsv",
            "header": False,
            "columns": columns,
            "split": {"by": "random", "test": 0.0, "valid": 0.0},
        }
    )
    result = built(tmp_path, data, features)
    assert (result.rows_in, result.rows_rejected) == (10_000, 0)
    got = result.version.scan("train").collect()
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    for place, name in enumerate(columns):
        texts = [line[place] for line in lines]
        if name == "label":
            assert got["label"].to_list() == [float(text) for text in texts]
        elif name in counts:
            assert got[name].to_list() == [float(text or 0) for text in texts]
            assert got[f"{name}__missing"].to_list() == [float(text == "") for text in texts]
        else:
            vocabulary = result.version.fitted.vocabularies[name].to_list()
            assert [vocabulary[i - 2] if i else "" for i in got[name]] == texts


def selection(path: Path, kept_items: list[str], kept_users: list[str]) -> FeatureSet:
    """The features under a selection of items and users."""
    rows = [("item", f"i{i}", f"i{i}" in kept_items) for i in range(15)]
    rows += [("user", f"u{i}", f"u{i}" in kept_users) for i in range(20)]
    columns = [[row[place] for row in rows] for place in range(3)]
    pl.DataFrame(
        {
            "feature": columns[0],
            "id": range(len(rows)),
            "value": columns[1],
            "gate": [0.0] * len(rows),
            "kept": columns[2],
        },
        schema=SCHEMA,
    ).write_parquet(path)
    return FEATURES.model_copy(update={"selection": path})


def test_values_that_are_not_selected_are_out_of_vocabulary(tmp_path: Path) -> None:
    data, store = config(tmp_path, log()), Store(tmp_path / "store")
    whole = build("all", data, FEATURES, store).version
    features = selection(tmp_path / "selected.parquet", ["i3", "i7"], ["u1"])
    lines: list[str] = []
    version = build(
        "few", data, features, store, on_progress=lambda stage, *_: lines.append(stage)
    ).version
    assert sorted(version.fitted.vocabularies["item"]) == ["i3", "i7"]
    assert "feature 'item': 2 of 15 rows are selected" in lines
    of_all, of_few = whole.scan("train").collect(), version.scan("train").collect()
    places = {value: place + 2 for place, value in enumerate(whole.fitted.vocabularies["item"])}
    for value, place in places.items():
        mine = of_few.filter(of_all["item"] == place)["item"].unique().to_list()
        expected = version.fitted.vocabularies["item"].to_list()
        assert mine == [expected.index(value) + 2 if value in expected else 1]
    assert of_few["clicked_items"].list.len().equals(of_all["clicked_items"].list.len())


def test_a_field_of_which_nothing_is_selected_is_left_out(tmp_path: Path) -> None:
    data, store = config(tmp_path, log()), Store(tmp_path / "store")
    features = selection(tmp_path / "selected.parquet", ["i3"], [])
    lines: list[str] = []
    version = build(
        "few", data, features, store, on_progress=lambda stage, *_: lines.append(stage)
    ).version
    assert [field.name for field in version.layout.ids] == ["item", "clicked_items"]
    assert "user" not in version.scan("train").collect_schema()
    assert "feature 'user': none of 20 rows is selected, left out" in lines
    needed = build("more", data, features, store, needed={"user": "the evaluation reads it"})
    assert len(needed.version.fitted.vocabularies["user"]) == 20


def test_a_selection_counts_by_its_content(tmp_path: Path) -> None:
    data, store = config(tmp_path, log()), Store(tmp_path / "store")
    path, elsewhere = tmp_path / "selected.parquet", tmp_path / "moved.parquet"
    features = selection(path, ["i3"], ["u1"])
    first = build("few", data, features, store)
    path.rename(elsewhere)
    moved = FEATURES.model_copy(update={"selection": elsewhere})
    again = build("few", data, moved, store)
    assert again.reused
    other = build("few", data, selection(path, ["i3", "i4"], ["u1"]), store)
    assert not other.reused
    plain = build("few", data, FEATURES, store)
    assert len({result.version.fingerprint for result in (first, other, plain)}) == 3


def test_a_selection_of_other_features_is_refused(tmp_path: Path) -> None:
    data, store = config(tmp_path, log()), Store(tmp_path / "store")
    features = selection(tmp_path / "selected.parquet", ["i3"], ["u1"])
    fewer = features.model_copy(update={"inputs": (FEATURES.inputs[1],)})
    with pytest.raises(SelectionMismatch, match="chooses from feature 'user'"):
        build("few", data, fewer, store)
