"""An online store in a Redis server, where several machines serve.

```
recsys:current                    id of the version that answers
recsys:versions                   ids of all versions that may have keys
recsys:<id>                       the version's record
recsys:<id>:<entity>:<bucket>     hash of key to row, some hundreds a bucket
recsys:publishing                 who publishes now; goes by itself when its process is killed
```

One database of the server holds one feature table. Rows are read in one transaction with the
version's record, so a version that goes meanwhile is noticed. A retired version's keys are given a
time to live: the server removes them, whatever happens to who published.
"""

import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

from feature_store.online_store import (
    NothingPublished,
    OnlineStore,
    OnlineStoreError,
    OnlineVersion,
    PublishBusy,
    Published,
    Rows,
    VersionGone,
    bucket_of,
    read_published,
)

try:
    import redis
except ImportError:  # an optional extra
    redis = None  # type: ignore[assignment]

SCHEMES = ("redis://", "rediss://", "unix://")
_CURRENT, _VERSIONS, _PUBLISHING = "recsys:current", "recsys:versions", "recsys:publishing"
_KEYS_A_BUCKET = 512
_LOCK_SECONDS = 30.0
_TIMEOUT_SECONDS = 5.0
_PIPELINE = 1000

_RELEASE = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""


class RedisVersion(OnlineVersion):
    """A version on the server."""

    def __init__(self, store: "RedisStore", published: Published) -> None:
        self.published = published
        self._store = store
        self._bits = {entity.key: _num_bits(entity.num_keys) for entity in _entities(published)}

    def values(self, wanted: dict[str, list[bytes]]) -> dict[str, list[bytes | None]]:
        """One round trip for all of them."""
        with self._store.answering():
            pipeline = self._store.client.pipeline(transaction=True)
            pipeline.exists(_record(self.published.id))
            for entity, keys in wanted.items():
                for key in keys:
                    bucket = bucket_of(key, self._bits[entity])
                    pipeline.hget(_bucket(self.published.id, entity, bucket), key)
            exists, *found = pipeline.execute()
        if not exists:
            raise VersionGone(f"{self.published.label} was removed from {self._store.place}")
        rows = iter(found)
        return {entity: [next(rows) for _ in keys] for entity, keys in wanted.items()}


class RedisStore(OnlineStore):
    """See the module.

    Args:
        url: `redis://host:port/database`, `rediss://` for TLS, or `unix://path?db=0`.

    Raises:
        ImportError: redis-py is not installed.
    """

    def __init__(self, url: str) -> None:
        if redis is None:
            raise ImportError(f"{url} needs redis-py; install it with: pip install 'recsys[redis]'")
        parts = urlsplit(url)
        self.place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        """The URL without a password."""
        self.client = redis.Redis.from_url(
            url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
        )

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Turn what redis-py raises into `OnlineStoreError`."""
        try:
            yield
        except redis.RedisError as error:
            raise OnlineStoreError(f"{self.place} does not answer as it should: {error}") from error

    def current_id(self) -> str:
        """What the pointer's key says."""
        with self.answering():
            found: Any = self.client.get(_CURRENT)
        if found is None:
            raise NothingPublished(
                f"nothing was published to {self.place}; publish with `recsys features publish"
                " NAME --to` this URL"
            )
        return found.decode()

    def open(self) -> RedisVersion:
        """Read the current version's record."""
        while True:
            current = self.current_id()
            with self.answering():
                content: Any = self.client.get(_record(current))
            if content is not None:
                return RedisVersion(self, read_published(content, self.place))
            if current == self.current_id():
                raise OnlineStoreError(
                    f"the current version in {self.place} is gone; publish again"
                )

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """A key that ends soon after its process: it is renewed as long as that lives."""
        token = uuid.uuid4().hex
        with self.answering():
            taken = self.client.set(_PUBLISHING, token, nx=True, ex=int(_LOCK_SECONDS))
        if not taken:
            raise PublishBusy(
                f"another process publishes to {self.place}, or was killed less than"
                f" {_LOCK_SECONDS:g} s ago; wait for it to end"
            )
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(ended,), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            with self.answering():
                self.client.eval(_RELEASE, 1, _PUBLISHING, token)

    def write(self, published: Published, rows: Iterable[Rows]) -> None:
        """Fill the buckets, in the order of the keys."""
        self.retire(0)
        with self.answering():
            # First of all, so that whoever comes after a killed process finds what to remove.
            self.client.set(_record(published.id), published.model_dump_json())
            self.client.sadd(_VERSIONS, published.id)
        bits = {entity.key: _num_bits(entity.num_keys) for entity in _entities(published)}
        try:
            for batch in rows:
                with self.answering():
                    self._fill(published.id, batch, bits[batch.entity])
        except BaseException:
            self._expire(published.id, 0)
            raise

    def switch(self, published: Published) -> None:
        """Set the pointer's key."""
        with self.answering():
            self.client.set(_CURRENT, published.id)

    def retire(self, grace_seconds: float) -> None:
        """Give the keys of all other versions a time to live."""
        try:
            current = self.current_id()
        except NothingPublished:
            current = ""
        with self.answering():
            known: Any = self.client.smembers(_VERSIONS)
        for version in sorted(item.decode() for item in known):
            if version != current:
                self._expire(version, grace_seconds)

    def _fill(self, version: str, batch: Rows, bits: int) -> None:
        pipeline = self.client.pipeline(transaction=False)
        pairs = zip(batch.keys, batch.values, strict=True)
        for bucket, found in groupby(pairs, key=lambda pair: bucket_of(pair[0], bits)):
            pipeline.hset(_bucket(version, batch.entity, bucket), mapping=dict(found))
        pipeline.execute()

    def _expire(self, version: str, seconds: float) -> None:
        with self.answering():
            # Found by their names: the record may be of a format that this program cannot read.
            names = [_record(version), *self.client.scan_iter(f"recsys:{version}:*", _PIPELINE)]
            pipeline = self.client.pipeline(transaction=False)
            for name in names:
                pipeline.pexpire(name, int(seconds * 1000))
            pipeline.execute()
            self.client.srem(_VERSIONS, version)

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(_LOCK_SECONDS / 3):
            self.client.expire(_PUBLISHING, int(_LOCK_SECONDS))


def _entities(published: Published) -> Any:
    return published.snapshot.entities


def _num_bits(num_keys: int) -> int:
    """Bits of the hash that tell the bucket."""
    return max(0, (num_keys // _KEYS_A_BUCKET).bit_length())


def _record(version: str) -> str:
    return f"recsys:{version}"


def _bucket(version: str, entity: str, place: int) -> str:
    return f"recsys:{version}:{entity}:{place}"
