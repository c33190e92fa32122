"""Leaving most negatives out of the training split, as one does where clicks are rare."""

from collections.abc import Mapping
from typing import Annotated

import polars as pl
import polars_hash  # noqa: F401 - registers the `nchash` namespace of expressions
from pydantic import Field, NonNegativeInt

from feature_store.config import Config
from feature_store.encoding import label_value
from feature_store.features import ROW_COLUMN, SPLIT_COLUMN, FeatureSet, Label, nearest, source_of


class DownsamplingConfig(Config):
    """Which training rows are left out.

    A model learns probabilities q that are too high by it; whatever scores with it outside of
    training corrects them: p = q / (q + (1 - q) / rate) (He et al., ADKDD 2014, "Practical lessons
    from predicting clicks on ads at Facebook", section 6.3).
    """

    rate: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the negatives that is kept."""
    label: str | None = None
    """A row is negative where this label is 0; absent: the only label. With several, all others
    must be 0 in such a row (nobody buys what they did not click), as their probabilities could not
    be corrected otherwise."""
    seed: NonNegativeInt = 0
    """Of the hash of the row's place in the source that decides."""

    def chosen(self, feature_set: FeatureSet) -> Label:
        """The label that tells negatives.

        Raises:
            ValueError: there is none of that name, or several to choose from.
        """
        labels = {label.name: label for label in feature_set.labels}
        if self.label is None and len(labels) == 1:
            return feature_set.labels[0]
        if self.label is None:
            raise ValueError(
                "label: say which label's 0 makes a row negative; there are"
                f" {', '.join(labels)}, and whatever is 1 must not be 1 without it"
            )
        if self.label not in labels:
            raise ValueError(f"label {self.label!r} is none; {nearest(self.label, list(labels))}")
        return labels[self.label]


def downsampled(
    raw: pl.LazyFrame, config: DownsamplingConfig, feature_set: FeatureSet
) -> pl.LazyFrame:
    """The rows without the training rows that are left out, after `require_no_other`.

    Args:
        raw: The rows with `__row` and `split`.
        config: Which to leave out.
        feature_set: The labels.

    Raises:
        ValueError: A row that counts as negative has another label that is 1.
    """
    require_no_other(raw, config, feature_set)
    return thinned(raw, config, feature_set)


def thinned(raw: pl.LazyFrame, config: DownsamplingConfig, feature_set: FeatureSet) -> pl.LazyFrame:
    """The rows without the training rows that are left out."""
    negative = _negative(raw.collect_schema(), config, feature_set)
    # Not the split's own hash, whose smallest values are test and validation rows.
    text = pl.concat_str(pl.lit("negative "), pl.col(ROW_COLUMN).cast(pl.String))
    bits = text.nchash.xxhash64(seed=config.seed)  # type: ignore[attr-defined]
    return raw.filter(~negative | (bits.cast(pl.Float64) / 2.0**64 < config.rate))


def require_no_other(
    raw: pl.LazyFrame, config: DownsamplingConfig, feature_set: FeatureSet
) -> None:
    """Check that the rows that count as negative have no other label that is 1.

    Raises:
        ValueError: Names the label and the number of such rows.
    """
    schema = raw.collect_schema()
    chosen = config.chosen(feature_set)
    others = [label for label in feature_set.labels if label.name != chosen.name]
    if not others:
        return
    against = [
        (label_value(label, schema[source_of(label)]) > 0).sum().alias(label.name)
        for label in others
    ]
    negative = raw.filter(_negative(schema, config, feature_set))
    found = negative.select(against).collect(engine="streaming").row(0, named=True)
    for name, rows in found.items():
        if rows:
            raise ValueError(
                f"data.negative_downsampling: label {name!r} is 1 in {rows:,} training rows"
                f" whose label {chosen.name!r} is 0, so leaving such rows out would change the"
                f" probability of {name!r} in a way that cannot be corrected; name another"
                " label, or drop negative_downsampling"
            )


def _negative(
    schema: Mapping[str, pl.DataType], config: DownsamplingConfig, feature_set: FeatureSet
) -> pl.Expr:
    chosen = config.chosen(feature_set)
    value = label_value(chosen, schema[source_of(chosen)])
    return (pl.col(SPLIT_COLUMN) == "train") & (value == 0)
