"""Thresholds that a version must keep: `data.checks`.

```yaml
data:
  checks:
    "*": {missing: {warn: 0.1, fail: 0.5}, psi: {warn: 0.1, fail: 0.25}}
    item_id: {unseen: {warn: 0.2}, min_distinct: {fail: 1000}}
    clicked: {label_rate: {warn: [0.01, 0.1], fail: [0.001, 0.5]}}
```

A name is that of an encoded column (a feature) or of a label; `"*"` stands for all, and what is
said of a name comes before it. The rows are looked at when they are encoded and before they become
a version: a build that fails leaves none behind. Drift is measured against the table's latest
version, over all splits, and is not held against a build where chance alone gives as much.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from feature_store.config import Config
from feature_store.document import read_json, write_json
from feature_store.drift import Drift, Side, drift, side
from feature_store.encoding import FittedFeatures
from feature_store.features import SPLITS, FeatureSet, nearest
from feature_store.kinds import columns_of
from feature_store.profile import FeatureProfile, Profile, SplitProfile, profile, save, summary
from feature_store.store import Store
from feature_store.tallies import merged, tally
from feature_store.version import Version, VersionNotFound

EVERY = "*"
DRIFT_FILE = "drift.json"
"""Beside a version: how it differs from the one before, where that was checked."""

T = TypeVar("T")
Level = Literal["warn", "fail"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ChecksFailed(ValueError):
    """A version would not keep to `data.checks`; none was written."""


class AtMost(Config):
    """The largest value that goes without a warning, and the largest that goes at all."""

    warn: NonNegativeFloat | None = None
    fail: NonNegativeFloat | None = None

    @model_validator(mode="after")
    def _in_order(self) -> "AtMost":
        _require_one(self.warn, self.fail)
        if self.warn is not None and self.fail is not None and self.warn > self.fail:
            raise ValueError(f"warn ({self.warn:g}) is above fail ({self.fail:g}): it never warns")
        return self


class AtLeast(Config):
    """The least value that goes without a warning, and the least that goes at all."""

    warn: PositiveInt | None = None
    fail: PositiveInt | None = None

    @model_validator(mode="after")
    def _in_order(self) -> "AtLeast":
        _require_one(self.warn, self.fail)
        if self.warn is not None and self.fail is not None and self.warn < self.fail:
            raise ValueError(f"warn ({self.warn}) is below fail ({self.fail}): it never warns")
        return self


class Within(Config):
    """The rates that go without a warning, and those that go at all: [lowest, highest]."""

    warn: tuple[Share, Share] | None = None
    fail: tuple[Share, Share] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> "Within":
        _require_one(self.warn, self.fail)
        for level, ends in (("warn", self.warn), ("fail", self.fail)):
            if ends is not None and ends[0] > ends[1]:
                raise ValueError(f"{level}: [lowest, highest], found {list(ends)}")
        return self


class ColumnChecks(Config):
    """What is asked of one feature or label; nothing of what is absent."""

    missing: AtMost | None = None
    """Share of the rows of a split without a value."""
    unseen: AtMost | None = None
    """Share of the values of a split outside the vocabulary."""
    min_distinct: AtLeast | None = None
    """Distinct values of the training split."""
    psi: AtMost | None = None
    """Population stability index against the latest version (see `feature_store.drift`)."""
    jensen_shannon: AtMost | None = None
    """Jensen-Shannon divergence against it, in bits."""
    affected: AtMost | None = None
    """Share of the traffic in values whose share changed since then."""
    label_rate: Within | None = None
    """Of a label: its rate in every split."""

    @property
    def of_drift(self) -> dict[str, AtMost]:
        """What needs a version to compare with."""
        asked = {
            "psi": self.psi,
            "jensen_shannon": self.jensen_shannon,
            "affected": self.affected,
        }
        return {what: limits for what, limits in asked.items() if limits is not None}

    @property
    def of_features(self) -> tuple[str, ...]:
        """What can be asked of features alone."""
        asked = {
            "missing": self.missing,
            "unseen": self.unseen,
            "min_distinct": self.min_distinct,
        }
        return tuple(what for what, limits in asked.items() if limits is not None)


Checks = dict[str, ColumnChecks]


@dataclass(frozen=True)
class Finding:
    """Something outside its limits."""

    level: Level
    name: str
    where: str
    what: str
    found: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.name}{self.where}: {self.what} is {self.found}, allowed {self.allowed}"


def require_known(checks: Checks, feature_set: FeatureSet) -> None:
    """Check that checks are of columns that there are, and of what can be asked of them.

    Raises:
        ValueError: Names the one that is not, and the nearest.
    """
    columns = [name for f in feature_set.inputs for name in columns_of(f, feature_set)]
    labels = [label.name for label in feature_set.labels]
    for name, asked in checks.items():
        if name == EVERY:
            continue
        if name not in columns and name not in labels:
            raise ValueError(
                f"data.checks: {name!r} is no feature, label or {EVERY!r};"
                f" {nearest(name, [*columns, *labels])}"
            )
        if name not in labels and asked.label_rate is not None:
            raise ValueError(
                f"data.checks: {name!r} is a feature, and label_rate is asked of labels"
                f" ({', '.join(labels)})"
            )
        if name in labels and asked.of_features:
            raise ValueError(
                f"data.checks: {name!r} is a label, and {asked.of_features[0]} is asked of features"
            )


def check_encoded(
    checks: Checks,
    files: Sequence[tuple[str, Path]],
    fitted: FittedFeatures,
    missing: dict[str, dict[str, int]],
    store: Store,
    name: str,
    folder: Path,
) -> list[str]:
    """Look at the encoded rows of a build before they become a version.

    Args:
        checks: By name; none: nothing is read.
        files: Split and Parquet file.
        fitted: What encoded them.
        missing: By split and feature, rows whose raw number was missing.
        store: Has the latest version.
        name: The feature table.
        folder: What is found is kept here: it becomes the version's.

    Returns:
        What was found that is worth a warning, a line each.

    Raises:
        ChecksFailed: Lists all that is not allowed.
    """
    if not checks:
        return []
    tallies = {
        split: tally([file for of, file in files if of == split], fitted.layout) for split in SPLITS
    }
    found = summary(tallies, fitted, missing)
    save(found, folder)
    changed, warnings = None, []
    if _asks_for_drift(checks) and store.exists(name):
        try:
            latest = side(store.open(name))
        except VersionNotFound as error:
            warnings.append(f"drift is not checked, there is nothing to compare with: {error}")
        else:
            built = Side("this build", merged(list(tallies.values()), fitted.layout), fitted)
            changed = drift(latest, built)
            write_json(changed.model_dump(mode="json"), folder / DRIFT_FILE)
    return [*warnings, *_judged(checks, found, changed, "so no version was written")]


def check_version(checks: Checks, version: Version, store: Store) -> list[str]:
    """The same of a version that is there already, since checks may be younger than it.

    Raises:
        ChecksFailed: Lists all that is not allowed.
    """
    if not checks:
        return []
    changed = None
    if _asks_for_drift(checks):
        path = version.folder / DRIFT_FILE
        if path.is_file():
            changed = Drift.model_validate(read_json(path))
        else:
            before = _before(version, store)
            changed = None if before is None else drift(side(before), side(version))
    whose = f"{version.name}@{version.number}, which was built before"
    return _judged(checks, profile(version), changed, f"found in {whose}")


def _before(version: Version, store: Store) -> Version | None:
    older = [v for v in store.history(version.name) if v.number < version.number]
    return older[-1] if older else None


def _asks_for_drift(checks: Checks) -> bool:
    return any(asked.of_drift for asked in checks.values())


def _judged(checks: Checks, found: Profile, changed: Drift | None, consequence: str) -> list[str]:
    findings = [
        *(finding for split, of in found.splits.items() for finding in _static(checks, split, of)),
        *(_drifted(checks, changed) if changed is not None else ()),
    ]
    failed = [str(finding) for finding in findings if finding.level == "fail"]
    if failed:
        raise ChecksFailed(
            f"data.checks: {len(failed)} of the limits are passed, {consequence}:\n  "
            + "\n  ".join(failed)
        )
    return [str(finding) for finding in findings]


def _asked(checks: Checks, name: str) -> ColumnChecks:
    """What is asked of a name: what is said of it, then what is said of all."""
    every, own = checks.get(EVERY, ColumnChecks()), checks.get(name, ColumnChecks())
    said = {what: limits for what, limits in own if limits is not None}
    return every.model_copy(update=said)


def _static(checks: Checks, split: str, found: SplitProfile) -> Iterator[Finding]:
    """What is asked of the rows of one split alone."""
    where = f" in {split}"
    for feature in found.features:
        asked = _asked(checks, feature.name)
        for what, limits, share in (
            ("missing", asked.missing, feature.missing),
            ("unseen", asked.unseen, feature.unseen),
        ):
            if limits is not None and share is not None:
                yield from _above(limits, share, feature.name, where, f"share {what}")
        if asked.missing is not None and feature.missing is None:
            allowed = "known: build again, or set indicator: true"
            yield Finding("warn", feature.name, where, "share missing", "unknown", allowed)
        if asked.min_distinct is not None and split == "train":
            yield from _below(asked.min_distinct, feature, where)
    for label in found.labels:
        rates = _asked(checks, label.task).label_rate
        if rates is not None:
            yield from _outside(rates, label.rate, label.task, where)


def _drifted(checks: Checks, changed: Drift) -> Iterator[Finding]:
    where = f" since {changed.reference}"
    for feature in changed.features:
        name = f"{feature.name} (lengths)" if feature.of == "lengths" else feature.name
        for what, limits in _asked(checks, feature.name).of_drift.items():
            value = {
                "psi": feature.psi,
                "jensen_shannon": feature.jensen_shannon,
                "affected": feature.affected,
            }[what]
            if value is not None and feature.drifted:
                yield from _above(limits, value, name, where, what)


def _above(limits: AtMost, value: float, name: str, where: str, what: str) -> Iterator[Finding]:
    for level, limit in _levels(limits.fail, limits.warn):
        if value > limit:
            yield Finding(level, name, where, what, f"{value:.4g}", f"at most {limit:g}")
            return


def _below(limits: AtLeast, feature: FeatureProfile, where: str) -> Iterator[Finding]:
    for level, limit in _levels(limits.fail, limits.warn):
        if feature.distinct < limit:
            found, allowed = f"{feature.distinct:,}", f"at least {limit:,}"
            yield Finding(level, feature.name, where, "number of distinct values", found, allowed)
            return


def _outside(limits: Within, rate: float, name: str, where: str) -> Iterator[Finding]:
    for level, (low, high) in _levels(limits.fail, limits.warn):
        if not low <= rate <= high:
            yield Finding(level, name, where, "rate", f"{rate:.4g}", f"{low:g} to {high:g}")
            return


def _levels(fail: T | None, warn: T | None) -> list[tuple[Level, T]]:
    """The limits that there are, the harder one first."""
    found: list[tuple[Level, T]] = []
    if fail is not None:
        found.append(("fail", fail))
    if warn is not None:
        found.append(("warn", warn))
    return found


def _require_one(warn: object, fail: object) -> None:
    if warn is None and fail is None:
        raise ValueError("give warn, fail or both")
