"""JSON lines become rows; lines that cannot be read are kept aside with line and reason."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from support.raw import COLUMNS, FEATURES, HEADER, read_raw

from feature_store.columns import SchemaMismatch
from feature_store.features import Categorical, FeatureSet, Label
from pipelines.delimited import UnreadableFile
from pipelines.sources import DataConfig, preview

GOOD = '{"user": "ann", "price": 1.5, "clicked": 1}\n{"user": "bob", "clicked": 0}\n'
ROWS = [(0, "ann", 1.5, 1), (1, "bob", None, 0)]


def lines(folder: Path, text: str | bytes, name: str = "log.jsonl") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("name", ["log.jsonl", "log.ndjson", "log.jsonl.gz", "log.jsonl.zst"])
def test_lines_are_rows_compressed_or_not(tmp_path: Path, name: str) -> None:
    content = GOOD.encode()
    if name.endswith(".gz"):
        content = gzip.compress(content)
    if name.endswith(".zst"):
        content = pa.compress(content, "zstd", asbytes=True)
    rows, source = read_raw(tmp_path, lines(tmp_path, content, name))
    assert rows == ROWS
    assert (source.rows_in, source.rejections) == (2, [])


def test_byte_order_mark_windows_line_ends_and_empty_lines_at_the_end_are_no_matter(
    tmp_path: Path,
) -> None:
    text = "\ufeff" + GOOD.replace("\n", "\r\n") + "\r\n\r\n"
    rows, source = read_raw(tmp_path, lines(tmp_path, text))
    assert rows == ROWS
    assert (source.rows_in, source.rejections) == (2, [])


def test_lines_that_cannot_be_read_are_kept_aside(tmp_path: Path) -> None:
    text = (
        '{"user": "ann", "price": 1, "clicked": 1}\n'
        '{"user": "bob", "price": 1, "clicked": \n'
        '{"user": "cem", "price": "cheap", "clicked": 0}\n'
        "\n"
        '{"user": {"name": "dea"}, "price": 1, "clicked": 0}\n'
        '{"user": "eve", "price": 2, "clicked": 2}\n'
        '{"user": "fay", "price": 3, "clicked": 0}\n'
    )
    rows, source = read_raw(tmp_path, lines(tmp_path, text))
    assert rows == [(0, "ann", 1.0, 1), (6, "fay", 3.0, 0)]
    assert source.rows_in == 7
    assert [(r.line, r.reason.split(":")[0]) for r in source.rejections] == [
        (2, "no JSON"),
        (3, "column 'price'"),
        (4, "an empty line"),
        (5, "column 'user'"),
        (6, "label 'clicked'"),
    ]
    assert source.rejections[1].content.startswith('{"user": "cem"')


def test_lines_keep_their_numbers_over_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.json_lines._BLOCK_BYTES", 256)
    bad = {3, 40, 41, 99}
    text = "".join(
        f"broken {i}\n" if i in bad else f'{{"user": "u{i}", "price": {i}, "clicked": {i % 2}}}\n'
        for i in range(100)
    )
    rows, source = read_raw(tmp_path, lines(tmp_path, text))
    assert [row[:2] for row in rows] == [(i, f"u{i}") for i in range(100) if i not in bad]
    assert [rejection.line for rejection in source.rejections] == [i + 1 for i in sorted(bad)]
    assert source.rows_in == 100


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_file_that_is_cut_is_an_error(tmp_path: Path, ending: str) -> None:
    content = (GOOD * 3000).encode()
    if ending == ".gz":
        content = gzip.compress(content)
    if ending == ".zst":
        content = pa.compress(content, "zstd", asbytes=True)
    path = lines(tmp_path, content[: len(content) // 2 - 7], f"log.jsonl{ending}")
    found = r"ends within its line \d+: it seems to be cut" if not ending else "cannot be read as"
    with pytest.raises(UnreadableFile, match=rf"log\.jsonl{ending} {found}"):
        read_raw(tmp_path, path)


def test_a_field_that_no_line_has_is_an_error_and_one_that_some_have_is_not(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    lines(tmp_path / "log", '{"user": "ann", "clicked": 1}\n', "1.jsonl")
    lines(tmp_path / "log", '{"user": "bob", "prize": 2, "clicked": 1}\n', "2.jsonl")
    with pytest.raises(SchemaMismatch, match=r"1\.jsonl has no field 'price' in .* 'prize'"):
        read_raw(tmp_path, tmp_path / "log")
    assert preview(DataConfig(path=str(tmp_path / "log"), columns=COLUMNS), FEATURES).rows_read == 2
    lines(tmp_path / "log", '{"user": "cem", "price": 2, "clicked": 1}\n', "3.jsonl")
    rows, _ = read_raw(tmp_path, tmp_path / "log")
    assert [row[2] for row in rows] == [None, None, 2.0]


def test_nested_fields_are_columns(tmp_path: Path) -> None:
    columns = {"user": {"type": "string", "column": "who.id"}, "clicked": "int"}
    features = FeatureSet(inputs=(Categorical(name="user"),), labels=(Label(name="clicked"),))
    text = '{"who": {"id": 7}, "clicked": 1}\n{"who": {}, "clicked": 0}\n{"clicked": 1}\n'
    rows, _ = read_raw(tmp_path, lines(tmp_path, text), features, columns=columns)
    assert rows == [(0, "7", 1), (1, None, 0), (2, None, 1)]


def test_texts_that_mean_nothing_are_missing(tmp_path: Path) -> None:
    text = '{"user": "NULL", "price": "NULL", "clicked": 1}\n'
    rows, _ = read_raw(tmp_path, lines(tmp_path, text), null_values=["NULL"])
    assert rows == [(0, None, None, 1)]


def test_an_empty_file_and_csv_that_calls_itself_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"log\.jsonl is empty"):
        read_raw(tmp_path, lines(tmp_path, ""))
    with pytest.raises(SchemaMismatch, match=r"log\.jsonl has no field 'clicked' in any line"):
        read_raw(tmp_path, lines(tmp_path, HEADER + "ann,1,1\n"))
