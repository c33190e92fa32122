"""`recsys features`: look at the feature tables of a store and their versions.

Commands import what they run when they run, as in `recsys.cli`.
"""

from pathlib import Path
from typing import Annotated

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
