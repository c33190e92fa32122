"""Requests that bring keys: their rows are completed from an online store, then scored as any.

A request has rows that leave columns out (`{"rows": [{"user_id": 7, "item_id": 3}, ...]}`), or one
context for many candidates (`{"context": {"user_id": 7}, "candidates": [3, 8, ...]}`), where the
candidates are values of the one key column that the context does not name.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from feature_store.online import Completed, NoKey, OnlineFeatures, described
from feature_store.online_store import Snapshot
from recsys.export import requests
from recsys.export.requests import InvalidRows, Problem, given
from recsys.export.signature import Column, Signature

FORMS = '{"rows": [{...}, ...]} or {"context": {...}, "candidates": [...]}'


class Completion:
    """Makes raw tables of requests that may leave stored columns out.

    Args:
        features: Where stored columns are from.
        signature: The columns that the result has.
    """

    def __init__(self, features: OnlineFeatures, signature: Signature) -> None:
        self.features = features
        self.signature = signature

    def raw(self, request: Mapping[str, Any], max_rows: int) -> Completed:
        """The raw table of a request, with the signature's columns.

        Args:
            request: In one of the two forms.
            max_rows: Largest number of rows or candidates.

        Raises:
            InvalidRows: Names row, field, what was expected and what was found.
            OnlineStoreError: The store does not answer.
        """
        columns = self._columns(self.features.published.snapshot)
        if request.keys() == {"rows"}:
            table, brought = given(_list(request, "rows", max_rows), columns)
        elif request.keys() == {"context", "candidates"}:
            table, brought = self._candidates(request, columns, max_rows), {}
        else:
            found = ", ".join(request) or "no field"
            raise InvalidRows([Problem(None, None, FORMS, found)])
        try:
            completed = self.features.complete(table, brought, self.signature.names)
        except NoKey as error:
            raise InvalidRows([self._lacking(error, brought)]) from error
        typed = pl.DataFrame(
            [
                values if values.dtype == column.dtype else values.cast(column.dtype)
                for values, column in zip(completed.rows, self.signature.columns, strict=True)
            ],
            height=completed.rows.height,
        )
        return Completed(typed, completed.published, completed.misses)

    def answer(self, completed: Completed) -> dict[str, Any]:
        """What a response says of the stored features."""
        return {**described(completed.published), "misses": completed.misses}

    def _columns(self, snapshot: Snapshot) -> list[Column]:
        """What rows may bring: the signature's columns, keys, and the time."""
        columns = {column.name: column for column in self.signature.columns}
        for entity in snapshot.entities:
            key = Column(name=entity.key, type=entity.type, nullable=True)
            columns.setdefault(entity.key, key)
        if snapshot.time is not None:
            time = Column(name=snapshot.time.column, type=snapshot.time.type, nullable=True)
            columns.setdefault(time.name, time)
        return list(columns.values())

    def _candidates(
        self, request: Mapping[str, Any], columns: list[Column], max_rows: int
    ) -> pl.DataFrame:
        """The context beside every candidate."""
        context = request["context"]
        if not isinstance(context, dict):
            found = requests.described(context)
            raise InvalidRows([Problem(None, "context", f"an object of fields: {FORMS}", found)])
        candidates = _list(request, "candidates", max_rows)
        entities = self.features.published.snapshot.entities
        open_keys = [entity.key for entity in entities if entity.key not in context]
        if len(open_keys) != 1:
            keys = ", ".join(entity.key for entity in entities)
            expected = f"all but one of the keys ({keys}); candidates are values of the other"
            found = f"{len(entities) - len(open_keys)} of them"
            raise InvalidRows([Problem(None, "context", expected, found)])
        try:
            table, _ = given([context], columns)
        except InvalidRows as error:
            raise InvalidRows([p._replace(row=None) for p in error.problems]) from error
        rows = [{open_keys[0]: candidate} for candidate in candidates]
        items, _ = given(rows, columns)
        repeated = table[[0] * len(rows)]
        if not rows:  # no candidate brings its column
            key = next(column for column in columns if column.name == open_keys[0])
            items = pl.DataFrame(schema={key.name: key.dtype})
        return repeated.hstack(items)

    def _lacking(self, error: NoKey, brought: Mapping[str, pl.Series]) -> Problem:
        """The first row that lacks a column, or the key that it is stored by."""
        column = next(c for c in self.signature.columns if c.name == error.column)
        name = column.name if error.key is None else error.key
        place = (~brought[name]).arg_max() or 0 if name in brought else 0
        if error.key is None:
            expected, found = requests.expected_of(column), "no such field, and none is stored"
        else:
            expected, found = f"a key, by which {column.name!r} is completed", "no such field"
        return Problem(place, name, expected, found)


def _list(request: Mapping[str, Any], name: str, max_rows: int) -> list[object]:
    values = request[name]
    if not isinstance(values, list):
        found = requests.described(values)
        raise InvalidRows([Problem(None, name, f"a list: {FORMS}", found)])
    if len(values) > max_rows:
        raise InvalidRows(
            [Problem(None, name, f"at most {max_rows} {name}", f"{len(values)} {name}")]
        )
    return values
