"""What two versions of a feature table differ in: configuration, schema, vocabularies, rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from feature_store import table
from feature_store.compatibility import Compatibility, compare
from feature_store.version import Version

EXAMPLES = 5
"""Values named of a vocabulary that has changed."""


@dataclass(frozen=True)
class VocabularyChange:
    """Of one feature; sizes are 0 where a version has no such vocabulary."""

    before: int
    after: int
    added: int
    removed: int
    added_examples: tuple[str, ...]
    """In the order of their ids: the most frequent first."""
    removed_examples: tuple[str, ...]
    ids_moved: bool
    """Some value that both have has another id."""


@dataclass(frozen=True)
class Difference:
    """From one version to another; what is equal is not in it."""

    configuration: dict[str, tuple[Any, Any]]
    """By path such as `features.inputs.item.min_count`; None where a version has none."""
    schema: dict[str, tuple[str | None, str | None]]
    """By encoded column: its type."""
    vocabularies: dict[str, VocabularyChange]
    rows: dict[str, tuple[int, int]]
    """Read, rejected, and by split."""
    sources: dict[str, tuple[str | None, str | None]]
    """By path: sha256."""
    code: tuple[str | None, str | None] | None
    compatibility: Compatibility
    """Whether a model of the first can read the second."""


def difference(before: Version, after: Version) -> Difference:
    """What changed from one version to another, of the same table or not."""
    codes = (before.metadata.get("code"), after.metadata.get("code"))
    return Difference(
        configuration=_changed(_configuration(before), _configuration(after)),
        schema=_changed(_schema(before), _schema(after)),
        vocabularies=dict(_vocabularies(before, after)),
        rows=_changed(_rows(before), _rows(after)),
        sources=_changed(_sources(before), _sources(after)),
        code=codes if codes[0] != codes[1] else None,
        compatibility=compare(before.fitted, after.fitted),
    )


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {name: (before.get(name), after.get(name)) for name in {**before, **after}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _configuration(version: Version) -> dict[str, Any]:
    return dict(_flat("", version.metadata.get("configuration", {})))


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Leaves by path; what has a name in a list goes by it, so that an insertion is one change."""
    if isinstance(value, Mapping) and value:
        children = list(value.items())
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        children = [
            (each.get("name", str(place)) if isinstance(each, Mapping) else str(place), each)
            for place, each in enumerate(value)
        ]
    else:
        yield path, value
        return
    for name, child in children:
        yield from _flat(f"{path}.{name}" if path else str(name), child)


def _schema(version: Version) -> dict[str, str]:
    return {name: str(dtype) for name, dtype in table.encoded_schema(version.layout).items()}


def _rows(version: Version) -> dict[str, int]:
    metadata = version.metadata
    return {"read": metadata["rows_in"], "rejected": metadata["rows_rejected"], **version.rows}


def _sources(version: Version) -> dict[str, str]:
    return {source["path"]: source["sha256"] for source in version.metadata["sources"]}


def _vocabularies(before: Version, after: Version) -> Iterator[tuple[str, VocabularyChange]]:
    mine, theirs = before.fitted.vocabularies, after.fitted.vocabularies
    for name in {**mine, **theirs}:
        old, new = mine.get(name, _NONE), theirs.get(name, _NONE)
        if old.equals(new):
            continue
        added = new.filter(~new.is_in(old.implode()))
        removed = old.filter(~old.is_in(new.implode()))
        yield (
            name,
            VocabularyChange(
                before=len(old),
                after=len(new),
                added=len(added),
                removed=len(removed),
                added_examples=tuple(added.head(EXAMPLES)),
                removed_examples=tuple(removed.head(EXAMPLES)),
                ids_moved=_moved(old, new),
            ),
        )


_NONE = pl.Series(dtype=pl.String())


def _moved(old: pl.Series, new: pl.Series) -> bool:
    """Whether a value that both have is at another place."""
    places = [pl.DataFrame({"value": values}).with_row_index("place") for values in (old, new)]
    both = places[0].join(places[1], on="value", suffix="_new")
    return bool((both["place"] != both["place_new"]).any())
