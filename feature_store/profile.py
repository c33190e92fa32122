"""What a version holds, feature by feature and split by split.

Counted in one pass over the encoded rows (`feature_store.tallies`), and kept beside the version as
`profile.json`. Values are shown as they were before encoding: texts through the vocabulary, numbers
without their standardisation.

Missing: share of the rows without a value (an empty list has none). Of a number without
`indicator`, the encoded rows do not tell; what the build noted of the raw rows is taken. Unseen:
share of the entries outside the vocabulary. Shares of values are of all entries, missing ones
among them. Rates of a label have Wilson's interval of 95%.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from feature_store.config import Config
from feature_store.document import read_json, write_json
from feature_store.encoding import FittedFeatures
from feature_store.expressions import DATE_PARTS
from feature_store.features import FIRST_ID, SPLITS, DatePart, Elapsed, IdField, Numeric
from feature_store.sketches import Array, NumberBins
from feature_store.store import Version
from feature_store.tallies import Tally, tally

FORMAT = 1
PROFILE_FILE = "profile.json"
TOP_VALUES = 50
"""Values of a feature that a profile tells of, the most frequent."""
NUM_BUCKETS = 10
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
NUM_BARS = 24
_LOW, _HIGH = QUANTILES.index(0.01), QUANTILES.index(0.99)
_NORMAL_975 = 1.959963984540054


class Rate(Config):
    """Share of positive labels among some rows, with its 95% interval."""

    task: str
    rows: int
    """Rows (entries of a list) that it is of."""
    rate: float
    low: float
    high: float


class ValueProfile(Config):
    """One value of a feature."""

    value: str
    rows: int
    """Its entries."""
    share: float
    rates: tuple[Rate, ...]


class Bucket(Config):
    """Numbers from `low` to `high`, both included; as many rows as in any other bucket."""

    low: float
    high: float
    rows: int
    share: float
    rates: tuple[Rate, ...]


class Histogram(Config):
    """Shares of parts of one width from the 1% to the 99% quantile; the ends hold all beyond."""

    edges: tuple[float, ...]
    shares: tuple[float, ...]


class NumberProfile(Config):
    """How numbers, or lengths of lists, spread; right to 1/256 of a number as it is encoded."""

    mean: float
    deviation: float
    quantiles: dict[str, float]
    """By share in percent ("50")."""
    buckets: tuple[Bucket, ...]
    histogram: Histogram


class FeatureProfile(Config):
    """One encoded column in one split."""

    name: str
    shape: Literal["single", "bag", "sequence", "number"]
    entries: int
    missing: float | None
    """None: the encoded rows do not tell, and the build did not note it."""
    unseen: float | None
    """None where there is no vocabulary."""
    distinct: int
    distinct_estimated: bool
    """Counted by HyperLogLog (0.8%); else exactly."""
    top: tuple[ValueProfile, ...] = ()
    ordered: bool = False
    """Whether `top` is in the order of the values (buckets, parts of a time), not of their rows."""
    top_error: int = 0
    """Rows that a count of `top` may lack: not every hashed id is kept."""
    missing_rates: tuple[Rate, ...] = ()
    unseen_rates: tuple[Rate, ...] = ()
    numbers: NumberProfile | None = None
    lengths: NumberProfile | None = None
    """Of lists."""
    weights: NumberProfile | None = None
    """Of the elements of weighted lists."""


class SplitProfile(Config):
    """One split."""

    rows: int
    labels: tuple[Rate, ...]
    features: tuple[FeatureProfile, ...]

    def feature(self, name: str) -> FeatureProfile:
        """The feature of that name; KeyError if there is none."""
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(name)


class Profile(Config):
    """All splits of a version that have rows."""

    format: int = FORMAT
    fingerprint: str
    """Of the fitted features that the rows were encoded by."""
    splits: dict[str, SplitProfile]


@dataclass(frozen=True)
class Meaning:
    """What encoded values were before they were encoded.

    Args:
        fitted: What encoded them.
    """

    fitted: FittedFeatures

    def text_of(self, field: IdField) -> Callable[[int], str]:
        """The word for an id of a field: its text, its number, or the hash itself."""
        vocabulary = self.fitted.vocabularies.get(field.space)
        if vocabulary is not None:
            return lambda id_: str(vocabulary[id_ - FIRST_ID])
        features = {feature.name: feature for feature in self.fitted.feature_set.inputs}
        match features.get(field.space):
            case Numeric() as numeric:
                return self._buckets(numeric)
            case DatePart() as part:
                smallest, _ = DATE_PARTS[part.part]
                return lambda id_: str(id_ - FIRST_ID + smallest)
        if field.cardinality is None:
            return lambda id_: f"#{np.uint64(id_ & 0xFFFFFFFFFFFFFFFF):016x}"
        return lambda id_: f"id {id_}"

    def is_ordered(self, field: IdField) -> bool:
        """Whether ids follow the order of what they stand for."""
        features = {feature.name: feature for feature in self.fitted.feature_set.inputs}
        return isinstance(features.get(field.space), Numeric | DatePart)

    def raw(self, name: str) -> Callable[[Array], Array]:
        """From encoded numbers of a column to those before standardisation and log1p."""
        mean, deviation = self.fitted.moments.get(name, (0.0, 1.0))
        features = {feature.name: feature for feature in self.fitted.feature_set.inputs}
        feature = features.get(name)
        log1p = isinstance(feature, Numeric | Elapsed) and feature.log1p
        return lambda numbers: _unscaled(numbers, mean, deviation, log1p=log1p)

    def cuts(self, name: str) -> list[float] | None:
        """Where a bucketed number is cut, before log1p; None for any other feature."""
        boundaries = self.fitted.boundaries.get(name)
        return None if boundaries is None else self.raw(name)(np.array(boundaries)).tolist()

    def _buckets(self, numeric: Numeric) -> Callable[[int], str]:
        cuts = self.cuts(numeric.name) or []
        ends = ["…", *(f"{cut:.6g}" for cut in cuts), "…"]
        return lambda id_: f"{ends[id_ - FIRST_ID]} – {ends[id_ - FIRST_ID + 1]}"


def profile(version: Version, counted: dict[str, Tally] | None = None) -> Profile:
    """The profile of a version; made the first time, and kept beside it.

    Args:
        version: The version.
        counted: Its rows by split, if they are counted already.

    Raises:
        OSError: A file of the version cannot be read, or the profile not be written.
        ValueError: The profile that is kept is damaged; the message names its file.
    """
    kept = load(version.folder)
    if kept is not None and kept.fingerprint == version.fitted.fingerprint:
        return kept
    if counted is None:
        counted = {split: tally(version.files(split), version.layout) for split in SPLITS}
    found = summary(counted, version.fitted, version.metadata.get("missing") or {})
    save(found, version.folder)
    return found


def load(folder: Path) -> Profile | None:
    """The profile that is kept in a folder; None without one, or with one of another format.

    Raises:
        ValueError: The file is damaged; the message names it.
    """
    path = folder / PROFILE_FILE
    if not path.is_file():
        return None
    document = read_json(path)
    return Profile.model_validate(document) if document.get("format") == FORMAT else None


def save(found: Profile, folder: Path) -> None:
    """Keep a profile in a folder; the file is there whole or not at all."""
    write_json(found.model_dump(mode="json"), folder / PROFILE_FILE)


def summary(
    tallies: dict[str, Tally],
    fitted: FittedFeatures,
    missing: dict[str, dict[str, int]],
) -> Profile:
    """The profile of tallied rows.

    Args:
        tallies: By split; those without rows are left out.
        fitted: What encoded the rows.
        missing: By split and feature, rows whose raw number was missing.
    """
    splits = {
        split: split_summary(counted, fitted, missing.get(split, {}))
        for split, counted in tallies.items()
        if counted.rows
    }
    return Profile(fingerprint=fitted.fingerprint, splits=splits)


def split_summary(counted: Tally, fitted: FittedFeatures, missing: dict[str, int]) -> SplitProfile:
    """The profile of one split's rows."""
    tasks, meaning = counted.layout.tasks, Meaning(fitted)
    features = [
        *(_of_ids(f, counted, meaning) for f in counted.layout.ids),
        *(_of_numbers(name, counted, meaning, missing) for name in counted.numbers),
    ]
    return SplitProfile(
        rows=counted.rows,
        labels=rates(tasks, counted.rows, counted.positives_T),
        features=tuple(features),
    )


def rates(tasks: Sequence[str], rows: int, positives_T: Iterable[float]) -> tuple[Rate, ...]:
    """The rate of each label among some rows; none without rows."""
    if not rows:
        return ()
    found = []
    for task, positives in zip(tasks, positives_T, strict=True):
        low, high = wilson(float(positives), rows)
        rate = float(positives) / rows
        found.append(Rate(task=task, rows=rows, rate=rate, low=low, high=high))
    return tuple(found)


def wilson(positives: float, rows: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927)."""
    share, z2 = positives / rows, _NORMAL_975**2
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    spread = math.sqrt(share * (1 - share) / rows + z2 / (4 * rows**2)) * _NORMAL_975
    half = spread / (1 + z2 / rows)
    return max(0.0, middle - half), min(1.0, middle + half)


def _of_ids(field: IdField, counted: Tally, meaning: Meaning) -> FeatureProfile:
    found, tasks = counted.ids[field.name], counted.layout.tasks
    text_of = meaning.text_of(field)
    ids_U, rows_U, positives_UT = found.values()
    ordered = meaning.is_ordered(field) and len(ids_U) <= TOP_VALUES
    most = np.lexsort((ids_U, -rows_U))[:TOP_VALUES] if not ordered else np.arange(len(ids_U))
    unseen, unseen_T = found.unseen
    hashed = field.cardinality is None
    return FeatureProfile(
        name=field.name,
        shape=field.shape,
        entries=found.entries,
        missing=found.missing_rows / counted.rows,
        unseen=None if hashed else unseen / max(found.entries, 1),
        distinct=found.distinct,
        distinct_estimated=hashed,
        top=tuple(
            ValueProfile(
                value=text_of(int(ids_U[place])),
                rows=int(rows_U[place]),
                share=float(rows_U[place] / found.entries),
                rates=rates(tasks, int(rows_U[place]), positives_UT[place]),
            )
            for place in most
        ),
        ordered=ordered,
        top_error=found.error,
        missing_rates=rates(tasks, found.missing_rows, found.missing_T),
        unseen_rates=rates(tasks, unseen, unseen_T),
        lengths=_spread(found.lengths, tasks, np.asarray) if found.lengths.rows else None,
        weights=_spread(found.weights, tasks, np.asarray) if found.weights.rows else None,
    )


def _of_numbers(
    name: str, counted: Tally, meaning: Meaning, missing: dict[str, int]
) -> FeatureProfile:
    found, tasks = counted.numbers[name], counted.layout.tasks
    rows = missing.get(name) if found.missing_rows is None else found.missing_rows
    return FeatureProfile(
        name=name,
        shape="number",
        entries=found.entries,
        missing=None if rows is None else rows / counted.rows,
        unseen=None,
        distinct=found.distinct,
        distinct_estimated=True,
        missing_rates=rates(tasks, found.missing_rows or 0, found.missing_T),
        numbers=_spread(found.bins, tasks, meaning.raw(name)) if found.bins.rows else None,
    )


def _spread(bins: NumberBins, tasks: Sequence[str], raw: Callable[[Array], Array]) -> NumberProfile:
    found = bins.occupied()
    values = raw(np.array(bins.quantiles(QUANTILES))).tolist()
    near_B = raw(found.near_B)
    mean = float(np.average(near_B, weights=found.rows_B))
    deviation = math.sqrt(float(np.average((near_B - mean) ** 2, weights=found.rows_B)))
    buckets, first = [], 0
    for last in found.cut(NUM_BUCKETS):
        inside = slice(first, last + 1)
        rows = int(found.rows_B[inside].sum())
        positives_T = found.positives_TB[:, inside].sum(axis=1)
        buckets.append(
            Bucket(
                low=float(near_B[first]),
                high=float(near_B[last]),
                rows=rows,
                share=rows / bins.rows,
                rates=rates(tasks, rows, positives_T),
            )
        )
        first = last + 1
    return NumberProfile(
        mean=mean,
        deviation=deviation,
        quantiles={f"{share * 100:g}": v for share, v in zip(QUANTILES, values, strict=True)},
        buckets=tuple(buckets),
        histogram=_histogram(near_B, found.rows_B, values[_LOW], values[_HIGH]),
    )


def _histogram(numbers_B: Array, rows_B: Array, low: float, high: float) -> Histogram:
    if low == high:
        edges, places = np.array([low, high]), np.zeros(len(numbers_B), np.int64)
    else:
        edges = np.linspace(low, high, NUM_BARS + 1)
        places = (np.searchsorted(edges, numbers_B, "right") - 1).clip(0, NUM_BARS - 1)
    shares = np.bincount(places, rows_B, minlength=len(edges) - 1) / rows_B.sum()
    return Histogram(edges=tuple(edges.tolist()), shares=tuple(shares.tolist()))


def _unscaled(numbers: Array, mean: float, deviation: float, *, log1p: bool) -> Array:
    before = numbers * deviation + mean
    if not log1p:
        return before
    with np.errstate(over="ignore"):  # the far end of the bin of a number near 1e308 is infinite
        return np.sign(before) * np.expm1(np.abs(before))
