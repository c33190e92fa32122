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


@features_app.command("list")
def list_tables(store: StoreFolder = STORE, as_json: AsJson = False) -> None:
    """List the feature tables and their latest versions."""
    from feature_store.store import Store
    from recsys import feature_summary

    opened = Store(store)
    latest = [opened.open(name) for name in opened.names()]
    feature_summary.show_tables(latest, as_json=as_json)
