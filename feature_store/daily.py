"""How a version changes from day to day.

The measures are those of `feature_store.drift`; the cells are those of all rows together, so that
the shares of a cell can be followed over all days.
"""

import math
from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import polars as pl

from feature_store.config import Config
from feature_store.drift import (
    Cells,
    IdCounts,
    Of,
    id_cells,
    jensen_shannon,
    number_cells,
    psi,
    psi_by_chance,
)
from feature_store.features import MISSING_ID, SPLITS, TIMESTAMP_COLUMN
from feature_store.profile import Meaning, Rate, rates
from feature_store.sketches import Array
from feature_store.store import Version
from feature_store.tallies import Entries, Tally, read, tally

MIN_DAY_ROWS = 100
"""A day with fewer rows is not compared."""
_LENGTHS = (1, 7, 28, 364)
_MAX_DAYS = 250
# A number of units since 1970 that is at least the first is of that unit: 1973 in seconds is 1970
# in milliseconds.
_UNITS = {10**17: 10**9, 10**14: 10**6, 10**11: 10**3, 10**8: 1}
_SECONDS_A_DAY = 86_400


class DayDrift(Config):
    """One feature from day to day; each list has one number a day, None where there is none."""

    name: str
    of: Of
    psi_before: tuple[float | None, ...]
    """Against the day before."""
    by_chance: tuple[float | None, ...]
    """What the PSI against the day before stays below without drift (see the module)."""
    psi_first: tuple[float | None, ...]
    """Against the first day that has enough rows."""
    jensen_shannon_first: tuple[float | None, ...]
    missing: tuple[float | None, ...] = ()
    """Share; empty where it is not known."""
    unseen: tuple[float | None, ...] = ()

    def largest_step(self) -> int | None:
        """The day on which PSI exceeds chance by most; None where no day was compared."""
        compared = zip(self.psi_before, self.by_chance, strict=True)
        steps = [
            (step - chance, -day)
            for day, (step, chance) in enumerate(compared)
            if step is not None and chance is not None
        ]
        return -max(steps)[1] if steps else None


class Days(Config):
    """A version day by day (UTC)."""

    version: str
    days: tuple[date, ...]
    """Those that have rows; the first of each where `length` is more than one."""
    length: int = 1
    """Days that are taken as one, since the version spans too many."""
    rows: tuple[int, ...]
    labels: dict[str, tuple[Rate, ...]]
    """Rate of each label, day by day."""
    features: tuple[DayDrift, ...]
    """Those that exceed chance by most from one day to the next come first."""


def days(version: Version) -> Days:
    """How a version changes from day to day, over all its splits, in two passes.

    The cells are those of all its rows together; each day is compared with the day before and with
    the first one.

    Raises:
        ValueError: The rows have no time, or numbers that are no time since 1970.
    """
    files = [file for split in SPLITS for file in version.files(split)]
    layout = version.layout
    per_day = _units_per_day(version)
    whole = tally(files, layout)
    numbered = pl.scan_parquet(files, hive_partitioning=False).select(
        day=pl.col(TIMESTAMP_COLUMN) // per_day
    )
    counted = numbered.group_by("day").len().sort("day").collect(engine="streaming")
    day_D, rows_D = counted["day"].to_numpy(), counted["len"].to_numpy()
    length = next((n for n in _LENGTHS if len(np.unique(day_D // n)) <= _MAX_DAYS), _LENGTHS[-1])
    begin_D, places_D = np.unique(day_D // length, return_inverse=True)
    total_D = np.bincount(places_D, rows_D).astype(np.int64)
    columns = _columns(whole, Meaning(version.fitted))
    counts = {key: np.zeros((len(begin_D), len(cells.names))) for key, cells in columns.items()}
    positives_TD = np.zeros((len(layout.tasks), len(begin_D)))
    for rows in read(files, layout):
        day_N = np.searchsorted(begin_D, rows.timestamps_N // per_day // length)
        for task, labels_N in enumerate(rows.labels_TN):
            positives_TD[task] += np.bincount(day_N, labels_N, minlength=len(begin_D))
        for (name, of), cells in columns.items():
            size = len(cells.names)
            cell_E, day_E = _cells_of(rows.columns[name], of, cells, day_N)
            flat = np.bincount(day_E * size + cell_E, minlength=len(begin_D) * size)
            counts[name, of] += flat.reshape(len(begin_D), size)
    labels_DC = {
        task: np.stack([total_D - positives_D, positives_D], axis=1)
        for task, positives_D in zip(layout.tasks, positives_TD, strict=True)
    }
    compared = [_by_day(task, "label", counts_DC, total_D) for task, counts_DC in labels_DC.items()]
    compared += [
        _by_day(name, of, counts_DC, total_D, told=_told(name, of, whole))
        for (name, of), counts_DC in counts.items()
    ]
    return Days(
        version=f"{version.name}@{version.number}",
        days=tuple(date(1970, 1, 1) + timedelta(int(begin) * length) for begin in begin_D),
        length=length,
        rows=tuple(total_D.tolist()),
        labels={
            task: tuple(
                rates((task,), int(rows), [positives])[0]
                for rows, positives in zip(total_D, positives_D, strict=True)
            )
            for task, positives_D in zip(layout.tasks, positives_TD, strict=True)
        },
        features=tuple(sorted(compared, key=lambda found: (-_excess(found), found.name))),
    )


def _units_per_day(version: Version) -> int:
    """Units of the stored time in a day: microseconds of dates and datetimes, else any."""
    name = version.fitted.feature_set.timestamp
    if name is None:
        raise ValueError(
            f"{version.name}@{version.number} has no days: features.timestamp does not name the"
            " column of the time; set it and build again"
        )
    files = [file for split in SPLITS for file in version.files(split)]
    ends = pl.scan_parquet(files, hive_partitioning=False).select(
        first=pl.col(TIMESTAMP_COLUMN).min(), last=pl.col(TIMESTAMP_COLUMN).max()
    )
    first, last = ends.collect(engine="streaming").row(0)
    for least, units_per_second in _UNITS.items():
        if last >= least:
            return _SECONDS_A_DAY * units_per_second
    raise ValueError(
        f"{version.name}@{version.number} has no days: {name!r} runs from {first} to {last}, which"
        " is no time since 1970 in s, ms, us or ns"
    )


def _columns(whole: Tally, meaning: Meaning) -> dict[tuple[str, Of], Cells]:
    found: dict[tuple[str, Of], Cells] = {}
    for field in whole.layout.ids:
        counted = whole.ids[field.name]
        ids_U, entries_U, _ = counted.values()
        all_rows = IdCounts(ids_U, entries_U, counted.error)
        found[field.name, "values"] = id_cells(field, [all_rows], meaning)
        if counted.lengths.rows:
            found[field.name, "lengths"] = number_cells(counted.lengths, np.asarray)
    for name, numbers in whole.numbers.items():
        found[name, "numbers"] = number_cells(numbers.bins, np.asarray)
    return found


def _cells_of(entries: Entries, of: Of, cells: Cells, day_N: Array) -> tuple[Array, Array]:
    """The cell and the day of every entry."""
    if of == "lengths":
        assert entries.lengths_N is not None, "only lists have lengths"
        return cells.place(entries.lengths_N), day_N
    if of == "numbers":
        cells_N = cells.place(entries.values_E)
        if entries.missing_N is not None:
            cells_N[entries.missing_N] = cells.missing
        return cells_N, day_N
    cells_E, day_E = cells.place(entries.values_E), entries.per_entry(day_N)
    if entries.lengths_N is None:
        cells_E[entries.values_E == MISSING_ID] = cells.missing
        return cells_E, day_E
    empty_N = day_N[entries.lengths_N == 0]
    missing_E = np.full(len(empty_N), cells.missing)
    return np.concatenate([cells_E, missing_E]), np.concatenate([day_E, empty_N])


def _told(name: str, of: Of, whole: Tally) -> tuple[bool, bool]:
    """Whether missing and unseen entries can be told from the others."""
    if of == "values":
        return True, whole.layout.id_field(name).cardinality is not None
    return of == "numbers" and whole.numbers[name].missing_rows is not None, False


def _by_day(
    name: str, of: Of, counts_DC: Array, rows_D: Array, told: tuple[bool, bool] = (False, False)
) -> DayDrift:
    before: list[float | None] = [None] * len(rows_D)
    chance, since, divergence = before.copy(), before.copy(), before.copy()
    enough = np.flatnonzero(rows_D >= MIN_DAY_ROWS).tolist()
    for last, day in pairwise(enough):
        pair = _used(counts_DC[last], counts_DC[day])
        before[day] = psi(*pair)
        chance[day] = psi_by_chance(int(rows_D[last]), int(rows_D[day]), len(pair[0]))
        first = _used(counts_DC[enough[0]], counts_DC[day])
        since[day], divergence[day] = psi(*first), jensen_shannon(*first)
    shares_DC = counts_DC / counts_DC.sum(axis=1, keepdims=True)
    return DayDrift(
        name=name,
        of=of,
        psi_before=tuple(before),
        by_chance=tuple(chance),
        psi_first=tuple(since),
        jensen_shannon_first=tuple(divergence),
        missing=tuple(shares_DC[:, 0].tolist()) if told[0] else (),
        unseen=tuple(shares_DC[:, 1].tolist()) if told[1] else (),
    )


def _used(reference_C: Array, current_C: Array) -> tuple[Array, Array]:
    """Without the cells that both leave empty."""
    used_C = (reference_C > 0) | (current_C > 0)
    return reference_C[used_C], current_C[used_C]


def _excess(found: DayDrift) -> float:
    """By how much PSI exceeds chance on the day where it does so by most."""
    day = found.largest_step()
    step, chance = (None, None) if day is None else (found.psi_before[day], found.by_chance[day])
    return -math.inf if step is None or chance is None else step - chance
