"""Encoded rows as Parquet files of a Delta table: their schema and their files."""

import json
from pathlib import Path

import polars as pl
from deltalake import Field, Schema
from deltalake.schema import ArrayType, PrimitiveType
from deltalake.transaction import AddAction

from feature_store.columns import element_type
from feature_store.encoding import SchemaMismatch
from feature_store.features import (
    GROUP_COLUMN,
    SPLIT_COLUMN,
    SPLITS,
    TIMESTAMP_COLUMN,
    WEIGHT_COLUMN,
    Layout,
    nearest,
)

FEATURES_FOLDER = "features"
"""Fitted features, in the folder of their build."""
ROW_GROUP_ROWS = 1 << 17
"""Rows that are compressed and read together."""

_DELTA_TYPES = {pl.Int64: "long", pl.Float32: "float", pl.String: "string"}


def encoded_schema(layout: Layout) -> dict[str, pl.DataType]:
    """Names and types of encoded rows."""
    schema: dict[str, pl.DataType] = {}
    for field in layout.ids:
        schema[field.name] = pl.Int64() if field.shape == "single" else pl.List(pl.Int64())
        if field.weighted:
            schema[field.weights] = pl.List(pl.Float32())
    schema |= {name: pl.Float32() for name in (*layout.dense, *layout.tasks, WEIGHT_COLUMN)}
    return schema | {GROUP_COLUMN: pl.Int64(), TIMESTAMP_COLUMN: pl.Int64()}


def in_order(rows: pl.LazyFrame, layout: Layout) -> pl.LazyFrame:
    """The rows with their columns in the order of the schema.

    Raises:
        SchemaMismatch: Names every column that is not what the fitted features encode.
    """
    found = rows.collect_schema()
    expected = {**encoded_schema(layout), SPLIT_COLUMN: pl.String()}
    wrong = [
        f"{name}: expected {expected.get(name, 'no such column')},"
        f" found {found.get(name, 'no such column')}"
        for name in {**expected, **found}
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        raise SchemaMismatch(f"the rows do not fit the fitted features: {'; '.join(wrong)}")
    return rows.select(list(expected))


def sink(rows: pl.LazyFrame, folder: Path, prefix: str) -> list[tuple[str, Path]]:
    """Stream rows into Parquet files of their split.

    Returns:
        Split and file; the names of a split's files sort in the order of their rows.
    """
    _sink(rows, folder).collect(engine="streaming")
    return _sunk(folder, prefix)


def sink_beside(
    rows: pl.LazyFrame, folder: Path, prefix: str, other: pl.LazyFrame
) -> tuple[list[tuple[str, Path]], pl.DataFrame]:
    """The same, and the result of another question to the same source, which is read once."""
    _, answer = pl.collect_all([_sink(rows, folder), other], engine="streaming")
    return _sunk(folder, prefix), answer


def _sink(rows: pl.LazyFrame, folder: Path) -> pl.LazyFrame:
    # A version is written once and read every epoch: lz4 is decoded four times as fast as zstd, for
    # an eighth more bytes.
    target = pl.PartitionBy(folder, key=SPLIT_COLUMN, include_key=False)
    return rows.sink_parquet(
        target,
        compression="lz4",
        statistics=False,
        row_group_size=ROW_GROUP_ROWS,
        mkdir=True,
        lazy=True,
    )


def _sunk(folder: Path, prefix: str) -> list[tuple[str, Path]]:
    written = sorted(folder.glob("*/*.parquet"))
    splits = [file.parent.name.removeprefix(f"{SPLIT_COLUMN}=") for file in written]
    named = [file.rename(file.with_name(f"{prefix}-{file.name}")) for file in written]
    return [(known_split(split), file) for split, file in zip(splits, named, strict=True)]


def add_action(split: str, file: Path, num_rows: int) -> AddAction:
    """The entry of a commit for a file that lies in its split's folder."""
    status = file.stat()
    return AddAction(
        path=f"{file.parent.name}/{file.name}",
        size=status.st_size,
        partition_values={SPLIT_COLUMN: split},
        modification_time=status.st_mtime_ns // 1_000_000,
        data_change=True,
        stats=json.dumps({"numRecords": num_rows}),
    )


def delta_schema(layout: Layout) -> Schema:
    """The same schema in Delta's words, with the split."""
    fields = []
    for name, dtype in {**encoded_schema(layout), SPLIT_COLUMN: pl.String()}.items():
        kind: PrimitiveType | ArrayType
        if isinstance(dtype, pl.List):
            element = _DELTA_TYPES[type(element_type(dtype))]
            kind = ArrayType(PrimitiveType(element), contains_null=True)
        else:
            kind = PrimitiveType(_DELTA_TYPES[type(dtype)])
        fields.append(Field(name, kind, nullable=True))
    return Schema(fields)


def known_split(split: str) -> str:
    """The name of a split as it stands; ValueError for any other."""
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; {nearest(split, list(SPLITS))}")
    return split


def folder_of(split: str) -> str:
    """Name of the folder of a split's files."""
    return f"{SPLIT_COLUMN}={split}"
