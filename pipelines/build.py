"""Raw files to a version in the store: read, split, fit, encode, write.

The same files under the same configuration are built once: the version is found again by its
fingerprint. Splits come before fits, and fits see the training split only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as release
from pathlib import Path

import polars as pl

from feature_store.asof import histories
from feature_store.derived import with_derived
from feature_store.encoding import FittedFeatures
from feature_store.features import SPLIT_COLUMN, SPLITS, FeatureSet
from feature_store.publishing import SNAPSHOT_FOLDER
from feature_store.selection import Selection, read_selection
from feature_store.store import Metadata, Store, Version
from feature_store.workspace import Workspace
from pipelines import assembly, checks, event_tables, identity, leakage, missing, rejection
from pipelines.damage import naming_files
from pipelines.disk import told_if_full
from pipelines.downsampling import require_no_other, thinned
from pipelines.fit import learn, with_nullable
from pipelines.folds import out_of_fold
from pipelines.growing import identified
from pipelines.lineage import lineage
from pipelines.mapping import Mapper, in_process, told
from pipelines.parts import whole
from pipelines.snapshot import write_snapshot
from pipelines.sources import DataConfig, OnProgress, Source, read
from pipelines.split import SplitFiles
from pipelines.tables import listed_once

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
    warnings: tuple[str, ...] = ()
    """What data.checks warns of."""


@listed_once()
def build(
    name: str,
    data: DataConfig,
    feature_set: FeatureSet,
    store: Store,
    on_progress: OnProgress = lambda *_: None,
    needed: Mapping[str, str] | None = None,
    mapper: Mapper = in_process,
) -> BuildResult:
    """Build a version of the feature table `name`, or find the one that is already there.

    Args:
        name: The feature table.
        data: The raw files, their columns and their split.
        feature_set: The features.
        store: Where versions rest.
        on_progress: Told of every stage, and of rows while they are encoded.
        needed: Why a feature stays even if `features.selection` keeps nothing of it, by its name.
        mapper: Works off the parts of the source; the version does not depend on it.

    Raises:
        FileNotFoundError: A file is not there.
        SchemaMismatch: Files, declared columns and features do not fit each other.
        TooManyRejected: More rows cannot be used than allowed; they are kept in `rejected/`.
        SelectionMismatch: features.selection is no selection of these features.
        SourceChanged: A file was changed meanwhile, or vanished.
        UnreadableFile: A file is damaged or cut.
        Leak: A feature knows what it cannot know.
        ChecksFailed: The version does not keep to data.checks.
        VersionNotFound: There is no version as features.grow_from names.
        ValueError: There is nothing to learn from: no rows, one class, an empty split.
    """
    feature_set, selection = selected(feature_set, needed or {}, on_progress)
    leakage.check_columns(feature_set, data.leakage)
    checks.require_known(data.checks, feature_set)
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
        warnings = checks.check_version(data.checks, found, store)
        return _result(found, warnings, reused=True)
    older = None if base is None else store.open(name, base.number)
    with (
        told_if_full(store.path),
        store.workspace(name) as workspace,
        naming_files(sources, data.tables),
    ):
        staged = workspace.path / "raw"
        staged.mkdir()
        source = read(data, feature_set, staged, on_progress=on_progress, mapper=mapper)
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
        encoded = _encode(
            source, data, feature_set, selection, older, workspace, mapper, on_progress
        )
        if data.entities:
            write_snapshot(
                workspace.path / "build" / SNAPSHOT_FOLDER,
                source,
                keys=data.entities,
                feature_set=feature_set,
                columns=encoded.fitted.columns,
                time_unit=data.time_unit,
                on_progress=on_progress,
            )
        if older is not None:
            metadata["grown_from"] = older.number
            metadata["grown_from_fingerprint"] = older.fingerprint
        if encoded.negatives_dropped is not None:
            metadata["negatives_dropped"] = encoded.negatives_dropped
        identity.require_unchanged(sources)
        leakage.check_rates(encoded.files, encoded.fitted.feature_set, data.leakage)
        metadata["missing"] = encoded.missing
        warnings = checks.check_encoded(
            data.checks,
            encoded.files,
            encoded.fitted,
            encoded.missing,
            store,
            name,
            workspace.path / "build",
        )
        if warnings:
            metadata["warnings"] = warnings
        version = store.write_files(
            name, encoded.files, encoded.fitted, metadata, workspace, encoded.raw_sample
        )
    for line in warnings:
        on_progress(line, 0, None)
    return _result(version, warnings, reused=False)


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
    """What was written, and what is to be said of it."""

    files: list[tuple[str, Path]]
    """Split and file, as the store takes them."""
    fitted: FittedFeatures
    raw_sample: pl.DataFrame
    negatives_dropped: int | None
    """None without data.negative_downsampling."""
    missing: dict[str, dict[str, int]]
    """By split and number without an indicator, rows whose raw number was missing."""


def _encode(
    source: Source,
    data: DataConfig,
    feature_set: FeatureSet,
    selection: Selection | None,
    older: Version | None,
    workspace: Workspace,
    mapper: Mapper,
    on_progress: OnProgress,
) -> _Encoded:
    """Histories, splits, fits, and the encoded rows."""
    folder = workspace.path / "partial"
    folder.mkdir()
    on_progress("gathering histories and splitting", 0, None)
    wide = histories(source.frame, feature_set)
    parts = assembly.beside(source.parts, wide, folder)
    parts = [part.with_frame(with_derived(part.frame, feature_set)) for part in parts]
    parts = assembly.with_split(parts, data.split, feature_set, source.files, folder, mapper)
    gathered = event_tables.behind(data.events, feature_set)
    leakage.check_order(whole(parts), feature_set, gathered, data.split, data.leakage)
    on_progress("counting rows and labels", 0, None)
    surveys, total = assembly.survey(parts, feature_set, mapper)
    if data.split.files is not None:
        _require_rows(total.rows, data.split.files)
    dropped = None
    if data.negative_downsampling is not None:
        before = total.rows["train"]
        require_no_other(whole(parts), data.negative_downsampling, feature_set)
        parts = [
            part.with_frame(thinned(part.frame, data.negative_downsampling, feature_set))
            for part in parts
        ]
        surveys, total = assembly.survey(parts, feature_set, mapper)
        dropped = before - total.rows["train"]
        on_progress("negatives left out of training", dropped, before)
    on_progress("fitting features", 0, total.rows["train"])
    train = assembly.training(parts)
    base = None if older is None else older.fitted
    fitted = learn(train, feature_set, folder, selection, mapper, base)
    schema = parts[0].frame.collect_schema()
    encoders = out_of_fold(fitted.encoders(schema), whole(train), feature_set)
    write = assembly.WriteRows(
        (*encoders, *fitted.target_encoders(schema), pl.col(SPLIT_COLUMN)),
        fitted.layout,
        tuple(column.name for column in fitted.columns),
        missing.missing_numbers(feature_set, schema),
        workspace.path / "rows",
        workspace.build,
    )
    rows = [sum(survey.rows.values()) for survey in surveys]
    written = list(told(mapper(write, parts), rows, "encoding and writing", on_progress))
    last = next(name for name in reversed(SPLITS) if total.rows[name])
    return _Encoded(
        files=assembly.in_order(written),
        fitted=with_nullable(fitted, schema, sorted({n for one in written for n in one.nullable})),
        raw_sample=assembly.first_rows(parts, surveys, last, RAW_SAMPLE_ROWS),
        negatives_dropped=dropped,
        missing=missing.by_split([one.missing for one in written]),
    )


def _require_rows(counts: Mapping[str, int], files: SplitFiles) -> None:
    """Files that are named for a split are to give it rows."""
    for name, pattern in files.patterns():
        if not counts[name]:
            raise ValueError(
                f"split.files.{name}: no usable rows in the files that fit {pattern!r}; look at"
                " what was rejected, or leave them out of data.path and of data.split"
            )


def _keep(source: Source, workspace: Workspace, path: Path) -> Path | None:
    """Put rejected rows aside, for good; None when there are none."""
    rejected = [*source.rejections, *source.side_rejections]
    if not rejected:
        return None
    partial = workspace.path / "rejected.csv"
    rejection.write(rejected, partial)
    return partial.rename(path)


def _result(version: Version, warnings: list[str], *, reused: bool) -> BuildResult:
    rejected = version.metadata["rejected_path"]
    return BuildResult(
        version=version,
        reused=reused,
        rows_in=version.metadata["rows_in"],
        rows_rejected=version.metadata["rows_rejected"],
        rejected_path=None if rejected is None else Path(rejected),
        warnings=tuple(warnings),
    )
