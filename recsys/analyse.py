"""How a run's features share their tables: `recsys embeddings analyse`."""

from pathlib import Path
from typing import Literal

import polars as pl
import torch

from feature_store.document import write_json
from feature_store.features import IdField
from feature_store.store import Version
from recsys.embeddings.analysis import (
    Analysis,
    SeenIds,
    angles,
    block,
    collisions,
    row_norms,
)
from recsys.embeddings.serving import whole_tables
from recsys.rundir import find_run
from recsys.trained import load_trained

ANALYSIS_FILE = "embeddings.json"
_ID, _COUNT = "id", "count"


def analyse(
    run_dir: Path, which: Literal["best", "last"] = "best", split: str = "train"
) -> Analysis:
    """Measure collisions, angles and norms of a run's embeddings, and write them beside it.

    Args:
        run_dir: the run's folder, or the one that holds the latest.
        which: the checkpoint.
        split: whose ids weigh the collisions, and stand for unbounded ones.

    Raises:
        RunNotFound: there is no such run.
        CheckpointNotFound: it has no complete checkpoint.
    """
    run_dir = find_run(run_dir)
    trained = load_trained(run_dir, which)
    embeddings = trained.embeddings
    schemes = embeddings.schemes_by_space()
    fields: dict[str, list[IdField]] = {}
    for field in embeddings.layout.ids:
        fields.setdefault(field.space, []).append(field)
    seen = {name: seen_ids(trained.version, members, split) for name, members in fields.items()}
    weights = whole_tables(embeddings)
    spaces = {field.name: field.space for field in embeddings.layout.ids}
    first = trained.model.ranker.first_layer()
    blocks = []
    if first is not None:
        for name, columns in first.columns.items():
            blocks.append(block(name, schemes[spaces[name]], first.weight_HW[:, columns]))
    result = Analysis(
        split=split,
        collisions=collisions(schemes, seen),
        angles=angles(blocks),
        norms=tuple(row_norms(table, weights[table.name]) for table in embeddings.tables),
    )
    write_json(result.document(), run_dir / ANALYSIS_FILE)
    return result


def seen_ids(version: Version, fields: list[IdField], split: str) -> SeenIds:
    """The ids of one space: all that there can be, or of an unbounded one those of the split.

    Args:
        version: of the data.
        fields: of the space.
        split: where occurrences are counted.
    """
    columns = [_column(version.scan(split), field) for field in fields]
    counted = (
        pl.concat(columns)
        .group_by(_ID)
        .agg(pl.len().cast(pl.Int64).alias(_COUNT))
        .sort(_ID)
        .collect(engine="streaming")
    )
    ids = torch.from_numpy(counted[_ID].to_numpy(writable=True))
    counts = torch.from_numpy(counted[_COUNT].to_numpy(writable=True))
    cardinality = fields[0].cardinality
    if cardinality is None:
        return SeenIds(ids, counts)
    counts_N = torch.zeros(cardinality, dtype=torch.int64)
    counts_N[ids] = counts
    return SeenIds(torch.arange(cardinality), counts_N)


def _column(rows: pl.LazyFrame, field: IdField) -> pl.LazyFrame:
    column = rows.select(pl.col(field.name).alias(_ID))
    return column if field.shape == "single" else column.explode(_ID).drop_nulls()
