"""What no feature may know: the label, and anything that was not there yet when the row was.

A build is refused where a feature reads a label's column, where one feature alone foretells the
label of rows it was not fitted to all but perfectly, or where features gathered over time are
trained on rows that come after those they are tested on.

An honest feature hardly ever has an AUC near 1 alone; a counter that counts the click itself, a
column written after the click, or a join with tomorrow's table does.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from feature_store.config import Config
from feature_store.features import SPLIT_COLUMN, FeatureSet, source_of
from feature_store.kinds import columns_of, kind_of
from pipelines.split import SplitConfig

TRAIN_ROWS, HELD_ROWS = 65_536, 16_384
"""Rows at most that rates are fitted to, and on which they are judged."""
MIN_ROWS = 50
"""Of either label among the rows that judge; with fewer, an AUC says little and nothing is
refused."""
_NUM_BINS = 256
_PRIOR_ROWS = 1.0


class Leak(ValueError):
    """A feature knows what it cannot know when a prediction is asked for."""


class LeakageConfig(Config):
    """When a build is refused because a feature knows too much."""

    max_auc: Annotated[float, Field(gt=0.5, le=1.0)] | None = 0.99
    """AUC of one feature alone, on rows it was not fitted to, above which it is taken for a leak;
    null: not checked."""
    allow: tuple[str, ...] = ()
    """Features, and event tables, that may: they are not checked."""


def check_columns(feature_set: FeatureSet, config: LeakageConfig) -> None:
    """Check that no feature reads a label.

    A history or a window over past labels is none of this: it is gathered from earlier rows.

    Raises:
        Leak: Names the feature and the column.
    """
    labels = {source_of(label): label.name for label in feature_set.labels}
    for feature in feature_set.inputs:
        if feature.name in config.allow:
            continue
        for column in kind_of(feature).sources(feature, feature_set):
            if column in labels:
                raise Leak(
                    f"the feature {feature.name!r} reads {column!r}, the column of the label"
                    f" {labels[column]!r}: it would be told the answer; read another column, or if"
                    f" that is meant, set data.leakage.allow: [{feature.name}]"
                )


def check_order(
    raw: pl.LazyFrame,
    feature_set: FeatureSet,
    gathered: Mapping[str, str],
    split: SplitConfig,
    config: LeakageConfig,
) -> None:
    """Check that no row that is tested comes before a row that is trained on.

    What is gathered of earlier events would else tell training rows of labels that are tested. A
    split in time cannot be so, nor one by user where it is the user's own events.

    Args:
        raw: The rows with their split and time.
        feature_set: Names the time.
        gathered: Events behind features by name, each with the column of its key.
        split: How the rows were shared out.
        config: What is allowed.

    Raises:
        Leak: Names the events, the split and the times.
    """
    own = (split.user or feature_set.group) if split.by == "user" else None
    checked = [name for name, by in gathered.items() if name not in config.allow and by != own]
    if split.by == "time" or not checked or feature_set.timestamp is None:
        return
    time = pl.col(feature_set.timestamp)
    bounds = raw.group_by(SPLIT_COLUMN).agg(time.min().alias("first"), time.max().alias("last"))
    found = bounds.collect(engine="streaming")
    by_split = {row[SPLIT_COLUMN]: row for row in found.iter_rows(named=True)}
    if "train" not in by_split:
        return
    last = by_split.pop("train")["last"]
    for name, row in by_split.items():
        if row["first"] < last:
            raise Leak(
                f"data.events {checked[0]!r}: the {name} rows begin at {row['first']}, before the"
                f" last training row ({last}), so what is gathered for training rows has seen"
                f" {name} rows; set data.split to by: time, or if that is meant,"
                f" data.leakage.allow: [{checked[0]}]"
            )


def check_rates(
    files: Sequence[tuple[str, Path]], feature_set: FeatureSet, config: LeakageConfig
) -> None:
    """Check that no feature alone foretells a label.

    For each feature, the rate of every value (of every quantile of a number, of the elements of a
    list on average) is learnt from training rows, and judged by its AUC on rows of the other
    splits, or on the second half of the training rows where there are none. The rows come from the
    middle of the splits' files, so equal files give equal answers.

    Args:
        files: Split and Parquet file of encoded rows, in the order of the rows.
        feature_set: The features that they hold.
        config: What is allowed.

    Raises:
        Leak: Names the feature that does best, its AUC and what to do.
    """
    checked = [f for f in feature_set.inputs if f.name not in config.allow]
    if config.max_auc is None or not checked:
        return
    columns = {f.name: columns_of(f, feature_set) for f in checked}
    names = [name for found in columns.values() for name in found]
    labels = [label.name for label in feature_set.labels]
    train, held = _sample(files, [*dict.fromkeys(names), *labels])
    for label in labels:
        hits = held.get_column(label).to_numpy() == 1.0
        if train.is_empty() or min(hits.sum(), len(hits) - hits.sum()) < MIN_ROWS:
            continue
        found = {
            feature: max((_auc(train, held, name, label, hits) for name in own), default=0.5)
            for feature, own in columns.items()
        }
        worst = max(found, key=lambda feature: found[feature])
        if found[worst] > config.max_auc:
            raise Leak(
                f"the feature {worst!r} alone foretells {label!r} with an AUC of"
                f" {found[worst]:.4f} on {len(held):,} rows it was not fitted to, above"
                f" data.leakage.max_auc = {config.max_auc:g}: it seems to know the answer, as a"
                " column that is written after the event does; leave it out, gather it as of the"
                f" row's time, or if that is meant, set data.leakage.allow: [{worst}]"
            )


def _sample(
    files: Sequence[tuple[str, Path]], columns: Sequence[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows to learn rates from, and rows to judge them on."""
    others = [file for split in ("test", "valid") for name, file in files if name == split]
    train = _middle([file for name, file in files if name == "train"], columns, TRAIN_ROWS)
    if others:
        return train, _middle(others, columns, HELD_ROWS)
    half = len(train) // 2
    return train[:half], train[half:]


def _middle(files: Sequence[Path], columns: Sequence[str], num_rows: int) -> pl.DataFrame:
    """So many rows at most, from row groups on from the middle of all."""
    groups = [
        (file, group, found.row_group(group).num_rows)
        for file in files
        for found in [pq.read_metadata(file)]
        for group in range(found.num_row_groups)
    ]
    tables: list[pa.Table] = []
    left = num_rows
    for file, group, size in groups[len(groups) // 2 :]:
        if left <= 0:
            break
        with pq.ParquetFile(file) as parquet:
            tables.append(parquet.read_row_group(group, columns=list(columns)).slice(0, left))
        left -= size
    if not tables:
        return pl.DataFrame(schema={name: pl.Float32() for name in columns})
    frame = pl.from_arrow(pa.concat_tables(tables))
    assert isinstance(frame, pl.DataFrame), "a table becomes a frame"
    return frame


def _auc(train: pl.DataFrame, held: pl.DataFrame, name: str, label: str, hits: np.ndarray) -> float:
    score = _rates(train, held, name, label)
    ranks = pl.Series(score).rank("average").to_numpy()
    num_hits = int(hits.sum())
    above = ranks[hits].sum() - num_hits * (num_hits + 1) / 2
    return float(above / (num_hits * (len(hits) - num_hits)))


def _rates(train: pl.DataFrame, held: pl.DataFrame, name: str, label: str) -> np.ndarray:
    """Per held row, the rate of its value among the training rows."""
    target = train.get_column(label).cast(pl.Float64)
    mean = float(target.to_numpy().mean()) if len(target) else 0.0
    seen, asked = train.get_column(name), held.get_column(name)
    if seen.dtype.is_float():
        return _rates_of_numbers(seen.to_numpy(), target.to_numpy(), asked.to_numpy(), mean)
    values, questions = _values(seen), _values(asked)
    rates = (
        values.with_columns(target.gather(values.get_column("row")).alias("label"))
        .group_by("value")
        .agg(
            ((pl.col("label").sum() + _PRIOR_ROWS * mean) / (pl.len() + _PRIOR_ROWS)).alias("rate")
        )
    )
    found = questions.join(rates, on="value", how="left")
    if isinstance(asked.dtype, pl.List):
        found = found.group_by("row").agg(pl.col("rate").mean())
    score = np.full(len(held), mean)
    score[found.get_column("row").to_numpy()] = found.get_column("rate").fill_null(mean).to_numpy()
    return score


def _rates_of_numbers(
    seen: np.ndarray, target: np.ndarray, asked: np.ndarray, mean: float
) -> np.ndarray:
    """The same by quantile."""
    ordered = np.sort(seen)
    cuts = np.unique(ordered[np.arange(1, _NUM_BINS) * len(seen) // _NUM_BINS])
    bins, size = np.searchsorted(cuts, seen, "right"), len(cuts) + 1
    hits = np.bincount(bins, weights=target, minlength=size) + _PRIOR_ROWS * mean
    rates = hits / (np.bincount(bins, minlength=size) + _PRIOR_ROWS)
    return rates[np.searchsorted(cuts, asked, "right")]


def _values(column: pl.Series) -> pl.DataFrame:
    """The values of a column with the rows that have them."""
    frame = pl.DataFrame({"value": column}).with_row_index("row")
    return frame.explode("value").drop_nulls() if isinstance(column.dtype, pl.List) else frame
