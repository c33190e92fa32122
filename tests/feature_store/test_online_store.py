"""Both kinds of online stores: what is written is read, in one version, whatever happens."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from support import online
from support.online import keys_of, numbers_in, publication, publish_number, rows_of

from feature_store import online_lmdb, online_redis
from feature_store.online import open_store
from feature_store.online_lmdb import LmdbStore
from feature_store.online_redis import RedisStore
from feature_store.online_store import (
    NothingPublished,
    OnlineStore,
    OnlineStoreError,
    PublishBusy,
    Published,
    VersionGone,
    key_bytes,
)

MOST_POINTS = 60


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory) -> Iterator[str]:
    with online.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["lmdb", "redis"])
def target(request, tmp_path: Path) -> str:
    """An empty online store, as users name it."""
    if request.param == "lmdb":
        return str(tmp_path / "online")
    url = request.getfixturevalue("redis_url")
    RedisStore(url).client.flushall()
    return url


@pytest.fixture
def store(target: str) -> OnlineStore:
    return open_store(target)


def test_every_key_of_a_published_version_is_found_and_no_other(store) -> None:
    made = publish_number(store, 1)
    version = store.open()
    assert version.published == made
    assert numbers_in(version) == {1}
    strange = key_bytes(pl.Series([0, 3, 2**64 - 1], dtype=pl.UInt64))
    assert version.values({"user_id": strange, "item_id": []}) == {
        "user_id": [None, None, None],
        "item_id": [],
    }


def test_an_empty_store_says_what_to_do(store) -> None:
    with pytest.raises(NothingPublished, match="recsys features publish"):
        store.open()


def test_a_version_is_read_until_it_goes_and_the_next_is_whole(store) -> None:
    publish_number(store, 1)
    old = store.open()
    made = publication(2)
    with store.publishing():
        store.write(made, rows_of(made))
        assert numbers_in(old) == {1}
        assert numbers_in(store.open()) == {1}  # written, but not switched to
        store.switch(made)
        assert numbers_in(store.open()) == {2}
        assert numbers_in(old) == {1}
        store.retire(0.2)
    time.sleep(0.3)
    assert numbers_in(store.open()) == {2}
    if isinstance(store, RedisStore):
        with pytest.raises(VersionGone):
            numbers_in(old)
        assert not list(store.client.scan_iter(f"*{old.published.id}*"))
    else:
        assert numbers_in(old) == {1}  # mapped, so it stays for who has it
        assert len(list((store.folder / "versions").iterdir())) == 1


def test_readers_see_one_version_in_a_request_while_versions_are_published(store) -> None:
    publish_number(store, 0, num_keys=40)
    seen: list[tuple[int, set[int]]] = []
    ended = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not ended.is_set():
                try:
                    version = store.open()
                    seen.append((version.published.number, numbers_in(version)))
                except VersionGone:  # without a grace, as here, a reader may come too late
                    continue
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(1, 8):
        publish_number(store, number, num_keys=40)
    ended.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert all(numbers == {number} for number, numbers in seen)
    assert len({number for number, _ in seen}) > 1


def test_two_cannot_publish_at_once(store, target) -> None:
    busy = pytest.raises(PublishBusy, match="another process publishes")
    with store.publishing(), busy, open_store(target).publishing():
        pass
    with store.publishing():
        pass


def test_what_fails_in_the_middle_leaves_the_version_before_and_nothing_else(store) -> None:
    publish_number(store, 1)
    made = publication(2)

    def broken() -> Iterator[online.Rows]:
        yield next(rows_of(made))
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"), store.publishing():
        store.write(made, broken())
    assert numbers_in(store.open()) == {1}
    if isinstance(store, RedisStore):
        assert not list(store.client.scan_iter(f"*{made.id}*"))
    else:
        assert len(list((store.folder / "versions").iterdir())) == 1


def publish_and_die(target: str, made: Published, rows: list[online.Rows], point: int) -> None:
    """Publish a version and die at the point-th step: a file touched, a batch, a command."""
    passed = 0

    def step() -> None:
        nonlocal passed
        passed += 1
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "open") and target in str(
            arguments[0]
        ):
            step()

    sys.addaudithook(audit)
    online_redis._LOCK_SECONDS = 1.0
    store = open_store(target)

    def batches() -> Iterator[online.Rows]:
        for batch in rows:
            yield batch
            step()

    with store.publishing():
        step()
        store.write(made, batches())
        step()
        store.switch(made)
        step()
        store.retire(0.0)
        step()


def test_a_killed_publication_leaves_the_version_before_and_the_next_one_works(
    store, target
) -> None:
    publish_number(store, 1, num_keys=30)
    context = multiprocessing.get_context("forkserver")
    # All that takes long to import, once.
    context.set_forkserver_preload(["pytest", "pipelines.build", "feature_store.online"])
    switched = False
    for point in range(1, MOST_POINTS):
        made = publication(2, num_keys=30)
        rows = list(rows_of(made, batch_rows=15))
        child = context.Process(target=publish_and_die, args=(target, made, rows, point))
        child.start()
        child.join(120)
        numbers = numbers_in(store.open())
        switched = switched or numbers == {2}
        assert numbers == ({2} if switched else {1})
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        if isinstance(store, RedisStore):
            store.client.delete("recsys:publishing")  # instead of waiting for it to end
    assert switched and point > 6
    publish_number(store, 3, num_keys=30)
    assert numbers_in(store.open()) == {3}
    if isinstance(store, RedisStore):
        names = {key.decode().split(":")[1] for key in store.client.scan_iter("recsys:*")}
        assert names == {"current", "versions", store.current_id()} - (
            set() if store.client.exists("recsys:versions") else {"versions"}
        )
    else:
        assert [path.name for path in (store.folder / "versions").iterdir()] == [store.current_id()]


def test_a_killed_publisher_of_redis_holds_others_up_for_a_while_only(
    redis_url, monkeypatch
) -> None:
    store = RedisStore(redis_url)
    store.client.flushall()
    store.client.set("recsys:publishing", "who was killed", px=300)
    with pytest.raises(PublishBusy), store.publishing():
        pass
    time.sleep(0.4)
    publish_number(store, 1)


def test_who_publishes_long_keeps_the_right_to(redis_url, monkeypatch) -> None:
    monkeypatch.setattr(online_redis, "_LOCK_SECONDS", 1.0)
    store = RedisStore(redis_url)
    with store.publishing():
        time.sleep(1.3)
        with pytest.raises(PublishBusy), store.publishing():
            pass


def test_a_full_disk_is_said_so(tmp_path: Path, monkeypatch) -> None:
    store = LmdbStore(tmp_path / "online")
    publish_number(store, 1)
    monkeypatch.setattr(online_lmdb, "_LEAST_MAP_BYTES", 0)
    full = SimpleNamespace(total=1 << 15)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    made = publication(2, num_keys=2000)
    failing = pytest.raises(OnlineStoreError, match=r"clicks@2 cannot be written .* still answers")
    with failing, store.publishing():
        store.write(made, rows_of(made))
    assert numbers_in(store.open()) == {1}
    assert len(list((store.folder / "versions").iterdir())) == 1


def remove_record(store: LmdbStore) -> None:
    (store.folder / "versions" / store.current_id() / "version.json").unlink()


def change_format(store: LmdbStore) -> None:
    path = store.folder / "versions" / store.current_id() / "version.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))


def cut_record(store: LmdbStore) -> None:
    path = store.folder / "versions" / store.current_id() / "version.json"
    path.write_text(path.read_text()[:40])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_record, "cannot be opened .* publish again"),
        (change_format, "is of format 99, this program reads format 1; build and publish again"),
        (cut_record, "the record of the version is damaged"),
    ],
)
def test_a_damaged_version_is_refused_and_replaced(
    tmp_path: Path, damage: Callable[[LmdbStore], None], message: str
) -> None:
    store = LmdbStore(tmp_path / "online")
    publish_number(store, 1)
    damage(store)
    with pytest.raises(OnlineStoreError, match=message):
        store.open()
    publish_number(store, 2)
    assert numbers_in(store.open()) == {2}


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    store = open_store("redis://:secret@127.0.0.1:1/0")
    with pytest.raises(OnlineStoreError, match=r"redis://127\.0\.0\.1:1/0 does") as found:
        store.open()
    assert "secret" not in str(found.value)


def test_a_url_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="s3://bucket: an online store is a folder or a URL that"):
        open_store("s3://bucket")


def test_without_redis_py_the_extra_to_install_is_named(monkeypatch) -> None:
    monkeypatch.setattr(online_redis, "redis", None)
    with pytest.raises(ImportError, match=r"pip install 'recsys\[redis\]'"):
        open_store("redis://localhost")


def test_keys_are_in_the_order_of_their_hashes() -> None:
    assert keys_of(500) == sorted(keys_of(500))
