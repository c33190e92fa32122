"""Features of a version in their order: planted useless ones come last."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_store.features import Bag, Categorical, FeatureSet, Label, Numeric
from feature_store.store import Store, Version
from pipelines import ranking
from pipelines.build import build
from pipelines.ranking import batches, rank, rank_unsupervised
from pipelines.sources import DataConfig

ROWS = 6000
USELESS = ("u1", "u2", "u3")


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """`item` and `price` tell of the click, `copy` repeats `item`, the useless ones nothing."""
    folder = tmp_path_factory.mktemp("ranking")
    random = np.random.default_rng(0)
    item = random.integers(0, 40, ROWS)
    price = random.standard_normal(ROWS)
    share = 1 / (1 + np.exp(-((item % 5) - 2) - price))
    tags = [" ".join(f"t{(i + j) % 5}" for j in range(i % 3)) for i in item]
    pl.DataFrame(
        {
            "item": item,
            "copy": item * 7,
            "tags": tags,
            "price": price,
            "u1": random.integers(0, 3000, ROWS),
            "u2": random.integers(0, 2, ROWS),
            "u3": random.standard_normal(ROWS),
            "clicked": (random.random(ROWS) < share).astype(int),
            "never": np.r_[1, np.zeros(ROWS - 1, int)],
        }
    ).write_parquet(folder / "rows.parquet")
    features = FeatureSet(
        inputs=(
            Categorical(name="u1"),
            Categorical(name="u2", encoding="hash"),
            Numeric(name="u3"),
            Categorical(name="item"),
            Categorical(name="copy"),
            Bag(name="tags"),
            Numeric(name="price"),
        ),
        labels=(Label(name="clicked"), Label(name="never")),
    )
    columns = {
        **dict.fromkeys(("item", "copy", "u1", "u2", "clicked", "never"), "int"),
        **dict.fromkeys(("price", "u3"), "float"), "tags": "string",
    }  # fmt: skip
    data = DataConfig.model_validate(
        {"path": str(folder / "rows.parquet"), "columns": columns, "split": {"by": "random"}}
    )
    return build("clicks", data, features, Store(folder / "store")).version


def test_useless_features_come_last_and_copies_after_what_they_repeat(version: Version) -> None:
    told: list[str] = []
    found = rank(version, on_progress=lambda stage, *_: told.append(stage))
    by_name = {feature.name: feature for feature in found.features}
    assert {feature.name for feature in found.features[-3:]} == set(USELESS)
    assert found.features[0].share is not None and found.features[0].share > 0.1
    assert all(abs(by_name[name].share or 0) < 0.01 for name in USELESS)
    assert all(by_name[name].evidence <= 0 < by_name["price"].evidence for name in USELESS)
    assert found.label == "clicked" and found.rows == version.rows["train"]
    # 3MR takes price, which adds to item, before item's copy, which has the better score.
    places = {name: by_name[name].place or 0 for name in by_name}
    first, second = sorted(("item", "copy"), key=lambda name: places[name])
    assert sorted(places.values()) == list(range(7))
    assert places[first] < places["price"] < places[second]
    copies = next(p for p in found.pairs if {p.first, p.second} == {"item", "copy"})
    assert copies.redundancy > 0.9
    assert {"scoring features", "scoring pairs"} <= set(told)


def test_what_tells_only_together_with_another_is_found(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    a, b, c = random.integers(0, 8, (3, 4000))
    frame = pl.DataFrame({"a": a, "b": b, "c": c, "clicked": ((a + b) % 2)})
    frame.write_parquet(tmp_path / "rows.parquet")
    data = DataConfig.model_validate(
        {
            "path": str(tmp_path / "rows.parquet"),
            "columns": dict.fromkeys(frame.columns, "int"),
            "split": {"by": "random"},
        }
    )
    features = FeatureSet(
        inputs=tuple(Categorical(name=name) for name in "abc"), labels=(Label(name="clicked"),)
    )
    found = rank(build("xor", data, features, Store(tmp_path / "store")).version)
    assert {f.name for f in found.features[:2]} == {"a", "b"}
    assert {f.partner for f in found.features[:2]} == {"a", "b"}
    assert found.pairs[0].relation > 0.6 > 0.05 > found.pairs[1].relation
    assert found.pairs[0].noise < 0.01
    assert all(f.score < 0.01 for f in found.features)


def test_batches_are_scored_one_by_one(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rank(version, with_pairs=False)
    monkeypatch.setattr(ranking, "BATCH_ROWS", 1000)
    parts = rank(version, with_pairs=False)
    assert len(parts.features) == len(whole.features) == 7
    assert {f.name for f in parts.features[-3:]} == set(USELESS)
    assert not parts.pairs


def test_batches_hold_every_row_once_in_order(version: Version) -> None:
    parts = list(batches(version, ["item"], 999))
    assert {len(part) for part in parts[:-1]} == {999}
    expected = version.scan("train").select("item").collect()
    assert pl.concat(parts).equals(expected)


def test_without_labels_what_goes_together_is_strong(version: Version) -> None:
    found = rank_unsupervised(version, epochs=5, max_rows=3000)
    assert found.label is None and len(found.features) == 7
    order = [feature.name for feature in found.features]
    assert {"item", "copy"} & set(order[:3])
    assert set(order[-4:]) >= {"u1"}


def test_labels_that_tell_nothing_are_refused(version: Version) -> None:
    with pytest.raises(ValueError, match="no label 'click'; did you mean 'clicked'"):
        rank(version, label="click")
