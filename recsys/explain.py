"""What a run's model rests on: `recsys explain`, and the report's section on it.

Shapes: B rows, T tasks, L positions.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
from torch.nn.functional import pad

from feature_store.columns import SchemaMismatch
from feature_store.document import write_json
from feature_store.encoding import label_value
from feature_store.features import ROW_COLUMN, WEIGHT_COLUMN, Layout, source_of
from feature_store.store import Version
from recsys.embeddings.serving import PaddedIds, ServedBatch, serving_form
from recsys.evaluation.evaluate import ExplainConfig
from recsys.evaluation.explanation import (
    Explanation,
    WeightsOverRows,
    columns_of_features,
    importance,
    weight_tables,
)
from recsys.evaluation.metrics import Array
from recsys.export import streams
from recsys.export.signature import Column, RowMismatch, Signature
from recsys.export.tensors import by_field, fits, list_fields, program_inputs, single_fields
from recsys.models import MODELS
from recsys.models.ranker import AbstractRanker, FieldWeights
from recsys.rundir import find_run
from recsys.trained import Trained, load_trained, text_format
from recsys.worker import OnProgress

EXPLANATION_FILE = "explanation.json"
SPLIT_ROWS = 10_000
"""Rows of a split that are looked at unless told otherwise."""
PIECE_ROWS = 4096
"""Rows that are scored at once."""


class NoWeights(ValueError):
    """Weights were asked for of a model that mixes its fields without any."""


class Explainer:
    """A trained model over its embeddings in serving form.

    Args:
        trained: the run's model.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self.ranker = trained.model.ranker
        self.embeddings = serving_form(trained.embeddings)
        self.layout = trained.version.layout

    @torch.no_grad()
    def logits(self, encoded: pl.DataFrame) -> Array:
        """(B, T) logits of encoded rows."""
        found = []
        for piece in pieces(encoded, self.layout):
            batch = served_batch(piece, self.layout)
            logits_BT = self.ranker.corrected(
                self.ranker.logits(self.embeddings(batch.ids), batch.dense_BN)
            )
            found.append(logits_BT.float().numpy())
        return np.concatenate(found)

    @torch.no_grad()
    def weights(self, encoded: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, list[FieldWeights]]]:
        """Encoded rows, piece by piece, each with the weights that the model used."""
        for piece in pieces(encoded, self.layout):
            batch = served_batch(piece, self.layout)
            vectors = self.embeddings(batch.ids)
            yield piece, list(self.ranker.explanation(vectors, batch.dense_BN))

    def explanation(
        self,
        encoded: pl.DataFrame,
        source: str,
        *,
        repeats: int,
        seed: int = 0,
        output: Path | None = None,
        progress: OnProgress = lambda stage, message, done, total: None,
    ) -> Explanation:
        """Everything there is to tell.

        Args:
            encoded: rows with labels, weights and numbers of rows; at least one.
            source: where they are from.
            repeats: shuffles of every feature; 0: no importance, so labels are not needed.
            seed: of the shuffles.
            output: Parquet file for the weights of every row.
            progress: told of every feature.
        """
        tasks = self.layout.tasks
        columns = columns_of_features(self.trained.version.fitted.feature_set)
        names = list(columns)
        found = (
            importance(
                self.logits,
                encoded,
                columns,
                tasks,
                repeats=repeats,
                seed=seed,
                on_field=lambda field: progress("explain", field, names.index(field), len(names)),
            )
            if repeats
            else ()
        )
        progress("explain", "weights", len(names), len(names))
        over_rows = WeightsOverRows()
        if output is None:
            for _, weights in self.weights(encoded):
                over_rows.add(weights)
        else:
            with _WeightsFile(output) as file:
                for piece, weights in self.weights(encoded):
                    over_rows.add(weights)
                    file.write(weights, piece[ROW_COLUMN].to_numpy())
        return Explanation(source, encoded.height, repeats, found, over_rows.means())


def explain(
    run_dir: Path,
    which: Literal["best", "last"] = "best",
    *,
    rows: Path | None = None,
    split: str = "test",
    max_rows: int | None = None,
    repeats: int = 5,
    seed: int = 0,
    weights_only: bool = False,
    output: Path | None = None,
    progress: OnProgress = lambda stage, message, done, total: None,
) -> Explanation:
    """Say what a run's model rests on, and write it beside the run.

    Args:
        run_dir: the run's folder, or the one that holds the latest.
        which: the checkpoint.
        rows: a file of raw rows, as for `recsys predict`, with labels unless `weights_only`; None:
            rows of a split.
        split: of which rows are drawn at random.
        max_rows: more rows than these are drawn from; None: 10,000 of a split, all of a file.
        repeats: shuffles of every feature.
        seed: of what is drawn and shuffled.
        weights_only: no importance, so the rows need no labels.
        output: Parquet file for the weights of every row.
        progress: told of every feature.

    Raises:
        RunNotFound: there is no such run.
        CheckpointNotFound: it has no complete checkpoint.
        NoWeights: weights alone, or of every row, of a model without any.
        SchemaMismatch: the file lacks a column.
        RowMismatch: a value of the file is not of its column's type.
        ValueError: there are no rows, or they define no AUC.
    """
    run_dir = find_run(run_dir)
    if output is not None and output.suffix.lower() != ".parquet":
        raise ValueError(f"the weights of every row are written as Parquet: name {output}.parquet")
    trained = load_trained(run_dir, which)
    explainer = Explainer(trained)
    if rows is None:
        source = f"{split} split"
        encoded = split_rows(trained.version, split, max_rows or SPLIT_ROWS, seed)
    else:
        source = str(rows)
        encoded = file_rows(trained, rows, labelled=not weights_only)
        if max_rows is not None and encoded.height > max_rows:
            encoded = encoded[_drawn(encoded.height, max_rows, seed)]
    if not encoded.height:
        raise ValueError(f"{source}: there are no rows to explain")
    if weights_only or output is not None:
        _require_weights(explainer, encoded)
    found = explainer.explanation(
        encoded,
        source,
        repeats=0 if weights_only else repeats,
        seed=seed,
        output=output,
        progress=progress,
    )
    for each in found.importance:
        if each.undefined is not None:
            raise ValueError(
                f"importance is a loss of AUC, which the {found.rows:,} rows of {source} do not"
                f" define for {each.task!r}: {each.undefined}; take rows of both labels, or"
                " --weights for the weights alone"
            )
    write_json(found.document(), run_dir / EXPLANATION_FILE)
    return found


def report_explanation(
    trained: Trained, split: str, config: ExplainConfig, progress: OnProgress
) -> Explanation:
    """What a report says of a split, from rows drawn with the training's seed."""
    seed = trained.experiment.training.seed
    encoded = split_rows(trained.version, split, config.rows, seed)
    return Explainer(trained).explanation(
        encoded, f"{split} split", repeats=config.repeats, seed=seed, progress=progress
    )


def _require_weights(explainer: Explainer, encoded: pl.DataFrame) -> None:
    _, weights = next(explainer.weights(encoded[:1]))
    if not weights:
        kind = explainer.trained.experiment.model.kind
        raise NoWeights(
            f"model.kind {kind} mixes its fields without weights that could be read; kinds that"
            f" have some: {', '.join(kinds_with_weights()) or 'none'}. Without --weights and"
            " --output, the importance of every feature is measured, for any model"
        )


def kinds_with_weights() -> list[str]:
    """Kinds of models that have weights to read, under some settings at least."""
    return [
        kind
        for kind, made in MODELS.items()
        if isinstance(made, type)
        and issubclass(made, AbstractRanker)
        and made.explanation is not AbstractRanker.explanation
    ]


def split_rows(version: Version, split: str, max_rows: int, seed: int) -> pl.DataFrame:
    """At most so many encoded rows of a split, in its order, with their numbers in it from 0."""
    numbers = _drawn(version.rows[split], max_rows, seed)
    numbered = version.scan(split).with_row_index(ROW_COLUMN)
    chosen = pl.Series(numbers, dtype=pl.UInt32)
    return numbered.filter(pl.col(ROW_COLUMN).is_in(chosen.implode())).collect()


def _drawn(total: int, count: int, seed: int) -> Array:
    random = np.random.default_rng(seed)
    return np.sort(random.choice(total, min(count, total), replace=False))


def file_rows(trained: Trained, source: Path, *, labelled: bool) -> pl.DataFrame:
    """Raw rows of a file as the run's features encode them, with their numbers from 0.

    Args:
        trained: the run.
        source: CSV, TSV, Parquet or JSON lines, by its ending.
        labelled: labels, and weights where the experiment has them, are read too.

    Raises:
        FileNotFoundError: there is no such file.
        SchemaMismatch: it lacks a column.
        RowMismatch: a value is not of its column's type, or a label neither 0 nor 1.
    """
    streams.check_input(source)
    fitted = trained.version.fitted
    features = fitted.feature_set
    targets = [source_of(label) for label in features.labels] if labelled else []
    if labelled and features.weight is not None:
        targets.append(features.weight)
    signature = _with_targets(trained, targets)
    parts = []
    first_row = 0
    try:
        for raw in streams.read_batches(source, signature, (), PIECE_ROWS):
            conformed = signature.conform(raw, first_row + 1)
            encoded = fitted.encode(conformed.lazy()).collect()
            if labelled:
                labels = [
                    label_value(each, conformed[source_of(each)].dtype) for each in features.labels
                ]
                weight = pl.lit(1.0) if features.weight is None else pl.col(features.weight)
                targets_of = conformed.select(*labels, weight.cast(pl.Float32).alias(WEIGHT_COLUMN))
                encoded = encoded.hstack(targets_of)
                _check_labels(encoded, fitted.layout, first_row)
            numbers = pl.int_range(first_row, first_row + raw.height, eager=True)
            parts.append(encoded.with_columns(numbers.alias(ROW_COLUMN)))
            first_row += raw.height
    except SchemaMismatch as error:
        if any(repr(name) in str(error) for name in targets):
            raise SchemaMismatch(
                f"{error}. Importance needs labels; --weights reads the weights of rows without"
            ) from error
        raise
    except RowMismatch as error:
        raise RowMismatch(f"{source}: {error}") from error
    return pl.concat(parts) if parts else pl.DataFrame()


def _with_targets(trained: Trained, targets: list[str]) -> Signature:
    """What a bundle of the run would take, and columns that only training reads."""
    experiment, version = trained.experiment, trained.version
    data = experiment.data
    text = text_format(data)
    signature = Signature.of(version.fitted, version.raw_sample(), text)
    declared = {name: c for table in (data, *data.joins) for name, c in table.columns.items()}
    more = tuple(
        Column(name=n, type=declared[n].type, nullable=False, format=text.formats.get(n))
        for n in targets
        if n not in signature.names
    )
    return signature.model_copy(update={"columns": (*signature.columns, *more)})


def _check_labels(encoded: pl.DataFrame, layout: Layout, first_row: int) -> None:
    for task in layout.tasks:
        wrong = ~encoded[task].is_in([0.0, 1.0]).fill_null(False)
        if wrong.any():
            place = wrong.arg_max()
            assert place is not None
            raise RowMismatch(
                f"row {first_row + place + 1}, label {task!r}: expected 0 or 1, found"
                f" {encoded[task][place]}"
            )


def pieces(encoded: pl.DataFrame, layout: Layout) -> Iterator[pl.DataFrame]:
    """Encoded rows in pieces that can be scored at once."""
    start = 0
    while start < encoded.height:
        piece = encoded.slice(start, PIECE_ROWS)
        while not fits(piece, layout):
            piece = piece.head(piece.height // 2)
        yield piece
        start += piece.height


def served_batch(encoded: pl.DataFrame, layout: Layout) -> ServedBatch:
    """Encoded rows as a model in serving form reads them.

    Sequences are as wide as they can be, whatever is there, so that all pieces have weights of the
    same positions.
    """
    dense_BN, single_BC, *lists = program_inputs(encoded, layout)
    ones_B = torch.ones(encoded.height, dtype=torch.int64)
    ids = {
        field.name: PaddedIds(single_BC[:, [place]], ones_B)
        for place, field in enumerate(single_fields(layout))
    }
    parts = by_field(lists, layout)
    for field in list_fields(layout):
        ids_BL, lengths_B, *weights = parts[field.name]
        if field.shape == "sequence" and field.max_length is not None:
            missing = (0, field.max_length - ids_BL.shape[1])
            ids_BL, weights = pad(ids_BL, missing), [pad(each, missing) for each in weights]
        ids[field.name] = PaddedIds(ids_BL, lengths_B, *weights)
    return ServedBatch(ids, dense_BN)


class _WeightsFile:
    """Weights of every row; the file takes its name when all are written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_WeightsFile":
        return self

    def write(self, weights: list[FieldWeights], rows_B: Array) -> None:
        for table in weight_tables(weights, rows_B):
            arrow = table.to_arrow()
            if self.writer is None:
                self.writer = pq.ParquetWriter(self.partial, arrow.schema)
            self.writer.write_table(arrow)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()
        if kind is None:
            self.partial.replace(self.path)
        self.partial.unlink(missing_ok=True)
