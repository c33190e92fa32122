"""What happens to a file while it is read is told by its name; the last version stays intact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.raw import COLUMNS, FEATURES

from feature_store.features import SPLITS
from feature_store.store import Store
from pipelines.build import build
from pipelines.delimited import UnreadableFile
from pipelines.identity import SourceChanged
from pipelines.sources import DataConfig

FEATURE_TABLE = "clicks"


def rows(number: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user": [f"user{i % 97}" for i in range(number)],
            "price": [i / 7 for i in range(number)],
            "clicked": [i % 2 for i in range(number)],
        }
    )


def write(frame: pl.DataFrame, file: Path) -> None:
    if file.suffix == ".arrow":
        frame.write_ipc(file, compression="zstd")
    elif file.suffix == ".csv":
        frame.write_csv(file)
    elif file.suffix == ".jsonl":
        frame.write_ndjson(file)
    else:
        frame.write_parquet(file, compression="zstd", row_group_size=1000)


def prepared(folder: Path, ending: str) -> tuple[DataConfig, Store, Path]:
    """A store with one version, and a file that was added since."""
    log = folder / "log"
    log.mkdir()
    write(rows(500), log / f"1{ending}")
    data = DataConfig(path=str(log), columns=COLUMNS)
    store = Store(folder / "store")
    build(FEATURE_TABLE, data, FEATURES, store)
    added = log / f"2{ending}"
    write(rows(5000), added)
    return data, store, added


def require_intact(store: Store) -> None:
    [version] = store.history(FEATURE_TABLE)
    assert sum(len(version.scan(split).collect()) for split in SPLITS) == 500
    written = set((version.path / "table").rglob("*.parquet"))
    assert written == {file for split in SPLITS for file in version.files(split)}
    assert [folder.name for folder in (version.path / "builds").iterdir()] == [version.build]


def overwrite(file: Path) -> None:
    write(rows(5000).reverse(), file)


def replace(file: Path) -> None:
    """As a program does that writes beside and renames."""
    other = file.parent.with_name(f"beside{file.suffix}")
    write(rows(5000).reverse(), other)
    other.replace(file)


@pytest.mark.parametrize(
    ("ending", "when"),
    [
        (".parquet", "fitting features"),
        (".arrow", "fitting features"),
        (".csv", "reading 2.csv"),
        (".jsonl", "reading 2.jsonl"),
    ],
)
@pytest.mark.parametrize(
    ("harm", "message"),
    [(overwrite, "was changed"), (replace, "was changed"), (Path.unlink, "vanished")],
    ids=["overwritten", "replaced", "removed"],
)
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, ending: str, when: str, harm: Callable[[Path], Any], message: str
) -> None:
    data, store, added = prepared(tmp_path, ending)
    harmed = []

    def progress(stage: str, *_: Any) -> None:
        if stage == when and not harmed:
            harmed.append(added)
            harm(added)

    with pytest.raises(SourceChanged, match=rf"2\{ending} {message} while it was read"):
        build(FEATURE_TABLE, data, FEATURES, store, progress)
    assert harmed
    require_intact(store)


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_a_file_that_comes_after_the_others_were_identified_is_not_read(
    tmp_path: Path, ending: str
) -> None:
    data, store, added = prepared(tmp_path, ending)
    late = added.with_name(f"0{ending}")

    def progress(stage: str, *_: Any) -> None:
        if stage.startswith("identifying") and not late.exists():
            write(rows(100), late)

    built = build(FEATURE_TABLE, data, FEATURES, store, progress).version
    assert sum(built.rows.values()) == 5500
    assert [Path(source["path"]).name[0] for source in built.metadata["sources"]] == ["1", "2"]
    assert sum(build(FEATURE_TABLE, data, FEATURES, store).version.rows.values()) == 5600


def test_a_delta_table_that_grows_is_read_at_the_version_that_was_identified(
    tmp_path: Path,
) -> None:
    table = tmp_path / "log"
    rows(500).write_delta(str(table))
    data = DataConfig(path=str(table), columns=COLUMNS)

    def progress(stage: str, *_: Any) -> None:
        if stage.startswith("identifying") and len(list(table.glob("*.parquet"))) == 1:
            rows(100).write_delta(str(table), mode="append")

    store = Store(tmp_path / "store")
    assert sum(build(FEATURE_TABLE, data, FEATURES, store, progress).version.rows.values()) == 500
    assert sum(build(FEATURE_TABLE, data, FEATURES, store).version.rows.values()) == 600


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_file_that_is_damaged_within(tmp_path: Path, ending: str) -> None:
    data, store, added = prepared(tmp_path, ending)
    content = bytearray(added.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    added.write_bytes(bytes(content))
    with pytest.raises(UnreadableFile, match=rf"2\{ending} is damaged: "):
        build(FEATURE_TABLE, data, FEATURES, store)
    require_intact(store)


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_file_that_is_cut(tmp_path: Path, ending: str) -> None:
    data, store, added = prepared(tmp_path, ending)
    content = added.read_bytes()
    added.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableFile, match=rf"2\{ending} cannot be read as (Parquet|an Arrow)"):
        build(FEATURE_TABLE, data, FEATURES, store)
    require_intact(store)
