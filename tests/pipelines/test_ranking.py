"""Features of a version in their order: planted useless ones come last."""

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
    tags = [" ".join(f"t{(i + j) % 6}" for j in range(i % 3)) for i in item]
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
    order = [feature.name for feature in found.features]
    by_score = sorted(found.features, key=lambda feature: -feature.score)
    assert {feature.name for feature in by_score[-3:]} == set(USELESS)
    assert by_score[0].share is not None and by_score[0].share > 0.1
    assert all(abs(f.share or 0) < 0.01 for f in by_score[-3:])
    assert found.label == "clicked" and found.rows == version.rows["train"]
    # 3MR takes price, which adds to item, before item's copy, which has the better score.
    first, second = sorted(("item", "copy"), key=order.index)
    assert order.index(first) < order.index("price") < order.index(second)
    best = found.pairs[0]
    assert "price" in (best.first, best.second) and best.beyond > 0.02
    copies = next(p for p in found.pairs if {p.first, p.second} == {"item", "copy"})
    assert copies.redundancy > 0.9 and copies.beyond == pytest.approx(0, abs=1e-9)
    assert {"scoring features", "scoring pairs"} <= set(told)


def test_batches_are_scored_one_by_one(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rank(version, with_pairs=False)
    assert all(feature.deviation is None for feature in whole.features)
    monkeypatch.setattr(ranking, "BATCH_ROWS", 1000)
    parts = rank(version, with_pairs=False)
    assert all(feature.deviation is not None for feature in parts.features)
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
