"""What changed between two sets of rows: versions, splits, or days of one version.

Every column is cut into *cells*: the most frequent values of both, each; all others as the tail;
missing; unseen (what the reference's vocabulary does not have); numbers at the quantiles
of the reference and at its ends. Compared are the shares of entries (see `feature_store.tallies`)
over the cells:

- PSI, the population stability index, sum of (q - p) ln(q / p) over the cells, p in the reference.
  Half a row is added to every cell on both sides, so an empty cell is a large change and not an
  infinite one. Rows that differ by chance alone give less than `psi_by_chance` in 95% of all cases:
  (1/n + 1/m) times the 95% point of chi-square with a degree of freedom less than there are cells
  (Yurdakul 2018, "Statistical properties of population stability index"). Few rows over many cells
  give a large PSI without any drift.
- the Jensen-Shannon divergence in bits (Lin 1991): 0 for equal shares, 1 where nothing is shared.
- `affected`, the share of the traffic in cells that changed: those whose share grew or shrank by
  more than the factor `FACTOR`, and by more than 3 standard errors of two such samples. Of those
  cells, half their share before and half their share now; 1 where nothing is shared.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import polars as pl

from feature_store.config import Config
from feature_store.encoding import FittedFeatures
from feature_store.features import (
    FIRST_ID,
    MISSING_ID,
    SPLITS,
    UNSEEN_ID,
    IdField,
)
from feature_store.profile import Meaning
from feature_store.sketches import Array, NumberBins
from feature_store.store import Version
from feature_store.tallies import IdTally, Tally, merged, tally

Of = Literal["values", "numbers", "lengths", "label"]

FACTOR = 1.5
MAX_VALUES = 100
"""Values that are cells of their own; the others are the tail."""
MIN_CELL_ENTRIES = 10
"""What a value needs to be a cell, in both sides together."""
NUM_QUANTILES = 10
MAX_CHANGES = 13
"""Cells of a feature that a document tells of, the most changed."""
MAX_EXAMPLES = 10
_PRIOR = 0.5
_STANDARD_ERRORS = 3.0
_NORMAL_95 = 1.6448536269514722
_MISSING, _UNSEEN, _TAIL = "(missing)", "(unseen)", "(others)"


class CellChange(Config):
    """One cell of a feature."""

    value: str
    reference: float
    """Share of the reference's entries."""
    current: float


class ValueChange(Config):
    """Values that only one side has."""

    values: int
    share: float
    """Of the entries of the side that has them."""
    examples: tuple[str, ...]
    """The most frequent."""


class FeatureDrift(Config):
    """One feature; all numbers are None where the two sides cannot be compared."""

    name: str
    of: Of
    incomparable: str | None = None
    """Why there are no numbers."""
    psi: float | None = None
    psi_by_chance: float | None = None
    jensen_shannon: float | None = None
    affected: float | None = None
    changes: tuple[CellChange, ...] = ()
    """The most changed cells: by their part in PSI, but parts of a number in their order."""
    new: ValueChange | None = None
    """Values that the current rows have and the reference has not; None for hashes and numbers."""
    vanished: ValueChange | None = None

    @property
    def drifted(self) -> bool:
        """Whether PSI is more than chance gives."""
        return self.psi is not None and self.psi > (self.psi_by_chance or 0.0)


class Drift(Config):
    """From the reference to the current rows."""

    reference: str
    """In words."""
    current: str
    reference_rows: int
    current_rows: int
    factor: float = FACTOR
    features: tuple[FeatureDrift, ...]
    """Those with the most traffic affected first, then by PSI."""
    only_reference: tuple[str, ...] = ()
    """Names of columns that the current rows do not have."""
    only_current: tuple[str, ...] = ()

    def feature(self, name: str, of: str | None = None) -> FeatureDrift:
        """The first of that name (and of that kind); KeyError if there is none."""
        for feature in self.features:
            if feature.name == name and of in (None, feature.of):
                return feature
        raise KeyError(name)


@dataclass(frozen=True)
class Side:
    """One of two sets of rows that are compared."""

    words: str
    tally: Tally
    fitted: FittedFeatures


def side(version: Version, splits: Sequence[str] = SPLITS) -> Side:
    """The rows of some splits of a version, counted in one pass."""
    words = f"{version.name}@{version.number}"
    if tuple(splits) != SPLITS:
        words += f" {' + '.join(splits)}"
    counted = [tally(version.files(split), version.layout) for split in splits]
    return Side(words, merged(counted, version.layout), version.fitted)


def drift(reference: Side, current: Side) -> Drift:
    """What changed, feature by feature, and the labels.

    Raises:
        ValueError: One of the two has no rows.
    """
    for each in (reference, current):
        if not each.tally.rows:
            raise ValueError(f"{each.words} has no rows, so there is no drift to measure")
    old, new = reference.tally, current.tally
    found = [
        *_labels(old, new),
        *(d for name in old.ids if name in new.ids for d in _of_ids(name, reference, current)),
        *(_of_numbers(name, reference, current) for name in old.numbers if name in new.numbers),
    ]
    before, now = ((*t.ids, *t.numbers, *t.layout.tasks) for t in (old, new))
    return Drift(
        reference=reference.words,
        current=current.words,
        reference_rows=old.rows,
        current_rows=new.rows,
        features=tuple(sorted(found, key=_by_impact)),
        only_reference=tuple(name for name in before if name not in now),
        only_current=tuple(name for name in now if name not in before),
    )


def _by_impact(feature: FeatureDrift) -> tuple[float, float, str]:
    if feature.psi is None or feature.affected is None:
        return (1.0, 0.0, feature.name)
    return (-feature.affected, -feature.psi, feature.name)


# --- the numbers ----------------------------------------------------------------------------------


def psi(reference_C: Array, current_C: Array) -> float:
    """The population stability index of two vectors of counts, half a row added to each cell."""
    p_C, q_C = _smoothed(reference_C), _smoothed(current_C)
    return float(np.sum((q_C - p_C) * np.log(q_C / p_C)))


def psi_by_chance(reference_rows: int, current_rows: int, num_cells: int) -> float:
    """What PSI stays below in 95% of all pairs of samples of one distribution."""
    if num_cells < 2:
        return 0.0
    freedom = num_cells - 1
    # Wilson & Hilferty (1931); within 2% of the exact point, also for one degree of freedom.
    cube = 1 - 2 / (9 * freedom) + _NORMAL_95 * math.sqrt(2 / (9 * freedom))
    return (1 / reference_rows + 1 / current_rows) * freedom * cube**3


def jensen_shannon(reference_C: Array, current_C: Array) -> float:
    """The Jensen-Shannon divergence in bits of two vectors of counts."""
    p_C, q_C = reference_C / reference_C.sum(), current_C / current_C.sum()
    middle_C = (p_C + q_C) / 2
    return max(0.0, _entropy(middle_C) - (_entropy(p_C) + _entropy(q_C)) / 2)


def affected(reference_C: Array, current_C: Array, rows: tuple[int, int] | None = None) -> float:
    """Share of the traffic in cells that changed, as the module says.

    Args:
        reference_C: Entries by cell.
        current_C: Likewise.
        rows: What the standard error counts, where the entries of a row hang together; the
            entries themselves if absent.
    """
    p_C, q_C = reference_C / reference_C.sum(), current_C / current_C.sum()
    n, m = rows or (int(reference_C.sum()), int(current_C.sum()))
    pooled_C = (p_C * n + q_C * m) / (n + m)
    error_C = np.sqrt(pooled_C * (1 - pooled_C) * (1 / n + 1 / m))
    beyond_C = np.maximum(p_C, q_C) > FACTOR * np.minimum(p_C, q_C)
    changed_C = beyond_C & (np.abs(q_C - p_C) > _STANDARD_ERRORS * error_C)
    return float((p_C[changed_C].sum() + q_C[changed_C].sum()) / 2)


def _smoothed(counts_C: Array) -> Array:
    return (counts_C + _PRIOR) / (counts_C.sum() + _PRIOR * len(counts_C))


def _entropy(shares_C: Array) -> float:
    positive = shares_C[shares_C > 0]
    return float(-np.sum(positive * np.log2(positive)))


# --- cells ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """How the ids or numbers of a column fall into cells."""

    names: tuple[str, ...]
    place: Callable[[Array], Array]
    """From ids or numbers to cells; missing ones are not asked for."""
    missing: int
    """The cell of missing values."""

    def count(self, values_U: Array, entries_U: Array, missing: int) -> Array:
        """Entries by cell."""
        counts_C = np.bincount(self.place(values_U), entries_U, minlength=len(self.names))
        counts_C[self.missing] += missing
        return counts_C


@dataclass(frozen=True)
class IdCounts:
    """Entries of the ids of a column."""

    ids_U: Array
    entries_U: Array
    error: int = 0
    """Entries that a count may lack."""


def id_cells(field: IdField, counted: Sequence[IdCounts], meaning: Meaning) -> Cells:
    """The cells of an id column: missing, unseen, tail, then the values frequent in all together.

    Not those that are frequent in the reference alone: of many rare values, these are so by luck,
    and would seem to have become rarer in any other rows.

    Args:
        field: The column.
        counted: What is compared; ids are those of the field.
        meaning: Of the field's ids.
    """
    ids_U, places_E = np.unique(np.concatenate([c.ids_U for c in counted]), return_inverse=True)
    rows_U = np.bincount(places_E, np.concatenate([c.entries_U for c in counted]), len(ids_U))
    # Counts of hashed ids may lack some entries, and should lack few of those of a cell.
    least = max(MIN_CELL_ENTRIES, 10 * sum(c.error for c in counted))
    is_cell_U = (rows_U >= least) & ((ids_U != UNSEEN_ID) | (field.cardinality is None))
    ids_U, rows_U = ids_U[is_cell_U], rows_U[is_cell_U]
    top_K = ids_U[np.lexsort((ids_U, -rows_U))[:MAX_VALUES]]
    text_of = meaning.text_of(field)
    names = (_MISSING, _UNSEEN, _TAIL, *(text_of(int(id_)) for id_ in top_K))
    order_K = np.argsort(top_K)
    rising_K = top_K[order_K]
    hashed = field.cardinality is None

    def place(ids_E: Array) -> Array:
        cells_E = np.full(len(ids_E), 2)
        if len(rising_K):
            found_E = np.searchsorted(rising_K, ids_E).clip(max=len(rising_K) - 1)
            known_E = rising_K[found_E] == ids_E
            cells_E[known_E] = order_K[found_E[known_E]] + 3
        if not hashed:
            cells_E[ids_E == UNSEEN_ID] = 1
        return cells_E

    return Cells(names, place, missing=0)


def number_cells(bins: NumberBins, raw: Callable[[Array], Array]) -> Cells:
    """The cells of a number column by its reference.

    Missing, below all numbers of the reference, parts of as many of its rows, above all of them.
    """
    found = bins.occupied()
    if not len(found.rows_B):
        return Cells((_MISSING, "any"), lambda numbers: np.ones(len(numbers), np.int64), 0)
    last = [place for place in found.cut(NUM_QUANTILES) if place + 1 < len(found.rows_B)]
    # Between two bins that hold something, and a little beyond the outermost: a number that is
    # written a little differently by another version's standardisation stays in its part.
    after = [place + 1 for place in last]
    between_C = raw((found.high_B[last] + found.low_B[after]) / 2)
    low, high = raw(np.array([bins.smallest, bins.largest])).tolist()
    beyond = max(abs(low), abs(high)) / 256 or 1e-6
    cuts_C = np.array([low - beyond, *between_C, high + beyond])
    names = (
        _MISSING,
        f"below {low:.4g}",
        *(f"{start:.4g} – {end:.4g}" for start, end in pairwise([low, *between_C, high])),
        f"above {high:.4g}",
    )
    return Cells(names, lambda numbers: np.searchsorted(cuts_C, numbers, "right") + 1, missing=0)


def _ranges(cuts: Sequence[float]) -> tuple[str, ...]:
    """Names of the missing cell and of those between the cuts."""
    ends = ["…", *(f"{cut:.4g}" for cut in cuts), "…"]
    return (_MISSING, *(f"{low} – {high}" for low, high in pairwise(ends)))


# --- two sides ------------------------------------------------------------------------------------


def _compared(
    name: str,
    of: Of,
    names: Sequence[str],
    reference_C: Array,
    current_C: Array,
    rows: tuple[int, int],
) -> FeatureDrift:
    """Numbers from counts; cells that both sides leave empty are no cells."""
    used_C = (reference_C > 0) | (current_C > 0)
    names = [name for name, used in zip(names, used_C, strict=True) if used]
    reference_C, current_C = reference_C[used_C], current_C[used_C]
    p_C, q_C = reference_C / reference_C.sum(), current_C / current_C.sum()
    smooth_p, smooth_q = _smoothed(reference_C), _smoothed(current_C)
    parts_C = (smooth_q - smooth_p) * np.log(smooth_q / smooth_p)
    most = np.argsort(-parts_C, kind="stable")[:MAX_CHANGES]
    if of != "values":
        most = np.sort(most)
    return FeatureDrift(
        name=name,
        of=of,
        psi=psi(reference_C, current_C),
        psi_by_chance=psi_by_chance(*rows, len(names)),
        jensen_shannon=jensen_shannon(reference_C, current_C),
        affected=affected(reference_C, current_C, rows),
        changes=tuple(
            CellChange(value=names[c], reference=float(p_C[c]), current=float(q_C[c])) for c in most
        ),
    )


def _labels(old: Tally, new: Tally) -> list[FeatureDrift]:
    found = []
    for place, task in enumerate(old.layout.tasks):
        if task in new.layout.tasks:
            positives = new.positives_T[new.layout.tasks.index(task)]
            before = np.array([old.rows - old.positives_T[place], old.positives_T[place]])
            now = np.array([new.rows - positives, positives])
            rows = (old.rows, new.rows)
            found.append(_compared(task, "label", ("0", "1"), before, now, rows))
    return found


def _of_ids(name: str, reference: Side, current: Side) -> list[FeatureDrift]:
    """Drift of the values, and of the lengths of lists."""
    old, new = reference.tally.ids[name], current.tally.ids[name]
    rows = (reference.tally.rows, current.tally.rows)
    found = [_of_values(name, reference, current, rows)]
    if old.lengths.rows and new.lengths.rows:
        found.append(_between("lengths", name, old.lengths, new.lengths, rows))
    return found


def _of_values(name: str, reference: Side, current: Side, rows: tuple[int, int]) -> FeatureDrift:
    field, theirs = (s.tally.layout.id_field(name) for s in (reference, current))
    old, new = reference.tally.ids[name], current.tally.ids[name]
    before, now = Meaning(reference.fitted), Meaning(current.fitted)
    cuts, other_cuts = before.cuts(field.space), now.cuts(theirs.space)
    if cuts is not None and other_cuts is not None and cuts != other_cuts:
        return _of_buckets(name, (cuts, old), (other_cuts, new), rows)
    if cuts is not None and cuts == other_cuts:
        translated: Callable[[Array], Array] | str = np.asarray
    else:
        translated = _translation(field, theirs, reference.fitted, current.fitted)
    if isinstance(translated, str):
        return FeatureDrift(name=name, of="values", incomparable=translated)
    ids_U, rows_U, _ = old.values()
    other_U, others_U, _ = new.values()
    known_U = translated(other_U)
    counts = (IdCounts(ids_U, rows_U, old.error), IdCounts(known_U, others_U, new.error))
    cells = id_cells(field, counts, before)
    reference_C = cells.count(ids_U, rows_U, old.missing_rows)
    current_C = cells.count(known_U, others_U, new.missing_rows)
    for counted, counts_C in ((old, reference_C), (new, current_C)):
        counts_C[1] += counted.unseen[0]
        # Entries of hashed ids that were not kept are rare ones.
        counts_C[2] += max(0, counted.entries - counts_C.sum())
    found = _compared(name, "values", cells.names, reference_C, current_C, rows)
    if field.cardinality is None:
        return found
    is_new_U = ~np.isin(known_U, ids_U)
    is_gone_U = ~np.isin(ids_U, known_U)
    return found.model_copy(
        update={
            "new": _change(other_U, others_U, is_new_U, new.entries, now.text_of(theirs)),
            "vanished": _change(ids_U, rows_U, is_gone_U, old.entries, before.text_of(field)),
        }
    )


def _change(
    ids_U: Array, rows_U: Array, chosen_U: Array, entries: int, text_of: Callable[[int], str]
) -> ValueChange:
    ids_U, rows_U = ids_U[chosen_U], rows_U[chosen_U]
    most = ids_U[np.lexsort((ids_U, -rows_U))[:MAX_EXAMPLES]]
    return ValueChange(
        values=len(ids_U),
        share=float(rows_U.sum() / max(entries, 1)),
        examples=tuple(text_of(int(id_)) for id_ in most),
    )


def _translation(
    field: IdField, theirs: IdField, reference: FittedFeatures, current: FittedFeatures
) -> Callable[[Array], Array] | str:
    """From current ids to the reference's; why that cannot be done, in words."""
    old, new = reference.vocabularies.get(field.space), current.vocabularies.get(theirs.space)
    if old is not None and new is not None:
        if old.equals(new):
            return np.asarray
        places = pl.DataFrame({"text": old, "id": np.arange(len(old)) + FIRST_ID})
        texts = pl.DataFrame({"text": new}).join(
            places, on="text", how="left", maintain_order="left"
        )
        known_V = texts["id"].fill_null(UNSEEN_ID).to_numpy()
        ids_V = np.concatenate([[MISSING_ID, UNSEEN_ID], known_V])
        return lambda ids: ids_V[ids]
    if (old is None) != (new is None):
        return "one side has a vocabulary, the other has none"
    if field.cardinality != theirs.cardinality:
        return "the two sides number their values differently"
    return np.asarray


def _of_buckets(
    name: str,
    reference: tuple[list[float], IdTally],
    current: tuple[list[float], IdTally],
    rows: tuple[int, int],
) -> FeatureDrift:
    """Buckets of two versions are cut at different numbers: compared between cuts of both."""
    shared = sorted(set(reference[0]) & set(current[0]))
    if not shared:
        why = "the two sides cut the number at different places, none of which is in both"
        return FeatureDrift(name=name, of="values", incomparable=why)
    counts = []
    for cuts, counted in (reference, current):
        ids_U, rows_U, _ = counted.values()
        # Bucket k ends at cut k: its part is the number of shared cuts at or below its beginning.
        begins = np.array([-math.inf, *cuts])[ids_U - FIRST_ID]
        parts_U = np.searchsorted(shared, begins, "right") + 1
        counts_C = np.bincount(parts_U, rows_U, minlength=len(shared) + 2)
        counts_C[0] = counted.missing_rows
        counts.append(counts_C)
    return _compared(name, "numbers", _ranges(shared), counts[0], counts[1], rows)


def _of_numbers(name: str, reference: Side, current: Side) -> FeatureDrift:
    old, new = reference.tally.numbers[name], current.tally.numbers[name]
    rows = (reference.tally.rows, current.tally.rows)
    raw = (Meaning(reference.fitted).raw(name), Meaning(current.fitted).raw(name))
    missing = (old.missing_rows or 0, new.missing_rows or 0)
    return _between("numbers", name, old.bins, new.bins, rows, raw, missing)


def _between(
    of: Of,
    name: str,
    old: NumberBins,
    new: NumberBins,
    rows: tuple[int, int],
    raw: tuple[Callable[[Array], Array], Callable[[Array], Array]] = (np.asarray, np.asarray),
    missing: tuple[int, int] = (0, 0),
) -> FeatureDrift:
    cells = number_cells(old, raw[0])
    counts = []
    for bins, before, gone in zip((old, new), raw, missing, strict=True):
        found = bins.occupied()
        middle_B = before((found.low_B + found.high_B) / 2)
        counts.append(cells.count(middle_B, found.rows_B, gone))
    return _compared(name, of, cells.names, counts[0], counts[1], rows)
