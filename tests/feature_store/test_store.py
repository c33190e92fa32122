"""Versions: written whole or not at all, addressed by name and number, values exactly kept."""

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable

from feature_store.encoding import FittedFeatures, SchemaMismatch
from feature_store.features import (
    SPLIT_COLUMN,
    SPLITS,
    Bag,
    Categorical,
    FeatureSet,
    Label,
    Numeric,
)
from feature_store.store import Metadata, Store, Version, VersionNotFound
from pipelines.fit import fit

FEATURES = FeatureSet(
    inputs=(
        Categorical(name="user", encoding="hash"),
        Categorical(name="item"),
        Bag(name="tags", separator="|"),
        Numeric(name="price", indicator=True),
    ),
    labels=(Label(name="clicked"),),
    group="user",
    timestamp="time",
)


def raw_rows(num_rows: int = 300, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": [f"u{i}" for i in random.integers(0, 50, num_rows)],
            "item": random.integers(0, 20, num_rows),
            "tags": ["|".join("abc"[: random.integers(0, 4)]) for _ in range(num_rows)],
            "price": [None if p < 0.1 else p for p in random.random(num_rows)],
            "time": np.arange(num_rows),
            "clicked": random.integers(0, 2, num_rows),
            SPLIT_COLUMN: random.choice(SPLITS, num_rows),
        }
    )


def metadata(fingerprint: str) -> Metadata:
    return Metadata(
        fingerprint=fingerprint,
        config_hash="c",
        sources=[
            {
                "path": "x.csv",
                "size_bytes": 3,
                "modified_ns": 5,
                "sha256": "ab",
                "hashed_ns": 5 + 3 * 10**9,
            }
        ],
        rows_in=10,
        rows_rejected=1,
        rejected_reasons={"why": 1},
        rejected_path=None,
        unmatched={},
        libraries={"polars": "2"},
    )


def encoded(raw: pl.LazyFrame, fitted: FittedFeatures) -> pl.LazyFrame:
    schema = raw.collect_schema()
    return raw.select(*fitted.encoders(schema), *fitted.target_encoders(schema), SPLIT_COLUMN)


def write(
    store: Store,
    raw: pl.DataFrame,
    fingerprint: str = "f",
    features: FeatureSet = FEATURES,
    name: str = "clicks",
) -> Version:
    fitted = fit(raw.lazy().filter(pl.col(SPLIT_COLUMN) == "train"), features)
    with store.workspace(name) as workspace:
        return store.write(
            name, encoded(raw.lazy(), fitted), fitted, metadata(fingerprint), workspace, raw.head(5)
        )


def test_a_version_gives_back_exactly_what_was_written_in_order(tmp_path: Path) -> None:
    raw = raw_rows()
    written = write(Store(tmp_path), raw)
    version = Store(tmp_path).open("clicks")
    expected = encoded(raw.lazy(), version.fitted).collect()
    for split in SPLITS:
        rows = expected.filter(pl.col(SPLIT_COLUMN) == split).drop(SPLIT_COLUMN)
        assert version.scan(split).collect().equals(rows, null_equal=False)
        assert version.rows[split] == len(rows)
    assert version.number == written.number
    assert version.fitted.fingerprint == written.fitted.fingerprint
    assert version.metadata == metadata("f")
    assert version.raw_sample().equals(raw.head(5))


def test_delta_readers_see_the_rows_with_their_split(tmp_path: Path) -> None:
    version = write(Store(tmp_path), raw_rows())
    table = DeltaTable(str(version.path / "table"))
    counts = pl.from_arrow(table.to_pyarrow_table()).group_by(SPLIT_COLUMN).len()
    assert dict(counts.iter_rows()) == version.rows


def test_old_versions_stay_as_they_were_also_under_another_schema(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = write(store, raw_rows(seed=1), "one")
    before = first.scan("train").collect()
    fewer = FEATURES.model_copy(update={"inputs": FEATURES.inputs[:2]})
    second = write(store, raw_rows(100, seed=2), "two", fewer)
    assert [v.number for v in store.history("clicks")] == [first.number, second.number]
    assert [v.fingerprint for v in store.history("clicks")] == ["one", "two"]
    assert store.open("clicks").number == second.number
    again = store.open("clicks", first.number)
    assert again.scan("train").collect().equals(before)
    assert again.fingerprint == "one"
    assert again.layout == first.layout != store.open("clicks").layout


def test_a_version_is_found_by_fingerprint_while_its_files_are_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("clicks", "one") is None
    first = write(store, raw_rows(), "one")
    write(store, raw_rows(), "two")
    found = store.find("clicks", "one")
    assert found is not None
    assert found.number == first.number
    assert store.find("clicks", "three") is None
    first.files("train")[0].unlink()
    assert store.find("clicks", "one") is None
    with pytest.raises(VersionNotFound, match=r"version 0 of 'clicks' has lost files.*build it"):
        store.open("clicks", first.number)


def test_what_is_not_there_is_an_error_that_lists_what_is(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store, raw_rows())
    with pytest.raises(VersionNotFound, match=r"no feature table 'click'; did you mean 'clicks'"):
        store.open("click")
    with pytest.raises(VersionNotFound, match=r"no version 7 in .*; known: 0"):
        store.open("clicks", 7)
    with pytest.raises(ValueError, match=r"cannot name a feature table"):
        store.open("../clicks")
    with pytest.raises(ValueError, match=r"no split 'tests'; did you mean 'test'"):
        store.open("clicks").files("tests")


def test_a_split_without_rows_has_no_files_and_scans_empty(tmp_path: Path) -> None:
    raw = raw_rows().with_columns(pl.lit("train").alias(SPLIT_COLUMN))
    version = write(Store(tmp_path), raw)
    assert version.rows == {"train": 300, "valid": 0, "test": 0}
    assert version.files("test") == []
    assert version.scan("test").collect_schema() == version.scan("train").collect_schema()


def test_rows_that_do_not_fit_the_features_write_nothing(tmp_path: Path) -> None:
    store, raw = Store(tmp_path), raw_rows()
    fitted = fit(raw.lazy(), FEATURES)
    wrong = encoded(raw.lazy(), fitted).with_columns(pl.col("price").cast(pl.Float64))
    with (
        pytest.raises(SchemaMismatch, match=r"price: expected Float32, found Float64"),
        store.workspace("clicks") as workspace,
    ):
        store.write("clicks", wrong, fitted, metadata("f"), workspace, raw)
    assert not store.exists("clicks")
    assert list((tmp_path / "clicks" / ".building").iterdir()) == []


def test_commits_of_other_programs_are_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    version = write(store, raw_rows())
    table = DeltaTable(str(version.path / "table"))
    table.alter.set_table_properties({"delta.deletedFileRetentionDuration": "interval 30 days"})
    assert DeltaTable(str(version.path / "table")).version() == 1
    assert store.open("clicks").number == 0
    assert len(store.history("clicks")) == 1


def test_leftovers_of_a_dead_build_are_removed_and_those_of_a_live_one_kept(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    version = write(store, raw_rows())
    folder = version.path
    dead = folder / ".building" / "dead"
    dead.mkdir()
    (folder / ".building" / "dead.lock").touch()
    left = folder / ".building" / "left"  # its build ended, and could not remove it
    left.mkdir()
    orphan = folder / "table" / "split=train" / "dead-00000000.parquet"
    orphan.touch()
    (folder / "builds" / "dead").mkdir()
    with store.workspace("clicks") as alive, store.workspace("clicks"):
        assert alive.path.is_dir()
        assert not dead.exists() and not left.exists()
        assert not orphan.exists()
        assert not (folder / "builds" / "dead").exists()
    assert store.open("clicks").scan("train").collect().height == version.rows["train"]


def test_a_build_that_died_after_its_commit_keeps_its_version(tmp_path: Path) -> None:
    store = Store(tmp_path)
    version = write(store, raw_rows())
    (version.path / ".building" / f"{version.build}.lock").touch()
    with store.workspace("clicks"):
        pass
    assert store.open("clicks").scan("train").collect().height == version.rows["train"]
    assert store.open("clicks").fitted.fingerprint == version.fitted.fingerprint


def _write_at_once(barrier: Any, path: Path, fingerprint: str) -> None:
    raw = raw_rows()
    store = Store(path)
    barrier.wait()
    write(store, raw, fingerprint)


def test_builds_at_once_all_succeed_and_equal_ones_make_one_version(tmp_path: Path) -> None:
    fingerprints = ["a", "a", "b"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports once
    barrier = context.Barrier(len(fingerprints))
    workers = [
        context.Process(target=_write_at_once, args=(barrier, tmp_path, fingerprint))
        for fingerprint in fingerprints
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * len(workers)
    versions = Store(tmp_path).history("clicks")
    assert sorted(v.fingerprint for v in versions) == sorted(set(fingerprints))
    for version in versions:
        assert version.scan("train").collect().height == version.rows["train"] > 0
    kept = {path.name for path in (tmp_path / "clicks" / "builds").iterdir()}
    assert kept == {version.build for version in versions}


def _write_rounds(barrier: Any, path: Path, names: list[str]) -> None:
    for name in names:
        barrier.wait()
        write(Store(path), raw_rows(60), name)


def test_two_processes_build_the_same_and_different_versions_round_after_round(
    tmp_path: Path,
) -> None:
    rounds = [["a", "b", "c", "same", "d", "same"], ["a", "x", "y", "same", "z", "same"]]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports once
    barrier = context.Barrier(2)
    workers = [
        context.Process(target=_write_rounds, args=(barrier, tmp_path, names)) for names in rounds
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    versions = Store(tmp_path).history("clicks")
    assert sorted(v.fingerprint for v in versions) == sorted({*rounds[0], *rounds[1]})
    assert [v.number for v in versions] == list(range(len(versions)))
    for version in versions:
        assert sum(version.scan(split).collect().height for split in SPLITS) == 60
    table = tmp_path / "clicks" / "table"
    named = {file for version in versions for split in SPLITS for file in version.files(split)}
    assert set(table.glob("split=*/*.parquet")) == named
    assert DeltaTable(str(table)).to_pyarrow_table().num_rows == 60
