"""What the command line prints when a command has ended: short, and with the next thing to try."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.console import duration, show, show_table, size

if TYPE_CHECKING:  # these modules take seconds to import; the commands have imported them
    from pipelines.build import BuildResult
    from recsys.embeddings.analysis import Analysis, Collisions
    from recsys.evaluation.explanation import Explanation
    from recsys.leaderboard import Leaderboard
    from recsys.run import CheckResult, RunSummary
    from recsys.sweep import SweepResult

_CLOSEST = 10
"""Pairs of features that an analysis shows."""
METRICS = {"auc": "AUC", "gauc": "GAUC", "logloss": "log loss", "ne": "NE", "calibration": "calib."}


def show_run(summary: "RunSummary") -> None:
    """The end of `recsys run`."""
    show()
    show_build(summary.build)
    show()
    show_tables(summary.report["tables"])
    show_metrics(summary.report)
    reused = f"; unchanged and reused: {', '.join(summary.reused)}" if summary.reused else ""
    stages = [stage for stage in summary.seconds if stage not in summary.reused]
    spent = ", ".join(f"{stage} {duration(summary.seconds[stage])}" for stage in stages)
    show(f"Time    {spent or 'nothing to do'}{reused}")
    show(f"Report  {summary.folder / 'report.html'}")
    show(f"Bundle  {summary.bundle}")
    show_embeddings(summary.bundle)
    show(f"Next    {_predict(summary.bundle)}")


def show_build(result: "BuildResult") -> None:
    """Rows in and rejected, and the version they gave."""
    version = result.version
    kept = ", ".join(f"{split} {rows:,}" for split, rows in version.rows.items())
    state = "unchanged, reused" if result.reused else "new"
    show(f"Rows    {result.rows_in:,} in, {result.rows_rejected:,} rejected; {kept}")
    if result.rows_rejected:
        show(f"        rejected rows with their reasons: {result.rejected_path}")
    show(f"Data    {version.name}, version {version.number} ({state})")
    for warning in result.warnings:
        show(f"Warning {warning}")


def show_tables(tables: Sequence[Mapping[str, Any]]) -> None:
    """Parameters and bytes of each embedding table; `tables` as in report.json."""
    rows = [
        [
            table["name"],
            f"{table['rows']:,}",
            str(table["embedding_dim"]),
            f"{table['parameters']:,}",
            size(table["size_bytes"]),
            size(table["optimizer_bytes"]),
            size(table["served_bytes"]),
            table["scheme"],
            table["sharding"],
        ]
        for table in tables
    ]
    header = [
        *("table", "rows", "width", "parameters", "weights", "optimizer", "served"),
        *("scheme", "sharding"),
    ]
    show_table("Embedding tables", header, rows)


def show_metrics(report: Mapping[str, Any]) -> None:
    """The model's metrics beside the baselines', split by split."""
    for split, result in report["splits"].items():
        rivals = {name: values["splits"][split] for name, values in report["baselines"].items()}
        rows = [
            [name, *(_metric(values, metric) for metric in METRICS)]
            for name, values in {report["name"]: result, **rivals}.items()
        ]
        title = f"Metrics on {split}, {result['rows']:,} rows"
        show_table(title, ["", *METRICS.values()], rows)


def _metric(values: Mapping[str, Any], name: str) -> str:
    value = values["metrics"].get(name)
    return "-" if value is None or value != value else f"{value:.4f}"


def show_check(name: str, result: "CheckResult") -> None:
    """What `recsys check` found."""
    rows = [[column, kind] for column, kind in result.columns.items()]
    show_table("Columns", ["column", "type"], rows)
    estimated = " (estimated from these rows: they may come out larger)" if result.estimated else ""
    placed = {placement.table: placement for placement in result.placements}
    tables = []
    for storage in result.sizes:
        place = placed[storage.name] if storage.is_table else None
        tables.append(
            [
                storage.name,
                storage.scheme,
                f"{storage.num_embeddings:,}",
                str(storage.embedding_dim),
                size(storage.parameter_bytes),
                size(storage.optimizer_bytes),
                size(storage.serving_bytes),
                place.sharding_type if place else "data_parallel",
                place.kernel if place else "-",
                (place and ", ".join(map(str, place.ranks))) or "all",
            ]
        )
    header = [
        *("table", "scheme", "rows", "width", "weights", "optimizer", "served", "sharding"),
        *("kernel", "workers"),
    ]
    show_table(f"Sharding plan{estimated}", header, tables)
    weights, state, served = (
        sum(vars(storage)[key] for storage in result.sizes)
        for key in ("parameter_bytes", "optimizer_bytes", "serving_bytes")
    )
    for placement in result.placements:
        show(f"        {placement.sentence()}")
    held = ", ".join(f"{rank}: {size(held)}" for rank, held in enumerate(result.worker_bytes))
    show(f"Workers {held} of table weights")
    show(f"Rows    {result.rows_read:,} read, {result.rows_rejected:,} would be rejected")
    show(f"Memory  {size(weights)} of table weights and {size(state)} of optimizer state")
    show(f"        {size(served)} when served, of {size(result.full_bytes)} uncompressed")
    show(f"        {result.num_dense_parameters:,} parameters outside of the tables")
    show(f"{name} is valid.")


def show_sweep(result: "SweepResult") -> None:
    """Every scheme at every budget, and what to take."""
    header, *rows = result.table
    show_table("Embedding schemes", header, rows)
    for sentence in result.sentences:
        show(sentence)
    show(f"Cells   {len(result.cells):,}, of which {result.reused:,} from an earlier call")
    show(f"Page    {result.page}")


def show_leaderboard(result: "Leaderboard") -> None:
    """Every experiment of a suite, the best on validation first."""
    header, *rows = result.table
    show_table("Leaderboard", header, rows)
    for line in result.failed:
        show(f"Failed  {line}")
    show(f"Cells   {len(result.results):,}, of which {result.reused:,} from an earlier call")
    show(f"Page    {result.page}")


def show_analysis(result: "Analysis") -> None:
    """What `recsys embeddings analyse` measured."""
    rows = [
        [
            each.space,
            f"{each.num_ids:,}",
            str(each.num_lookups),
            *(_percent(share) for share in _of_ids_and_rows(each)),
            _percent(each.shared_rows),
        ]
        for each in result.collisions
    ]
    title = f"Ids that meet others in the tables; of rows: of the {result.split} split's rows"
    header = ["feature", "ids", "look-ups", "in every row", "of rows", "in any row", "of rows"]
    show_table(title, [*header, "other features", "of rows", "rows shared"], rows)
    norms = [
        [
            each.table,
            f"{each.num_rows:,}",
            f"{each.mean_squared:.4g}",
            f"{each.initial_mean_squared:.4g}",
            *(f"{value:.3g}" for value in each.quantiles.values()),
        ]
        for each in result.norms
    ]
    quantiles = list(result.norms[0].quantiles) if result.norms else []
    show_table(
        "Norms of rows: their mean square, at the start, and quantiles of the norm",
        ["table", "rows", "mean square", "at start", *quantiles],
        norms,
    )
    closest = sorted(result.angles, key=lambda a: a.overlap / a.independent, reverse=True)
    pairs = [
        [
            f"{each.one}, {each.other}",
            "yes" if each.share_a_table else "no",
            f"{each.degrees:.1f}",
            f"{each.overlap:.3f}",
            f"{each.independent:.3f}",
        ]
        for each in closest[:_CLOSEST]
    ]
    show_table(
        "First-layer weights that overlap most, beside what independent ones do",
        ["features", "one table", "angle", "overlap", "independent"],
        pairs,
    )
    if result.mean_degrees is not None:
        show(f"Angle   {result.mean_degrees:.1f} degrees, the mean over all pairs of features")
    if result.mean_degrees_sharing is not None:
        show(f"        {result.mean_degrees_sharing:.1f} over those that share a table")


def _of_ids_and_rows(found: "Collisions") -> list[float | None]:
    """Each kind of collision as a share of ids, then of occurrences."""
    ids, seen = found.ids, found.occurrences
    if seen is None:
        return [ids.every_row, None, ids.any_row, None, ids.other_features, None]
    return [
        *(ids.every_row, seen.every_row, ids.any_row, seen.any_row),
        *(ids.other_features, seen.other_features),
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}%"


def show_explanation(result: "Explanation") -> None:
    """What `recsys explain` found: features by importance, and the strongest weights."""
    for importance in result.importance:
        rows = [
            [each.field, f"{each.drop:+.4f}", _spread(each.deviation)] for each in importance.fields
        ]
        header = [importance.task, "lost AUC", "spread"]
        show_table("Importance of features", header, rows)
        show(f"AUC     {importance.auc:.4f}; lost where a feature is shuffled over the rows")
    pairs = [
        [pair.title, pair.row, pair.field, f"{pair.mean:+.4f}", f"{pair.magnitude:.4f}"]
        for pair in result.strongest(_CLOSEST)
    ]
    if pairs:
        header = ["of", "line", "reads", "mean", "mean size"]
        show_table("Strongest weights, mean over rows", header, pairs)
    repeats = f", {result.repeats} shuffles of every feature" if result.importance else ""
    show(f"Rows    {result.rows:,} of {result.source}{repeats}")


def _spread(deviation: float) -> str:
    return "-" if deviation != deviation else f"{deviation:.4f}"


def show_embeddings(bundle: Path) -> None:
    """What the bundle's embeddings weigh, and what their precision changes."""
    info = json.loads((bundle / "manifest.json").read_text())["info"]
    show(f"Tables  {info['embeddings']['summary']}")


def _predict(bundle: Path) -> str:
    return f"recsys predict {bundle} {bundle / 'golden.parquet'} scores.csv"
