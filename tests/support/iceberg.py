"""An Iceberg table in a folder, written by the library itself, without a catalog's server."""

from pathlib import Path
from typing import Any

import polars as pl
from pyiceberg.catalog.noop import NoopCatalog
from pyiceberg.io import load_file_io
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.serializers import ToOutputFile
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.metadata import new_table_metadata
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.table.update import update_table_metadata
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import DoubleType, LongType, NestedField, StringType

_SCHEMA = Schema(
    NestedField(1, "user", StringType()),
    NestedField(2, "price", DoubleType()),
    NestedField(3, "clicked", LongType()),
)


class _Folder(NoopCatalog):
    """Commits by writing the next metadata file."""

    def commit_table(
        self, table: Table, requirements: Any, updates: tuple[Any, ...]
    ) -> CommitTableResponse:
        metadata = update_table_metadata(
            table.metadata, updates, metadata_location=table.metadata_location
        )
        number = int(Path(table.metadata_location).name.split("-")[0]) + 1
        location = f"{metadata.location}/metadata/{number:05d}-x.metadata.json"
        ToOutputFile.table_metadata(metadata, table.io.new_output(location))
        return CommitTableResponse.model_validate(
            {"metadata-location": location, "metadata": metadata}
        )


def iceberg_table(folder: Path) -> Table:
    """A table of users, prices and clicks, partitioned by user, without rows."""
    (folder / "metadata").mkdir(parents=True)
    spec = PartitionSpec(PartitionField(1, 1000, IdentityTransform(), "user"))
    metadata = new_table_metadata(_SCHEMA, spec, UNSORTED_SORT_ORDER, str(folder))
    io = load_file_io({}, str(folder))
    location = f"{folder}/metadata/00000-x.metadata.json"
    ToOutputFile.table_metadata(metadata, io.new_output(location))
    return Table(("test", "clicks"), metadata, location, io, _Folder("test"))


def append(table: Table, rows: pl.DataFrame) -> int:
    """Add rows; gives the snapshot's id."""
    arrow = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    table.append(arrow.cast(table.schema().as_arrow()))
    snapshot = table.current_snapshot()
    assert snapshot is not None
    return int(snapshot.snapshot_id)
