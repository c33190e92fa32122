"""Files of one table may differ, as far as they can be read alike; what cannot is told first."""

import io
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from support.raw import COLUMNS, FEATURES, HEADER, ROWS, read_raw

from feature_store.columns import SchemaMismatch
from feature_store.features import ROW_COLUMN
from pipelines.delimited import UnreadableFile
from pipelines.reading import read_table
from pipelines.tables import TableConfig


def test_an_arrow_file_is_read_where_it_lies(tmp_path: Path) -> None:
    ROWS.write_ipc(tmp_path / "a.arrow")
    ROWS.with_columns(pl.col("user").cast(pl.Categorical())).write_ipc(
        tmp_path / "b.feather", compression="zstd"
    )
    table = TableConfig(path=str(tmp_path / "*.*"), columns=COLUMNS)
    staged = tmp_path / "staged"
    staged.mkdir()
    found = read_table(table, list(COLUMNS), staged)
    assert [row[1:] for row in found.frame.collect().rows()] == [*ROWS.rows(), *ROWS.rows()]
    assert list(staged.iterdir()) == []
    assert [(file.num_rows, file.staged) for file in found.files] == [(2, False), (2, False)]


def test_an_arrow_stream_is_refused_by_name(tmp_path: Path) -> None:
    ROWS.write_ipc_stream(tmp_path / "a.arrow")
    with pytest.raises(UnreadableFile, match=r"a\.arrow cannot be read as an Arrow file \(with a"):
        read_raw(tmp_path, tmp_path / "a.arrow")


def test_typed_values_that_cannot_be_read_are_kept_aside_with_their_row(tmp_path: Path) -> None:
    ROWS.write_ipc(tmp_path / "1.arrow")
    bad = pl.DataFrame({"user": ["x", "y"], "price": ["2", "z"], "clicked": [0, 0]})
    bad.write_ipc(tmp_path / "2.arrow")
    rows, source = read_raw(tmp_path, tmp_path / "*.arrow")
    assert [row[:2] for row in rows] == [(0, "ann"), (1, "bob"), (2, "x")]
    [rejection] = source.rejections
    assert (Path(rejection.file).name, rejection.line) == ("2.arrow", 2)
    assert rejection.reason == "column 'price': cannot be read as float"


def test_files_may_have_other_formats_orders_and_types(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    ROWS.write_parquet(log / "1.parquet")
    ROWS.select("clicked", "user", "price").with_columns(
        pl.col("clicked").cast(pl.Boolean), pl.col("price").cast(pl.Float32), extra=pl.lit(1)
    ).write_parquet(log / "2.parquet")
    (log / "3.csv").write_text("price,user,clicked\n3.5,cem,1\nx,dea,1\n4.5,eve,0\n")
    (log / "4.jsonl").write_text('{"clicked": 1, "user": 7, "price": null}\n')
    ROWS.with_columns(pl.col("user").cast(pl.Categorical())).write_ipc(log / "5.arrow")
    rows, source = read_raw(tmp_path, log)
    assert rows == [
        (0, "ann", 1.5, 1),
        (1, "bob", 2.5, 0),
        (2, "ann", 1.5, 1),
        (3, "bob", 2.5, 0),
        (4, "cem", 3.5, 1),
        (6, "eve", 4.5, 0),
        (7, "7", None, 1),
        (8, "ann", 1.5, 1),
        (9, "bob", 2.5, 0),
    ]
    assert [(file.name, first) for file, first in source.files] == [
        ("1.parquet", 0),
        ("2.parquet", 2),
        ("3.csv", 4),
        ("4.jsonl", 7),
        ("5.arrow", 8),
    ]
    assert [(Path(r.file).name, r.line) for r in source.rejections] == [("3.csv", 3)]


def as_csv(text: str) -> Callable[[Path], object]:
    return lambda path: path.with_suffix(".csv").write_text(text)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (as_csv("user,clicked\nann,1\n"), r"2\.csv has no column 'price'"),
        (
            lambda path: ROWS.drop("price").write_parquet(path.with_suffix(".parquet")),
            r"2\.parquet has no column 'price'",
        ),
        (
            lambda path: ROWS.with_columns(pl.concat_list("price")).write_parquet(
                path.with_suffix(".parquet")
            ),
            r"2\.parquet: column 'price' holds list<float>.*cannot be read as float",
        ),
        (
            lambda path: ROWS.with_columns(pl.struct("price").alias("price")).write_ipc(
                path.with_suffix(".arrow")
            ),
            r"2\.arrow: column 'price' has the type Struct",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_named_before_any_is_read(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    log = tmp_path / "log"
    log.mkdir()
    (log / "1.csv").write_text(HEADER + "ann,1,1\n")
    write(log / "2")
    with pytest.raises(SchemaMismatch, match=message):
        read_raw(tmp_path, log)
    assert list((tmp_path / "staged").iterdir()) == []


def test_a_side_table_that_does_not_fit_is_named_before_the_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(HEADER + "ann,1,1\n")
    (tmp_path / "users.csv").write_text("user,town\nann,Rom\n")
    join = {
        "path": str(tmp_path / "users.csv"),
        "on": "user",
        "columns": {"user": "string", "city": "string"},
    }
    with pytest.raises(SchemaMismatch, match=r"users\.csv has no column 'city'"):
        read_raw(tmp_path, tmp_path / "log.csv", FEATURES, joins=[join])
    assert list((tmp_path / "staged").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("log.parquet.gz", {}, r"log\.parquet\.gz: parquet is compressed within; unpack"),
        ("log.txt", {}, r"log\.txt: the ending does not tell the format; set `format`"),
        ("log.arrow", {"format": "parquet"}, r"log\.arrow cannot be read as Parquet"),
    ],
)
def test_a_file_of_no_format_or_another_is_refused(
    tmp_path: Path, name: str, config: dict[str, str], message: str
) -> None:
    content = io.BytesIO()
    ROWS.write_ipc(content)
    (tmp_path / name).write_bytes(content.getvalue())
    with pytest.raises(ValueError, match=message):
        read_raw(tmp_path, tmp_path / name, **config)


def test_the_files_of_a_table_come_one_by_one_with_rows_counted_from_each(tmp_path: Path) -> None:
    ROWS.write_parquet(tmp_path / "1.parquet")
    (tmp_path / "2.csv").write_text(HEADER + "cem,x,1\ndea,4,0\n")
    staged = tmp_path / "staged"
    staged.mkdir()
    table = TableConfig(path=str(tmp_path / "*.*"), columns=COLUMNS)
    found = read_table(table, ["user"], staged)
    frames = [file.frame.collect() for file in found.files]
    assert [frame[ROW_COLUMN].to_list() for frame in frames] == [[0, 1], [0, 1]]
    assert [frame["user"].to_list() for frame in frames] == [["ann", "bob"], ["cem", "dea"]]
    assert [found.places.of(row)[1] for row in range(4)] == [1, 2, 2, 3]
