"""Fitting: what the features must learn from the training split, and from it alone.

Everything is exact and deterministic: counts and quantiles by construction (ties in frequency are
broken by the value), moments because they are added up in one order, part by part, and rounded to
nine significant digits, far below what a float32 shows.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from feature_store.derived import with_derived
from feature_store.encoding import FittedFeatures, check_columns, raw_columns
from feature_store.features import FeatureSet
from feature_store.growth import grown, kept
from feature_store.kinds import Counts, Learned, kind_of, sources_of
from feature_store.selection import Selection
from pipelines.mapping import Mapper, in_process
from pipelines.partial import (
    Chosen,
    GatherNumbers,
    GatherTexts,
    MergeTexts,
    Moments,
    Numbers,
    read_texts,
)
from pipelines.parts import Part, whole
from pipelines.ranked import Ranked, Run

_MOMENT_DIGITS = 9


def fit(
    train: pl.LazyFrame,
    feature_set: FeatureSet,
    selection: Selection | None = None,
    base: FittedFeatures | None = None,
) -> FittedFeatures:
    """Fitted features of a training split that is read here, as one part.

    Args:
        train: The raw columns of the training rows and of no others.
        feature_set: The declared features.
        selection: The values that vocabularies may have; None: all.
        base: Features of an older version from which these grow; see `feature_store.growth`.

    Raises:
        SchemaMismatch: A column is missing or of a type its feature cannot read.
        ValueError: There are no training rows.
    """
    train = with_derived(train, feature_set)
    schema = train.collect_schema()
    check_columns(feature_set, schema)
    columns = list(sources_of(feature_set))
    aggregates = [pl.len().alias("rows")]
    aggregates += [pl.col(name).null_count().alias(f"nulls {name}") for name in columns]
    found = train.select(aggregates).collect(engine="streaming").row(0, named=True)
    if found["rows"] == 0:
        raise ValueError("the training split has no rows, so features cannot be fitted to it")
    with tempfile.TemporaryDirectory() as folder:
        part = Part(number=0, first_row=0, num_rows=found["rows"], frame=train, name="rows")
        fitted = learn([part], feature_set, Path(folder), selection, base=base)
    return with_nullable(fitted, schema, [name for name in columns if found[f"nulls {name}"]])


def learn(
    train: Sequence[Part],
    feature_set: FeatureSet,
    folder: Path,
    selection: Selection | None = None,
    mapper: Mapper = in_process,
    base: FittedFeatures | None = None,
) -> FittedFeatures:
    """Fitted features of a training split in parts; of its columns, nullability is not told yet.

    The result depends on the parts, and not on who works them off. Memory holds, one after the
    other, a column of a part and the distinct values of a vocabulary, besides what is learnt.

    Args:
        train: Raw columns of the training rows and of no others.
        feature_set: The declared features.
        folder: For partial statistics; what is in it may go when this returns.
        selection: The values that vocabularies may have; None: all.
        mapper: Works off the parts, then the features.
        base: Features of an older version from which these grow; see `feature_store.growth`.

    Raises:
        SchemaMismatch: A column is missing or of a type its feature cannot read.
        ValueError: A vocabulary does not fit into memory.
    """
    schema = train[0].frame.collect_schema()
    check_columns(feature_set, schema)
    numbers = _numbers(train, feature_set, folder, mapper)
    if base is not None:
        numbers = kept(numbers, base, feature_set)
    vocabularies = _vocabularies(train, feature_set, numbers, folder, mapper)
    if selection is not None:
        vocabularies = {n: selection.vocabulary(n, v) for n, v in vocabularies.items()}
    learned = Learned(tables=_tables(train, feature_set, numbers, mapper))
    if base is not None:
        vocabularies = grown(vocabularies, base, feature_set)
        learned = kept(learned, base, feature_set)
    return FittedFeatures(
        feature_set=feature_set,
        vocabularies=vocabularies,
        boundaries=dict(numbers.boundaries),
        moments=dict(numbers.moments),
        tables=dict(learned.tables),
        columns=raw_columns(feature_set, schema, ()),
    )


def with_nullable(
    fitted: FittedFeatures, schema: pl.Schema, nullable: Sequence[str]
) -> FittedFeatures:
    """The same features, with the raw columns that had nulls in the training rows."""
    return replace(fitted, columns=raw_columns(fitted.feature_set, schema, nullable))


def _numbers(
    train: Sequence[Part], feature_set: FeatureSet, folder: Path, mapper: Mapper
) -> Learned:
    """Moments and boundaries."""
    schema = train[0].frame.collect_schema()
    moments, quantiles = {}, {}
    for feature in feature_set.inputs:
        values = kind_of(feature).moments(feature, feature_set, schema)
        if values is not None:
            moments[feature.name] = values
        cut = kind_of(feature).quantiles(feature, feature_set, schema)
        if cut is not None:
            quantiles[feature.name] = cut
    found: list[Numbers] = []
    if moments or quantiles:
        runs = {name: cut.values for name, cut in quantiles.items()}
        found = list(mapper(GatherNumbers(moments, runs, folder), train))
    return Learned(
        boundaries={
            name: _boundaries([one.runs[name] for one in found], cut.num_buckets)
            for name, cut in quantiles.items()
        },
        moments={
            name: _moments(Moments.merged([one.moments[name] for one in found])) for name in moments
        },
    )


def _moments(moments: Moments) -> tuple[float, float]:
    """Rounded moments; a column without any number, or with a single one, is left as it is."""
    if not moments.count:
        return 0.0, 1.0
    rounded = float(f"{moments.deviation:.{_MOMENT_DIGITS}g}")
    return float(f"{moments.mean:.{_MOMENT_DIGITS}g}"), rounded if rounded > 0.0 else 1.0


def _boundaries(runs: Sequence[Path], num_buckets: int) -> list[float]:
    """The distinct inner quantiles: at most num_buckets - 1, fewer where values repeat.

    Each is a value of the column, the smallest with at least its share of the rows at or below it,
    and none is the column's smallest, so no bucket stays empty.
    """
    ranked = Ranked([Run.load(run) for run in runs])
    if not len(ranked):
        return []
    inner = {ranked.at(len(ranked) * cut // num_buckets) for cut in range(1, num_buckets)}
    return sorted(float(value) for value in inner if value > ranked.smallest)


def _vocabularies(
    train: Sequence[Part], feature_set: FeatureSet, numbers: Learned, folder: Path, mapper: Mapper
) -> dict[str, pl.Series]:
    schema = train[0].frame.collect_schema()
    wanted: dict[str, Counts] = {}
    for feature in feature_set.inputs:
        counts = kind_of(feature).counts(feature, feature_set, schema, numbers)
        if counts is not None:
            wanted[feature.name] = counts
    if not wanted:
        return {}
    texts = {name: counts.texts for name, counts in wanted.items()}
    partials = list(mapper(GatherTexts(texts, folder), train))
    chosen = [
        Chosen(
            name,
            [one[name] for one in partials],
            counts.min_count,
            counts.max_size,
            counts.max_distinct,
        )
        for name, counts in wanted.items()
    ]
    merged = mapper(MergeTexts(folder), chosen)
    return {job.name: read_texts(path, job.name) for job, path in zip(chosen, merged, strict=True)}


def _tables(
    train: Sequence[Part], feature_set: FeatureSet, numbers: Learned, mapper: Mapper
) -> dict[str, pl.DataFrame]:
    """What kinds learn of all rows at once: a job of one feature."""
    rows = whole(train)
    tables = {f.name: kind_of(f).table(f, feature_set, rows, numbers) for f in feature_set.inputs}
    wanted = {name: table for name, table in tables.items() if table is not None}
    return dict(zip(wanted, mapper(_collected, list(wanted.values())), strict=True))


def _collected(table: pl.LazyFrame) -> pl.DataFrame:
    return table.collect(engine="streaming")
