"""`recsys features`: look at the feature tables of a store and their versions.

Commands import what they run when they run, as in `recsys.cli`.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

features_app = typer.Typer(
    help="Look at the feature tables of a store and their versions.", no_args_is_help=True
)

StoreFolder = Annotated[
    Path, typer.Option("--store", metavar="FOLDER", help="The feature store (data.store).")
]
TableName = Annotated[str, typer.Argument(metavar="NAME", help="The feature table.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to stdout, for programs.")]
STORE = Path("store")


@features_app.command("publish")
def publish_version(
    version: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="The latest version without a number.")
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="PATH|URL",
            help="A folder, or redis://host:port/database; online/NAME if absent.",
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds that the version before is kept after the switch."),
    ] = 10.0,
    store: StoreFolder = STORE,
) -> None:
    """Write the latest values by key into an online store, and switch to them in one step."""
    from feature_store.online import open_store
    from feature_store.publishing import publish
    from feature_store.store import Store
    from feature_store.version import parse_reference
    from recsys import console, feature_summary

    opened = Store(store).open(*parse_reference(version))
    place = target if target is not None else f"online/{opened.name}"
    with console.Reporter() as report:
        result = publish(
            opened,
            open_store(place),
            grace_seconds=grace,
            on_progress=lambda stage, done, total: report("publish", stage, done, total),
        )
    feature_summary.show_published(result, place)


@features_app.command("list")
def list_tables(store: StoreFolder = STORE, as_json: AsJson = False) -> None:
    """List the feature tables and their latest versions."""
    from feature_store.store import Store
    from recsys import feature_summary

    opened = Store(store)
    versions = {name: opened.entries(name) for name in opened.require_names()}
    feature_summary.show_tables(versions, as_json=as_json)


@features_app.command("profile")
def profile_version(
    version: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="The latest version without a number.")
    ],
    against: Annotated[
        str | None,
        typer.Option(metavar="NAME@B", help="Measure drift from this version to the first."),
    ] = None,
    by_day: Annotated[
        bool, typer.Option("--by-day", help="Follow the version from day to day.")
    ] = False,
    split: Annotated[
        Literal["train", "valid", "test"] | None,
        typer.Option(help="With --against: compare these rows only."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with small plots.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all numbers as JSON.")
    ] = None,
    store: StoreFolder = STORE,
) -> None:
    """Show what a version's features hold, and how far they drift; splits, if nothing is named."""
    from feature_store.store import Store
    from feature_store.version import parse_reference
    from recsys import console, feature_summary
    from recsys.evaluation.profiled import look_at

    opened = Store(store)
    with console.Reporter() as report:
        found = look_at(
            opened.open(*parse_reference(version)),
            against=None if against is None else opened.open(*parse_reference(against)),
            by_day=by_day,
            split=split,
            on_progress=lambda stage, done, total: report("profile", stage, done, total),
        )
    found.write(html, json)
    feature_summary.show_profile(found)
    for name, path in (("Page", html), ("Numbers", json)):
        if path is not None:
            console.show(f"{name:<8}{path}")


@features_app.command("show")
def show_version(
    version: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="The latest version without a number.")
    ],
    store: StoreFolder = STORE,
    as_json: AsJson = False,
) -> None:
    """Show where a version comes from and what is in it."""
    from feature_store.store import Store
    from feature_store.version import parse_reference
    from recsys import feature_summary

    feature_summary.show_version(Store(store).open(*parse_reference(version)), as_json=as_json)


@features_app.command("history")
def show_history(name: TableName, store: StoreFolder = STORE, as_json: AsJson = False) -> None:
    """List a table's versions, also those that were removed or have lost files."""
    from feature_store.store import Store
    from recsys import feature_summary

    feature_summary.show_history(name, Store(store).entries(name), as_json=as_json)


@features_app.command("diff")
def show_difference(
    before: Annotated[str, typer.Argument(metavar="NAME@A")],
    after: Annotated[str, typer.Argument(metavar="NAME@B")],
    store: StoreFolder = STORE,
    as_json: AsJson = False,
) -> None:
    """Show what changed between two versions, and whether a model of A can read B."""
    from feature_store.difference import difference
    from feature_store.store import Store
    from feature_store.version import parse_reference
    from recsys import feature_summary

    opened = Store(store)
    first, second = (opened.open(*parse_reference(each)) for each in (before, after))
    feature_summary.show_difference(
        f"{first.name}@{first.number}",
        f"{second.name}@{second.number}",
        difference(first, second),
        as_json=as_json,
    )


@features_app.command("vacuum")
def vacuum_table(
    name: TableName,
    keep: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Keep the newest N versions.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="30d", help="Only versions that are older: 12h, 30d, 8w.")
    ] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Where runs are kept; ./runs if absent."),
    ] = None,
    no_runs: Annotated[
        bool, typer.Option("--no-runs", help="There are no runs that could need a version.")
    ] = False,
    bundles: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Where bundles are kept outside of runs."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    store: StoreFolder = STORE,
    as_json: AsJson = False,
) -> None:
    """Remove versions that no run, checkpoint or bundle names; never the latest."""
    from feature_store.store import Store
    from feature_store.vacuum import parse_age, vacuum
    from recsys import feature_summary
    from recsys.named_versions import named_versions

    folders = runs or ([] if no_runs else [Path("runs")])
    result = vacuum(
        Store(store),
        name,
        keep=keep,
        older_than=None if older_than is None else parse_age(older_than),
        named=lambda: named_versions(folders, bundles or ()),
        dry_run=dry_run,
    )
    feature_summary.show_vacuumed(name, result, dry_run=dry_run, as_json=as_json)


@features_app.command("rank")
def rank_features(
    version: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="The latest version without a number.")
    ],
    method: Annotated[
        Literal["outrank", "quickselection"],
        typer.Option(
            help="outrank: what features tell of a label. quickselection: of one another."
        ),
    ] = "outrank",
    label: Annotated[
        str | None, typer.Option(help="For outrank; the version's first label if absent.")
    ] = None,
    with_pairs: Annotated[
        bool, typer.Option("--pairs/--no-pairs", help="Score pairs and order by 3MR.")
    ] = True,
    epochs: Annotated[int, typer.Option(min=1, help="Of quickselection.")] = 10,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    store: StoreFolder = STORE,
    as_json: AsJson = False,
) -> None:
    """Order a version's features by what they tell."""
    from feature_store.store import Store
    from feature_store.version import parse_reference
    from pipelines import ranking
    from recsys import console, feature_summary

    opened = Store(store).open(*parse_reference(version))
    with console.Reporter() as report:

        def told(stage: str, done: int, total: int | None) -> None:
            report("rank", stage, done, total)

        if method == "outrank":
            found = ranking.rank(
                opened, label=label, with_pairs=with_pairs, seed=seed, on_progress=told
            )
        else:
            found = ranking.rank_unsupervised(opened, epochs=epochs, seed=seed, on_progress=told)
    feature_summary.show_ranking(found, as_json=as_json)
