"""Builds that leak are refused: each leak is planted, and what is honest is let through."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from feature_store import windows
from feature_store.features import (
    Bag,
    Categorical,
    FeatureSet,
    History,
    Label,
    Numeric,
    Sequence,
)
from feature_store.store import Store, VersionNotFound
from pipelines.build import BuildResult, build
from pipelines.leakage import Leak, LeakageConfig, check_columns, check_rates
from pipelines.sources import DataConfig

COLUMNS = {"user": "string", "item": "string", "price": "float", "time": "int", "clicked": "int"}
USER_CLICKS = {
    "name": "clicks",
    "rows": True,
    "by": "user",
    "counters": [{"name": "clicks_1h", "window": "1h", "where": "clicked"}],
}


def log(num_rows: int = 1200, seed: int = 0, **columns: Any) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "user": [f"u{i}" for i in random.integers(0, 200, num_rows)],
            "item": [f"i{i}" for i in random.integers(0, 15, num_rows)],
            "price": random.normal(size=num_rows),
            "time": np.arange(num_rows) * 5000,
            "clicked": random.integers(0, 2, num_rows),
        }
    )
    return frame.with_columns(**columns)


def built(
    folder: Path, frame: pl.DataFrame, inputs: tuple, extra: str | None = None, **changes: Any
) -> BuildResult:
    frame.write_csv(folder / "log.csv")
    columns = COLUMNS | ({extra: "float"} if extra else {})
    values = {"path": str(folder / "log.csv"), "columns": columns, "split": {"by": "time"}}
    features = FeatureSet(
        inputs=inputs, labels=(Label(name="clicked"),), timestamp="time", group="user"
    )
    data = DataConfig.model_validate({**values, **changes})
    return build("clicks", data, features, Store(folder / "store"))


HONEST = (Categorical(name="user"), Categorical(name="item"), Numeric(name="price"))


def refused(folder: Path, message: str, *args: Any, **options: Any) -> None:
    with pytest.raises(Leak, match=message):
        built(folder, *args, **options)
    with pytest.raises(VersionNotFound):
        Store(folder / "store").open("clicks")


def test_a_column_that_is_the_label_plus_noise_is_refused_unless_allowed(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    noisy = pl.col("clicked") + pl.Series(random.normal(scale=0.1, size=1200))
    inputs = (*HONEST, Numeric(name="after", standardize=True))
    message = (
        r"the feature 'after' alone foretells 'clicked' with an AUC of (1\.0|0\.99)\d* on \d+ rows"
        r".*max_auc = 0\.99.*leave it out.*allow: \[after\]"
    )
    refused(tmp_path, message, log(after=noisy), inputs, "after")
    allowed = built(tmp_path, log(after=noisy), inputs, "after", leakage={"allow": ["after"]})
    assert allowed.version.rows["train"] == 960
    off = built(tmp_path, log(after=noisy), inputs, "after", leakage={"max_auc": None})
    assert off.version.rows["train"] == 960


@pytest.mark.parametrize("kind", ["buckets", "categorical", "bag", "sequence"])
def test_the_answer_is_seen_in_every_form(tmp_path: Path, kind: str) -> None:
    answer = pl.when(pl.col("clicked") == 1).then(pl.lit("i1")).otherwise(pl.lit("i2"))
    frame = log(item=answer if kind != "buckets" else pl.col("item"))
    inputs = {
        "buckets": (Numeric(name="leak", source="price", num_buckets=50),),
        "categorical": (Categorical(name="leak", source="item"),),
        "bag": (Bag(name="leak", source="item"),),
        "sequence": (
            Categorical(name="other", source="user"),
            Sequence(name="leak", of="other", source="item"),
        ),
    }[kind]
    if kind == "buckets":
        frame = frame.with_columns(price=pl.col("clicked") * 2.0 + pl.col("price").clip(-0.4, 0.4))
    if kind == "sequence":
        frame = frame.with_columns(user=answer)
    message = "the feature '(leak|other)' alone foretells"
    refused(tmp_path, message, frame, inputs)


def test_honest_features_and_windows_over_past_clicks_are_let_through(tmp_path: Path) -> None:
    inputs = (
        *HONEST,
        Numeric(name="clicks_1h"),
        Sequence(name="past", of="item", history=History(by="user", where="clicked")),
    )
    result = built(tmp_path, log(), inputs, events=[USER_CLICKS])
    assert sum(result.version.rows.values()) == 1200


def test_a_counter_that_counts_the_click_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "_before", windows._not_after)
    inputs = (*HONEST, Numeric(name="clicks_1h"))
    refused(tmp_path, "'clicks_1h' alone foretells 'clicked'", log(), inputs, events=[USER_CLICKS])


def test_a_feature_that_reads_the_label_is_refused_unless_allowed() -> None:
    features = FeatureSet(
        inputs=(Categorical(name="item"), Numeric(name="stars", source="rating")),
        labels=(Label(name="liked", source="rating", threshold=4),),
    )
    message = r"'stars' reads 'rating', the column of the label 'liked'.*allow: \[stars\]"
    with pytest.raises(Leak, match=message):
        check_columns(features, LeakageConfig())
    check_columns(features, LeakageConfig(allow=("stars",)))


def test_a_build_with_such_a_feature_does_not_begin(tmp_path: Path) -> None:
    inputs = (*HONEST, Categorical(name="told", source="clicked"))
    refused(tmp_path, "'told' reads 'clicked'", log(), inputs)


@pytest.mark.parametrize(
    ("split", "by"), [({"by": "random"}, "user"), ({"by": "user"}, "item")], ids=["random", "user"]
)
def test_tested_rows_before_those_trained_on_are_refused(
    tmp_path: Path, split: dict, by: str
) -> None:
    events = [{**USER_CLICKS, "by": by}]
    inputs = (*HONEST, Numeric(name="clicks_1h"))
    message = r"'clicks': the (test|valid) rows begin at \d+, before the last training row \(\d+\)"
    refused(tmp_path, message, log(), inputs, events=events, split=split)
    allowed = {"allow": ["clicks"]}
    assert built(tmp_path, log(), inputs, events=events, split=split, leakage=allowed)


def test_a_users_own_events_fit_a_split_by_user(tmp_path: Path) -> None:
    inputs = (*HONEST, Numeric(name="clicks_1h"))
    assert built(tmp_path, log(), inputs, events=[USER_CLICKS], split={"by": "user"})


def test_a_split_at_random_without_windows_stays_as_it_is(tmp_path: Path) -> None:
    assert built(tmp_path, log(), HONEST, events=[USER_CLICKS], split={"by": "random"})


def encoded(folder: Path, **columns: np.ndarray) -> list[tuple[str, Path]]:
    frame = pl.DataFrame(columns).with_columns(pl.col("clicked").cast(pl.Float32))
    half = len(frame) // 2
    files = []
    for split, part in (("train", frame[:half]), ("test", frame[half:])):
        path = folder / f"{split}.parquet"
        part.write_parquet(path, row_group_size=400)
        files.append((split, path))
    return files


def test_the_auc_is_that_of_rates_of_values_on_rows_that_they_were_not_learnt_from(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(3)
    value = random.integers(0, 8, 4000)
    clicked = random.random(4000) < value / 7
    files = encoded(tmp_path, item=value, clicked=clicked)
    features = FeatureSet(inputs=(Categorical(name="item"),), labels=(Label(name="clicked"),))
    train = slice(800, 2000)  # whole groups of 400 rows from the middle on
    rates = {v: clicked[train][value[train] == v].mean() for v in range(8)}
    test = slice(2800, 4000)
    expected = roc_auc_score(clicked[test], [rates[v] for v in value[test]])
    with pytest.raises(Leak) as error:
        check_rates(files, features, LeakageConfig(max_auc=0.6))
    assert f"an AUC of {expected:.3f}"[:-1] in str(error.value)


def test_few_rows_of_a_label_judge_nothing(tmp_path: Path) -> None:
    clicked = np.zeros(4000, bool)
    clicked[::101] = True
    features = FeatureSet(inputs=(Categorical(name="item"),), labels=(Label(name="clicked"),))
    check_rates(encoded(tmp_path, item=clicked + 2, clicked=clicked), features, LeakageConfig())
