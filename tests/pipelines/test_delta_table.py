"""A version of a Delta table is its rows, or an error that says what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.object_store import object_store
from support.raw import ROWS, read_raw

from feature_store.columns import SchemaMismatch
from feature_store.features import Categorical, FeatureSet, Label, Numeric
from pipelines.delta_table import UnreadableTable

SIZED = FeatureSet(
    inputs=(Categorical(name="user"), Numeric(name="size")), labels=(Label(name="clicked"),)
)


def table(folder: Path) -> Path:
    """Version 0: two rows, by user; version 1: two more; version 2: a column more."""
    path = folder / "clicks"
    ROWS.write_delta(str(path), delta_write_options={"partition_by": ["user"]})
    later = ROWS.with_columns(pl.col("price") + 10)
    later.write_delta(str(path), mode="append")
    sized = ROWS.with_columns(size=pl.lit(7.0))
    sized.write_delta(str(path), mode="append", delta_write_options={"schema_mode": "merge"})
    return path


def found(folder: Path, path: object, **config: Any) -> list[tuple[Any, ...]]:
    rows, _ = read_raw(folder, path, **config)
    return sorted(row[1:] for row in rows)


def test_a_folder_with_a_log_is_read_at_its_latest_version(tmp_path: Path) -> None:
    path = table(tmp_path)
    rows, source = read_raw(tmp_path, path)
    assert sorted(row[1:] for row in rows) == [
        ("ann", 1.5, 1),
        ("ann", 1.5, 1),
        ("ann", 11.5, 1),
        ("bob", 2.5, 0),
        ("bob", 2.5, 0),
        ("bob", 12.5, 0),
    ]
    assert [row[0] for row in rows] == list(range(6))
    assert {row[2] for row in rows[:2]} == {1.5, 2.5}, "rows that were added first come first"
    assert source.rows_in == 6


def test_a_version_is_read_as_it_was(tmp_path: Path) -> None:
    path = table(tmp_path)
    assert found(tmp_path, path, version=0) == [("ann", 1.5, 1), ("bob", 2.5, 0)]
    assert len(found(tmp_path, path.as_uri(), version=1, format="delta")) == 4
    with pytest.raises(UnreadableTable, match=r"cannot be read at version 9: its latest .* is 2"):
        found(tmp_path, path, version=9)


def test_what_was_overwritten_is_not_read(tmp_path: Path) -> None:
    path = table(tmp_path)
    ROWS.head(1).write_delta(
        str(path), mode="overwrite", delta_write_options={"schema_mode": "overwrite"}
    )
    assert found(tmp_path, path) == [("ann", 1.5, 1)]


def test_the_files_of_a_table_are_not_read_without_its_log(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clicks is a table with a log.*leave out format: parq"):
        found(tmp_path, table(tmp_path), format="parquet")


def test_files_older_than_a_column_miss_its_values(tmp_path: Path) -> None:
    columns = {"user": "string", "size": "float", "clicked": "int"}
    rows, _ = read_raw(tmp_path, table(tmp_path), SIZED, columns=columns)
    assert sorted((row[1], row[2] or 0.0) for row in rows) == [
        ("ann", 0.0),
        ("ann", 0.0),
        ("ann", 7.0),
        ("bob", 0.0),
        ("bob", 0.0),
        ("bob", 7.0),
    ]
    columns["size"] = "string"
    columns["siz"] = columns.pop("size")
    features = FeatureSet(inputs=(Categorical(name="siz"),), labels=(Label(name="clicked"),))
    with pytest.raises(SchemaMismatch, match=r"\.parquet has no column 'siz'"):
        read_raw(tmp_path, tmp_path / "clicks", features, columns=columns)


def test_a_table_in_an_object_store_is_read_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path)
    local, _ = read_raw(tmp_path, path)
    with object_store(monkeypatch) as store:
        store.put_folder(path, "bucket/tables/clicks")
        rows, source = read_raw(tmp_path, "s3://bucket/tables/clicks")
        assert rows == local
        assert all(str(file).startswith("s3://bucket/tables/clicks/") for file, _ in source.files)
        gone = next(name for name in store.objects if name.endswith(".parquet"))
        del store.objects[gone]
        with pytest.raises(FileNotFoundError, match=r"s3://.*clicks has lost the file .*\.parquet"):
            read_raw(tmp_path, "s3://bucket/tables/clicks")
        del store.objects["bucket/tables/clicks/_delta_log/00000000000000000001.json"]
        with pytest.raises(UnreadableTable, match=r"it has lost the file 0*1\.json"):
            read_raw(tmp_path, "s3://bucket/tables/clicks", format="delta")


def test_a_lost_data_file_is_named(tmp_path: Path) -> None:
    path = table(tmp_path)
    lost = next((path / "user=bob").iterdir())
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=rf"clicks has lost the file user=bob/{lost.name}"):
        found(tmp_path, path)


def test_a_lost_or_damaged_commit_is_named(tmp_path: Path) -> None:
    path = table(tmp_path)
    (path / "_delta_log" / f"{1:020d}.json").unlink()
    with pytest.raises(UnreadableTable, match=r"clicks cannot be read: it has lost .*0001\.json"):
        found(tmp_path, path)
    (path / "_delta_log" / f"{1:020d}.json").write_text("{")
    with pytest.raises(UnreadableTable, match=r"the log of the Delta table .*clicks cannot be"):
        found(tmp_path, path)


def test_what_is_no_delta_table_is_told(tmp_path: Path) -> None:
    table(tmp_path)
    ROWS.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "plain").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no file .*click; did you mean 'clicks'"):
        found(tmp_path, tmp_path / "click", format="delta")
    with pytest.raises(UnreadableTable, match=r"log\.parquet is a file, no folder"):
        found(tmp_path, tmp_path / "log.parquet", format="delta")
    with pytest.raises(FileNotFoundError, match="plain holds no Delta table"):
        found(tmp_path, tmp_path / "plain", format="delta")
    with pytest.raises(ValueError, match=r"version 0: .*log\.parquet has no versions"):
        found(tmp_path, tmp_path / "log.parquet", version=0)


def rewrite_log(path: Path, feature: str, changes: dict[str, dict[str, Any]]) -> None:
    """Change actions of the first commit, and have its readers know of a feature."""
    log = path / "_delta_log" / f"{0:020d}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        for kind, values in changes.items():
            action.get(kind, {}).update(values)
        if "protocol" in action:
            action["protocol"] = {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": [feature],
                "writerFeatures": [feature],
            }
    log.write_text("\n".join(json.dumps(action) for action in actions))


def test_columns_that_have_other_names_in_the_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clicks"
    ROWS.write_delta(str(path))
    fields = [
        {
            "name": name,
            "type": kind,
            "nullable": True,
            "metadata": {
                "delta.columnMapping.id": place,
                "delta.columnMapping.physicalName": f"col-{place}",
            },
        }
        for place, (name, kind) in enumerate(
            {"user": "string", "price": "double", "clicked": "long"}.items(), 1
        )
    ]
    metadata = {
        "configuration": {
            "delta.columnMapping.mode": "name",
            "delta.columnMapping.maxColumnId": "3",
        },
        "schemaString": json.dumps({"type": "struct", "fields": fields}),
    }
    rewrite_log(path, "columnMapping", {"metaData": metadata})
    with pytest.raises(UnreadableTable, match=r"names its columns by column mapping \(name\)"):
        found(tmp_path, path)


def test_rows_that_are_marked_as_deleted_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clicks"
    pl.concat([ROWS] * 20).write_delta(str(path))
    # An example of the protocol's kernel: the rows 3, 4, 7, 11, 18 and 29.
    vector = {
        "storageType": "i",
        "pathOrInlineDv": "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
        "sizeInBytes": 44,
        "cardinality": 6,
    }
    rewrite_log(path, "deletionVectors", {"add": {"deletionVector": vector}})
    with pytest.raises(UnreadableTable, match=r"1 files of .*clicks hold rows that are marked as"):
        found(tmp_path, path)
