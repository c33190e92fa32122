"""Bad input is a clear error or a row kept aside with its reason; good input is read exactly."""

import gzip
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from feature_store.columns import SchemaMismatch
from feature_store.features import Categorical, FeatureSet, Label, Numeric
from pipelines.delimited import UnreadableFile
from pipelines.rejection import Rejection, TooManyRejected
from pipelines.sources import DataConfig, Source, preview, read

FEATURES = FeatureSet(
    inputs=(Categorical(name="user"), Numeric(name="price")), labels=(Label(name="clicked"),)
)
COLUMNS = {"user": "string", "price": "float", "clicked": "int"}
HEADER = "user,price,clicked\n"


def source(
    folder: Path, config: dict[str, Any], features: FeatureSet = FEATURES, **options: Any
) -> Source:
    staged = folder / "staged"
    staged.mkdir()
    data = DataConfig.model_validate({"columns": COLUMNS, **config})
    return read(data, features, staged, **options)


def csv_source(
    folder: Path,
    text: str | bytes,
    features: FeatureSet = FEATURES,
    name: str = "log.csv",
    **config: Any,
) -> Source:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return source(folder, {"path": str(path), **config}, features)


def rows(found: Source) -> list[tuple[Any, ...]]:
    return found.frame.collect().rows()


def where(rejections: list[Rejection]) -> list[tuple[int, str]]:
    return [(rejection.line, rejection.reason) for rejection in rejections]


def test_rows_come_in_order_with_their_place_and_type(tmp_path: Path) -> None:
    found = csv_source(tmp_path, HEADER + 'ann,1.5,1\n"b,o""b",,0\nåsa,-2e3,1\n')
    assert rows(found) == [(0, "ann", 1.5, 1), (1, 'b,o"b', None, 0), (2, "åsa", -2000.0, 1)]
    assert found.rows_in == 3
    assert found.rejections == []


def test_columns_may_stand_in_any_order_beside_others(tmp_path: Path) -> None:
    found = csv_source(tmp_path, "x,clicked,price,user\n9,1,2.5,ann\n8,0,3.5,bob\n")
    assert rows(found) == [(0, "ann", 2.5, 1), (1, "bob", 3.5, 0)]


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_at_the_end_are_no_matter(
    tmp_path: Path,
) -> None:
    text = (
        b"\xef\xbb\xbf" + HEADER.replace("\n", "\r\n").encode() + b"ann,1,1\r\nbob,2,0\r\n\r\n\r\n"
    )
    found = csv_source(tmp_path, text)
    assert rows(found) == [(0, "ann", 1.0, 1), (1, "bob", 2.0, 0)]
    assert (found.rows_in, found.rejections) == (2, [])


def test_several_files_and_compressed_ones_are_one_table(tmp_path: Path) -> None:
    for number, lines in enumerate(["ann,1,1\nbob,2,0\n", "cem,x,1\ndea,4,0\n"]):
        with gzip.open(tmp_path / f"log-{number}.csv.gz", "wt") as file:
            file.write(HEADER + lines)
    found = source(tmp_path, {"path": str(tmp_path / "log-*.csv.gz")})
    assert [row[:2] for row in rows(found)] == [(0, "ann"), (1, "bob"), (3, "dea")]
    assert found.rows_in == 4
    [rejection] = found.rejections
    assert (Path(rejection.file).name, rejection.line) == ("log-1.csv.gz", 2)


def test_tabs_and_no_header_and_places(tmp_path: Path) -> None:
    columns = {
        "user": {"type": "string", "column": 2},
        "price": {"type": "float", "column": 1},
        "clicked": {"type": "int", "column": 0},
    }
    text = '1\t0.5\t"ann\n0\t1.5\tbob\n'
    found = csv_source(tmp_path, text, name="log.tsv", header=False, columns=columns)
    assert rows(found) == [(0, '"ann', 0.5, 1), (1, "bob", 1.5, 0)]


def test_types_are_read_from_text(tmp_path: Path) -> None:
    columns = {
        "clicked": "bool",
        "user": "int",
        "price": {"type": "float", "column": "cost"},
        "at": "datetime",
        "day": {"type": "date", "format": "%d.%m.%Y"},
        "tags": {"type": "list<int>", "separator": "|"},
    }
    features = FeatureSet(
        inputs=tuple(Categorical(name=name) for name in ("user", "at", "day", "tags", "price")),
        labels=(Label(name="clicked"),),
    )
    text = (
        "clicked,user,cost,at,day,tags\n"
        "true, 7 ,NULL,2024-02-29T10:00:00Z,29.02.2024,1|2\n"
        "0,881250949.0,inf,2024-02-29 12:30:00.25+02:00,01.03.2024,\n"
        "No,-3,1,2024-02-29,01.03.2024,5\n"
    )
    found = csv_source(tmp_path, text, features, columns=columns, null_values=["NULL"])
    assert found.rejections == []
    got = found.frame.collect()
    assert got["clicked"].to_list() == [True, False, False]
    assert got["user"].to_list() == [7, 881250949, -3]
    assert got["price"].to_list() == [None, float("inf"), 1.0]
    assert got["at"].to_list() == [
        datetime(2024, 2, 29, 10),
        datetime(2024, 2, 29, 10, 30, 0, 250_000),
        datetime(2024, 2, 29),
    ]
    assert [str(day) for day in got["day"]] == ["2024-02-29", "2024-03-01", "2024-03-01"]
    assert got["tags"].to_list() == [[1, 2], None, [5]]


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text(HEADER)
    with pytest.raises(FileNotFoundError, match=r"no file .*click\.csv; did you mean 'clicks.csv'"):
        source(tmp_path, {"path": str(tmp_path / "click.csv")})


def test_a_pattern_without_files_and_an_empty_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file matches .*\*\.csv"):
        source(tmp_path, {"path": str(tmp_path / "*.csv")})
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder .*empty holds no files"):
        preview(DataConfig(path=str(tmp_path / "empty"), columns=COLUMNS), FEATURES)


@pytest.mark.parametrize("text", ["", HEADER, HEADER + "\n\n"])
def test_an_empty_file_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"log\.csv(.*is empty|: there are no rows)"):
        csv_source(tmp_path, text)


def test_a_wrong_delimiter_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch, match=r"no ',' but 2 times ';'.*set separator: \";\""):
        csv_source(tmp_path, "user;price;clicked\nann;1;1\n")


def test_a_wrong_delimiter_is_told_without_a_header_too(tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch, match=r"no '\\t' but 2 times ','.*set separator: \",\""):
        csv_source(tmp_path, "ann,1,1\n", name="log.tsv", header=False)


def test_a_missing_column_names_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch, match=r"no column 'price'; did you mean 'prices'"):
        csv_source(tmp_path, "user,prices,clicked\nann,1,1\n")


def test_a_column_in_use_that_is_not_declared_is_an_error(tmp_path: Path) -> None:
    features = FEATURES.model_copy(update={"group": "usr"})
    with pytest.raises(SchemaMismatch, match=r"features\.group reads the column 'usr'.*'user'"):
        csv_source(tmp_path, HEADER + "ann,1,1\n", features)


def test_a_column_named_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch, match=r"'price' 2 times \(fields 2, 4\)"):
        csv_source(tmp_path, "user,price,clicked,price\nann,1,1,2\n")


def test_another_number_of_fields_than_declared_is_an_error_without_a_header(
    tmp_path: Path,
) -> None:
    with pytest.raises(SchemaMismatch, match=r"expected 3 fields.*found 4 in the first line"):
        csv_source(tmp_path, "ann,1,1,5\n", header=False)


def test_rows_that_cannot_be_read_are_kept_aside_with_line_and_reason(tmp_path: Path) -> None:
    text = HEADER.encode() + (
        b"ann,1.5,1\n"  # line 2
        b"bob,cheap,0\n"
        b"too,few\n"
        b"cem,2.5,0\n"
        b"one,too,many,fields\n"
        b"\xff\xfe,3,1\n"
        b"\n"
        b"dea,3.5,yes\n"
        b"eve,4.5,1\n"
    )
    found = csv_source(tmp_path, text)
    assert rows(found) == [(0, "ann", 1.5, 1), (3, "cem", 2.5, 0), (8, "eve", 4.5, 1)]
    assert found.rows_in == 9
    assert where(found.rejections) == [
        (3, "column 'price': expected a float, found 'cheap'"),
        (4, "expected 3 fields, found 2"),
        (6, "expected 3 fields, found 4"),
        (7, r"column 'user' is not UTF-8: \xff\xfe"),
        (8, "no value in any column"),
        (9, "column 'clicked': expected an int, found 'yes'"),
    ]
    assert json.loads(found.rejections[0].content) == {
        "user": "bob",
        "price": "cheap",
        "clicked": "0",
    }
    assert found.rejections[1].content == "too,few"
    assert found.rejections[3].content == r"\xff\xfe,3,1"


def test_lines_keep_their_numbers_over_many_blocks(tmp_path: Path) -> None:
    lines = [f"user{i},{i}.5,{i % 2}" for i in range(600_000)]
    bad = {7, 100_000, 399_999, 400_000, 599_999}
    for number in bad:
        lines[number] = f"broken{number}" if number % 2 else f"user,{number}x,1"
    found = csv_source(tmp_path, HEADER + "\n".join(lines) + "\n")
    assert [rejection.line for rejection in found.rejections] == [n + 2 for n in sorted(bad)]
    got = found.frame.collect()
    assert got["__row"].to_list() == [n for n in range(600_000) if n not in bad]
    assert got["user"].to_list() == [f"user{n}" for n in range(600_000) if n not in bad]


def test_a_quoted_line_break_stays_inside_its_value(tmp_path: Path) -> None:
    found = csv_source(tmp_path, HEADER + '"a\nnn",1,1\nbob,2,0\n', multiline=True)
    assert [row[1] for row in rows(found)] == ["a\nnn", "bob"]


@pytest.mark.parametrize("num_lines", [3, 1_000_000])
def test_a_quote_that_is_never_closed_swallows_no_row_in_silence(
    tmp_path: Path, num_lines: int
) -> None:
    lines = "".join(f"user{i},{i},1\n" for i in range(num_lines))
    with pytest.raises(UnreadableFile, match=r"a quote is opened in line 3 and not closed there"):
        csv_source(tmp_path, HEADER + 'bob,1,1\nann,"1,1\n' + lines)


@pytest.mark.parametrize(
    ("value", "found"), [("2", "2"), ("-1", "-1"), ("", "nothing")], ids=["2", "-1", "null"]
)
def test_a_label_that_is_neither_0_nor_1_is_rejected(
    tmp_path: Path, value: str, found: str
) -> None:
    got = csv_source(tmp_path, HEADER + f"ann,1,1\nbob,2,{value}\ncem,3,0\n")
    assert where(got.rejections) == [
        (3, f"label 'clicked': expected 0 or 1, found {found} in 'clicked'")
    ]
    assert [row[1] for row in rows(got)] == ["ann", "cem"]


def test_a_label_cut_at_a_threshold_needs_a_number(tmp_path: Path) -> None:
    features = FEATURES.model_copy(
        update={"labels": (Label(name="liked", source="price", threshold=4.0),)}
    )
    got = csv_source(tmp_path, HEADER + "ann,5,1\nbob,nan,1\ncem,,0\ndea,3,0\n", features)
    assert where(got.rejections) == [
        (3, "label 'liked': expected a number, found nan in 'price'"),
        (4, "label 'liked': expected a number, found nothing in 'price'"),
    ]


def test_missing_nan_and_infinite_numbers_of_features_are_not_rejected(tmp_path: Path) -> None:
    got = csv_source(tmp_path, HEADER + "ann,,1\nbob,nan,0\ncem,-inf,1\n")
    assert got.rejections == []
    assert [str(row[2]) for row in rows(got)] == ["None", "nan", "-inf"]


def test_weights_and_times_that_mean_nothing_are_rejected(tmp_path: Path) -> None:
    features = FEATURES.model_copy(update={"weight": "w", "timestamp": "t"})
    columns = {**COLUMNS, "w": "float", "t": "int"}
    text = "user,price,clicked,w,t\na,1,1,1,5\nb,1,1,-1,5\nc,1,0,nan,5\nd,1,0,,5\n"
    text += "e,1,0,0,\nf,1,0,0,7\n"
    got = csv_source(tmp_path, text, features, columns=columns)
    weight = "weight: expected a finite number that is not negative, found"
    assert where(got.rejections) == [
        (3, f"{weight} -1.0 in 'w'"),
        (4, f"{weight} nan in 'w'"),
        (5, f"{weight} nothing in 'w'"),
        (6, "timestamp: expected a time, found nothing in 't'"),
    ]
    assert [row[1] for row in rows(got)] == ["a", "f"]


def test_a_label_of_text_is_an_error_not_rejected_rows(tmp_path: Path) -> None:
    columns = {**COLUMNS, "clicked": "string"}
    with pytest.raises(SchemaMismatch, match=r"'clicked'"):
        csv_source(tmp_path, HEADER + "ann,1,1\n", columns=columns)


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "log.csv.gz").write_bytes(b"\x1f\x8b\x08\x00 not gzip at all")
    with pytest.raises(UnreadableFile, match=r"log\.csv\.gz cannot be read as text"):
        source(tmp_path, {"path": str(tmp_path / "log.csv.gz")})


def test_text_that_calls_itself_parquet_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"log\.parquet cannot be read as Parquet"):
        csv_source(tmp_path, HEADER + "ann,1,1\n", name="log.parquet")


def test_an_unknown_ending_asks_for_the_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"log\.inter: the ending does not tell.*set `format`"):
        csv_source(tmp_path, HEADER + "ann,1,1\n", name="log.inter")


def parquet_source(folder: Path, table: pa.Table, **config: Any) -> Source:
    pq.write_table(table, folder / "log.parquet")
    return source(folder, {"path": str(folder / "log.parquet"), **config})


def test_parquet_is_read_in_the_declared_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user": pa.array([7, 8], pa.int32()),
            "price": pa.array([1.5, None], pa.float32()),
            "clicked": pa.array([True, False]),
            "unused": pa.array([b"\xff", b"x"]),
        }
    )
    got = parquet_source(tmp_path, table)
    assert rows(got) == [(0, "7", 1.5, 1), (1, "8", None, 0)]
    assert dict(got.frame.collect_schema()) == {
        "__row": pl.Int64,
        "user": pl.String,
        "price": pl.Float64,
        "clicked": pl.Int64,
    }


def test_parquet_values_that_do_not_fit_are_kept_aside(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user": ["a", "b", "c", "d"],
            "price": ["1", "x", "", "2"],
            "clicked": [1.0, 0.0, 0.0, 0.5],
        }
    )
    got = parquet_source(tmp_path, table)
    assert where(got.rejections) == [
        (2, "column 'price': cannot be read as float"),
        (4, "column 'clicked': cannot be read as int"),
    ]
    assert rows(got) == [(0, "a", 1.0, 1), (2, "c", None, 0)]


def test_parquet_of_another_kind_is_an_error(tmp_path: Path) -> None:
    table = pa.table({"user": ["a"], "price": [[1.0]], "clicked": [1]})
    with pytest.raises(SchemaMismatch, match=r"'price' holds list<float>.*declare it as list<floa"):
        parquet_source(tmp_path, table)


def test_parquet_without_a_column_or_with_one_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch, match=r"no column 'price'; did you mean 'pric'"):
        parquet_source(tmp_path, pa.table({"user": ["a"], "pric": [1.0], "clicked": [1]}))
    twice = pa.Table.from_arrays([pa.array([1])] * 2, names=["user", "user"])
    pq.write_table(twice, tmp_path / "log.parquet")
    with pytest.raises(SchemaMismatch, match=r"column 'user' twice"):
        preview(DataConfig(path=str(tmp_path / "log.parquet"), columns=COLUMNS), FEATURES)


def test_parquet_files_of_different_types_are_one_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [1], "price": [1], "clicked": [1]}), tmp_path / "1.parquet")
    pq.write_table(
        pa.table({"user": ["x", "y"], "price": ["2", "z"], "clicked": [0, 0]}),
        tmp_path / "2.parquet",
    )
    got = source(tmp_path, {"path": str(tmp_path / "*.parquet")})
    assert rows(got) == [(0, "1", 1.0, 1), (1, "x", 2.0, 0)]
    [rejection] = got.rejections
    assert (Path(rejection.file).name, rejection.line) == ("2.parquet", 2)


def joined(tmp_path: Path, side: str, text: str = "ann,1,1\nbob,2,0\ncem,3,1\n") -> Source:
    (tmp_path / "users.csv").write_text(side)
    join = {
        "path": str(tmp_path / "users.csv"),
        "on": "user",
        "columns": {"user": "string", "city": "string"},
    }
    features = FeatureSet(
        inputs=(Categorical(name="user"), Categorical(name="city")), labels=(Label(name="clicked"),)
    )
    return csv_source(tmp_path, HEADER + text, features, joins=[join])


def test_a_side_table_adds_its_columns_and_counts_rows_without_a_partner(tmp_path: Path) -> None:
    got = joined(tmp_path, "user,city\nbob,Ulm\nann,Rom\nzoe,Bern\n")
    assert [row[1:] for row in rows(got)] == [
        ("ann", 1, "Rom"),
        ("bob", 0, "Ulm"),
        ("cem", 1, None),
    ]
    assert list(got.unmatched.values()) == [1]


def test_a_side_table_that_repeats_a_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'user' is to name one row, but 'ann' names 2"):
        joined(tmp_path, "user,city\nann,Ulm\nann,Rom\n")


def test_a_side_table_that_fits_no_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no row has a partner under the key 'user'"):
        joined(tmp_path, "user,city\nu1,Ulm\n")


def test_bad_rows_of_a_side_table_count_too(tmp_path: Path) -> None:
    with pytest.raises(TooManyRejected, match=r"users\.csv:3: expected 2 fields, found 1"):
        joined(tmp_path, "user,city\nann,Rom\nbob\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colums": {}}, "Extra inputs"),
        ({"columns": {"user": "text"}}, "Input should be 'string', 'int'"),
        ({"columns": {}}, "at least 1 item"),
        ({"max_rejected": 2}, "less than or equal to 1"),
        (
            {"columns": {"user": {"type": "int", "column": 3}}},
            "a place \\(3\\) is for files withou",
        ),
        ({"joins": [{"path": "x", "on": "usr", "columns": {"usr": "int"}}]}, "did you mean 'user'"),
        ({"joins": [{"path": "x", "on": "user", "columns": {"usr": "int"}}]}, "did you mean 'usr'"),
        (
            {"joins": [{"path": "x", "on": "user", "columns": {"user": "string", "price": "int"}}]},
            "'price' of x is already there",
        ),
        (
            {"joins": [{"path": "x", "on": "user", "columns": {"user": "int"}}]},
            "'user' of x is declared as int, in the rows as string; declare the same type",
        ),
        ({"store": "s3://bucket/store"}, "a store is a folder on disk"),
    ],
)
def test_a_wrong_configuration_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate({"path": "x.csv", "columns": COLUMNS, **change})


def test_a_split_that_does_not_fit_the_files_is_refused_before_they_are_read(
    tmp_path: Path,
) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text(HEADER + "ann,1,1\nbob,x,0\n")
    config = {"path": str(tmp_path), "columns": COLUMNS, "max_rejected": 0.5}
    files = {"train": "train.csv", "test": "test.csv"}
    with pytest.raises(ValueError, match=r"train\.csv fits none of \['test\.csv'\]"):
        preview(
            DataConfig(**config, split={"by": "file", "files": {"train": "test.csv"}}), FEATURES
        )
    found = preview(DataConfig(**config, split={"by": "file", "files": files}), FEATURES, 1)
    assert found.rows["user"].to_list() == ["ann"]


def test_the_files_are_told_with_the_rows_where_they_begin(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "ann,1,1\nbob,2,7\n")
    (tmp_path / "b.csv").write_text(HEADER + "cem,3,1\n")
    found = source(tmp_path, {"path": str(tmp_path / "*.csv")})
    assert found.files == [(tmp_path / "a.csv", 0), (tmp_path / "b.csv", 2)]
    assert found.frame.collect()["__row"].to_list() == [0, 2]


def test_a_preview_reads_the_first_rows_only(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(HEADER + "ann,1,1\nbob,x,0\n" + "cem,3,0\n" * 20)
    config = DataConfig(path=str(tmp_path / "log.csv"), columns=COLUMNS)
    got = preview(config, FEATURES, 5)
    assert got.rows.rows()[:2] == [(0, "ann", 1.0, 1), (2, "cem", 3.0, 0)]
    assert len(got.rows) == 5
    assert got.rows_rejected == 1
