"""Which values of which features a training found worth keeping: as a file, and in a build.

The file has a row for every row of every table that the training chose from: columns `feature`,
`id` (the row), `value` (the raw value; null for missing and unseen values, and where rows are
hashed or of buckets), `gate` (the weight it was decided by) and `kept`.

A build that is given it makes vocabularies of kept values alone, so all others are out of
vocabulary (values that the training never saw, too), and leaves out features of which no row is
kept. Features that are not in the file, and ids that come from no vocabulary, stay as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from feature_store.features import FeatureSet, nearest
from feature_store.kinds import kind_of

SELECTION_FILE = "selected_features.parquet"
SCHEMA = {
    "feature": pl.String(),
    "id": pl.Int64(),
    "value": pl.String(),
    "gate": pl.Float32(),
    "kept": pl.Boolean(),
}


class SelectionMismatch(ValueError):
    """A file that is no selection, or one that does not fit the features."""


@dataclass(frozen=True, eq=False)
class Selection:
    """What is kept."""

    path: Path
    rows: Mapping[str, tuple[int, int]]
    """By feature: kept rows, and all."""
    values: Mapping[str, pl.Series]
    """By feature with a vocabulary: its kept values, as text."""

    def applied(
        self, features: FeatureSet, needed: Mapping[str, str]
    ) -> tuple[FeatureSet, "Selection", tuple[str, ...]]:
        """The features without those of which nothing is kept.

        Args:
            features: as declared.
            needed: why a feature cannot be left out, by its name.

        Returns:
            The features that are left, what is kept of them, and a line for every feature of which
            not all is.

        Raises:
            SelectionMismatch: the file names other features, or keeps nothing at all.
        """
        declared = [feature.name for feature in features.inputs]
        for name in self.rows:
            if name not in declared:
                raise SelectionMismatch(
                    f"features.selection {self.path}: it chooses from feature {name!r}, which"
                    f" features.inputs does not have; {nearest(name, declared)}"
                )
        reasons = {
            name: f"the {f.kind} {f.name!r} is of it"
            for f in features.inputs
            for name in kind_of(f).refers(f)
        } | dict(needed)
        dropped, whole, lines = set(), set(), []
        for name, (kept, total) in self.rows.items():
            if kept == total:
                continue
            if kept:
                lines.append(f"feature {name!r}: {kept:,} of {total:,} rows are selected")
            elif name in reasons:
                whole.add(name)
                lines.append(f"feature {name!r}: none is selected, kept whole as {reasons[name]}")
            else:
                dropped.add(name)
                lines.append(f"feature {name!r}: none of {total:,} rows is selected, left out")
        left = tuple(feature for feature in features.inputs if feature.name not in dropped)
        if not left:
            raise SelectionMismatch(
                f"features.selection {self.path} keeps nothing of any feature; search with less"
                " pressure (a smaller l1)"
            )
        values = {n: v for n, v in self.values.items() if n not in dropped | whole}
        kept_features = features.model_copy(update={"inputs": left, "selection": None})
        return kept_features, Selection(self.path, self.rows, values), tuple(lines)

    def vocabulary(self, name: str, values: pl.Series) -> pl.Series:
        """The kept ones of a feature's values, in their order."""
        kept = self.values.get(name)
        return values if kept is None else values.filter(values.is_in(kept.implode()))


def read_selection(path: Path) -> Selection:
    """Read what a training wrote.

    Raises:
        FileNotFoundError: there is no such file.
        SelectionMismatch: it is no selection.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"features.selection: there is no file {path}; name the {SELECTION_FILE} in the folder"
            " of a run that selected features (scheme optfs)"
        )
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SelectionMismatch(
            f"features.selection: {path} is no Parquet file: {error}"
        ) from error
    if dict(frame.schema) != SCHEMA:
        raise SelectionMismatch(
            f"features.selection: {path} is no selection: expected the columns"
            f" {', '.join(SCHEMA)}, found {', '.join(frame.columns)}"
        )
    counts = frame.group_by("feature", maintain_order=True).agg(
        pl.col("kept").sum(), pl.len().alias("rows"), pl.col("value").count().alias("values")
    )
    rows, values = {}, {}
    for name, kept, num_rows, num_values in counts.iter_rows():
        rows[name] = (kept, num_rows)
        if num_values:
            mine = frame.filter((pl.col("feature") == name) & pl.col("kept"))
            values[name] = mine.get_column("value").drop_nulls()
    return Selection(path, rows, values)
