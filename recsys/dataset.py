"""From a version's Arrow data to evenly cut batches, in an order that is a pure function.

The order of an epoch depends on (seed, epoch) alone, never on the number of workers: row groups
are permuted, read a window at a time, and the rows of a window are permuted. The position in the
epoch is therefore one integer, the number of rows consumed, and a run resumed with fewer or more
workers still sees every row exactly once. Every global batch is cut evenly: worker r takes the
r-th slice, padded with rows of weight zero where the last batch is short, so that all workers
take the same number of steps and no row is dropped.

Shapes: R rows of a block, B rows of a worker's batch, C single-id fields, F fields, N numbers.
"""

import math
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from feature_store.features import GROUP_COLUMN, WEIGHT_COLUMN, Layout
from recsys.batch import Batch

WINDOW_ROWS = 1 << 19
"""Rows shuffled together; bounds the memory of a reader."""
CACHED_ROWS = 1 << 12
"""Rows of a matrix filled at once: few enough to stay in a core's cache, column after column."""


@dataclass(frozen=True)
class RowGroup:
    """A run of rows that is read at once."""

    path: Path
    index: int
    num_rows: int


@dataclass(frozen=True)
class Ragged:
    """A list column: row r holds values[offsets[r]:offsets[r + 1]]."""

    values: Tensor
    offsets: Tensor

    def take(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """Values and lengths of some rows, without a loop over them."""
        starts_B = self.offsets.index_select(0, rows_B)
        lengths_B = self.offsets.index_select(0, rows_B + 1) - starts_B
        total = int(lengths_B.sum())
        ends_B = lengths_B.cumsum(0)
        shifts_V = torch.repeat_interleave(starts_B - (ends_B - lengths_B), lengths_B)
        return self.values.index_select(0, torch.arange(total) + shifts_V), lengths_B


@dataclass(frozen=True)
class Block:
    """Decoded rows as tensors."""

    single_RC: Tensor
    ragged: dict[str, Ragged]
    dense_RN: Tensor
    labels_RT: Tensor
    weights_R: Tensor
    groups_R: Tensor

    @property
    def num_rows(self) -> int:
        """Rows in the block."""
        return self.weights_R.numel()


def row_groups(files: Sequence[Path]) -> list[RowGroup]:
    """Every row group of the files, in their order."""
    return [
        RowGroup(path, index, metadata.row_group(index).num_rows)
        for path in files
        for metadata in [pq.read_metadata(path)]
        for index in range(metadata.num_row_groups)
        if metadata.row_group(index).num_rows
    ]


def read_block(groups: Sequence[RowGroup], layout: Layout) -> Block:
    """Decode row groups, in the order given; one of them at a time is in memory twice."""
    matrices: dict[str, tuple[Sequence[str], type]] = {
        "single": ([field.name for field in layout.ids if field.shape == "single"], np.int64),
        "dense": (layout.dense, np.float32),
        "labels": (layout.tasks, np.float32),
        "weights": ([WEIGHT_COLUMN], np.float32),
        "groups": ([GROUP_COLUMN], np.int64),
    }
    lists: dict[str, list[pa.Array]] = {f.name: [] for f in layout.ids if f.shape != "single"}
    lists |= {f.weights: [] for f in layout.ids if f.weighted}
    names = [*lists, *(name for columns, _ in matrices.values() for name in columns)]
    num_rows = sum(group.num_rows for group in groups)
    filled: dict[str, np.ndarray] = {
        kind: np.empty((num_rows, len(columns)), dtype)
        for kind, (columns, dtype) in matrices.items()
    }
    start = 0
    for group in groups:
        with pq.ParquetFile(group.path) as file:
            table = file.read_row_group(group.index, columns=names)
        for kind, (columns, _) in matrices.items():
            _fill(filled[kind][start : start + group.num_rows], table, columns)
        for name, chunks in lists.items():
            chunks.extend(table.column(name).chunks)
        start += group.num_rows
    return Block(
        single_RC=torch.from_numpy(filled["single"]),
        ragged={name: _ragged(chunks) for name, chunks in lists.items()},
        dense_RN=torch.from_numpy(filled["dense"]),
        labels_RT=torch.from_numpy(filled["labels"]),
        weights_R=torch.from_numpy(filled["weights"][:, 0]),
        groups_R=torch.from_numpy(filled["groups"][:, 0]),
    )


def _fill(matrix: np.ndarray, table: pa.Table, names: Sequence[str]) -> None:
    columns = [table.column(name).to_numpy() for name in names]
    for start in range(0, table.num_rows, CACHED_ROWS):
        rows = slice(start, start + CACHED_ROWS)
        for index, column in enumerate(columns):
            matrix[rows, index] = column[rows]


def _ragged(chunks: list[pa.Array]) -> Ragged:
    lists = pa.concat_arrays(chunks)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    kind = np.float32 if pa.types.is_floating(lists.type.value_type) else np.int64
    values = lists.values.to_numpy(zero_copy_only=False).astype(kind)
    return Ragged(torch.from_numpy(values), torch.from_numpy(offsets))


class BatchReader:
    """One worker's batches of one split, epoch by epoch.

    Args:
        files: the split's Parquet files.
        layout: columns of an encoded row.
        batch_size: rows of a *global* batch, over all workers.
        rank: this worker.
        world_size: number of workers.
        shuffle: permute rows; without it they come in the order of the files.
        seed: of the order.
        window_rows: rows shuffled together.
    """

    def __init__(
        self,
        files: Sequence[Path],
        layout: Layout,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        window_rows: int = WINDOW_ROWS,
    ) -> None:
        self.groups = row_groups(files)
        self.layout = layout
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.seed = seed
        self.window_rows = window_rows
        self.num_rows = sum(group.num_rows for group in self.groups)

    def num_batches(self, start: int = 0) -> int:
        """Batches of an epoch from row position `start` on; the same on every worker."""
        return math.ceil((self.num_rows - start) / self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """Batches of one epoch, from the row position `start` on.

        After the k-th batch the position is `min(start + k * batch_size, num_rows)`.
        """
        pending: list[tuple[Block, Tensor]] = []
        pending_rows = 0
        for block, order_R in _ahead(self._windows(epoch, start)):
            pending.append((block, order_R))
            pending_rows += order_R.numel()
            while pending_rows >= self.batch_size:
                yield self._batch(_cut(pending, self.batch_size))
                pending_rows -= self.batch_size
        if pending_rows:
            yield self._batch(_cut(pending, pending_rows))

    def _windows(self, epoch: int, start: int) -> Iterator[tuple[Block, Tensor]]:
        """Blocks with the order in which their rows are taken, from row position `start` on."""
        order = np.arange(len(self.groups))
        if self.shuffle:
            np.random.default_rng((self.seed, epoch)).shuffle(order)
        skip = start
        for window, groups in enumerate(self._grouped(order)):
            num_rows = sum(group.num_rows for group in groups)
            if skip >= num_rows:
                skip -= num_rows
                continue
            rows_R = torch.arange(num_rows)
            if self.shuffle:
                generator = np.random.default_rng((self.seed, epoch, window))
                rows_R = torch.from_numpy(generator.permutation(num_rows))
            yield read_block(groups, self.layout), rows_R[skip:]
            skip = 0

    def _grouped(self, order: np.ndarray) -> Iterator[list[RowGroup]]:
        window: list[RowGroup] = []
        rows = 0
        for index in order:
            group = self.groups[int(index)]
            if window and rows + group.num_rows > self.window_rows:
                yield window
                window, rows = [], 0
            window.append(group)
            rows += group.num_rows
        if window:
            yield window

    def _batch(self, pieces: list[tuple[Block, Tensor]]) -> Batch:
        """This worker's slice of a global batch that may span two windows."""
        global_rows = sum(rows_B.numel() for _, rows_B in pieces)
        weight_sum = sum(float(b.weights_R.index_select(0, r).sum()) for b, r in pieces)
        size = math.ceil(global_rows / self.world_size)
        mine = _slice(pieces, self.rank * size, (self.rank + 1) * size)
        return self._assemble(mine, size, weight_sum / self.world_size)

    def _assemble(self, pieces: list[tuple[Block, Tensor]], size: int, weight_sum: float) -> Batch:
        taken = sum(rows_B.numel() for _, rows_B in pieces)
        padding = size - taken
        singles_CB = _taken([(b.single_RC, r) for b, r in pieces], padding).t()
        nothing = torch.zeros(0, dtype=torch.int64)
        values: list[Tensor] = [nothing]  # a layout may have no ids at all
        lengths: list[Tensor] = [nothing]
        ones_B = torch.ones(size, dtype=torch.int64)
        weighted = any(field.weighted for field in self.layout.ids)
        weights: list[Tensor] = []
        single = iter(singles_CB.contiguous())
        for field in self.layout.ids:
            if field.shape == "single":
                values.append(next(single))
                lengths.append(ones_B)
                weights.append(ones_B)
                continue
            parts = [block.ragged[field.name].take(rows_B) for block, rows_B in pieces]
            values.extend(part[0] for part in parts)
            lengths.extend(part[1] for part in parts)
            lengths.append(torch.zeros(padding, dtype=torch.int64))
            if field.weighted:
                weights.extend(b.ragged[field.weights].take(rows_B)[0] for b, rows_B in pieces)
            elif weighted:
                weights.extend(torch.ones(len(part[0])) for part in parts)
        lengths_FB = torch.cat(lengths).view(len(self.layout.ids), size)
        return Batch(
            ids=KeyedJaggedTensor(
                keys=[field.name for field in self.layout.ids],
                values=torch.cat(values),
                # TorchRec has weights of all keys or of none: those of others are 1.
                weights=torch.cat(weights, dim=0).float() if weighted else None,
                lengths=lengths_FB.view(-1),
                stride=size,
                # On the host now, so that no device has to be asked for it later.
                length_per_key=lengths_FB.sum(dim=1).tolist(),
            ),
            dense_BN=_taken([(b.dense_RN, r) for b, r in pieces], padding),
            labels_BT=_taken([(b.labels_RT, r) for b, r in pieces], padding),
            weights_B=_taken([(b.weights_R, r) for b, r in pieces], padding),
            groups_B=_taken([(b.groups_R, r) for b, r in pieces], padding),
            weight_sum=torch.tensor(weight_sum),
        )


def _taken(pieces: list[tuple[Tensor, Tensor]], padding: int) -> Tensor:
    """The chosen rows of every piece, then `padding` rows of zeros."""
    # index_select copies whole rows; indexing by a tensor goes number by number, 4 times slower.
    parts = [values.index_select(0, rows_B) for values, rows_B in pieces]
    if padding:
        parts.append(parts[0].new_zeros((padding, *parts[0].shape[1:])))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _cut(pending: list[tuple[Block, Tensor]], size: int) -> list[tuple[Block, Tensor]]:
    """Take the next `size` rows off the front of what is pending."""
    taken: list[tuple[Block, Tensor]] = []
    while size:
        block, rows = pending[0]
        taken.append((block, rows[:size]))
        if rows.numel() > size:
            pending[0] = (block, rows[size:])
        else:
            pending.pop(0)
        size -= taken[-1][1].numel()
    return taken


def _slice(pieces: list[tuple[Block, Tensor]], start: int, stop: int) -> list[tuple[Block, Tensor]]:
    """Rows start..stop of the pieces laid end to end; an empty slice keeps one block."""
    sliced = []
    for block, rows in pieces:
        part = rows[max(start, 0) : max(stop, 0)]
        if part.numel():
            sliced.append((block, part))
        start -= rows.numel()
        stop -= rows.numel()
    return sliced or [(pieces[0][0], pieces[0][1][:0])]


_END = object()


def _ahead(windows: Iterator[tuple[Block, Tensor]]) -> Iterator[tuple[Block, Tensor]]:
    """The same windows, the next one read in a thread while the present one is used."""
    ready: queue.Queue = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for window in windows:
                if not put(window):
                    return
            put(_END)
        except BaseException as error:  # raised again in the reader's own thread
            put(error)

    thread = threading.Thread(target=work, name="window-reader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
