"""From usable rows to encoded files: what is decided for all rows at once, and what part by part.

Histories, event windows, the cuts of a split and what features learn need all rows; the driver
decides them from the few columns that they take, and what it found for a row is a column beside
its part. Everything else is a job of one part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import polars as pl

from feature_store import table
from feature_store.encoding import label_value
from feature_store.features import ROW_COLUMN, SPLIT_COLUMN, SPLITS, FeatureSet, Layout, source_of
from pipelines.files import AnyFile
from pipelines.mapping import Mapper
from pipelines.partial import GatherNumbers
from pipelines.parts import Part, whole
from pipelines.ranked import Ranked, Run
from pipelines.split import SplitConfig, split_by_user, split_rule

_ROWS_AT_ONCE = 1 << 15


def beside(parts: Sequence[Part], wide: pl.LazyFrame, folder: Path) -> list[Part]:
    """The parts with the columns that a frame over all of their rows has more than they.

    Args:
        parts: The source.
        wide: The same rows, and further columns that may depend on all of them.
        folder: The columns rest here while the parts are used.
    """
    known = parts[0].frame.collect_schema()
    added = [name for name in wide.collect_schema() if name not in known]
    if not added:
        return list(parts)
    path = folder / f"{uuid4().hex}.parquet"
    wide.select(ROW_COLUMN, *added).sink_parquet(
        path, compression="lz4", row_group_size=_ROWS_AT_ONCE
    )
    found = pl.scan_parquet(path, glob=False)
    row = pl.col(ROW_COLUMN)
    return [
        part.with_frame(
            pl.concat(
                [
                    part.frame,
                    found.filter(
                        row.is_between(part.first_row, part.first_row + part.num_rows, "left")
                    ).drop(ROW_COLUMN),
                ],
                how="horizontal",
            )
        )
        for part in parts
    ]


def with_split(
    parts: Sequence[Part],
    config: SplitConfig,
    feature_set: FeatureSet,
    files: Sequence[tuple[AnyFile, int]],
    folder: Path,
    mapper: Mapper,
) -> list[Part]:
    """The parts with the column `split`; see `pipelines.split`.

    Args:
        parts: The source.
        config: How to share them out.
        feature_set: Names the timestamp.
        files: The files, each with the `__row` where it begins.
        folder: For what lies on disk meanwhile.
        mapper: Works off the parts.
    """
    if config.by == "user":
        return beside(parts, split_by_user(whole(parts), config, feature_set), folder)

    def ranked(number: pl.Expr) -> Ranked:
        gather = GatherNumbers({}, {"": number}, folder)
        return Ranked([Run.load(found.runs[""]) for found in mapper(gather, parts)])

    rule = split_rule(parts[0].frame.collect_schema(), config, feature_set, files, ranked)
    return [part.with_frame(part.frame.with_columns(rule.alias(SPLIT_COLUMN))) for part in parts]


@dataclass(frozen=True)
class Survey:
    """How many rows fell to each split, and what the training labels are."""

    rows: dict[str, int]
    smallest: dict[str, float]
    """By label: in the training rows, if there are any."""
    largest: dict[str, float]

    @staticmethod
    def merged(surveys: Sequence["Survey"]) -> "Survey":
        """That of all rows."""
        trained = [survey for survey in surveys if survey.rows["train"]]
        labels = trained[0].smallest if trained else {}
        return Survey(
            {name: sum(survey.rows[name] for survey in surveys) for name in SPLITS},
            {name: min(survey.smallest[name] for survey in trained) for name in labels},
            {name: max(survey.largest[name] for survey in trained) for name in labels},
        )

    def require_training(self, feature_set: FeatureSet) -> None:
        """Check that there is something to learn from.

        Raises:
            ValueError: No training rows, or labels that are all the same in them.
        """
        if not self.rows["train"]:
            raise ValueError(
                f"there are no training rows: {sum(self.rows.values())} rows are"
                " left and all of them fall to the other splits; check data.split"
            )
        for label in feature_set.labels:
            only = self.smallest[label.name]
            if only == self.largest[label.name]:
                raise ValueError(
                    f"label {label.name!r} is {only:g} in all {self.rows['train']} training rows:"
                    " with one class there is nothing to learn; check"
                    f" {source_of(label)!r}"
                    + (
                        f" and the threshold {label.threshold:g}"
                        if label.threshold is not None
                        else ""
                    )
                )


@dataclass(frozen=True)
class TakeSurvey:
    """Work: the survey of a part."""

    feature_set: FeatureSet

    def __call__(self, part: Part) -> Survey:
        """Read the labels and what decides the split."""
        schema = part.frame.collect_schema()
        ranges = []
        for label in self.feature_set.labels:
            value = label_value(label, schema[source_of(label)])
            ranges.append(value.min().alias(f"min {label.name}"))
            ranges.append(value.max().alias(f"max {label.name}"))
        grouped = part.frame.group_by(SPLIT_COLUMN).agg(pl.len().alias("rows"), *ranges)
        found = grouped.collect(engine="streaming")
        rows = {row[SPLIT_COLUMN]: row for row in found.iter_rows(named=True)}
        train = rows.get("train")
        names = [] if train is None else [label.name for label in self.feature_set.labels]
        return Survey(
            {name: rows[name]["rows"] if name in rows else 0 for name in SPLITS},
            {name: train[f"min {name}"] for name in names if train is not None},
            {name: train[f"max {name}"] for name in names if train is not None},
        )


def survey(
    parts: Sequence[Part], feature_set: FeatureSet, mapper: Mapper
) -> tuple[list[Survey], Survey]:
    """Of each part, and of all of them.

    Raises:
        ValueError: There is nothing to learn from.
    """
    each = list(mapper(TakeSurvey(feature_set), parts))
    merged = Survey.merged(each)
    merged.require_training(feature_set)
    return each, merged


def first_rows(
    parts: Sequence[Part], surveys: Sequence[Survey], split: str, num_rows: int
) -> pl.DataFrame:
    """The first raw rows of a split; no part is read that has none."""
    found: list[pl.DataFrame] = []
    for part, survey in zip(parts, surveys, strict=True):
        left = num_rows - sum(map(len, found))
        if survey.rows[split] and left > 0:
            rows = part.frame.filter(pl.col(SPLIT_COLUMN) == split).head(left)
            found.append(rows.drop(SPLIT_COLUMN, ROW_COLUMN).collect(engine="streaming"))
    return pl.concat(found)


def training(parts: Sequence[Part]) -> list[Part]:
    """The training rows of the parts, without the split."""
    is_train = pl.col(SPLIT_COLUMN) == "train"
    return [part.with_frame(part.frame.filter(is_train).drop(SPLIT_COLUMN)) for part in parts]


@dataclass(frozen=True)
class Written:
    """What a part became."""

    files: list[tuple[str, Path]]
    """Split and file."""
    nullable: set[str]
    """Raw columns with nulls in the training rows."""
    missing: dict[str, int]
    """See `pipelines.missing`."""


@dataclass(frozen=True)
class WriteRows:
    """Work: a part's rows, encoded, as one file of every split that has any."""

    encoders: Sequence[pl.Expr]
    """Of all encoded columns and of the split."""
    layout: Layout
    columns: Sequence[str]
    """Raw columns to look for nulls in."""
    missing: Sequence[pl.Expr]
    """Aggregates that count missing numbers."""
    folder: Path
    prefix: str
    """Begins the files' names."""

    def __call__(self, part: Part) -> Written:
        """Read, encode and write in one pass."""
        # A name of its own: a process that is taken for dead may still be writing.
        folder = self.folder / f"{part.number:06d}-{uuid4().hex}"
        rows = table.in_order(part.frame.select(self.encoders), self.layout)
        is_train = pl.col(SPLIT_COLUMN) == "train"
        nulls = [(pl.col(name).is_null() & is_train).any() for name in self.columns]
        prefix = f"{self.prefix}-{part.number:06d}"
        absent = part.frame.select(*nulls, *self.missing)
        files, answer = table.sink_beside(rows, folder, prefix, absent)
        found = answer.row(0, named=True)
        nullable = {name for name in self.columns if found.pop(name)}
        return Written(files, nullable, found)


def in_order(written: Sequence[Written]) -> list[tuple[str, Path]]:
    """Split and file, by split and then in the order of the rows."""
    return sorted((file for one in written for file in one.files), key=lambda f: (f[0], f[1].name))
