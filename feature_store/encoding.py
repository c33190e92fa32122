"""Fitted features: from raw columns to encoded ones, by one function for every use.

The build of a version, batch scoring and the server all call `FittedFeatures.encode`; nothing else
in the project turns raw values into ids or numbers, so training and serving cannot differ.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from feature_store import vocabulary
from feature_store.columns import (
    ColumnType,
    RawColumn,
    SchemaMismatch,
    canonical_text,
    column_type,
    is_list,
    require_columns,
    time_number,
)
from feature_store.derived import schema_with_derived, with_derived
from feature_store.features import (
    GROUP_COLUMN,
    TIMESTAMP_COLUMN,
    WEIGHT_COLUMN,
    FeatureSet,
    IdField,
    Layout,
    Side,
    source_of,
)
from feature_store.kinds import Learned, kind_of, sources_of
from feature_store.targets import label_value

__all__ = [
    "FittedFeatures",
    "FittedFeaturesMismatch",
    "RawColumn",
    "SchemaMismatch",
    "label_value",
]

FORMAT = 2
"""Raised with every change of what an encoded column means or of how fitted features are kept."""

_FILE = "features.json"
_VOCABULARIES, _TABLES = "vocabularies", "tables"
_MAX_PLANS = 64
_OF_THE_BUILD = {"selection", "grow_from", "refit_numbers"}
"""Settings that decide what is learnt, and not what it means."""


class FittedFeaturesMismatch(ValueError):
    """Saved fitted features are incomplete, changed, or of another format."""


@dataclass(frozen=True, eq=False)
class FittedFeatures:
    """Declared features with all that was learnt from the training split; immutable."""

    feature_set: FeatureSet
    vocabularies: dict[str, pl.Series]
    """By name of the categorical or bag: texts in the order of their ids, which start at 2."""
    boundaries: dict[str, list[float]]
    """By name of the bucketed numeric: strictly rising cuts, after log1p."""
    moments: dict[str, tuple[float, float]]
    """By name of the standardised numeric: mean and standard deviation, after log1p."""
    columns: tuple[RawColumn, ...]
    """The raw columns that scoring needs; those of label, weight, group and time are not."""
    library: str = vocabulary.HASH_LIBRARY
    """Name and version of the library that hashed the training data."""
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    """By name of the feature: whatever else its kind learns (see `feature_store.kinds`)."""
    _plans: dict[tuple[Any, ...], list[pl.Expr]] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        fitted = (self.feature_set, self.vocabularies, self.boundaries, self.moments)
        return FittedFeatures, (*fitted, self.columns, self.library, self.tables)

    @cached_property
    def _types(self) -> dict[str, ColumnType]:
        return {column.name: column.type for column in self.columns}

    @cached_property
    def learned(self) -> Learned:
        """What kinds of features need to know to encode."""
        return Learned(self.vocabularies, self.boundaries, self.moments, self.tables)

    @cached_property
    def layout(self) -> Layout:
        """What an encoded row looks like."""
        ids: list[IdField] = []
        dense: list[str] = []
        sides: list[Side] = []
        for feature in self.feature_set.inputs:
            kind = kind_of(feature)
            ids += kind.id_fields(feature, self.feature_set, self.learned)
            dense += kind.dense(feature)
            sides += [feature.side] * (len(dense) - len(sides))
        tasks = tuple(label.name for label in self.feature_set.labels)
        return Layout(ids=tuple(ids), dense=tuple(dense), tasks=tasks, dense_sides=tuple(sides))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over everything that decides what a raw row is encoded to."""
        text = json.dumps(self._description(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def encode(self, raw: pl.LazyFrame) -> pl.LazyFrame:
        """The encoded columns of the features, in the order they are declared; rows as they come.

        Args:
            raw: Has the raw columns of `columns`, in any type that carries the same values (see
                `feature_store.columns`); further columns are ignored.

        Raises:
            SchemaMismatch: A column is missing or of a type the feature cannot read.
        """
        encoders = self.encoders(raw.collect_schema())
        return with_derived(raw, self.feature_set, self._types).select(encoders)

    def encode_targets(self, raw: pl.LazyFrame) -> pl.LazyFrame:
        """Labels, `__weight`, `__group` and `__timestamp` of the same rows.

        A null or a label that is neither 0 nor 1 is the reader's to reject: it passes through here.

        Raises:
            SchemaMismatch: A column is missing or of a type that cannot be read.
        """
        return raw.select(self.target_encoders(raw.collect_schema()))

    def encoders(self, schema: Mapping[str, pl.DataType]) -> list[pl.Expr]:
        """`encode` as expressions over raw columns of these types, to join with others.

        Where features read derived columns, the expressions are for rows that have them: those of
        `feature_store.derived.with_derived`.
        """
        sources = sources_of(self.feature_set)
        require_columns(schema, sources)
        key = tuple(schema[name] for name in sources)
        plan = self._plans.get(key)
        if plan is None:
            schema = schema_with_derived(schema, self.feature_set, self._types)
            plan = [
                expression
                for feature in self.feature_set.inputs
                for expression in kind_of(feature).encode(
                    feature, self.feature_set, schema, self.learned
                )
            ]
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def target_encoders(self, schema: Mapping[str, pl.DataType]) -> list[pl.Expr]:
        """`encode_targets` as expressions over raw columns of these types."""
        features = self.feature_set
        needed = {source_of(label): f"label {label.name!r}" for label in features.labels}
        for what in ("weight", "group", "timestamp"):
            if (name := getattr(features, what)) is not None:
                needed[name] = f"features.{what}"
        require_columns(schema, needed)
        return [
            *(label_value(label, schema[source_of(label)]) for label in features.labels),
            _weight(features.weight, schema).alias(WEIGHT_COLUMN),
            _group(features.group, schema).alias(GROUP_COLUMN),
            _timestamp(features.timestamp, schema).alias(TIMESTAMP_COLUMN),
        ]

    def save(self, folder: Path) -> None:
        """Write `features.json` and an Arrow file per vocabulary and table into a folder."""
        for kept, frames in (
            (_VOCABULARIES, {n: values.to_frame(n) for n, values in self.vocabularies.items()}),
            (_TABLES, self.tables),
        ):
            (folder / kept).mkdir(parents=True, exist_ok=True)
            for name, frame in frames.items():
                frame.write_ipc(folder / kept / f"{name}.arrow")
        description = {**self._description(), "fingerprint": self.fingerprint}
        text = json.dumps(description, indent=1, allow_nan=False, ensure_ascii=False)
        (folder / _FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "FittedFeatures":
        """Read what `save` wrote.

        Raises:
            FittedFeaturesMismatch: A file is missing, its content is not what was saved, or the
                folder is of another format.
            RuntimeError: The installed polars-hash gives other hashes than the reference.
        """
        vocabulary.check_hash_library()
        saved = _read_description(folder)
        vocabularies = {
            name: _read(folder, _VOCABULARIES, name, (name,)).get_column(name)
            for name in saved["vocabularies"]
        }
        tables = {
            name: _read(folder, _TABLES, name, described["columns"])
            for name, described in saved["tables"].items()
        }
        loaded = cls(
            feature_set=FeatureSet.model_validate(saved["feature_set"]),
            vocabularies=vocabularies,
            boundaries=saved["boundaries"],
            moments={name: (mean, std) for name, (mean, std) in saved["moments"].items()},
            columns=tuple(RawColumn.model_validate(column) for column in saved["columns"]),
            library=saved["library"],
            tables=tables,
        )
        if loaded.fingerprint != saved["fingerprint"]:
            raise FittedFeaturesMismatch(
                f"{folder}: the fitted features are not those that were saved: expected the"
                f" fingerprint {saved['fingerprint']}, found {loaded.fingerprint}; a file was"
                " changed or replaced, so take the folder from where it was made"
            )
        return loaded

    def _description(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "library": self.library,
            "feature_set": self.feature_set.model_dump(mode="json", exclude=_OF_THE_BUILD),
            "columns": [column.model_dump(mode="json") for column in self.columns],
            "boundaries": self.boundaries,
            "moments": {name: list(moments) for name, moments in self.moments.items()},
            "vocabularies": {
                name: {"values": len(values), "sha256": vocabulary.digest(values)}
                for name, values in self.vocabularies.items()
            },
            "tables": {
                name: {"columns": table.columns, "rows": table.height, "sha256": _digest(table)}
                for name, table in self.tables.items()
            },
        }


def check_columns(feature_set: FeatureSet, schema: Mapping[str, pl.DataType]) -> None:
    """Check, before anything is fitted, that the features can read raw columns of these types.

    Raises:
        SchemaMismatch: A column is missing or of a type its feature cannot read.
    """
    FittedFeatures(feature_set, {}, {}, {}, ()).encoders(schema)


def row_key(name: str, dtype: pl.DataType) -> pl.Expr:
    """The int64 by which rows of one user (or session, query ...) are known: a hash, 0 if missing.

    Raises:
        SchemaMismatch: The raw column holds lists, or values no feature can read.
    """
    if is_list(dtype):
        raise SchemaMismatch(f"column {name!r} holds lists, so it cannot tell whose a row is")
    column_type(name, dtype)
    return vocabulary.hash_ids(canonical_text(pl.col(name), dtype))


def raw_columns(
    feature_set: FeatureSet, schema: Mapping[str, pl.DataType], nullable: Iterable[str]
) -> tuple[RawColumn, ...]:
    """The raw columns that scoring needs, in the order the features name them.

    Args:
        feature_set: The declared features.
        schema: Names and types of the training data.
        nullable: Names of the columns that have nulls there.
    """
    with_nulls = set(nullable)
    return tuple(
        RawColumn(
            name=name,
            type=column_type(name, schema[name]),
            nullable=name in with_nulls,
        )
        for name in sources_of(feature_set)
    )


def _weight(name: str | None, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    if name is None:
        return pl.lit(1.0, pl.Float32)
    if not schema[name].is_numeric():
        raise SchemaMismatch(f"features.weight: {name!r} has the type {schema[name]}, not a number")
    return pl.col(name).cast(pl.Float32)


def _group(name: str | None, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    return pl.lit(0, pl.Int64) if name is None else row_key(name, schema[name])


def _timestamp(name: str | None, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    """The time as an integer: microseconds of datetimes and dates, else the number rounded down."""
    if name is None:
        return pl.lit(0, pl.Int64)
    number, unit = time_number(name, schema[name])
    if unit:
        return number * 1000 if unit == "ms" else number // {"us": 1, "ns": 1000}[unit]
    return number.cast(pl.Int64) if schema[name].is_integer() else number.floor().cast(pl.Int64)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / _FILE
    if not path.is_file():
        raise FittedFeaturesMismatch(f"{folder} holds no fitted features: {_FILE} is missing")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FittedFeaturesMismatch(f"{path} is damaged: {error}") from error
    found = saved.get("format") if isinstance(saved, dict) else None
    if found != FORMAT:
        raise FittedFeaturesMismatch(
            f"{path} is of format {found}, this program reads format {FORMAT}; build it again"
        )
    return saved


def _digest(table: pl.DataFrame) -> str:
    """sha256 (hex) over a table's names, types and values; numbers in their shortest exact text."""
    sha = hashlib.sha256(repr(dict(table.schema)).encode())
    sha.update(table.write_ndjson().encode())
    return sha.hexdigest()


def _read(folder: Path, kept: str, name: str, columns: Iterable[str]) -> pl.DataFrame:
    path = folder / kept / f"{name}.arrow"
    if not path.is_file():
        raise FittedFeaturesMismatch(f"{folder}: {kept}/{path.name} is missing")
    try:
        return pl.read_ipc(path, columns=list(columns))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FittedFeaturesMismatch(f"{path} is damaged: {error}") from error
