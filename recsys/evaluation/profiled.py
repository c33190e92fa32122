"""`recsys features profile`: what a version holds and what changed, as a page and as JSON."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_store.daily import Days, days
from feature_store.document import write_json, write_text
from feature_store.drift import Drift, Side, drift, side
from feature_store.features import SPLITS
from feature_store.profile import Profile, profile
from feature_store.tallies import Tally, merged, tally
from feature_store.version import Version
from recsys.evaluation.profile_page import Facts, profile_page

OnProgress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Profiled:
    """A version's profile, and what it was compared with."""

    version: Version
    profile: Profile
    drifts: tuple[Drift, ...]
    days: Days | None

    def document(self) -> dict[str, Any]:
        """All of it in plain values."""
        return {
            "version": _name(self.version),
            "rows": self.version.rows,
            "warnings": self.version.metadata.get("warnings", []),
            "profile": self.profile.model_dump(mode="json"),
            "drift": [each.model_dump(mode="json") for each in self.drifts],
            "days": None if self.days is None else self.days.model_dump(mode="json"),
        }

    def write(self, html: Path | None, json: Path | None) -> None:
        """Write the page and the document, each whole or not at all."""
        if html is not None:
            write_text(profile_page(self._facts(), self.profile, self.drifts, self.days), html)
        if json is not None:
            write_json(self.document(), json)

    def _facts(self) -> Facts:
        rows = [f"{split} {rows:,} rows" for split, rows in self.version.rows.items() if rows]
        rates = [
            f"{label.task} {label.rate:.2%} in {split}"
            for split, found in self.profile.splits.items()
            for label in found.labels
        ]
        built = f"built {self.version.created:%Y-%m-%d %H:%M} UTC"
        warnings = tuple(self.version.metadata.get("warnings", ()))
        return Facts(_name(self.version), (*rows, *rates, built), warnings)


def look_at(
    version: Version,
    *,
    against: Version | None = None,
    by_day: bool = False,
    split: str | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Profiled:
    """Profile a version and compare it.

    Args:
        version: What is looked at.
        against: The version that it is compared with, its reference; without one, its own training
            split is compared with the others.
        by_day: Follow it from day to day instead.
        split: Compare these rows of the two versions only; all if absent.
        on_progress: Told of the splits that are counted.

    Raises:
        ValueError: There is nothing to compare: no rows, or no time to tell days by.
    """
    if by_day and against is not None:
        raise ValueError("a version is compared with another one or day by day: choose one")
    if split is not None and against is None:
        raise ValueError("--split chooses the rows of two versions: name the other with --against")
    counted: dict[str, Tally] = {}
    for place, name in enumerate(SPLITS):
        on_progress(f"counting {name}", place, len(SPLITS))
        counted[name] = tally(version.files(name), version.layout)
    found = profile(version, counted)
    drifts: list[Drift] = []
    if against is not None:
        chosen = SPLITS if split is None else (split,)
        on_progress(f"counting {_name(against)}", len(SPLITS), None)
        whole = merged([counted[name] for name in chosen], version.layout)
        words = _name(version) if split is None else f"{_name(version)} {split}"
        drifts.append(drift(side(against, chosen), Side(words, whole, version.fitted)))
    elif not by_day:
        train, *others = (Side(name, counted[name], version.fitted) for name in SPLITS)
        drifts += [drift(train, other) for other in others if train.tally.rows and other.tally.rows]
    followed = None
    if by_day:
        on_progress("counting days", len(SPLITS), None)
        followed = days(version)
    return Profiled(version, found, tuple(drifts), followed)


def _name(version: Version) -> str:
    return f"{version.name}@{version.number}"
