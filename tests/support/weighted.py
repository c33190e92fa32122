"""Encoded rows whose tags and histories have weights, and histories gaps in time."""

from pathlib import Path

import numpy as np
import polars as pl

from feature_store.features import IdField, Layout
from support.encoded import LAYOUT, MAX_LENGTH, rows

NUM_GAPS = 9
GAPS = IdField(
    name="history__gap",
    shape="sequence",
    side="user",
    space="history__gap",
    cardinality=NUM_GAPS,
    max_length=MAX_LENGTH,
    gaps_of="history",
)


def _with_weights(field: IdField) -> IdField:
    return field.model_copy(update={"weighted": field.name in ("tags", "history")})


WEIGHTED = Layout(
    ids=(*(_with_weights(field) for field in LAYOUT.ids), GAPS),
    dense=LAYOUT.dense,
    tasks=LAYOUT.tasks,
    dense_sides=LAYOUT.dense_sides,
)


def weighted_rows(num_rows: int, seed: int = 0) -> pl.DataFrame:
    """Those of `support.encoded` with weights, of which a third is 0, and gaps."""
    random = np.random.default_rng(seed + 1)
    frame = rows(num_rows, seed)

    def lists(name: str, draw) -> list:
        return [draw(length) for length in frame[name].list.len()]

    def weights(length: int) -> list[float]:
        drawn = random.random(length) * 3 * (random.random(length) > 1 / 3)
        return drawn.astype(np.float32).tolist()

    floats, ints = pl.List(pl.Float32), pl.List(pl.Int64)
    return frame.with_columns(
        pl.Series("tags__weight", lists("tags", weights), dtype=floats),
        pl.Series("history__weight", lists("history", weights), dtype=floats),
        pl.Series(
            "history__gap",
            lists("history", lambda n: random.integers(1, NUM_GAPS, n).tolist()),
            dtype=ints,
        ),
    )


def write_weighted(folder: Path, num_rows: int, seed: int = 0) -> list[Path]:
    """One Parquet file of small row groups."""
    path = folder / "weighted.parquet"
    weighted_rows(num_rows, seed).write_parquet(path, row_group_size=20)
    return [path]
