"""Rows shared out as a build shares them out, as one part."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from feature_store.features import FeatureSet
from pipelines.assembly import with_split
from pipelines.mapping import in_process
from pipelines.parts import Part
from pipelines.split import SplitConfig


def split(
    raw: pl.LazyFrame,
    config: SplitConfig,
    feature_set: FeatureSet,
    files: Sequence[tuple[Path, int]] = (),
) -> pl.LazyFrame:
    """The raw rows with the column `split`."""
    num_rows = raw.select(pl.len()).collect().item()
    part = Part(number=0, first_row=0, num_rows=num_rows, frame=raw, name="rows")
    with tempfile.TemporaryDirectory() as folder:
        (found,) = with_split([part], config, feature_set, files, Path(folder), in_process)
        return found.frame.collect(engine="streaming").lazy()
