"""Raw rows as bytes, one value a row, and back: how rows lie in an online store.

A row is a header of fixed width (numbers, and the lengths in bytes of all that varies) followed by
the varying parts, column by column: the UTF-8 of a text, the elements of a list. Whole columns are
laid out and joined at once, and only the last cut into rows is a loop; the bits of every value come
back as they were, NaN and missing elements too.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from feature_store.columns import ColumnType, polars_type

_STORED: dict[str, tuple[str, pl.DataType]] = {
    "int": ("<i8", pl.Int64()),
    "float": ("<f8", pl.Float64()),
    "bool": ("|u1", pl.UInt8()),
    "date": ("<i4", pl.Int32()),
    "datetime": ("<i8", pl.Int64()),
}
"""NumPy's and Polars' type of what stands for a scalar; times are microseconds, dates days."""

_ABSENT = 0xFFFFFFFF
"""Instead of a length: no text."""


class DamagedRow(ValueError):
    """Bytes that are no row of these columns."""


class RowPacking:
    """Packs and unpacks rows of some columns.

    Shapes: N rows.

    Args:
        columns: Types by name, in the order in which they are laid out.
    """

    def __init__(self, columns: dict[str, ColumnType]) -> None:
        self.columns = columns
        self.schema = {name: polars_type(kind) for name, kind in columns.items()}
        fields: list[tuple[str, str]] = []
        self._part_fields: list[str] = []
        for place, kind in enumerate(columns.values()):
            fields.append((f"null {place}", "|u1"))
            if kind in _STORED:
                fields.append((f"value {place}", _STORED[kind][0]))
            else:
                lengths = [f"length {place} {part}" for part in range(1 if kind == "string" else 2)]
                fields += [(length, "<u4") for length in lengths]
                self._part_fields += lengths
        self._header = np.dtype(fields)

    def pack(self, rows: pl.DataFrame) -> list[bytes]:
        """Every row as bytes.

        Args:
            rows: Has the columns, in types that can be cast to theirs; others are ignored.
        """
        frame = rows.select(pl.col(name).cast(dtype) for name, dtype in self.schema.items())
        header_N = np.zeros(frame.height, self._header)
        parts: list[pa.Array] = []
        for place, (name, kind) in enumerate(self.columns.items()):
            values = frame.get_column(name).rechunk()
            header_N[f"null {place}"] = values.is_null().to_numpy()
            if kind in _STORED:
                stored = values.cast(_STORED[kind][1])
                header_N[f"value {place}"] = stored.fill_null(0).to_numpy()
                continue
            found = [_texts_of(values)] if kind == "string" else _elements_of(values, kind)
            for part, piece in enumerate(found):
                header_N[f"length {place} {part}"] = np.diff(_offsets(piece))
            parts += found
        width = self._header.itemsize
        head = _pieces(header_N.tobytes(), np.arange(frame.height + 1) * width)
        joined = pc.binary_join_element_wise(head, *parts, pa.scalar(b"", pa.large_binary()))
        data, bounds = joined.buffers()[2].to_pybytes(), _offsets(joined).tolist()
        return [data[start:end] for start, end in pairwise(bounds)]

    def unpack(self, rows: Sequence[bytes | memoryview]) -> pl.DataFrame:
        """The rows, in the columns' types.

        Raises:
            DamagedRow: Bytes that `pack` has not made.
        """
        width = self._header.itemsize
        headers = b"".join(row[:width] for row in rows)
        if len(headers) != width * len(rows):
            raise DamagedRow("a stored row is shorter than its header")
        header_N = np.frombuffer(headers, self._header, len(rows))
        ends = np.full((len(rows), len(self._part_fields) + 1), width, np.int64)
        for part, field in enumerate(self._part_fields):
            ends[:, part + 1] = header_N[field]
        ends = np.cumsum(ends, axis=1)
        if ends[:, -1].tolist() != [len(row) for row in rows]:
            raise DamagedRow("a stored row is shorter or longer than its header says")
        bounds = ends.tolist()
        place_of = {field: part for part, field in enumerate(self._part_fields)}

        def joined(place: int, part: int) -> tuple[bytes, np.ndarray]:
            """A part of all rows, one after the other, and its length in every row."""
            at = place_of[f"length {place} {part}"]
            pieces = [row[b[at] : b[at + 1]] for row, b in zip(rows, bounds, strict=True)]
            return b"".join(pieces), header_N[f"length {place} {part}"].astype(np.int64)

        columns = []
        for place, (name, kind) in enumerate(self.columns.items()):
            null_N = header_N[f"null {place}"].astype(bool)
            if kind in _STORED:
                array = pa.array(np.ascontiguousarray(header_N[f"value {place}"]), mask=null_N)
            elif kind == "string":
                array = _texts(*joined(place, 0), null_N)
            else:
                array = _lists(joined(place, 0), joined(place, 1), kind, null_N)
            columns.append(pl.Series(name, array).cast(self.schema[name]))
        return pl.DataFrame(columns, height=len(rows))


def _pieces(data: bytes | pa.Buffer, offsets: np.ndarray) -> pa.Array:
    """Bytes between offsets, one piece a row."""
    buffers = [None, pa.py_buffer(offsets.astype(np.int64).tobytes()), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _texts_of(values: pl.Series) -> pa.Array:
    """The UTF-8 of every text."""
    texts = values.fill_null("").to_arrow(compat_level=pl.CompatLevel.oldest())
    return texts.cast(pa.large_binary())


def _elements_of(values: pl.Series, kind: ColumnType) -> list[pa.Array]:
    """The elements of every list.

    Of numbers: their bytes, then a byte each that tells missing ones, where there is any. Of texts:
    their lengths, then their UTF-8.
    """
    lengths_N = values.list.len().fill_null(0).to_numpy().astype(np.int64)
    offsets = np.append(0, np.cumsum(lengths_N))
    elements = values.filter(values.list.len() > 0).explode()
    if kind == "list<string>":
        sizes = elements.str.len_bytes().fill_null(_ABSENT).to_numpy().astype("<u4")
        texts = _texts_of(elements)
        return [
            _pieces(sizes.tobytes(), offsets * 4),
            _pieces(texts.buffers()[2] or b"", _offsets(texts)[offsets]),
        ]
    stored, dtype = _STORED[kind.removeprefix("list<").removesuffix(">")]
    missing = elements.is_null().to_numpy()
    numbers = elements.cast(dtype).fill_null(0).to_numpy().astype(stored)
    before = np.append(0, np.cumsum(missing))
    some_N = before[offsets[1:]] > before[offsets[:-1]]
    told = missing[np.repeat(some_N, lengths_N)]
    return [
        _pieces(numbers.tobytes(), offsets * numbers.itemsize),
        _pieces(told.tobytes(), np.append(0, np.cumsum(np.where(some_N, lengths_N, 0)))),
    ]


def _texts(data: bytes, lengths_N: np.ndarray, null_N: np.ndarray) -> pa.Array:
    offsets = np.append(0, np.cumsum(lengths_N))
    valid = pa.py_buffer(np.packbits(~null_N, bitorder="little").tobytes())
    buffers = [valid, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_string(), len(null_N), buffers)


def _lists(
    first_part: tuple[bytes, np.ndarray],
    second_part: tuple[bytes, np.ndarray],
    kind: ColumnType,
    null_N: np.ndarray,
) -> pa.Array:
    (first, lengths_N), (second, others_N) = first_part, second_part
    if kind == "list<string>":
        sizes = np.frombuffer(first, "<u4").astype(np.int64)
        absent = sizes == _ABSENT
        values = _texts(second, np.where(absent, 0, sizes), absent)
        counts_N = lengths_N // 4
    else:
        numbers = np.frombuffer(first, _STORED[kind.removeprefix("list<").removesuffix(">")][0])
        counts_N = lengths_N // numbers.itemsize
        missing = np.zeros(len(numbers), bool)
        if second:
            missing[np.repeat(others_N > 0, counts_N)] = np.frombuffer(second, bool)
        values = pa.array(numbers, mask=missing)
    offsets = pa.array(np.append(0, np.cumsum(counts_N)), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, values, mask=pa.array(null_N))


def _offsets(texts: pa.Array) -> np.ndarray:
    """Where texts begin and end in their buffer."""
    wide = np.frombuffer(texts.buffers()[1] or np.zeros(1, np.int64), np.int64)
    return wide[texts.offset : texts.offset + len(texts) + 1]
