"""Versions of a feature table written from raw rows, without files and configuration."""

from pathlib import Path

import polars as pl

from feature_store.features import SPLIT_COLUMN, FeatureSet
from feature_store.store import Metadata, Store, Version
from pipelines.fit import fit


def write(folder: Path, raw: pl.DataFrame, features: FeatureSet, fingerprint: str = "f") -> Version:
    """Fit, encode and write raw rows with the column `split` as a version of the table `clicks`."""
    fitted = fit(raw.lazy().filter(pl.col(SPLIT_COLUMN) == "train"), features)
    schema = raw.schema
    rows = raw.lazy().select(
        *fitted.encoders(schema), *fitted.target_encoders(schema), SPLIT_COLUMN
    )
    metadata = Metadata(
        fingerprint=fingerprint,
        config_hash="c",
        sources=[],
        rows_in=raw.height,
        rows_rejected=0,
        rejected_reasons={},
        rejected_path=None,
        unmatched={},
        libraries={},
    )
    store = Store(folder)
    with store.workspace("clicks") as workspace:
        return store.write("clicks", rows, fitted, metadata, workspace, raw.head(5))
