"""Builds that grow from a version: found again whatever came after, with their lineage."""

from pathlib import Path

import polars as pl
import pytest

from feature_store.compatibility import compare
from feature_store.features import FeatureSet
from feature_store.store import Store, Version, VersionNotFound
from feature_store.vacuum import vacuum
from pipelines import identity
from pipelines.build import build
from pipelines.lineage import code_version
from pipelines.sources import DataConfig

DAYS = {"mon": "aab", "tue": "bcc", "wed": "dda"}


def data_of(folder: Path, day: str, **more: object) -> DataConfig:
    path = folder / f"{day}.csv"
    items = list(DAYS[day]) * 4
    pl.DataFrame({"item": items, "clicked": [i % 2 for i in range(len(items))]}).write_csv(path)
    columns = {"item": "string", "clicked": "int"}
    split = {"by": "random", "test": 0.0, "valid": 0.0}
    return DataConfig.model_validate(
        {"path": str(path), "columns": columns, "split": split, **more}
    )


def features(**more: object) -> FeatureSet:
    inputs = [{"kind": "categorical", "name": "item"}]
    return FeatureSet.model_validate({"inputs": inputs, "labels": [{"name": "clicked"}], **more})


def built(folder: Path, day: str, grow_from: object = None, **more: object) -> tuple[Version, bool]:
    result = build(
        "clicks",
        data_of(folder, day, **more),
        features(grow_from=grow_from),
        Store(folder / "store"),
    )
    return result.version, result.reused


def words(version: Version) -> str:
    return "".join(version.fitted.vocabularies["item"])


def test_each_day_grows_from_the_last_and_is_found_again(tmp_path: Path) -> None:
    monday, reused = built(tmp_path, "mon", "latest")  # there is nothing to grow from yet
    assert (words(monday), reused) == ("ab", False)
    assert "grown_from" not in monday.metadata
    tuesday, _ = built(tmp_path, "tue", "latest")
    wednesday, _ = built(tmp_path, "wed", "latest")
    assert [words(tuesday), words(wednesday)] == ["abc", "abcd"]
    assert tuesday.metadata["grown_from"] == monday.number
    assert tuesday.metadata["grown_from_fingerprint"] == monday.fingerprint
    assert compare(monday.fitted, wednesday.fitted).is_compatible
    for day, version in (("wed", wednesday), ("tue", tuesday), ("mon", monday)):
        again, reused = built(tmp_path, day, "latest")
        assert (again.number, reused) == (version.number, True)
    alone, reused = built(tmp_path, "wed")
    assert (words(alone), reused) == ("da", False)
    skipped, reused = built(tmp_path, "wed", monday.number)
    assert (words(skipped), reused) == ("abd", False)
    assert not compare(skipped.fitted, wednesday.fitted).is_compatible


def test_what_grew_from_a_removed_version_is_found_and_needs_it_no_more(tmp_path: Path) -> None:
    built(tmp_path, "mon")
    tuesday, _ = built(tmp_path, "tue", 0)
    number = tuesday.number
    del tuesday
    store = Store(tmp_path / "store")
    assert vacuum(store, "clicks", keep=1, named=dict).removed
    again, reused = built(tmp_path, "tue", 0)
    assert (again.number, reused, words(again)) == (number, True, "abc")
    with pytest.raises(VersionNotFound, match="version 0 of 'clicks' was removed"):
        built(tmp_path, "wed", 0)


def test_a_version_that_is_not_there_cannot_be_grown_from(tmp_path: Path) -> None:
    with pytest.raises(VersionNotFound, match=r"features\.grow_from: 'clicks' has no version 3"):
        built(tmp_path, "mon", 3)
    built(tmp_path, "mon")
    with pytest.raises(VersionNotFound, match=r"no version 3 in .*; known: 0"):
        built(tmp_path, "tue", 3)


def test_the_record_tells_owner_code_and_the_whole_configuration(tmp_path: Path) -> None:
    version, _ = built(tmp_path, "mon", owner="Ann", description="clicks")
    metadata = version.metadata
    assert (metadata["owner"], metadata["description"]) == ("Ann", "clicks")
    assert metadata["code"] == code_version()
    assert len(metadata["sources"][0]["sha256"]) == 64
    configuration = metadata["configuration"]
    assert DataConfig.model_validate(configuration["data"]).owner == "Ann"
    assert FeatureSet.model_validate(configuration["features"]) == features()
    again, reused = built(tmp_path, "mon", owner="Bob")
    assert (again.number, reused) == (version.number, True)


def test_a_fingerprint_knows_what_is_set_and_no_default(tmp_path: Path) -> None:
    data = data_of(tmp_path, "mon")
    one = identity.fingerprint(data, features(), [])
    spelled_out = FeatureSet.model_validate(
        {
            "inputs": [{"kind": "categorical", "name": "item", "min_count": 1, "max_size": None}],
            "labels": [{"name": "clicked"}],
            "weight": None,
        }
    )
    assert identity.fingerprint(data, spelled_out, []) == one
    kinds = [
        FeatureSet.model_validate({"inputs": [{"kind": kind, "name": "item"}]})
        for kind in ("categorical", "bag", "numeric")
    ]
    assert len({identity.fingerprint(data, each, []) for each in kinds}) == 3
    assert identity.fingerprint(data, features(), [], "base") != one
