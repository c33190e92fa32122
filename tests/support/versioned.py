"""Small versions of a feature table, written without a build; importable by other processes."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from feature_store.encoding import FittedFeatures
from feature_store.features import SPLIT_COLUMN, SPLITS, Categorical, FeatureSet, Label, Numeric
from feature_store.store import Metadata, Store, Version
from pipelines.fit import fit

NAME = "clicks"
FEATURES = FeatureSet(
    inputs=(
        Categorical(name="item"),
        Categorical(name="user", encoding="hash"),
        Numeric(name="price", standardize=True),
        Numeric(name="level", source="price", num_buckets=3),
    ),
    labels=(Label(name="clicked"),),
)


def raw_rows(num_rows: int = 40, seed: int = 0, first_item: int = 0) -> pl.DataFrame:
    """Raw rows with their split."""
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "item": [f"item {first_item + i}" for i in random.integers(0, 6, num_rows)],
            "user": [f"user {i}" for i in random.integers(0, 9, num_rows)],
            "price": random.random(num_rows),
            "clicked": np.arange(num_rows) % 2,
            SPLIT_COLUMN: [SPLITS[i % 3] for i in range(num_rows)],
        }
    )


def fitted_to(raw: pl.DataFrame, features: FeatureSet = FEATURES, **more: Any) -> FittedFeatures:
    """Features fitted to the training rows."""
    return fit(raw.lazy().filter(pl.col(SPLIT_COLUMN) == "train"), features, **more)


def write(
    store: Store, fingerprint: str, raw: pl.DataFrame | None = None, name: str = NAME, **more: Any
) -> Version:
    """A version of raw rows."""
    rows = (raw_rows() if raw is None else raw).lazy()
    fitted = fitted_to(rows.collect(), **more)
    schema = rows.collect_schema()
    encoded = rows.select(*fitted.encoders(schema), *fitted.target_encoders(schema), SPLIT_COLUMN)
    metadata = Metadata(
        fingerprint=fingerprint,
        config_hash="c",
        sources=[],
        rows_in=40,
        rows_rejected=0,
        rejected_reasons={},
        rejected_path=None,
        unmatched={},
        libraries={},
    )
    with store.workspace(name) as workspace:
        return store.write(name, encoded, fitted, metadata, workspace, rows.head(2).collect())


def read_all(version: Version) -> int:
    """Rows of a version, every value read."""
    assert len(version.fitted.vocabularies["item"]) > 0
    return sum(version.scan(split).collect().height for split in version.rows)


def age(store: Path, number: int, created: datetime, name: str = NAME) -> None:
    """Let a version be as old as that."""
    path = store / name / "table" / "_delta_log" / f"{number:020d}.json"
    now = Store(store).open(name, number).created
    old, new = (moment.isoformat().replace("+00:00", "Z") for moment in (now, created))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
