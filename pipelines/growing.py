"""From which version a build grows (`features.grow_from`), and whether it has been built already.

A version that was grown is known by its sources, its configuration and the version it grew from.
Under `latest`, a build whose result is there already finds it, whatever came after: else every
build of the same files would grow from its own last result, and make another version.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from feature_store.store import Entry, Store, VersionNotFound


@dataclass(frozen=True)
class Base:
    """A version to grow from."""

    number: int
    fingerprint: str


def identified(
    store: Store,
    name: str,
    grow_from: Literal["latest"] | int | None,
    fingerprint_of: Callable[[str | None], str],
) -> tuple[str, Base | None]:
    """The fingerprint of a build, and the version it grows from; None: from none.

    Args:
        store: Where versions rest.
        name: The feature table.
        grow_from: As configured.
        fingerprint_of: Of the build, by the fingerprint of the version that it grows from.

    Raises:
        VersionNotFound: There is no version of that number.
    """
    if grow_from is None:
        return fingerprint_of(None), None
    known = _known(store, name)
    if grow_from == "latest":
        for entry in known:
            base = _base_of(entry)
            grown = fingerprint_of(None if base is None else base.fingerprint)
            if entry.state == "present" and grown == _fingerprint(entry):
                return grown, base
        base = Base(known[0].number, _fingerprint(known[0])) if known else None
    else:
        found = next((entry for entry in known if entry.number == grow_from), None)
        if found is None:
            numbers = ", ".join(str(entry.number) for entry in reversed(known))
            raise VersionNotFound(
                f"features.grow_from: {name!r} has no version {grow_from} in {store.path}; known:"
                f" {numbers or 'none'}"
            )
        base = Base(grow_from, _fingerprint(found))
    return fingerprint_of(None if base is None else base.fingerprint), base


def _known(store: Store, name: str) -> list[Entry]:
    """Versions of which the log tells, newest first."""
    if not store.exists(name):
        return []
    return [entry for entry in reversed(store.entries(name)) if entry.record is not None]


def _fingerprint(entry: Entry) -> str:
    assert entry.record is not None, "entries without one were left out"
    return entry.record.metadata["fingerprint"]


def _base_of(entry: Entry) -> Base | None:
    assert entry.record is not None, "entries without one were left out"
    metadata = entry.record.metadata
    if "grown_from" not in metadata:
        return None
    return Base(metadata["grown_from"], metadata["grown_from_fingerprint"])
