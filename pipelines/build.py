"""Raw files to a version in the store: read, split, fit, encode, write.

The same files under the same configuration are built once: the version is found again by its
fingerprint. Splits come before fits, and fits see the training split only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as release
from pathlib import Path

import polars as pl

from feature_store import table
from feature_store.asof import histories
from feature_store.encoding import FittedFeatures, label_value
from feature_store.features import ROW_COLUMN, SPLIT_COLUMN, SPLITS, FeatureSet, source_of
from feature_store.publishing import SNAPSHOT_FOLDER
from feature_store.selection import Selection, read_selection
from feature_store.store import Metadata, Store, Version
from feature_store.workspace import Workspace
from pipelines import events, identity, leakage, rejection
from pipelines.downsampling import downsampled
from pipelines.fit import fit
from pipelines.growing import identified
from pipelines.lineage import lineage
from pipelines.snapshot import write_snapshot
from pipelines.sources import DataConfig, OnProgress, Source, read
from pipelines.split import SplitFiles, split

RAW_SAMPLE_ROWS = 256
"""Raw rows kept with a version, for whoever checks what serves it."""

_LIBRARIES = ("polars", "polars-hash", "pyarrow", "deltalake")


@dataclass(frozen=True)
class BuildResult:
    """A version, and what became of the rows."""

    version: Version
    reused: bool
    """The version was there already."""
    rows_in: int
    rows_rejected: int
    rejected_path: Path | None
    """CSV file of the rejected rows; None when there are none."""


def build(
    name: str,
    data: DataConfig,
    feature_set: FeatureSet,
    store: Store,
    on_progress: OnProgress = lambda *_: None,
    needed: Mapping[str, str] | None = None,
) -> BuildResult:
    """Build a version of the feature table `name`, or find the one that is already there.

    Args:
        name: The feature table.
        data: The raw files, their columns and their split.
        feature_set: The features.
        store: Where versions rest.
        on_progress: Told of every stage, and of rows while they are encoded.
        needed: Why a feature stays even if `features.selection` keeps nothing of it, by its name.

    Raises:
        FileNotFoundError: A file is not there.
        SchemaMismatch: Files, declared columns and features do not fit each other.
        TooManyRejected: More rows cannot be used than allowed; they are kept in `rejected/`.
        SelectionMismatch: features.selection is no selection of these features.
        SourceChanged: A file was changed meanwhile.
        Leak: A feature knows what it cannot know.
        VersionNotFound: There is no version as features.grow_from names.
        ValueError: There is nothing to learn from: no rows, one class, an empty split.
    """
    feature_set, selection = selected(feature_set, needed or {}, on_progress)
    leakage.check_columns(feature_set, data.leakage)
    files = identity.configured_files(data)
    if selection is not None:
        files.append(selection.path)
    known = store.hashes(name)
    sources = []
    for number, file in enumerate(files):
        on_progress(f"identifying {file.name}", number, len(files))
        sources.append(identity.identify(file, known))
    fingerprint, base = identified(
        store,
        name,
        feature_set.grow_from,
        lambda grown_from: identity.fingerprint(data, feature_set, sources, grown_from),
    )
    found = store.find(name, fingerprint)
    if found is not None:
        on_progress("unchanged, version reused", len(files), len(files))
        return _result(found, reused=True)
    older = None if base is None else store.open(name, base.number)
    with store.workspace(name) as workspace:
        staged = workspace.path / "raw"
        staged.mkdir()
        source = read(data, feature_set, staged, on_progress=on_progress)
        kept = _keep(source, workspace, store.rejected_folder(name) / f"{fingerprint[:16]}.csv")
        rejection.require_few(source.rejections, source.rows_in, data.max_rejected, kept)
        metadata = Metadata(
            fingerprint=fingerprint,
            **lineage(data, feature_set),
            sources=sources,
            rows_in=source.rows_in,
            rows_rejected=len(source.rejections),
            rejected_reasons=rejection.reasons([*source.rejections, *source.side_rejections]),
            rejected_path=None if kept is None else str(kept),
            unmatched=source.unmatched,
            libraries={library: release(library) for library in _LIBRARIES},
        )
        encoded = _encode(source, data, feature_set, selection, older, on_progress)
        if data.entities:
            write_snapshot(
                workspace.path / "build" / SNAPSHOT_FOLDER,
                source.frame,
                source.rows_in,
                keys=data.entities,
                sides=source.sides,
                feature_set=feature_set,
                columns=encoded.fitted.columns,
                on_progress=on_progress,
            )
        if older is not None:
            metadata["grown_from"] = older.number
            metadata["grown_from_fingerprint"] = older.fingerprint
        if encoded.negatives_dropped is not None:
            metadata["negatives_dropped"] = encoded.negatives_dropped
        identity.require_unchanged(sources)
        rows = _counted(encoded.rows, encoded.num_rows, on_progress)
        ordered = table.in_order(rows, encoded.fitted.layout)
        written = table.sink(ordered, workspace.path / "rows", workspace.build)
        leakage.check_rates(written, encoded.fitted.feature_set, data.leakage)
        version = store.write_files(
            name, written, encoded.fitted, metadata, workspace, encoded.raw_sample
        )
    return _result(version, reused=False)


def selected(
    feature_set: FeatureSet, needed: Mapping[str, str], on_progress: OnProgress
) -> tuple[FeatureSet, Selection | None]:
    """The features that `features.selection` leaves, and what it keeps of them; None without one.

    Args:
        feature_set: The declared features.
        needed: Why a feature cannot be left out, by its name.
        on_progress: Told of every feature that loses rows.

    Raises:
        SelectionMismatch: It is no selection of these features.
    """
    if feature_set.selection is None:
        return feature_set, None
    selection = read_selection(feature_set.selection)
    feature_set, selection, lines = selection.applied(feature_set, needed)
    for line in lines:
        on_progress(line, 0, None)
    return feature_set, selection


@dataclass(frozen=True)
class _Encoded:
    """What is to be written."""

    rows: pl.LazyFrame
    num_rows: int
    fitted: FittedFeatures
    raw_sample: pl.DataFrame
    negatives_dropped: int | None
    """None without data.negative_downsampling."""


def _encode(
    source: Source,
    data: DataConfig,
    feature_set: FeatureSet,
    selection: Selection | None,
    older: Version | None,
    on_progress: OnProgress,
) -> _Encoded:
    """Histories, splits, fits; the encoded rows are not computed yet."""
    on_progress("gathering histories and splitting", 0, None)
    raw = split(histories(source.frame, feature_set), data.split, feature_set, source.files)
    gathered = events.behind(data.events, feature_set)
    leakage.check_order(raw, feature_set, gathered, data.split, data.leakage)
    on_progress("counting rows and labels", 0, None)
    counts = _counts(raw, feature_set)
    if data.split.files is not None:
        _require_rows(counts, data.split.files)
    dropped = None
    if data.negative_downsampling is not None:
        before = counts["train"]
        raw = downsampled(raw, data.negative_downsampling, feature_set)
        counts = _counts(raw, feature_set)
        dropped = before - counts["train"]
        on_progress("negatives left out of training", dropped, before)
    on_progress("fitting features", 0, counts["train"])
    train = raw.filter(pl.col(SPLIT_COLUMN) == "train").drop(SPLIT_COLUMN)
    fitted = fit(train, feature_set, selection, None if older is None else older.fitted)
    last = next(name for name in reversed(SPLITS) if counts[name])
    sample = raw.filter(pl.col(SPLIT_COLUMN) == last).drop(SPLIT_COLUMN, ROW_COLUMN)
    schema = raw.collect_schema()
    rows = raw.select(*fitted.encoders(schema), *fitted.target_encoders(schema), SPLIT_COLUMN)
    raw_sample = sample.head(RAW_SAMPLE_ROWS).collect()
    return _Encoded(rows, sum(counts.values()), fitted, raw_sample, dropped)


def _counts(raw: pl.LazyFrame, feature_set: FeatureSet) -> dict[str, int]:
    """Rows per split, once it is sure that there is something to learn from them.

    Raises:
        ValueError: No training rows, or labels that are all the same in them.
    """
    schema = raw.collect_schema()
    ranges = []
    for label in feature_set.labels:
        value = label_value(label, schema[source_of(label)])
        ranges += [value.min().alias(f"min {label.name}"), value.max().alias(f"max {label.name}")]
    found = raw.group_by(SPLIT_COLUMN).agg(pl.len(), *ranges).collect(engine="streaming")
    by_split = {row[SPLIT_COLUMN]: row for row in found.iter_rows(named=True)}
    if "train" not in by_split:
        raise ValueError(
            f"there are no training rows: {sum(row['len'] for row in by_split.values())} rows are"
            " left and all of them fall to the other splits; check data.split"
        )
    train = by_split["train"]
    for label in feature_set.labels:
        only = train[f"min {label.name}"]
        if only == train[f"max {label.name}"]:
            raise ValueError(
                f"label {label.name!r} is {only:g} in all {train['len']} training rows: with one"
                f" class there is nothing to learn; check {source_of(label)!r}"
                + (f" and the threshold {label.threshold:g}" if label.threshold is not None else "")
            )
    return {name: by_split.get(name, {"len": 0})["len"] for name in SPLITS}


def _require_rows(counts: Mapping[str, int], files: SplitFiles) -> None:
    """Files that are named for a split are to give it rows."""
    for name, pattern in files.patterns():
        if not counts[name]:
            raise ValueError(
                f"split.files.{name}: no usable rows in the files that fit {pattern!r}; look at"
                " what was rejected, or leave them out of data.path and of data.split"
            )


def _counted(rows: pl.LazyFrame, total: int, on_progress: OnProgress) -> pl.LazyFrame:
    """The same rows; `on_progress` is told how many have passed."""
    stage, passed = "encoding and writing", 0
    on_progress(stage, 0, total)

    def count(batch: pl.Series) -> pl.Series:
        nonlocal passed
        passed += len(batch)
        on_progress(stage, passed, total)
        return batch

    counted = pl.col(SPLIT_COLUMN).map_batches(count, return_dtype=pl.String(), is_elementwise=True)
    return rows.with_columns(counted)


def _keep(source: Source, workspace: Workspace, path: Path) -> Path | None:
    """Put rejected rows aside, for good; None when there are none."""
    rejected = [*source.rejections, *source.side_rejections]
    if not rejected:
        return None
    partial = workspace.path / "rejected.csv"
    rejection.write(rejected, partial)
    return partial.rename(path)


def _result(version: Version, *, reused: bool) -> BuildResult:
    rejected = version.metadata["rejected_path"]
    return BuildResult(
        version=version,
        reused=reused,
        rows_in=version.metadata["rows_in"],
        rows_rejected=version.metadata["rows_rejected"],
        rejected_path=None if rejected is None else Path(rejected),
    )
