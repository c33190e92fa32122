"""The declared features: a class per kind, with what a user may set.

All else of a kind is in `feature_store.kinds`.
"""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, NonNegativeFloat, model_validator

from feature_store.declaration import Input, Neighbours, Side, TimeUnit
from feature_store.id_inputs import Bag, Categorical, Cross, DatePart, Sequence, Text
from feature_store.names import nearest


class Numeric(Input):
    """A number: kept as float32, or cut at quantiles of the training split into ids."""

    kind: Literal["numeric"] = "numeric"
    name: str
    source: str | None = None
    """Raw column; the feature's name if absent."""
    side: Side = "context"
    log1p: bool = False
    """sign(x) * log(1 + |x|) before anything else."""
    standardize: bool = False
    """Subtract the mean and divide by the standard deviation of the training split (of its numbers
    up to 3.4e38, which is as far as a float32 goes)."""
    num_buckets: Annotated[int, Field(ge=2)] | None = None
    """Turn the number into one of so many quantile buckets of the training split (an id)."""
    default: FiniteFloat = 0.0
    """Stands for a missing, NaN or infinite value, after log1p and standardisation."""
    indicator: bool = False
    """Add the number `<name>__missing`: 1.0 where the raw value was missing, else 0.0."""

    @model_validator(mode="after")
    def _bucketed_or_scaled(self) -> "Numeric":
        if self.num_buckets is not None and (self.standardize or self.indicator):
            raise ValueError(
                f"numeric feature {self.name!r}: num_buckets makes ids (a missing value has its"
                " own), so standardize and indicator do not apply; drop them or num_buckets"
            )
        return self


class Vector(Input):
    """A precomputed dense vector, such as an embedding of a text: one number a dimension.

    A list of another length is an error where rows are read: a build rejects the row, a server the
    request. A null, or a vector with a null, NaN or infinite number in it, is missing as a whole.
    """

    kind: Literal["vector"] = "vector"
    name: str
    source: str | None = None
    """Raw column of lists of numbers."""
    side: Side = "context"
    dim: Annotated[int, Field(ge=1, le=4096)]
    """Length of every list; the numbers are the columns `<name>__0`, `<name>__1` ..."""
    default: FiniteFloat = 0.0
    """Every number of a missing vector."""
    indicator: bool = False
    """Add the number `<name>__missing`: 1.0 where the vector was missing, else 0.0."""

    def check(self, neighbours: Neighbours) -> None:
        """Its columns must not have the name of another feature."""
        for place in range(self.dim):
            if (taken := f"{self.name}__{place}") in neighbours.features:
                raise ValueError(
                    f"vector {self.name!r} has a column {taken!r}, which is the name of another"
                    " feature; rename one of them"
                )


class Frequency(Input):
    """How often a value, or a combination of values, is there in the training split.

    0 for missing values and for those that the training split does not have.
    """

    kind: Literal["frequency"] = "frequency"
    name: str
    source: str | None = None
    together_with: tuple[str, ...] = ()
    """Further raw columns: it is the combination of all their values that is counted."""
    side: Side = "context"
    scale: Literal["log1p", "share"] = "log1p"
    """log(1 + count), or the share of the training rows."""

    def check(self, neighbours: Neighbours) -> None:
        """It must not count a label."""
        _check_combination(self, neighbours)


class TargetEncoding(Input):
    """How often a label is 1 where a value, or a combination of values, is there.

    (positives + smoothing x prior) / (rows + smoothing) over the training split, where prior is
    the rate of all its rows; the prior itself for missing and unseen values. A training row gets
    the value of the training rows outside its own fold, so that it does not see its own label;
    other splits and requests get that of all training rows.
    """

    kind: Literal["target_encoding"] = "target_encoding"
    name: str
    source: str | None = None
    together_with: tuple[str, ...] = ()
    """Further raw columns: it is the combination of all their values that is encoded."""
    side: Side = "context"
    label: str | None = None
    """Name of the label; the first one if absent."""
    folds: Annotated[int, Field(ge=2, le=100)] = 5
    """A row's fold is a hash of its place in the source, whoever encodes it."""
    smoothing: Annotated[NonNegativeFloat, Field(allow_inf_nan=False)] = 20.0
    """Rows that the prior counts for."""

    def check(self, neighbours: Neighbours) -> None:
        """The label must be there, and must not be read as a value."""
        if self.label is not None and self.label not in neighbours.labels:
            raise ValueError(
                f"target_encoding {self.name!r} is of the label {self.label!r};"
                f" {nearest(self.label, list(neighbours.labels))}"
            )
        _check_combination(self, neighbours)


def _check_combination(feature: Frequency | TargetEncoding, neighbours: Neighbours) -> None:
    names = [feature.source or feature.name, *feature.together_with]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{feature.kind} {feature.name!r} names the column {name!r} twice")
        if name in neighbours.label_columns:
            raise ValueError(
                f"{feature.kind} {feature.name!r} reads {name!r}, from which the label"
                f" {neighbours.label_columns[name]!r} comes: it would tell what is to be predicted"
            )


class Elapsed(Input):
    """Seconds from one time of a row to another, such as since an item was published.

    Missing where one of the times is missing or no plausible time (years outside 1 to 9999), and,
    as declared, where the first comes after the second: what is known of the future is a leak more
    often than a feature.
    """

    kind: Literal["elapsed"] = "elapsed"
    name: str
    source: str
    """Raw column of the first time: datetimes, dates, or numbers since 1970."""
    side: Side = "context"
    until: str | None = None
    """Raw column of the second time; features.timestamp if absent. A request must have it."""
    unit: TimeUnit = "s"
    """Unit of numbers in `source`."""
    until_unit: TimeUnit = "s"
    """Unit of numbers in `until`."""
    log1p: bool = True
    """sign(x) * log(1 + |x|) of the seconds."""
    standardize: bool = False
    """Subtract the mean and divide by the standard deviation of the training split."""
    future: Literal["missing", "negative"] = "missing"
    """What it is where `source` comes after `until`: missing, or the negative number that it is."""
    default: FiniteFloat = 0.0
    """Stands for a missing value, after log1p and standardisation."""
    indicator: bool = False
    """Add the number `<name>__missing`: 1.0 where the value was missing, else 0.0."""

    def check(self, neighbours: Neighbours) -> None:
        """There must be a second time."""
        if self.until is None and neighbours.timestamp is None:
            raise ValueError(
                f"elapsed {self.name!r} needs features.timestamp, or `until`: the raw column of the"
                " time up to which to count"
            )


Feature = Annotated[
    Numeric
    | Categorical
    | Bag
    | Sequence
    | DatePart
    | Cross
    | Text
    | Vector
    | Frequency
    | TargetEncoding
    | Elapsed,
    Field(discriminator="kind"),
]
"""A feature of any kind; a new kind is a class here and a line in `feature_store.kinds.KINDS`."""
