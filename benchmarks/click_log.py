"""A Criteo-shaped log for the training benchmark: 13 numbers, 26 categorical ids, one click label.

Written as an encoded version's Parquet files directly: the feature build has a benchmark of its
own. Ids are hashes, as the encoder leaves them; beside them lie the small integers they stand for,
as arrays, for peers that want their ids counted from 0.

Shapes: R rows, N numbers, F categorical fields, L items of a history.
"""

from pathlib import Path

import numpy as np
import polars as pl

from feature_store.features import GROUP_COLUMN, WEIGHT_COLUMN, IdField, Layout

NUM_NUMBERS = 13
NUM_FIELDS = 26
LABEL = "label"
ROW_GROUP_ROWS = 1 << 17
FILE_ROWS = 1 << 18
HISTORY = "history"
"""Name of the sequence of `C0`'s ids, where rows have one."""
HISTORY_LENGTH = 20


def layout(*, history: bool = False) -> Layout:
    """Of the log's rows: the first half of the fields is the item's, the other the user's."""
    ids = [
        IdField(
            name=f"C{field}",
            shape="single",
            side="item" if field < NUM_FIELDS // 2 else "user",
            space=f"C{field}",
        )
        for field in range(NUM_FIELDS)
    ]
    if history:
        past = IdField(
            name=HISTORY, shape="sequence", side="user", space="C0", max_length=HISTORY_LENGTH
        )
        ids.append(past)
    return Layout(
        ids=tuple(ids), dense=tuple(f"I{number}" for number in range(NUM_NUMBERS)), tasks=(LABEL,)
    )


def write_log(folder: Path, num_rows: int, values_per_field: int, *, history: bool = False) -> None:
    """Write the log: `encoded/*.parquet` for us, `ids.npy`, `numbers.npy`, `labels.npy` for peers.

    With a history, every row also has the ids of 20 earlier items (`history.npy`).

    Args:
        folder: made new.
        num_rows: rows of the log.
        values_per_field: different values of each categorical field, uniformly drawn: the
            hardest case for a cache.
        history: rows have one.
    """
    random = np.random.default_rng(0)
    ids_RF = random.integers(0, values_per_field, (num_rows, NUM_FIELDS), dtype=np.int64)
    numbers_RN = random.standard_normal((num_rows, NUM_NUMBERS), dtype=np.float32)
    score_R = numbers_RN[:, 0] + (ids_RF[:, 0] % 3) - 2.0
    labels_R = (random.random(num_rows) < 1 / (1 + np.exp(-score_R))).astype(np.float32)
    (folder / "encoded").mkdir(parents=True)
    np.save(folder / "ids.npy", ids_RF)
    np.save(folder / "numbers.npy", numbers_RN)
    np.save(folder / "labels.npy", labels_R)
    frame = pl.DataFrame(
        {
            **{f"C{field}": _hashed(ids_RF[:, field]) for field in range(NUM_FIELDS)},
            **{f"I{number}": numbers_RN[:, number] for number in range(NUM_NUMBERS)},
            LABEL: labels_R,
            WEIGHT_COLUMN: np.ones(num_rows, dtype=np.float32),
            GROUP_COLUMN: random.integers(1, 1000, num_rows),
        }
    )
    if history:
        past_RL = random.integers(0, values_per_field, (num_rows, HISTORY_LENGTH), dtype=np.int64)
        np.save(folder / "history.npy", past_RL)
        frame = frame.with_columns(pl.Series(HISTORY, _hashed(past_RL)).arr.to_list())
    for part, start in enumerate(range(0, num_rows, FILE_ROWS)):
        path = folder / "encoded" / f"part-{part}.parquet"
        frame[start : start + FILE_ROWS].write_parquet(path, row_group_size=ROW_GROUP_ROWS)


def encoded_files(folder: Path) -> list[Path]:
    """The Parquet files of a written log, in order."""
    return sorted((folder / "encoded").glob("*.parquet"))


def _hashed(ids: np.ndarray) -> np.ndarray:
    """Stand-ins for 64-bit hashes; an odd factor keeps different ids apart, + 1 keeps off 0."""
    return (ids + 1) * np.int64(0x9E3779B97F4A7C15 - (1 << 64))
