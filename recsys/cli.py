"""The command line: parse, call, print.

Commands import what they run when they run: torch and TorchRec take seconds to import, and
`recsys --help` or a mistyped option should answer at once. Only the files of commands may do so.
"""

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from recsys import console, summary, versions
from recsys.feature_commands import features_app

if TYPE_CHECKING:
    from recsys.experiment import Experiment

INTERRUPTED, USER_ERROR, FAILURE = 130, 2, 1

app = typer.Typer(
    name="recsys",
    help="Train, evaluate, export and serve click-through-rate models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

embeddings_app = typer.Typer(
    help="Compare ways to store embeddings, and look into a trained run's.", no_args_is_help=True
)
app.add_typer(embeddings_app, name="embeddings")
app.add_typer(features_app, name="features")

File = Annotated[Path, typer.Argument(metavar="FILE", help="The experiment's YAML file.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or runs/NAME.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value: training.epochs=2."),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Same as --set training.scaling.num_workers=N.")
]
Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")]
Which = Annotated[Literal["best", "last"], typer.Option(help="The checkpoint: best or last.")]
Runs = Annotated[Path, typer.Option(metavar="FOLDER", help="Where run folders are kept.")]


def main(arguments: Sequence[str] | None = None, *, app: typer.Typer = app) -> None:
    """Run one command and exit: 0 done, 1 failed, 2 wrong input, 130 stopped by Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given  # wherever it stands
    try:
        app([argument for argument in given if argument != "--debug"], prog_name="recsys")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            console.show_error("stopped; finished stages and the last checkpoint are kept")
        raise
    except Exception as error:  # the outermost boundary: every error becomes an exit code
        if debug:
            traceback.print_exc()
        console.show_error(_message(error))
        sys.exit(USER_ERROR if _is_users(error) else FAILURE)


def _is_ours(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in ("recsys", "pipelines", "feature_store")


def _is_users(error: Exception) -> bool:
    """Wrong input, rather than something that broke: what the user can mend and run again."""
    if isinstance(error, RuntimeError):
        return False
    return _is_ours(error) or isinstance(error, ValueError | FileNotFoundError)


def _message(error: Exception) -> str:
    # str() of a KeyError is the repr of its message.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if _is_users(error) or _is_ours(error):
        return text
    return f"{type(error).__name__}: {text}\n(--debug shows where)"


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    import torch

    for name, release in versions.library_versions().items():
        console.show(f"{name:<12} {release or 'not installed'}")
    cuda = torch.cuda.is_available()
    device = f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}" if cuda else "CPU"
    console.show(f"{'device':<12} {device}")
    console.show(f"{'threads':<12} {torch.get_num_threads()}")
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show versions and exit."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; anywhere in the line.")
    ] = False,
) -> None:
    """The options every command takes."""


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="A data set; without it, list them.")] = None,
    folder: Annotated[Path, typer.Option(help="Where data sets are kept.")] = Path("data"),
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FOLDER", help="Your files, where none may be downloaded."),
    ] = None,
) -> None:
    """Download a public data set, or list the known ones."""
    from pipelines import datasets

    if name is None:
        rows = [
            [d.name, f"{d.rows:,}", d.description, d.licence] for d in datasets.DATASETS.values()
        ]
        console.show_table("Data sets", ["name", "rows", "what", "licence"], rows)
        return
    with console.Reporter() as report:
        path = datasets.fetch(
            name,
            folder,
            lambda stage, done, total: report("fetch", stage, done, total),
            source=source,
        )
    console.show(f"{name} is in {path}")


@app.command()
def schema(
    output: Annotated[Path | None, typer.Option(help="Write to a file instead of stdout.")] = None,
) -> None:
    """Write the JSON schema of an experiment's file, for editors."""
    versions.import_quietly()
    from recsys import experiment

    text = json.dumps(experiment.schema(), indent=2)
    if output is None:
        sys.stdout.write(text + "\n")
    else:
        output.write_text(text + "\n", encoding="utf-8")
        console.show(f"Wrote {output}; name it in the first line of a YAML file:")
        console.show(f"# yaml-language-server: $schema={output}")


@app.command()
def check(file: File, overrides: Overrides = None, workers: Workers = None) -> None:
    """Validate a configuration, the first rows of its data and the sharding plan."""
    experiment = _load(file, overrides, workers)
    from recsys import run as stages

    with console.Reporter() as report:
        result = stages.check(experiment, progress=report)
    summary.show_check(str(file), result)


@app.command()
def build(
    file: File,
    on: Annotated[
        Literal["here", "ray"], typer.Option(help="Where parts of the source are worked off.")
    ] = "here",
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; without it, this machine.")
    ] = None,
    cpus: Annotated[int, typer.Option(min=1, help="Cores of one Ray task.")] = 1,
    overrides: Overrides = None,
) -> None:
    """Build the features: raw files to a new version in the store."""
    experiment = _load(file, overrides)
    if address is not None and on != "ray":
        raise typer.BadParameter("--address is for --on ray")
    from recsys import run as stages

    with console.Reporter() as report, stages.mapper_of(on, address, cpus) as mapper:
        result = stages.build_features(experiment, progress=report, mapper=mapper)
    summary.show_build(result)
    console.show(f"Next    recsys train {file}")


@app.command()
def train(
    file: File,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run.")] = False,
    workers: Workers = None,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
) -> None:
    """Train on the built features, building them first if they are not there."""
    experiment = _load(file, overrides, workers)
    from recsys import run as stages

    with console.Reporter() as report:
        run_dir = stages.train(experiment, root=runs, resume=resume, progress=report)
    console.show(f"Run     {run_dir}")
    console.show(f"Next    recsys evaluate {run_dir}")


@app.command()
def evaluate(
    run: Run,
    which: Which = "best",
    on: Annotated[
        int | None,
        typer.Option(min=0, metavar="VERSION", help="Measure on another version of the features."),
    ] = None,
) -> None:
    """Measure a run's model beside the baselines and write its report."""
    versions.import_quietly()
    from recsys import run as stages
    from recsys import rundir

    with console.Reporter() as progress:
        report = stages.evaluate(run, which=which, on=on, progress=progress)
    summary.show_metrics(report.document())
    folder = rundir.report_folder(rundir.find_run(run), on)
    console.show(f"Report  {folder / 'report.html'}")
    console.show(f"Next    recsys export {run}")


@app.command()
def explain(
    run: Run,
    rows: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Raw rows with labels; without it, rows of the split."),
    ] = None,
    split: Annotated[
        Literal["train", "valid", "test"], typer.Option(help="Whose rows are looked at.")
    ] = "test",
    max_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Draw so many; 10,000 of a split and all of a file if absent."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Shuffles of every feature.")] = 5,
    weights: Annotated[
        bool, typer.Option("--weights", help="The model's weights alone; rows need no labels.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Parquet file for the weights of every row."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn and shuffled.")] = 0,
    which: Which = "best",
) -> None:
    """Say what a run's model rests on: importance of every feature, attention weights."""
    versions.import_quietly()
    from recsys import explain, rundir

    with console.Reporter() as report:
        result = explain.explain(
            run,
            which,
            rows=rows,
            split=split,
            max_rows=max_rows,
            repeats=repeats,
            seed=seed,
            weights_only=weights,
            output=output,
            progress=report,
        )
    summary.show_explanation(result)
    console.show(f"Numbers {rundir.find_run(run) / explain.EXPLANATION_FILE}")
    if output is not None:
        console.show(f"Weights {output}")


@app.command()
def leaderboard(
    suite: Annotated[Path, typer.Argument(metavar="SUITE", help="The suite's YAML file.")],
    check_baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Exit with 1 if an experiment is worse than in it."),
    ] = None,
    write_baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the means and tolerances down.")
    ] = None,
    cpus: Annotated[int, typer.Option(min=1, help="Cores of one training.")] = 1,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; without it, this machine.")
    ] = None,
    keep_runs: Annotated[
        bool, typer.Option("--keep-runs", help="Keep every training's checkpoints.")
    ] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Compare experiments over seeds: a table with spread and significance. Resumable."""
    versions.import_quietly()
    from recsys import leaderboard as leaderboards

    loaded = leaderboards.load_suite(suite)
    expected = None if check_baseline is None else leaderboards.baseline_of(loaded, check_baseline)
    with console.Reporter() as report:
        result = leaderboards.leaderboard(
            loaded,
            root=runs,
            address=address,
            cpus_per_task=cpus,
            keep_runs=keep_runs,
            progress=report,
        )
    summary.show_leaderboard(result)
    if expected is not None:
        result.require_no_regression(expected)
        console.show(f"Held to {check_baseline}: no experiment is worse")
    if write_baseline is not None:
        result.write_baseline(write_baseline)
        console.show(f"Wrote   {write_baseline}")


@app.command()
def export(
    run: Run,
    which: Which = "best",
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "int4"] | None,
        typer.Option(help="Of the embedding tables; the experiment's if absent."),
    ] = None,
) -> None:
    """Write a run's bundle and verify it in a fresh process before it appears."""
    versions.import_quietly()
    from recsys import run as stages

    with console.Reporter() as report:
        bundle = stages.export(run, which=which, precision=precision, progress=report)
    summary.show_embeddings(bundle)
    console.show(f"Bundle  {bundle}")
    console.show(f"Next    recsys serve {bundle}")


@app.command()
def predict(
    bundle: Bundle,
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Raw rows: CSV, TSV, Parquet, JSON lines.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Scores: CSV, TSV, Parquet.")],
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="An input column to write beside the scores."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in memory at a time.")] = 16_384,
) -> None:
    """Score a file of raw rows with a bundle."""
    from recsys.export.predictor import Predictor

    with console.Reporter() as report:
        scored = Predictor(bundle).score_file(
            source,
            target,
            keep=keep or (),
            batch_size=batch_size,
            on_progress=lambda stage, done, total: report(stage, "rows", done, total),
        )
    for column, count in scored.unexpected_nulls.items():
        console.show(f"Note    {column}: {count:,} nulls, where training saw none")
    console.show(f"Scored  {scored.rows:,} rows into {target}")


@app.command()
def serve(
    bundle: Bundle,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: from anywhere.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="STORE",
            help="Complete rows by their keys: a folder or Redis URL of `recsys features publish`.",
        ),
    ] = None,
) -> None:
    """Answer POST /predict, GET /health and GET /signature."""
    from recsys.export import server

    console.show(f"Serving {bundle} at http://{host}:{port} (Ctrl-C stops)")
    server.serve(bundle, host=host, port=port, features=features)


@app.command()
def run(
    file: File,
    fresh: Annotated[bool, typer.Option("--fresh", help="Redo what is unchanged, too.")] = False,
    workers: Workers = None,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
) -> None:
    """Build, train, evaluate and export into one run folder."""
    experiment = _load(file, overrides, workers)
    from recsys import run as stages

    with console.Reporter() as report:
        result = stages.run(experiment, root=runs, fresh=fresh, progress=report)
    summary.show_run(result)


@embeddings_app.command("analyse")
def analyse_embeddings(
    run: Run,
    which: Which = "best",
    split: Annotated[
        Literal["train", "valid", "test"], typer.Option(help="Whose rows weigh the collisions.")
    ] = "train",
) -> None:
    """Measure how a run's features share their tables: collisions, angles, norms."""
    versions.import_quietly()
    from recsys import analyse, rundir

    result = analyse.analyse(run, which=which, split=split)
    summary.show_analysis(result)
    console.show(f"Numbers {rundir.find_run(run) / analyse.ANALYSIS_FILE}")


@embeddings_app.command("sweep")
def sweep_embeddings(
    file: File,
    schemes: Annotated[
        str, typer.Option(metavar="A,B", help="Methods; settings in braces: robe{chunk: 4}.")
    ],
    budgets: Annotated[
        str, typer.Option(metavar="50%,10%", help="Percent of the full tables, or bytes.")
    ] = "50%,25%,10%,1%",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of every cell.")] = 3,
    cpus: Annotated[int, typer.Option(min=1, help="Cores of one training.")] = 1,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; without it, this machine.")
    ] = None,
    keep_runs: Annotated[
        bool, typer.Option("--keep-runs", help="Keep every training's checkpoints.")
    ] = False,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
) -> None:
    """Find the best scheme at a memory: a table, pareto.html and advice. Resumable."""
    experiment = _load(file, overrides)
    from recsys import sweep

    with console.Reporter() as report:
        result = sweep.sweep(
            experiment,
            sweep.split_labels(schemes),
            sweep.split_labels(budgets),
            seeds=seeds,
            root=runs,
            address=address,
            cpus_per_task=cpus,
            keep_runs=keep_runs,
            progress=report,
        )
    summary.show_sweep(result)


def _load(file: Path, overrides: list[str] | None, workers: int | None = None) -> "Experiment":
    """An experiment's file with the command's overrides; prepares the libraries that train."""
    versions.import_quietly()
    from recsys import experiment

    extra = [] if workers is None else [f"training.scaling.num_workers={workers}"]
    return experiment.load(file, [*(overrides or []), *extra])


if __name__ == "__main__":
    main()
