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
    from feature_store.publishing import publish, select
    from recsys import console, feature_summary

    opened = select(store, version)
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
    latest = [opened.open(name) for name in opened.names()]
    feature_summary.show_tables(latest, as_json=as_json)


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
    from feature_store.publishing import select
    from pipelines import ranking
    from recsys import console, feature_summary

    opened = select(store, version)
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
