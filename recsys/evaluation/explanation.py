"""What a model's scores rest on: importance of every feature, and weights over fields.

Importance holds for any model: how much AUC falls when the values of one feature are shuffled over
the rows, so that each keeps its frequency and loses its connection with everything else (Breiman,
Random Forests, 2001, section 10; Fisher et al., arXiv:1801.01489, section 3). A feature whose
values another one repeats seems of little use, as the model can read the other.

Weights are what a model with attention or gates mixed its fields with while it scored
(`AbstractRanker.explanation`). They tell what was combined, not what it was worth.

Shapes: B rows, T tasks, R lines and M fields of weights.
"""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from feature_store.features import WEIGHT_COLUMN, FeatureSet
from feature_store.kinds import columns_of
from recsys.evaluation.metrics import Array, MetricState, plain_metrics, undefined
from recsys.models.ranker import FieldWeights

_TABLE_ROWS = 512
"""Rows whose weights are written out at once: 39 fields in six heads are 9,126 weights a row."""

Predict = Callable[[pl.DataFrame], Array]
"""Encoded rows to logits (B, T)."""


@dataclass(frozen=True)
class FieldImportance:
    """What one feature is worth to a task."""

    field: str
    drop: float
    """AUC lost when it is shuffled, the mean over repeats; about 0 where it is of no use."""
    deviation: float
    """Standard deviation of the drop over repeats; NaN for one."""


@dataclass(frozen=True)
class Importance:
    """Of every feature for one task, the most important first."""

    task: str
    auc: float
    """Of the rows as they are."""
    fields: tuple[FieldImportance, ...] = ()
    undefined: str | None = None
    """Why the rows define no AUC, so that there is nothing to lose."""


@dataclass(frozen=True)
class MeanWeights:
    """Weights over fields, averaged over rows."""

    title: str
    rows: tuple[str, ...]
    """Of the R lines: fields that attend, or neurons."""
    fields: tuple[str, ...]
    """Of the M columns."""
    mean_RM: Array
    magnitude_RM: Array
    """Mean of the absolute weights: weights of both signs may cancel in their mean."""


@dataclass(frozen=True)
class Pair:
    """A line and a field that it reads strongly."""

    title: str
    row: str
    field: str
    mean: float
    magnitude: float


@dataclass(frozen=True)
class Explanation:
    """All of it, for one model on some rows."""

    source: str
    """The split or the file that the rows are of."""
    rows: int
    repeats: int
    """Shuffles of every feature."""
    importance: tuple[Importance, ...] = ()
    """By task; empty: not asked for."""
    weights: tuple[MeanWeights, ...] = ()
    """Empty: the model has none."""

    def document(self) -> dict[str, Any]:
        """As it is written to a file."""
        return {
            "source": self.source,
            "rows": self.rows,
            "repeats": self.repeats,
            "importance": [asdict(each) for each in self.importance],
            "weights": [
                {
                    "title": each.title,
                    "rows": each.rows,
                    "fields": each.fields,
                    "mean": each.mean_RM,
                    "magnitude": each.magnitude_RM,
                }
                for each in self.weights
            ],
        }

    def strongest(self, count: int) -> list[Pair]:
        """The largest mean magnitudes of a line and another field, the largest first."""
        pairs = [
            Pair(each.title, row, field, float(each.mean_RM[r, m]), float(each.magnitude_RM[r, m]))
            for each in self.weights
            for r, row in enumerate(each.rows)
            for m, field in enumerate(each.fields)
            if row != field
        ]
        return sorted(pairs, key=lambda pair: -pair.magnitude)[:count]


def columns_of_features(feature_set: FeatureSet) -> dict[str, tuple[str, ...]]:
    """Encoded columns that come from one raw value, by feature: a number and whether it was there.

    A history is a feature of its own, though it shares its vectors with another.
    """
    return {feature.name: columns_of(feature, feature_set) for feature in feature_set.inputs}


def importance(
    predict: Predict,
    encoded: pl.DataFrame,
    columns: Mapping[str, SequenceOf[str]],
    tasks: SequenceOf[str],
    *,
    repeats: int,
    seed: int = 0,
    on_field: Callable[[str], None] = lambda field: None,
) -> tuple[Importance, ...]:
    """How much AUC falls when the values of each feature are shuffled over the rows.

    All features are shuffled in the same orders, so their differences are no luck of an order.

    Args:
        predict: encoded rows to logits.
        encoded: features, labels by task, and weights.
        columns: encoded columns that are shuffled together, by feature.
        tasks: names of the labels, in the order of the logits.
        repeats: orders that every feature is shuffled in.
        seed: of the orders.
        on_field: told of every feature that begins.
    """
    whole = _metrics(predict(encoded), encoded, tasks)
    reasons = [undefined(metrics).get("auc") for metrics in whole]
    drops: dict[str, list[list[float]]] = {}
    random = np.random.default_rng(seed)
    orders = [random.permutation(encoded.height) for _ in range(repeats)]
    for field, names in columns.items():
        if all(reasons):
            break
        on_field(field)
        drops[field] = [[] for _ in tasks]
        for order in orders:
            shuffled = encoded.with_columns(encoded[name].gather(order) for name in names)
            for place, metrics in enumerate(_metrics(predict(shuffled), encoded, tasks)):
                drops[field][place].append(whole[place]["auc"] - metrics["auc"])
    results = []
    for place, (task, reason) in enumerate(zip(tasks, reasons, strict=True)):
        fields = [_field_importance(field, by_task[place]) for field, by_task in drops.items()]
        fields.sort(key=lambda each: -each.drop)
        auc = whole[place]["auc"]
        results.append(Importance(task, auc, () if reason else tuple(fields), reason))
    return tuple(results)


def _field_importance(field: str, drops: SequenceOf[float]) -> FieldImportance:
    deviation = float(np.std(drops, ddof=1)) if len(drops) > 1 else float("nan")
    return FieldImportance(field, float(np.mean(drops)), deviation)


def _metrics(
    logits_BT: Array, encoded: pl.DataFrame, tasks: SequenceOf[str]
) -> list[dict[str, float]]:
    found = []
    for place, task in enumerate(tasks):
        state = MetricState()
        weights = encoded[WEIGHT_COLUMN].to_numpy()
        state.update(logits_BT[:, place], encoded[task].to_numpy(), weights)
        found.append(plain_metrics(state.ranked()))
    return found


class WeightsOverRows:
    """Means of weights over rows, piece by piece."""

    def __init__(self) -> None:
        self.rows = 0
        self._totals: dict[tuple[str, tuple[str, ...], tuple[str, ...]], tuple[Array, Array]] = {}

    def add(self, found: SequenceOf[FieldWeights]) -> None:
        """Add a piece's weights; all pieces have the same titles, lines and fields."""
        piece = {}
        for each in found:
            values_BRM = each.values_BRM.double().numpy()
            sums = values_BRM.sum(axis=0), np.abs(values_BRM).sum(axis=0)
            piece[each.title, each.rows, each.fields] = sums
        assert not self._totals or piece.keys() == self._totals.keys(), "the model names weights"
        for key, (sum_RM, magnitude_RM) in piece.items():
            before = self._totals.get(key, (0.0, 0.0))
            self._totals[key] = (before[0] + sum_RM, before[1] + magnitude_RM)
        self.rows += len(found[0].values_BRM) if found else 0

    def means(self) -> tuple[MeanWeights, ...]:
        """Over all rows alike; a padded position counts with the weight the model gave it, 0."""
        return tuple(
            MeanWeights(title, rows, fields, sum_RM / self.rows, magnitude_RM / self.rows)
            for (title, rows, fields), (sum_RM, magnitude_RM) in self._totals.items()
        )


def weight_tables(found: SequenceOf[FieldWeights], rows_B: Array) -> Iterator[pl.DataFrame]:
    """One line a weight: `row` (its number of `rows_B`), `title`, `line`, `field`, `weight`."""
    for each in found:
        lines, fields = pl.Series(each.rows), pl.Series(each.fields)
        for start in range(0, len(each.values_BRM), _TABLE_ROWS):
            values_BRM = each.values_BRM[start : start + _TABLE_ROWS].float().numpy()
            row_W, line_W, field_W = (axis.reshape(-1) for axis in np.indices(values_BRM.shape))
            yield pl.DataFrame(
                {
                    "row": rows_B[start + row_W].astype(np.int64),
                    "title": pl.repeat(each.title, values_BRM.size, eager=True),
                    "line": lines.gather(line_W),
                    "field": fields.gather(field_W),
                    "weight": values_BRM.reshape(-1),
                }
            )
