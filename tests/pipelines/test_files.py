"""Files are found by name, pattern, folder and URL, and read where they lie."""

import gzip
import io
from pathlib import Path

import polars as pl
import pytest
from support.object_store import object_store
from support.raw import COLUMNS, FEATURES, HEADER, ROWS, read_raw

from feature_store.features import Categorical, FeatureSet, Label
from pipelines import identity
from pipelines.files import Unreachable, matches, partition_of
from pipelines.identity import SourceChanged
from pipelines.sources import DataConfig

DAYS = FeatureSet(
    inputs=(Categorical(name="user"), Categorical(name="when")), labels=(Label(name="clicked"),)
)
DAY_COLUMNS = {
    "user": "string",
    "when": {"type": "date", "column": "day"},
    "clicked": "int",
}


def as_parquet(frame: pl.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.write_parquet(file)
    return file.getvalue()


def partitioned(folder: Path) -> Path:
    """Two days, each in the folders of two cities, in three formats."""
    root = folder / "log"
    for day, name in ((1, "a.parquet"), (1, "b.csv"), (2, "c.jsonl")):
        inside = root / f"day=2026-11-0{day}" / "city=New%20York"
        inside.mkdir(parents=True, exist_ok=True)
        if name.endswith("parquet"):
            ROWS.write_parquet(inside / name)
        elif name.endswith("csv"):
            (inside / name).write_text(HEADER + "cem,1,1\n")
        else:
            (inside / name).write_text('{"user": "dea", "clicked": 0}\n')
    (root / "_SUCCESS").write_text("")
    (root / "day=2026-11-01" / ".part.crc").write_text("x")
    return root


def test_the_folders_of_a_file_are_columns_in_every_format(tmp_path: Path) -> None:
    rows, source = read_raw(tmp_path, partitioned(tmp_path), DAYS, columns=DAY_COLUMNS)
    assert [(row[0], row[1], str(row[2]), row[3]) for row in rows] == [
        (0, "ann", "2026-11-01", 1),
        (1, "bob", "2026-11-01", 0),
        (2, "cem", "2026-11-01", 1),
        (3, "dea", "2026-11-02", 0),
    ]
    assert [file.name for file, _ in source.files] == ["a.parquet", "b.csv", "c.jsonl"]


def test_folder_names_are_decoded_and_may_be_missing(tmp_path: Path) -> None:
    [file, *_] = matches(str(partitioned(tmp_path)))
    assert partition_of(file)["city"] == "New York"
    assert partition_of(Path("day=__HIVE_DEFAULT_PARTITION__/x.csv")) == {"day": None}
    columns = {"user": "string", "city": "string", "clicked": "int"}
    features = FeatureSet(
        inputs=(Categorical(name="user"), Categorical(name="city")), labels=(Label(name="clicked"),)
    )
    target = tmp_path / "nulls" / "city=__HIVE_DEFAULT_PARTITION__"
    target.mkdir(parents=True)
    ROWS.write_parquet(target / "a.parquet")
    rows, _ = read_raw(tmp_path, tmp_path / "nulls", features, columns=columns)
    assert [row[1:] for row in rows] == [("ann", None, 1), ("bob", None, 0)]


def test_a_file_tells_its_column_and_its_folder_the_one_it_lacks(tmp_path: Path) -> None:
    inside = tmp_path / "log" / "user=folder"
    inside.mkdir(parents=True)
    ROWS.write_parquet(inside / "a.parquet")
    (inside / "b.jsonl").write_text('{"user": "own", "price": 1, "clicked": 1}\n')
    rows, _ = read_raw(tmp_path, tmp_path / "log")
    assert [row[1] for row in rows] == ["ann", "bob", "own"]


def test_a_folder_that_cannot_be_read_as_declared_is_an_error(tmp_path: Path) -> None:
    columns = {**DAY_COLUMNS, "when": {"type": "int", "column": "day"}}
    with pytest.raises(ValueError, match=r"a\.parquet: its folder gives day='2026-11-01', which"):
        read_raw(tmp_path, partitioned(tmp_path), DAYS, columns=columns)


def test_folders_of_another_day_are_another_version(tmp_path: Path) -> None:
    root = partitioned(tmp_path)
    data = DataConfig.model_validate({"path": str(root), "columns": DAY_COLUMNS})
    sources = [identity.identify(file, {}) for file in identity.configured_files(data)]
    before = identity.fingerprint(data, DAYS, sources)
    (root / "day=2026-11-02").rename(root / "day=2026-11-03")
    sources = [identity.identify(file, {}) for file in identity.configured_files(data)]
    assert identity.fingerprint(data, DAYS, sources) != before


def test_patterns_reach_into_folders(tmp_path: Path) -> None:
    root = partitioned(tmp_path)
    assert [file.name for file in matches(f"{root}/**/*.parquet")] == ["a.parquet"]
    assert [file.name for file in matches(f"{root}/*/*/[ab].*")] == ["a.parquet", "b.csv"]


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    ROWS.write_parquet(folder / "a.parquet")
    url = (folder / "a.parquet").as_uri()
    assert "%20" in url
    assert len(read_raw(tmp_path, url)[0]) == 2
    with pytest.raises(ValueError, match="a file URL has three slashes"):
        matches("file://server/a.parquet")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hdfs://name/log.csv", r"hdfs:// cannot be read; expected .*s3://.*mount HDFS"),
        ("https://example.org/log.csv", "https:// cannot be read; expected a path or one of"),
        ("s3://key:secret@bucket/log.csv", "a URL on bucket holds a password; leave it out"),
    ],
)
def test_other_urls_and_secrets_in_them_are_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        matches(url)
    assert "secret" not in str(caught.value)


def test_an_object_store_is_read_like_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = partitioned(tmp_path)
    local, _ = read_raw(tmp_path, root, DAYS, columns=DAY_COLUMNS)
    with object_store(monkeypatch) as store:
        store.put_folder(root, "bucket/raw/log")
        store.objects["bucket/raw/logs.csv"] = b"not asked for"
        for path in ("s3://bucket/raw/log", "s3://bucket/raw/log/", "s3://bucket/raw/log/**/*.*"):
            rows, source = read_raw(tmp_path, path, DAYS, columns=DAY_COLUMNS)
            assert rows == local
        assert str(source.files[0][0]).startswith("s3://bucket/raw/log/day=2026-11-01/city=")
        assert "bucket/raw/logs.csv" not in store.reads
        store.objects["bucket/x.csv.gz"] = gzip.compress(f"{HEADER}ann,x,1\nbob,2,0\n".encode())
        rows, source = read_raw(tmp_path, "s3://bucket/x.csv.gz", max_rejected=0.5)
        assert [row[1] for row in rows] == ["bob"]
        assert (source.rejections[0].file, source.rejections[0].line) == ("s3://bucket/x.csv.gz", 2)
        arrow = io.BytesIO()
        ROWS.write_ipc(arrow)
        store.objects["bucket/x.arrow"] = arrow.getvalue()
        assert [row[1] for row in read_raw(tmp_path, "s3://bucket/x.arrow")[0]] == ["ann", "bob"]


def test_what_is_not_in_an_object_store_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_store(monkeypatch) as store:
        store.objects["bucket/log/_SUCCESS"] = b"x"
        with pytest.raises(FileNotFoundError, match=r"there is no file s3://bucket/no\.csv"):
            matches("s3://bucket/no.csv")
        with pytest.raises(FileNotFoundError, match=r"no file matches s3://bucket/\*\.csv"):
            matches("s3://bucket/*.csv")
        with pytest.raises(FileNotFoundError, match="the folder s3://bucket/log holds no files"):
            matches("s3://bucket/log")
        store.objects["bucket/x.csv"] = b""
        with pytest.raises(ValueError, match=r"s3://bucket/x\.csv is empty"):
            read_raw(tmp_path, "s3://bucket/x.csv")


def test_a_store_that_cannot_be_reached_is_told_with_where_its_settings_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with object_store(monkeypatch):
        monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
        with pytest.raises(Unreachable, match=r"s3://bucket/x\.csv cannot be .* AWS_\.\.\."):
            matches("s3://bucket/x.csv")


def test_a_remote_file_is_identified_without_reading_it_and_a_change_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with object_store(monkeypatch) as store:
        store.objects["bucket/x.parquet"] = as_parquet(ROWS)
        store.objects["bucket/copy/x.parquet"] = as_parquet(ROWS)
        found = [
            identity.identify(file, {})
            for file in [*matches("s3://bucket/x.parquet"), *matches("s3://bucket/copy/x.parquet")]
        ]
        assert store.reads == []
        assert [file["identified_by"] for file in found] == ["ETag", "ETag"]
        assert found[0]["sha256"] == found[1]["sha256"]
        identity.require_unchanged(found)
        store.objects["bucket/x.parquet"] = as_parquet(ROWS.reverse())
        with pytest.raises(SourceChanged, match=r"s3://bucket/x\.parquet was changed while"):
            identity.require_unchanged(found)
        del store.objects["bucket/x.parquet"]
        with pytest.raises(SourceChanged, match=r"s3://bucket/x\.parquet vanished while"):
            identity.require_unchanged(found)


def test_fingerprints_of_files_without_partitions_know_nothing_of_them(tmp_path: Path) -> None:
    (tmp_path / "year=2026").mkdir()
    fingerprints = []
    for folder in (tmp_path, tmp_path / "year=2026"):
        (folder / "log.csv").write_text(HEADER + "ann,1,1\n")
        data = DataConfig(path=str(folder / "log.csv"), columns=COLUMNS)
        sources = [identity.identify(file, {}) for file in identity.configured_files(data)]
        fingerprints.append(identity.fingerprint(data, FEATURES, sources))
    assert fingerprints[0] == fingerprints[1]
