"""A snapshot of an Iceberg table is its rows, or an error that says what is wrong with it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.table import DataScan, FileScanTask
from pyiceberg.types import DoubleType
from support.iceberg import append, iceberg_table
from support.raw import COLUMNS, FEATURES, ROWS, read_raw

from pipelines import identity
from pipelines.delta_table import UnreadableTable
from pipelines.sources import DataConfig


def found(folder: Path, path: object, **config: Any) -> list[tuple[Any, ...]]:
    rows, _ = read_raw(folder, path, **config)
    return sorted(row[1:] for row in rows)


def test_a_folder_with_metadata_is_read_at_its_current_snapshot_or_another(tmp_path: Path) -> None:
    table = iceberg_table(tmp_path / "clicks")
    first = append(table, ROWS)
    append(table, ROWS.head(1))
    table.delete("user = 'bob'")
    path = tmp_path / "clicks"
    assert found(tmp_path, path) == [("ann", 1.5, 1), ("ann", 1.5, 1)]
    assert found(tmp_path, path, version=first) == ROWS.rows()
    assert found(tmp_path, path.as_uri(), version=first, format="iceberg") == ROWS.rows()
    assert found(tmp_path, path / "metadata" / "00001-x.metadata.json") == ROWS.rows()
    with pytest.raises(UnreadableTable, match=rf"has no snapshot 5; known: {first}"):
        found(tmp_path, path, version=5)


def test_columns_are_what_the_table_says_whatever_their_names_in_a_file(tmp_path: Path) -> None:
    table = iceberg_table(tmp_path / "clicks")
    append(table, ROWS)
    data = DataConfig(path=str(tmp_path / "clicks"), columns=COLUMNS)
    sources = [identity.identify(file, {}) for file in identity.configured_files(data)]
    before = identity.fingerprint(data, FEATURES, sources)
    with table.update_schema() as update:
        update.rename_column("price", "cost")
    with table.update_schema() as update:
        update.add_column("price", DoubleType())
    assert found(tmp_path, tmp_path / "clicks") == [("ann", None, 1), ("bob", None, 0)]
    columns = {**COLUMNS, "price": {"type": "float", "column": "cost"}}
    assert found(tmp_path, tmp_path / "clicks", columns=columns) == ROWS.rows()
    assert identity.fingerprint(data, FEATURES, sources) != before


def test_a_lost_file_is_named(tmp_path: Path) -> None:
    table = iceberg_table(tmp_path / "clicks")
    append(table, ROWS)
    lost = next((tmp_path / "clicks" / "data").rglob("*.parquet"))
    lost.rename(tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match=rf"clicks has lost the file .*{lost.name}"):
        found(tmp_path, tmp_path / "clicks")
    (tmp_path / "kept").rename(lost)
    manifest = next((tmp_path / "clicks" / "metadata").glob("*-m0.avro"))
    manifest.unlink()
    with pytest.raises(UnreadableTable, match=rf"metadata of .*clicks cannot be .*{manifest.name}"):
        found(tmp_path, tmp_path / "clicks")


def test_what_is_no_iceberg_table_or_an_empty_one_is_told(tmp_path: Path) -> None:
    iceberg_table(tmp_path / "clicks")
    with pytest.raises(UnreadableTable, match="clicks has no snapshot; known: none"):
        found(tmp_path, tmp_path / "clicks")
    with pytest.raises(FileNotFoundError, match=r"no file .*click; did you mean 'clicks'"):
        found(tmp_path, tmp_path / "click", format="iceberg")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "log.csv").write_text("x\n")
    with pytest.raises(FileNotFoundError, match="plain holds no Iceberg table"):
        found(tmp_path, tmp_path / "plain", format="iceberg")
    (tmp_path / "clicks" / "metadata" / "00001-y.metadata.json").write_text("{")
    with pytest.raises(UnreadableTable, match=r"the metadata of the Iceberg table .*clicks cannot"):
        found(tmp_path, tmp_path / "clicks")


def test_rows_that_are_marked_as_deleted_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(iceberg_table(tmp_path / "clicks"), ROWS)
    plan = DataScan.plan_files

    def with_deletes(scan: DataScan) -> Iterator[FileScanTask]:
        # The library reads such tables but writes none.
        for task in plan(scan):
            yield FileScanTask(task.file, delete_files={task.file})

    monkeypatch.setattr(DataScan, "plan_files", with_deletes)
    with pytest.raises(UnreadableTable, match="holds rows that are marked as deleted, in"):
        found(tmp_path, tmp_path / "clicks")


def test_without_the_library_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(iceberg_table(tmp_path / "clicks"), ROWS)
    monkeypatch.setitem(sys.modules, "pyiceberg.table", None)
    with pytest.raises(UnreadableTable, match=r"pip install 'recsys\[iceberg\]'"):
        found(tmp_path, tmp_path / "clicks")
