import json

import numpy as np
import polars as pl
import pytest
from support import served

from feature_store.columns import SchemaMismatch
from recsys.export.signature import RowMismatch
from recsys.export.streams import UnreadableInput

SEPARATED = {
    "tags": pl.col("tags").list.join(";"),
    "seen": pl.col("seen").cast(pl.List(pl.String)).list.join(" "),
}


def write(raw: pl.DataFrame, path):
    """The same rows as each kind of file carries them."""
    if path.suffix == ".parquet":
        raw.write_parquet(path, row_group_size=7)
    elif path.suffix == ".jsonl":
        raw.write_ndjson(path)
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        quoting = "never" if path.suffix == ".tsv" else "necessary"
        raw.with_columns(**SEPARATED).write_csv(path, separator=separator, quote_style=quoting)
    return path


def read(path):
    separator = "\t" if path.suffix == ".tsv" else ","
    text = path.suffix != ".parquet"
    return pl.read_csv(path, separator=separator) if text else pl.read_parquet(path)


@pytest.mark.parametrize("source", ["in.csv", "in.tsv", "in.parquet", "in.jsonl"])
@pytest.mark.parametrize("target", ["out.csv", "out.parquet"])
def test_a_file_scores_as_its_rows_do_in_batches_of_any_size(predictor, tmp_path, source, target):
    raw = served.rows(50, seed=11)
    path, scored = write(raw, tmp_path / source), tmp_path / target
    result = predictor.score_file(path, scored, keep=["user"], batch_size=13)
    written = read(scored)
    assert result == (50, {})
    assert written["user"].to_list() == raw["user"].to_list()
    np.testing.assert_allclose(written["click"], predictor.score(raw)[:, 0], atol=1e-6)
    assert written.columns == ["user", "click"]
    assert [entry.name for entry in tmp_path.iterdir() if entry not in (path, scored)] == []


def test_progress_counts_rows_up_to_all_of_them(predictor, tmp_path):
    seen = []
    path = write(served.rows(20), tmp_path / "in.parquet")
    predictor.score_file(
        path, tmp_path / "out.csv", batch_size=8, on_progress=lambda *step: seen.append(step)
    )
    assert seen[-1] == ("score", 20, 20)
    assert [rows for _, rows, _ in seen] == sorted(rows for _, rows, _ in seen)


def test_unexpected_nulls_are_scored_and_counted(predictor, tmp_path):
    raw = served.rows(10).with_columns(
        item=pl.when(pl.int_range(10) < 3).then(None).otherwise("item")
    )
    path = write(raw, tmp_path / "in.csv")
    result = predictor.score_file(path, tmp_path / "out.parquet")
    assert result.unexpected_nulls == {"item": 3}
    scores = read(tmp_path / "out.parquet")["click"]
    np.testing.assert_allclose(scores, predictor.score(raw)[:, 0], atol=1e-6)


@pytest.mark.parametrize("target", ["out.csv", "out.parquet"])
def test_a_file_with_a_header_and_no_rows_gives_one_without_rows(predictor, tmp_path, target):
    path = write(served.rows(3).clear(), tmp_path / "in.csv")
    assert predictor.score_file(path, tmp_path / target, keep=["user"]).rows == 0
    assert read(tmp_path / target).columns == ["user", "click"]
    assert read(tmp_path / target).height == 0


def test_quoted_text_with_line_breaks_and_the_byte_order_mark_are_read(predictor, tmp_path):
    raw = served.rows(3).with_columns(user=pl.lit('a "b",\nc'))
    path = write(raw, tmp_path / "in.csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    predictor.score_file(path, tmp_path / "out.csv", keep=["user"])
    assert read(tmp_path / "out.csv")["user"].to_list() == raw["user"].to_list()
    np.testing.assert_allclose(
        read(tmp_path / "out.csv")["click"], predictor.score(raw)[:, 0], atol=1e-6
    )


def test_texts_that_meant_missing_in_training_mean_it_here(predictor, tmp_path, monkeypatch):
    raw = served.rows(4)
    path = tmp_path / "in.csv"
    raw.with_columns(**SEPARATED, price=pl.lit("NA")).write_csv(path)
    fails(predictor, path, RowMismatch, "row 1, column 'price': expected float, found 'NA'")
    told = predictor.signature.model_copy(update={"null_values": ("NA",)})
    monkeypatch.setattr(type(predictor), "signature", told)
    predictor.score_file(path, tmp_path / "out.csv")
    expected = predictor.score(raw.with_columns(price=None))[:, 0]
    np.testing.assert_allclose(read(tmp_path / "out.csv")["click"], expected, atol=1e-6)


def replaced(path, old: bytes, new: bytes):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


def fails(predictor, path, error, message, target="out.csv", **settings):
    scored = path.with_name(target)
    with pytest.raises(error, match=message):
        predictor.score_file(path, scored, **settings)
    assert [entry for entry in path.parent.iterdir() if entry != path] == []


def test_a_wrong_value_is_named_with_file_row_and_column(predictor, tmp_path):
    lines = served.rows(30).with_columns(**SEPARATED, age=pl.col("age").cast(pl.String))
    lines = lines.with_columns(
        age=pl.when(pl.int_range(30) == 20).then(pl.lit("old")).otherwise("age")
    )
    path = tmp_path / "in.csv"
    lines.write_csv(path)
    message = r"in\.csv: row 21, column 'age': expected int, found 'old'"
    fails(predictor, path, RowMismatch, message, batch_size=8)


def test_a_wrong_value_in_json_lines_is_named_with_row_and_field(predictor, tmp_path):
    path = write(served.rows(9), tmp_path / "in.jsonl")
    lines = path.read_text().splitlines()
    row = json.loads(lines[6]) | {"seen": [1, "x"]}
    path.write_text("\n".join([*lines[:6], json.dumps(row), *lines[7:]]))
    message = r"row 7, field 'seen': expected a list of integers of 64 bits, found the text 'x'"
    fails(predictor, path, RowMismatch, message, batch_size=4)
    path.write_text("\n".join([*lines[:3], "{oops"]))
    fails(predictor, path, UnreadableInput, "row 4 is no JSON object")


@pytest.mark.parametrize("source", ["in.csv", "in.parquet", "in.jsonl"])
def test_a_missing_column_names_the_nearest(predictor, tmp_path, source):
    path = write(served.rows(3).rename({"item": "itm"}), tmp_path / source)
    error = RowMismatch if source == "in.jsonl" else SchemaMismatch
    fails(predictor, path, error, "did you mean 'itm'")


def test_a_wrong_delimiter_is_guessed_at(predictor, tmp_path):
    path = tmp_path / "in.csv"
    served.rows(3).with_columns(**SEPARATED).write_csv(path, separator="|")
    fails(predictor, path, SchemaMismatch, "one column only: is it separated otherwise")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "in.csv is empty"),
        (b"\xff\xfe,x\n1,2\n", "in.csv cannot be read"),
        (b"a,a\n1,2\n", "the header names 'a' more than once"),
    ],
)
def test_files_that_are_no_csv_are_errors(predictor, tmp_path, content, message):
    path = tmp_path / "in.csv"
    path.write_bytes(content)
    fails(predictor, path, UnreadableInput, message)


def test_bytes_that_are_no_utf8_and_ragged_rows_are_errors_with_the_file(predictor, tmp_path):
    raw = served.rows(5).with_columns(user=pl.lit("caf\u00e9"))
    path = write(raw, tmp_path / "in.csv")
    fails(predictor, replaced(path, "\u00e9".encode(), b"\xe9"), UnreadableInput, "in.csv cannot")
    path = write(raw, tmp_path / "in.csv")
    fails(predictor, replaced(path, b"\n", b"\n1,2\n"), UnreadableInput, "Expected 10 columns")


def test_a_damaged_parquet_file_is_an_error(predictor, tmp_path):
    path = tmp_path / "in.parquet"
    path.write_bytes(b"PAR1 not really")
    fails(predictor, path, UnreadableInput, "in.parquet cannot be read")


def test_paths_are_refused_before_any_work(predictor, tmp_path):
    path = write(served.rows(2), tmp_path / "in.csv")
    fails(predictor, path, ValueError, "its ending is none of .csv, .tsv", target="out.xlsx")
    fails(predictor, path, ValueError, "is the input as well", target="in.csv")
    fails(predictor, path, ValueError, "'click' cannot be kept", keep=["click"])
    fails(predictor, path, SchemaMismatch, "no column 'usr'", keep=["usr"])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        predictor.score_file(path, tmp_path / "no" / "out.csv")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        predictor.score_file(tmp_path / "none.csv", tmp_path / "out.csv")


def test_lists_are_kept_in_parquet_and_refused_in_text(predictor, tmp_path):
    raw = served.rows(4)
    path = write(raw, tmp_path / "in.parquet")
    predictor.score_file(path, tmp_path / "out.parquet", keep=["seen"])
    assert read(tmp_path / "out.parquet")["seen"].to_list() == raw["seen"].to_list()
    (tmp_path / "out.parquet").unlink()
    fails(predictor, path, ValueError, "'seen' holds List", keep=["seen"])


def test_a_failed_run_leaves_the_old_output_alone(predictor, tmp_path):
    scored = tmp_path / "out.csv"
    scored.write_text("old")
    path = write(served.rows(4), tmp_path / "in.jsonl")
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(RowMismatch, match="row 5"):
        predictor.score_file(path, scored, batch_size=2)
    assert scored.read_text() == "old"
