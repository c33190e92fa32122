"""Whether a model that was trained on one version of the features can read another.

The rule. Every feature of the model's version must be in the other and mean the same there:

- it is declared the same, but for what only limits its vocabulary (`min_count`, `max_size`,
  `max_distinct`), and reads raw columns of the same type;
- its ids mean the same: the older vocabulary begins the newer one, so that new values have new ids
  and no old one has moved; hashes come from the same library;
- its numbers mean the same: equal boundaries of buckets, moments and other learnt tables (rates of
  target encodings are rates in any version, and follow its rows);
- the labels of the model's version are there, declared the same.

Features that only the other version has are ignored. A grown vocabulary is compatible: ids that the
model's version does not have are values unseen to it. What `data` makes of files, as a window of
events, is not seen here: `recsys features diff` shows how it changed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from feature_store.encoding import FittedFeatures
from feature_store.features import FIRST_ID, FeatureSet, TargetEncoding
from feature_store.kinds import kind_of

VOCABULARY_LIMITS = ("min_count", "max_size", "max_distinct")
"""Settings of a feature that decide which values have ids, and never what an id means."""


class IncompatibleVersion(ValueError):
    """A version that a model cannot read."""


@dataclass(frozen=True)
class Change:
    """Something that is not in another version as it was."""

    feature: str
    """The feature or label."""
    what: str
    """A clause for a user, such as "is gone"."""

    def __str__(self) -> str:
        return f"{self.feature!r} {self.what}"


@dataclass(frozen=True)
class Compatibility:
    """What became of a version's features in another."""

    breaks: tuple[Change, ...]
    """Why a model of the first cannot read the second."""
    grown: dict[str, tuple[int, int]]
    """By feature whose vocabulary has grown: values before and after."""
    added: tuple[str, ...]
    """Features that only the second has."""

    @property
    def is_compatible(self) -> bool:
        """Whether a model that was trained on the first can read the second."""
        return not self.breaks

    def require(self, reader: str, version: str) -> None:
        """Refuse what cannot be read.

        Args:
            reader: Who would read it, for the message.
            version: What it would read.

        Raises:
            IncompatibleVersion: Names every feature and what changed.
        """
        if self.breaks:
            raise IncompatibleVersion(
                f"{reader} cannot read {version}: {'; '.join(map(str, self.breaks))}. Keep what it"
                " was trained on (features.grow_from keeps ids and numbers), or train anew"
            )


def compare(before: FittedFeatures, after: FittedFeatures) -> Compatibility:
    """What became of the features of a model's version in another one.

    Args:
        before: Of the version that the model was trained on.
        after: Of the version that it would read.
    """
    mine, theirs = _declared(before.feature_set), _declared(after.feature_set)
    breaks: list[Change] = []
    for name, described in mine.items():
        other = theirs.get(name)
        if other is None:
            breaks.append(Change(name, "is gone"))
            continue
        changes = [
            *_settings(described, other),
            *_sources(name, before.feature_set, after.feature_set),
            *_learnt(name, before, after),
        ]
        breaks += [Change(name, change) for change in changes]
    breaks += [*_types(before, after), *_library(before, after)]
    grown = {
        name: (len(values), len(after.vocabularies[name]))
        for name, values in before.vocabularies.items()
        if name in after.vocabularies and len(after.vocabularies[name]) > len(values)
    }
    broken = {change.feature for change in breaks}
    return Compatibility(
        breaks=tuple(breaks),
        grown={name: sizes for name, sizes in grown.items() if name not in broken},
        added=tuple(name for name in theirs if name not in mine),
    )


def same_ids(before: FittedFeatures, after: FittedFeatures, space: str) -> bool:
    """Whether every id that a space had means the same in another version.

    Args:
        before: Where the ids are from.
        after: Where they are read.
        space: Name of the feature whose ids they are.
    """
    words, others = before.vocabularies.get(space), after.vocabularies.get(space)
    if words is None or others is None:
        same = words is None and others is None and _sizes(before, space) == _sizes(after, space)
    else:
        same = _begins(words, others)
    # What a cross is of decides what its ids mean too: of a number, it is the bucket.
    features = before.feature_set.inputs
    parts = {part for f in features if f.name == space for part in kind_of(f).refers(f)}
    return (
        same
        and all(before.boundaries.get(n) == after.boundaries.get(n) for n in (space, *parts))
        and _equal_tables(before.tables.get(space), after.tables.get(space))
    )


def _sizes(fitted: FittedFeatures, space: str) -> set[int | None]:
    """Numbers of ids of a space: one, or none where nobody has it."""
    return {field.cardinality for field in fitted.layout.ids if field.space == space}


def declared_alike(before: FeatureSet, after: FeatureSet) -> set[str]:
    """Names of features and labels that both declare the same, but for `VOCABULARY_LIMITS`."""
    mine, theirs = _declared(before), _declared(after)
    return {
        name
        for name, described in mine.items()
        if name in theirs
        and not [*_settings(described, theirs[name]), *_sources(name, before, after)]
    }


def _declared(features: FeatureSet) -> dict[str, dict[str, Any]]:
    dumped = [each.model_dump(mode="json") for each in (*features.inputs, *features.labels)]
    return {each["name"]: each for each in dumped}


def _settings(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterable[str]:
    if mine.get("kind") != theirs.get("kind"):
        yield f"was {mine.get('kind', 'a label')}, is {theirs.get('kind', 'a label')}"
        return
    for key in {**mine, **theirs}:
        if key not in VOCABULARY_LIMITS and mine.get(key) != theirs.get(key):
            yield f"had {key} {mine.get(key)!r}, has {theirs.get(key)!r}"


def _sources(name: str, before: FeatureSet, after: FeatureSet) -> Iterable[str]:
    """Changes of the columns that a feature reads, whatever its own settings say of them."""
    mine, theirs = _read(name, before), _read(name, after)
    if mine.keys() != theirs.keys():
        yield f"read the columns {', '.join(mine)}, reads {', '.join(theirs)}"
        return
    for column, derived in mine.items():
        if derived != theirs[column]:
            yield (
                f"read {column!r} {_origin(derived)}, which is read {_origin(theirs[column])} now"
            )


def _read(name: str, features: FeatureSet) -> dict[str, str | None]:
    """By column that a feature reads: what derives it; None: nothing, it is raw."""
    feature = next((each for each in features.inputs if each.name == name), None)
    columns = () if feature is None else kind_of(feature).reads(feature, features)
    return {column: features.derived.get(column) for column in columns}


def _origin(derived: str | None) -> str:
    return "as a raw column" if derived is None else f"as {derived}"


def _learnt(name: str, before: FittedFeatures, after: FittedFeatures) -> Iterable[str]:
    """What changed in what was fitted."""
    words, others = before.vocabularies.get(name), after.vocabularies.get(name)
    if words is not None and others is not None and not _begins(words, others):
        yield _moved(words, others)
    if before.boundaries.get(name) != after.boundaries.get(name):
        yield "has other boundaries of its buckets"
    if before.moments.get(name) != after.moments.get(name):
        yield f"had mean and deviation {before.moments.get(name)}, has {after.moments.get(name)}"
    rates = {f.name for f in before.feature_set.inputs if isinstance(f, TargetEncoding)}
    if name not in rates and not _equal_tables(before.tables.get(name), after.tables.get(name)):
        yield "has learnt other values"


def _equal_tables(one: pl.DataFrame | None, other: pl.DataFrame | None) -> bool:
    if one is None or other is None:
        return one is None and other is None
    return one.equals(other)


def _begins(words: pl.Series, others: pl.Series) -> bool:
    return len(words) <= len(others) and words.equals(others.head(len(words)))


def _moved(words: pl.Series, others: pl.Series) -> str:
    """The first value whose id is not what it was."""
    shared = min(len(words), len(others))
    differs = (words.head(shared) != others.head(shared)).arg_true()
    if not len(differs):
        return f"had {len(words):,} values in its vocabulary, has only {len(others):,}"
    first = int(differs[0])
    found = others.to_list().index(words[first]) if words[first] in others else None
    now = "has none" if found is None else f"has another id, {found + FIRST_ID}"
    return f"has moved ids: the value {words[first]!r} had the id {first + FIRST_ID} and {now}"


def _types(before: FittedFeatures, after: FittedFeatures) -> Iterable[Change]:
    now = {column.name: column.type for column in after.columns}
    for column in before.columns:
        found = now.get(column.name)
        if found is not None and found != column.type:
            yield Change(column.name, f"was a raw column of type {column.type}, is of type {found}")


def _library(before: FittedFeatures, after: FittedFeatures) -> Iterable[Change]:
    hashed = [field.space for field in before.layout.ids if field.cardinality is None]
    if hashed and before.library != after.library:
        for name in dict.fromkeys(hashed):
            yield Change(name, f"was hashed by {before.library}, is by {after.library}")
