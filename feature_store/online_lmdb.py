"""An online store in a folder: one LMDB environment a version, and a file that names the current.

```
<folder>/current                     id of the version that answers
<folder>/versions/<id>/data.mdb      one database an entity
<folder>/versions/<id>/version.json  written last: without it the version is not complete
```

A version's environment never changes once it is written, so readers need no lock and map it into
memory; a reader that has it open keeps it, even if it is removed meanwhile.
"""

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb

from feature_store.online_store import (
    NothingPublished,
    OnlineStore,
    OnlineStoreError,
    OnlineVersion,
    PublishBusy,
    Published,
    Rows,
    read_published,
)

_CURRENT, _VERSIONS, _LOCK = "current", "versions", ".lock"
_RECORD = "version.json"
_ATTEMPTS = 5
_LEAST_MAP_BYTES = 1 << 30

_open_versions: "WeakValueDictionary[Path, LmdbVersion]" = WeakValueDictionary()
_opening = threading.Lock()


class LmdbVersion(OnlineVersion):
    """A version's environment, mapped into memory."""

    def __init__(self, folder: Path, published: Published) -> None:
        self.published = published
        names = [entity.key for entity in published.snapshot.entities]
        self._environment = lmdb.open(
            str(folder), readonly=True, lock=False, max_dbs=len(names), readahead=False,
            create=False,
        )  # fmt: skip
        self._databases = {
            name: self._environment.open_db(name.encode(), create=False) for name in names
        }

    def values(self, wanted: dict[str, list[bytes]]) -> dict[str, list[bytes | None]]:
        """One look-up in the map a key."""
        with self._environment.begin() as transaction:
            return {
                entity: [transaction.get(key, db=self._databases[entity]) for key in keys]
                for entity, keys in wanted.items()
            }


class LmdbStore(OnlineStore):
    """See the module.

    Args:
        folder: Made by the first publication.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def current_id(self) -> str:
        """What the pointer's file says."""
        try:
            return (self.folder / _CURRENT).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            raise NothingPublished(
                f"{self.folder} is no online store, or nothing was published to it; publish with"
                " `recsys features publish NAME --to` this folder"
            ) from None

    def open(self) -> LmdbVersion:
        """Map the current version; one that is replaced meanwhile is looked for again."""
        for attempt in range(_ATTEMPTS):
            folder = self._version_folder(self.current_id())
            try:
                return _opened(folder.resolve())
            except (FileNotFoundError, lmdb.Error) as error:
                if attempt + 1 == _ATTEMPTS or folder == self._version_folder(self.current_id()):
                    raise OnlineStoreError(
                        f"the current version in {self.folder} cannot be opened ({error}); publish"
                        " again"
                    ) from error
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """A file lock, which the system gives back when the process dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PublishBusy(
                    f"another process publishes to {self.folder}; wait for it to end"
                ) from None
            yield

    def write(self, published: Published, rows: Iterable[Rows]) -> None:
        """Fill a new environment in the order of its keys, page after page."""
        self._remove_others()
        folder = self._version_folder(published.id)
        folder.mkdir(parents=True)
        try:
            self._fill(folder, published, rows)
            (folder / "lock.mdb").unlink(missing_ok=True)
            _write_durably(folder / _RECORD, published.model_dump_json(indent=1))
        except lmdb.Error as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise OnlineStoreError(
                f"{published.label} cannot be written to {self.folder}: {error}; the version before"
                " still answers"
            ) from error
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def switch(self, published: Published) -> None:
        """Replace the pointer's file."""
        _write_durably(self.folder / _CURRENT, published.id + "\n")

    def retire(self, grace_seconds: float) -> None:
        """Wait for readers that took the pointer just before; then remove."""
        others = self._others()
        if others:
            time.sleep(grace_seconds)
        for folder in others:
            shutil.rmtree(folder)

    def _fill(self, folder: Path, published: Published, rows: Iterable[Rows]) -> None:
        names = [entity.key for entity in published.snapshot.entities]
        # Address space alone; the file grows as it is written, and can never outgrow the disk.
        size = max(shutil.disk_usage(folder).total, _LEAST_MAP_BYTES)
        environment = lmdb.open(
            str(folder), map_size=size, max_dbs=len(names), sync=False, metasync=False
        )
        try:
            databases = {name: environment.open_db(name.encode()) for name in names}
            for batch in rows:
                with environment.begin(write=True, db=databases[batch.entity]) as transaction:
                    items = zip(batch.keys, batch.values, strict=True)
                    consumed, added = transaction.cursor().putmulti(items, append=True)
                if not consumed == added == len(batch.keys):
                    raise OnlineStoreError(
                        f"the keys of {batch.entity!r} are not in order; build the version again"
                    )
            environment.sync(True)
        finally:
            environment.close()

    def _others(self) -> list[Path]:
        """Folders of versions that do not answer."""
        try:
            current = self.current_id()
        except NothingPublished:
            current = ""
        return [path for path in (self.folder / _VERSIONS).glob("*") if path.name != current]

    def _remove_others(self) -> None:
        for folder in self._others():
            shutil.rmtree(folder)

    def _version_folder(self, version_id: str) -> Path:
        return self.folder / _VERSIONS / version_id


def _opened(folder: Path) -> LmdbVersion:
    """The version in a folder; LMDB lets a process open an environment once only."""
    with _opening:
        found = _open_versions.get(folder)
        if found is None:
            published = read_published((folder / _RECORD).read_bytes(), str(folder))
            found = _open_versions[folder] = LmdbVersion(folder, published)
        return found


def _write_durably(path: Path, text: str) -> None:
    """Replace a file in one step, on disk before it has its name."""
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
