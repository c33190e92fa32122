"""Several ids a row: bags and sequences, with weights and with gaps in time."""

from typing import Any

import polars as pl

from feature_store import columns, expressions
from feature_store.columns import SchemaMismatch
from feature_store.features import (
    FIRST_ID,
    UNSEEN_ID,
    Bag,
    FeatureSet,
    IdField,
    Sequence,
    TimeUnit,
    source_of,
)
from feature_store.kinds.kind import (
    Counts,
    Fault,
    Kind,
    Learned,
    Schema,
    as_list,
    list_length,
    vocabulary_size,
)

DEFAULT_GAPS = 32
"""Buckets of gaps: the last is of 2^31 - 1 seconds (68 years) and more."""
_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0.001}


class BagKind(Kind[Bag]):
    """`Bag`: see there."""

    def reads(self, feature: Bag, features: FeatureSet) -> tuple[str, ...]:
        """The values, and their weights where there are any."""
        return (source_of(feature), *((feature.weights,) if feature.weights is not None else ()))

    def separators(self, feature: Bag) -> dict[str, str]:
        """That of the source."""
        return {source_of(feature): feature.separator}

    def refers(self, feature: Bag) -> tuple[str, ...]:
        """The feature whose ids it shares."""
        return () if feature.of is None else (feature.of,)

    def hashed(self, feature: Bag) -> bool:
        """As declared."""
        return feature.of is None and feature.encoding == "hash"

    def counts(
        self, feature: Bag, features: FeatureSet, schema: Schema, learned: Learned
    ) -> Counts | None:
        """The canonical texts of all elements."""
        if feature.of is not None or self.hashed(feature):
            return None
        dtype = schema[source_of(feature)]
        values = expressions.as_lists(feature, dtype).explode()
        texts = columns.canonical_text(values, columns.element_type(dtype))
        return Counts(texts, feature.min_count, feature.max_size, feature.max_distinct)

    def crossed(
        self, feature: Bag, features: FeatureSet, schema: Schema, learned: Learned
    ) -> pl.Expr | None:
        """The canonical texts of the first `max_length` values that are there."""
        dtype = schema[source_of(feature)]
        text = columns.canonical_text(pl.element(), columns.element_type(dtype))
        texts = expressions.as_lists(feature, dtype).list.eval(text.filter(text != ""))
        return texts if feature.max_length is None else texts.list.head(feature.max_length)

    def faults(self, feature: Bag, features: FeatureSet, schema: Schema) -> list[Fault]:
        """Weights of another number than the values, or that are no weights."""
        return _weight_faults(feature, feature.weights, schema)

    def encode(
        self, feature: Bag, features: FeatureSet, schema: Schema, learned: Learned
    ) -> list[pl.Expr]:
        """The list of ids, and that of weights."""
        index = learned.indexes.get(feature.of or feature.name)
        ids = expressions.id_list(feature, schema[source_of(feature)], index)
        if feature.weights is None:
            return [ids]
        kept = _kept(feature, schema)
        return [ids, _weights(feature, feature.weights, kept, schema)]

    def id_fields(
        self, feature: Bag, features: FeatureSet, learned: Learned
    ) -> tuple[IdField, ...]:
        """One bag."""
        space = feature.of or feature.name
        field = IdField(
            name=feature.name,
            shape="bag",
            side=feature.side,
            space=space,
            cardinality=vocabulary_size(space, learned),
            max_length=feature.max_length,
            weighted=feature.weights is not None,
        )
        return (field,)


class SequenceKind(Kind[Sequence]):
    """`Sequence`: see there."""

    def reads(self, feature: Sequence, features: FeatureSet) -> tuple[str, ...]:
        """The values, their weights and their times where there are any."""
        found = [source_of(feature)]
        if feature.weights is not None:
            found.append(weights_of(feature))
        if feature.gaps:
            assert features.timestamp is not None, "a sequence with gaps demands it"
            found += [times_of(feature), features.timestamp]
        return tuple(found)

    def logged(self, feature: Sequence, features: FeatureSet) -> dict[str, str]:
        """The lists themselves, or the columns from which the build gathers them."""
        if feature.history is None:
            return super().logged(feature, features)
        needed = [feature.history.by]
        if feature.weights is not None:
            needed.append(feature.weights)
        return dict.fromkeys(needed, f"the history of {feature.name!r}")

    def separators(self, feature: Sequence) -> dict[str, str]:
        """That of the source."""
        return {source_of(feature): feature.separator}

    def refers(self, feature: Sequence) -> tuple[str, ...]:
        """The feature whose ids it shares."""
        return (feature.of,)

    def faults(self, feature: Sequence, features: FeatureSet, schema: Schema) -> list[Fault]:
        """Weights or times of another number than the values, or that are no weights."""
        if source_of(feature) not in schema:  # the log, before histories are gathered
            if feature.weights is None or feature.weights not in schema:
                return []
            return [_weight_fault(feature, feature.weights, schema)]
        faults: list[Fault] = []
        if feature.weights is not None:
            faults += _weight_faults(feature, weights_of(feature), schema)
        if feature.gaps and times_of(feature) in schema:
            faults.append(_length_fault(feature, times_of(feature), "times", schema))
        return faults

    def encode(
        self, feature: Sequence, features: FeatureSet, schema: Schema, learned: Learned
    ) -> list[pl.Expr]:
        """The list of ids, and those of weights and gaps."""
        index = learned.indexes.get(feature.of)
        encoded = [expressions.id_list(feature, schema[source_of(feature)], index)]
        if feature.weights is None and not feature.gaps:
            return encoded
        kept = _kept(feature, schema)
        if feature.weights is not None:
            encoded.append(_weights(feature, weights_of(feature), kept, schema))
        if feature.gaps:
            assert features.timestamp is not None, "a sequence with gaps demands it"
            encoded.append(_gaps(feature, features.timestamp, kept, schema))
        return encoded

    def id_fields(
        self, feature: Sequence, features: FeatureSet, learned: Learned
    ) -> tuple[IdField, ...]:
        """One sequence, in the space of another feature, and that of gaps."""
        values = IdField(
            name=feature.name,
            shape="sequence",
            side=feature.side,
            space=feature.of,
            cardinality=vocabulary_size(feature.of, learned),
            max_length=feature.max_length,
            weighted=feature.weights is not None,
        )
        if not feature.gaps:
            return (values,)
        gaps = IdField(
            name=f"{feature.name}__gap",
            shape="sequence",
            side=feature.side,
            space=f"{feature.name}__gap",
            cardinality=num_gaps(feature) + FIRST_ID,
            max_length=feature.max_length,
            gaps_of=feature.name,
        )
        return (values, gaps)


def num_gaps(feature: Sequence) -> int:
    """Buckets of a sequence's gaps."""
    return DEFAULT_GAPS if feature.gaps is True else int(feature.gaps)


def times_of(feature: Sequence) -> str:
    """The raw column with the times of a sequence's values, as lists."""
    return f"{source_of(feature)}__time"


def weights_of(feature: Sequence) -> str:
    """The raw column with a sequence's weights, as lists."""
    assert feature.weights is not None, "asked of weighted sequences only"
    return feature.weights if feature.history is None else f"{source_of(feature)}__weight"


def _values(feature: Bag | Sequence, dtype: pl.DataType) -> pl.Expr:
    """The raw values to which weights and times belong: those of a text that are not empty."""
    lists = expressions.as_lists(feature, dtype)
    if columns.is_list(dtype):
        return lists
    return lists.list.eval(pl.element().filter(pl.element() != ""))


def _kept(feature: Bag | Sequence, schema: Schema) -> pl.Expr:
    """Places in the raw list of the values that become ids."""
    dtype = schema[source_of(feature)]
    text = columns.canonical_text(pl.element(), columns.element_type(dtype))
    kept = _values(feature, dtype).list.eval((text != "").fill_null(False).arg_true())
    if isinstance(feature, Sequence):
        return kept.list.tail(feature.max_length)
    return kept if feature.max_length is None else kept.list.head(feature.max_length)


def _weights(feature: Bag | Sequence, column: str, kept: pl.Expr, schema: Schema) -> pl.Expr:
    """list<float32>; what is no weight, in rows that `faults` would find, is 0."""
    _require_lists(feature, column, "weights", schema)
    weights = as_list(column, schema).cast(pl.List(pl.Float32))
    is_good = ((pl.element() >= 0.0) & pl.element().is_finite()).fill_null(False)
    chosen = weights.list.gather(kept, null_on_oob=True)
    chosen = chosen.list.eval(pl.when(is_good).then(pl.element()).otherwise(0.0))
    return chosen.fill_null(pl.lit([], pl.List(pl.Float32))).alias(f"{feature.name}__weight")


def _gaps(feature: Sequence, timestamp: str, kept: pl.Expr, schema: Schema) -> pl.Expr:
    """The bucket of every kept value's distance in time to its row."""
    column = times_of(feature)
    element = columns.element_type(schema[column])
    if (
        not columns.is_list(schema[column])
        or not _is_time(element)
        or (element.is_temporal() != schema[timestamp].is_temporal() and element != pl.Null)
    ):
        raise SchemaMismatch(
            f"sequence {feature.name!r} with gaps needs {column!r} as lists of times like"
            f" {timestamp!r} ({schema[timestamp]}), but it has the type {schema[column]}"
        )
    then = as_list(column, schema).list.eval(
        _microseconds(pl.element(), element, feature.time_unit)
    )
    now = _microseconds(pl.col(timestamp), schema[timestamp], feature.time_unit)
    gaps = (now - then).list.gather(kept, null_on_oob=True)
    bounds = [(2.0**power - 1) * _MICROSECONDS["s"] for power in range(1, num_gaps(feature))]
    gap = pl.element()
    bucket = gap.bin_intervals(bounds, labels=False).cast(pl.Int64) + FIRST_ID
    known = (gap >= 0).fill_null(False)
    ids = gaps.list.eval(pl.when(known).then(bucket).otherwise(pl.lit(UNSEEN_ID, pl.Int64)))
    return ids.fill_null(pl.lit([], pl.List(pl.Int64))).alias(f"{feature.name}__gap")


def _microseconds(time: pl.Expr, dtype: pl.DataType, unit: TimeUnit) -> pl.Expr:
    """A time as float64, finite or null: exact to a microsecond for 280 years around 1970."""
    if isinstance(dtype, pl.Datetime):
        number, factor = columns.utc(time, dtype).cast(pl.Datetime("us")).cast(pl.Int64), 1.0
    elif isinstance(dtype, pl.Date):
        number, factor = time.cast(pl.Datetime("us")).cast(pl.Int64), 1.0
    else:
        number, factor = time, _MICROSECONDS[unit]
    value = number.cast(pl.Float64) * factor
    return pl.when(value.is_finite()).then(value)


def _is_time(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.Datetime | pl.Date | pl.Null) or dtype.is_numeric()


def _require_lists(feature: Any, column: str, what: str, schema: Schema) -> None:
    element = columns.element_type(schema[column])
    numbers = element.is_numeric() or element == pl.Null
    if not columns.is_list(schema[column]) or not numbers:
        raise SchemaMismatch(
            f"{feature.kind} {feature.name!r}: its {what} {column!r} have the type"
            f" {schema[column]}; expected lists of numbers: declare the column as list<float>"
        )


def _weight_faults(feature: Bag | Sequence, column: str | None, schema: Schema) -> list[Fault]:
    if column is None or column not in schema or source_of(feature) not in schema:
        return []
    _require_lists(feature, column, "weights", schema)
    weights = as_list(column, schema).cast(pl.List(pl.Float32))
    is_good = (pl.element() >= 0.0) & pl.element().is_finite()
    is_bad = ~weights.list.eval(is_good.fill_null(False)).list.all()
    return [
        _length_fault(feature, column, "weights", schema),
        Fault(
            f"weights of {feature.name!r}",
            "finite numbers that are not negative",
            column,
            is_bad.fill_null(False),
        ),
    ]


def _weight_fault(feature: Sequence, column: str, schema: Schema) -> Fault:
    """Of one weight a row of the log."""
    if not schema[column].is_numeric():
        raise SchemaMismatch(
            f"sequence {feature.name!r}: its weights {column!r} have the type {schema[column]};"
            " expected a number: declare the column as float"
        )
    weight = pl.col(column).cast(pl.Float32)
    is_good = ((weight >= 0.0) & weight.is_finite()).fill_null(False)
    what = f"weights of {feature.name!r}"
    return Fault(what, "a finite number that is not negative", column, ~is_good)


def _length_fault(feature: Bag | Sequence, column: str, what: str, schema: Schema) -> Fault:
    name = source_of(feature)
    values = _values(feature, schema[name]).list.len().fill_null(0)
    length = list_length(column, schema).fill_null(0)
    return Fault(
        f"{what} of {feature.name!r}",
        f"as many as there are values in {name!r}",
        column,
        values != length,
    )
