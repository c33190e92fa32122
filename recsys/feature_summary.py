"""What the commands of `recsys features` print: tables for a reader, JSON for a program."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recsys import console

if TYPE_CHECKING:
    from feature_store.publishing import PublishResult
    from feature_store.store import Version


def show_json(value: Any) -> None:
    """Plain values to stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def show_published(result: "PublishResult", place: str) -> None:
    """Keys by entity, the rate, and how to serve them."""
    published = result.published
    for key, count in result.num_keys.items():
        console.show(f"Keys    {key}: {count:,}")
    total = sum(result.num_keys.values())
    console.show(f"Online  {published.label} in {place}, {total:,} keys in {result.seconds:.1f} s")
    console.show(f"Next    recsys serve BUNDLE --features {place}")


def show_tables(latest: "Sequence[Version]", *, as_json: bool) -> None:
    """One line per feature table, from its latest version."""
    if as_json:
        show_json(
            [
                {
                    "name": version.name,
                    "version": version.number,
                    "created": version.created.isoformat(),
                    "rows": version.rows,
                }
                for version in latest
            ]
        )
        return
    rows = [
        [v.name, str(v.number), f"{v.created:%Y-%m-%d %H:%M}", f"{sum(v.rows.values()):,}"]
        for v in latest
    ]
    console.show_table("Feature tables", ["name", "latest", "created", "rows"], rows)
