"""What the commands of `recsys features` print: tables for a reader, JSON for a program."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from recsys import console

SHOWN_PAIRS = 10

if TYPE_CHECKING:
    from feature_store.publishing import PublishResult
    from feature_store.store import Version
    from pipelines.ranking import Ranking


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


def show_ranking(ranking: "Ranking", *, as_json: bool) -> None:
    """One line per feature, best first, then the best pairs."""
    if as_json:
        show_json(asdict(ranking))
        return
    whose = f" for {ranking.label}" if ranking.label is not None else ""
    rows = [
        [
            str(place + 1),
            feature.name,
            f"{feature.score:.6f}",
            "" if feature.share is None else f"{feature.share:.2%}",
            "" if feature.deviation is None else f"{feature.deviation:.6f}",
        ]
        for place, feature in enumerate(ranking.features)
    ]
    console.show_table(
        f"Features by {ranking.method}{whose}, {ranking.rows:,} training rows",
        ["place", "feature", "score", "of the label's entropy", "± over batches"],
        rows,
    )
    if ranking.pairs:
        console.show_table(
            "Best pairs",
            ["features", "score", "beyond the better alone", "redundancy"],
            [
                [
                    f"{p.first}, {p.second}",
                    f"{p.score:.6f}",
                    f"{p.beyond:.6f}",
                    f"{p.redundancy:.2f}",
                ]
                for p in ranking.pairs[:SHOWN_PAIRS]
            ],
        )
