"""From a version to an online store: what is refused leaves the version before."""

from pathlib import Path

import pytest
from support import online

from feature_store.online_lmdb import LmdbStore
from feature_store.online_store import OnlineStoreError
from feature_store.packing import RowPacking
from feature_store.publishing import publish, read_snapshot
from feature_store.store import Store
from feature_store.version import Version, VersionNotFound, parse_reference
from recsys import cli


@pytest.fixture(scope="module")
def version(tmp_path_factory) -> Version:
    return online.built(tmp_path_factory.mktemp("publishing"), online.log(200))


def test_the_command_publishes_all_keys_and_says_how_to_serve_them(
    version, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "online"
    store = version.path.parent
    command = ["features", "publish", "clicks", "--store", str(store), "--to", str(folder)]
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--grace", "0"])
    assert ended.value.code == 0
    told = capsys.readouterr()
    assert "item_id: 40" in told.out + told.err
    assert "recsys serve BUNDLE --features" in told.out + told.err
    opened = LmdbStore(folder).open()
    assert opened.published.label == "clicks@0"
    snapshot = read_snapshot(version)
    assert opened.published.snapshot == snapshot
    for entity in snapshot.entities:
        frame = online.pl.read_parquet(version.folder / "online" / entity.file)
        keys = online.key_bytes(frame["__hash"])
        rows = opened.values({entity.key: keys})[entity.key]
        back = RowPacking(entity.stored).unpack(rows)
        assert back.equals(frame.drop("__hash"))


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ("clicks@x", ValueError, "expected NAME or NAME@NUMBER"),
        ("clicks@7", VersionNotFound, "has no version 7"),
        ("click", VersionNotFound, "did you mean 'clicks'"),
    ],
)
def test_a_version_that_is_not_there_is_named(version, wanted, error, message) -> None:
    with pytest.raises(error, match=message):
        Store(version.path.parent).open(*parse_reference(wanted))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_fewer_keys(path: Path) -> None:
    online.pl.read_parquet(path).head(-1).write_parquet(path)


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [truncated, of_fewer_keys, gone])
def test_a_damaged_snapshot_is_named_and_the_version_before_answers(tmp_path: Path, damage) -> None:
    made = online.built(tmp_path, online.log(100))
    store = LmdbStore(tmp_path / "online")
    before = publish(made, store, grace_seconds=0.0).published
    path = made.folder / "online" / "entity-1.parquet"
    damage(path)
    with pytest.raises(OnlineStoreError, match=r"entity-1\.parquet.* build the version again"):
        publish(made, store, grace_seconds=0.0)
    assert store.open().published == before
    assert len(list((store.folder / "versions").iterdir())) == 1


def test_another_feature_table_is_not_put_over_the_one_that_is_there(
    version, tmp_path: Path
) -> None:
    store = LmdbStore(tmp_path / "online")
    made = online.publish_number(store, 1).model_copy(update={"name": "other", "id": "other"})
    with store.publishing():
        store.write(made, [])
        store.switch(made)
    with pytest.raises(OnlineStoreError, match="holds the feature table 'other'"):
        publish(version, store)
