"""What the commands of `recsys features` print: tables for a reader, JSON for a program."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from recsys import console

SHOWN_PAIRS = 10
SHOWN_DRIFTS = 20

if TYPE_CHECKING:
    from feature_store.daily import Days
    from feature_store.difference import Difference
    from feature_store.drift import Drift
    from feature_store.features import IdField
    from feature_store.profile import FeatureProfile
    from feature_store.publishing import PublishResult
    from feature_store.store import Entry, Version
    from feature_store.vacuum import Vacuumed
    from pipelines.ranking import Ranking
    from recsys.evaluation.profiled import Profiled

_DIGEST = 12
"""Characters of a hash that a reader is shown."""
_WIDEST = 60
"""Characters of a value that a reader is shown."""


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


def show_tables(versions: "Mapping[str, Sequence[Entry]]", *, as_json: bool) -> None:
    """One line per feature table, of its latest version; says so where that does not open."""
    latest = [(name, entries[-1]) for name, entries in versions.items() if entries]
    plain: list[dict[str, Any]] = [
        {
            "name": name,
            "version": entry.number,
            "data": entry.state,
            "created": None if entry.record is None else entry.record.created.isoformat(),
            "rows": {} if entry.record is None else entry.record.rows,
            "owner": None if entry.record is None else entry.record.metadata.get("owner"),
            "description": (
                None if entry.record is None else entry.record.metadata.get("description")
            ),
        }
        for name, entry in latest
    ]
    if as_json:
        show_json(plain)
        return
    rows = [
        [
            name,
            str(entry.number),
            entry.state,
            "" if entry.record is None else _minute(entry.record.created),
            f"{sum(told['rows'].values()):,}",
            told["owner"] or "",
            told["description"] or "",
        ]
        for (name, entry), told in zip(latest, plain, strict=True)
    ]
    header = ["name", "latest", "data", "created", "rows", "owner", "description"]
    console.show_table("Feature tables", header, rows)
    for _, entry in latest:
        if entry.note:
            console.show(f"Note    {entry.note}")


def show_version(version: "Version", *, as_json: bool) -> None:
    """Where a version comes from, its features, and how its rows are encoded."""
    fitted, metadata = version.fitted, version.metadata
    features = fitted.feature_set
    sizes = {name: len(values) for name, values in fitted.vocabularies.items()}
    if as_json:
        show_json(
            {
                "name": version.name,
                "version": version.number,
                "created": version.created.isoformat(),
                "build": version.build,
                "rows": version.rows,
                "metadata": metadata,
                "features": features.model_dump(mode="json"),
                "vocabularies": sizes,
                "layout": version.layout.model_dump(mode="json"),
                "columns": [column.model_dump(mode="json") for column in fitted.columns],
            }
        )
        return
    split = ", ".join(f"{name} {count:,}" for name, count in version.rows.items())
    facts = {
        "Version": f"{version.name}@{version.number}, built {_minute(version.created)} UTC",
        "About": metadata.get("description"),
        "Owner": metadata.get("owner"),
        "Rows": f"{metadata['rows_in']:,} read, {metadata['rows_rejected']:,} rejected; {split}",
        "Key": features.group,
        "Time": features.timestamp,
        "Code": metadata.get("code"),
        "Config": metadata["config_hash"],
        "Grown": f"from version {metadata['grown_from']}" if "grown_from" in metadata else None,
    }
    for name, fact in facts.items():
        if fact is not None:
            console.show(f"{name:<8}{fact}")
    cardinality = {field.name: field for field in version.layout.ids}
    rows = [
        [
            feature.name,
            feature.kind,
            feature.side,
            f"{sizes[feature.name]:,}" if feature.name in sizes else "",
            _ids_of(cardinality.get(feature.name)),
        ]
        for feature in features.inputs
    ]
    console.show_table("Features", ["name", "kind", "side", "vocabulary", "encoded as"], rows)
    sources = [
        [s["path"], f"{s['size_bytes']:,}", s["sha256"][:_DIGEST]] for s in metadata["sources"]
    ]
    console.show_table("Sources", ["file", "bytes", "sha256"], sources)


def _ids_of(field: "IdField | None") -> str:
    if field is None:
        return "float32"
    ids = "64-bit hash" if field.cardinality is None else f"{field.cardinality:,} ids"
    return ids if field.shape == "single" else f"{field.shape} of {ids}"


def show_history(name: str, entries: "Sequence[Entry]", *, as_json: bool) -> None:
    """One line per version, oldest first."""
    if as_json:
        show_json([_entry(entry) for entry in entries])
        return
    rows = []
    for entry in entries:
        record = entry.record
        known = ["", "", "", ""]
        if record is not None:
            metadata = record.metadata
            known = [
                _minute(record.created),
                f"{sum(record.rows.values()):,}",
                f"{metadata['rows_rejected']:,}",
                metadata["fingerprint"][:_DIGEST],
            ]
        rows.append([str(entry.number), *known, entry.state])
    header = ["version", "created", "rows", "rejected", "fingerprint", "data"]
    console.show_table(f"Versions of {name}", header, rows)
    for entry in entries:
        if entry.note:
            console.show(f"Note    {entry.note}")


def _entry(entry: "Entry") -> dict[str, Any]:
    record = entry.record
    known = None if record is None else record.model_dump(mode="json")
    return {"version": entry.number, "data": entry.state, "note": entry.note, "record": known}


def show_difference(before: str, after: str, found: "Difference", *, as_json: bool) -> None:
    """What changed, section by section, and whether a model of the first can read the second."""
    verdict = found.compatibility
    if as_json:
        plain = asdict(found)
        plain["compatibility"]["is_compatible"] = verdict.is_compatible
        show_json({"before": before, "after": after, **plain})
        return
    _show_changes("Configuration", "setting", before, after, found.configuration)
    _show_changes("Encoded columns", "column", before, after, found.schema)
    if found.vocabularies:
        rows = [
            [
                name,
                f"{change.before:,}",
                f"{change.after:,}",
                _with_examples(change.added, change.added_examples),
                _with_examples(change.removed, change.removed_examples),
                "yes" if change.ids_moved else "no",
            ]
            for name, change in found.vocabularies.items()
        ]
        header = ["feature", before, after, "added", "removed", "ids moved"]
        console.show_table("Vocabularies", header, rows)
    _show_changes("Rows", "what", before, after, found.rows)
    sources = {
        path: (old and old[:_DIGEST], new and new[:_DIGEST])
        for path, (old, new) in found.sources.items()
    }
    _show_changes("Sources", "file", before, after, sources)
    if found.code is not None:
        _show_changes("Code", "", before, after, {"": found.code})
    if verdict.is_compatible:
        console.show(f"A model of {before} can read {after}.")
    else:
        console.show(f"A model of {before} cannot read {after}:")
        for change in verdict.breaks:
            console.show(f"  {change}")


def _show_changes(
    title: str, what: str, before: str, after: str, changes: Mapping[str, tuple[Any, Any]]
) -> None:
    if changes:
        rows = [[name, _value(old), _value(new)] for name, (old, new) in changes.items()]
        console.show_table(title, [what, before, after], rows)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _with_examples(count: int, examples: Sequence[str]) -> str:
    more = ", …" if count > len(examples) else ""
    return f"{count:,} ({', '.join(examples)}{more})" if examples else f"{count:,}"


def show_vacuumed(name: str, result: "Vacuumed", *, dry_run: bool, as_json: bool) -> None:
    """What went, what stays and why."""
    if as_json:
        show_json(
            {
                "name": name,
                "dry_run": dry_run,
                "size_bytes": result.size_bytes,
                "leftover_bytes": result.leftover_bytes,
                "removed": [
                    {
                        "version": each.number,
                        "created": each.created.isoformat(),
                        "size_bytes": each.size_bytes,
                    }
                    for each in result.removed
                ],
                "kept": [{"version": each.number, "why": each.why} for each in result.kept],
            }
        )
        return
    for kept in result.kept:
        console.show(f"Keep    {name}@{kept.number}: {kept.why}")
    word = "Would remove" if dry_run else "Removed"
    for gone in result.removed:
        built = _minute(gone.created)
        console.show(f"{word} {name}@{gone.number}, built {built}: {gone.size_bytes:,} bytes")
    if result.leftover_bytes:
        console.show(f"{word} what an earlier one left: {result.leftover_bytes:,} bytes")
    count = len(result.removed)
    console.show(f"{word} {count} version{'' if count == 1 else 's'}, {result.size_bytes:,} bytes")


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


def show_profile(found: "Profiled") -> None:
    """One line per feature; then what drifted, most traffic affected first."""
    splits = found.profile.splits
    first = next(iter(splits.values()))
    rows = []
    for feature in first.features:
        each = [split.feature(feature.name) for split in splits.values()]
        rows.append(
            [
                feature.name,
                f"{'about ' if feature.distinct_estimated else ''}{feature.distinct:,}",
                " / ".join(_share(one.missing) for one in each),
                " / ".join(_share(one.unseen) for one in each),
                _typical(feature),
            ]
        )
    title = f"{found.version.name}@{found.version.number}, shares in {' / '.join(splits)}"
    console.show_table(title, ["feature", "distinct", "missing", "unseen", "mostly"], rows)
    for warning in found.version.metadata.get("warnings", ()):
        console.show(f"Warning {warning}")
    for drift in found.drifts:
        _show_drift(drift)
    if found.days is not None:
        _show_days(found.days)


def _show_drift(drift: "Drift") -> None:
    compared = [feature for feature in drift.features if feature.psi is not None]
    rows = [
        [
            f"{f.name}: lengths" if f.of == "lengths" else f.name,
            _measure(f.psi),
            _measure(f.psi_by_chance),
            _measure(f.jensen_shannon),
            _share(f.affected),
            "" if f.new is None else f"{f.new.values:,} ({_share(f.new.share)})",
            "" if f.vanished is None else f"{f.vanished.values:,}",
        ]
        for f in compared[:SHOWN_DRIFTS]
    ]
    header = ["feature", "PSI", "by chance", "JS", "traffic affected", "new", "vanished"]
    console.show_table(f"Drift from {drift.reference} to {drift.current}", header, rows)
    if len(compared) > SHOWN_DRIFTS:
        console.show(f"        {len(compared) - SHOWN_DRIFTS} more drift less")
    for feature in drift.features:
        if feature.incomparable is not None:
            console.show(f"Note    {feature.name}: {feature.incomparable}")
    for name in drift.only_reference:
        console.show(f"Note    {name}: only in {drift.reference}")
    for name in drift.only_current:
        console.show(f"Note    {name}: only in {drift.current}")


def _show_days(days: "Days") -> None:
    rows = []
    for feature in days.features[:SHOWN_DRIFTS]:
        largest = feature.largest_step()
        if largest is not None:
            rows.append(
                [
                    f"{feature.name}: lengths" if feature.of == "lengths" else feature.name,
                    f"{days.days[largest]:%Y-%m-%d}",
                    _measure(feature.psi_before[largest]),
                    _measure(feature.by_chance[largest]),
                    _measure(feature.psi_first[largest]),
                ]
            )
    each = "Days" if days.length == 1 else f"Steps of {days.length} days"
    header = ["feature", "largest step on", "PSI", "by chance", "PSI since the first day"]
    console.show_table(f"{each} from {days.days[0]} to {days.days[-1]}", header, rows)


def _typical(feature: "FeatureProfile") -> str:
    if feature.numbers is not None:
        at = feature.numbers.quantiles
        return f"{at['5']:.4g} to {at['95']:.4g}"
    if not feature.top:
        return ""
    return f"{feature.top[0].value[:_WIDEST]} ({_share(feature.top[0].share)})"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _measure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def show_ranking(ranking: "Ranking", *, as_json: bool) -> None:
    """One line per feature, best first, then the best pairs."""
    if as_json:
        show_json(asdict(ranking))
        return
    whose = f" for {ranking.label}" if ranking.label is not None else ""
    rows = [
        [
            feature.name,
            f"{feature.score:.6f}",
            "" if feature.share is None else f"{feature.share:.2%}",
            "" if feature.noise is None else f"{feature.noise:.6f}",
            "" if feature.relation is None else f"{feature.relation:.6f}, {feature.partner}",
            "" if feature.place is None else str(feature.place + 1),
        ]
        for feature in ranking.features
    ]
    console.show_table(
        f"Features by {ranking.method}{whose}, {ranking.rows:,} training rows",
        ["feature", "score", "of the label's entropy", "± by chance", "most with", "3MR"],
        rows,
    )
    if ranking.pairs:
        console.show_table(
            "Pairs that tell most together",
            ["features", "score", "above shuffled", "± by chance", "redundancy"],
            [
                [
                    f"{p.first}, {p.second}",
                    f"{p.score:.6f}",
                    f"{p.relation:.6f}",
                    f"{p.noise:.6f}",
                    f"{p.redundancy:.2f}",
                ]
                for p in ranking.pairs[:SHOWN_PAIRS]
            ],
        )
