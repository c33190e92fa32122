"""What sharing rows costs: collisions, angles between what reads them, and their norms.

The measures of Coleman et al., NeurIPS 2023 (arXiv:2305.12102), section 4, for any scheme that
looks rows up. In a logistic model over shared rows, sum_t <theta_t, e_t(x_t)>, a collision within
feature t moves the row along theta_t and cannot be undone; one with feature t' moves it along
theta_t', which feature t does not see where the two are orthogonal.

Shapes: N ids of a feature, K look-ups, H units of the first layer, D width of a block.
"""

import math
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.embeddings.compression.unified import Unified
from recsys.embeddings.scheme import AbstractScheme
from recsys.embeddings.tables import Table

QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)


@dataclass(frozen=True)
class SeenIds:
    """Ids of one space as encoded, each once."""

    ids_N: Tensor
    counts_N: Tensor
    """How often each occurs in the data."""


@dataclass(frozen=True)
class Shares:
    """Parts of the ids (or of their occurrences) of a feature, 0 to 1."""

    every_row: float
    """With all rows the same as another id of the feature: the two cannot be told apart."""
    any_row: float
    """With some row that another id of the feature has too, in whatever look-up."""
    other_features: float
    """With some row that an id of another feature has too."""


@dataclass(frozen=True)
class Collisions:
    """How the ids of one space meet in their tables."""

    space: str
    num_ids: int
    num_lookups: int
    ids: Shares
    """Every id counts once."""
    occurrences: Shares | None
    """Every id counts as often as it occurs; None: none occurs."""
    shared_rows: float
    """Part of the rows that the feature uses which other features use too."""


@dataclass(frozen=True)
class Angle:
    """Between what reads two features of different spaces."""

    one: str
    other: str
    share_a_table: bool
    degrees: float
    """The angle between the weights by which a unit reads the one and the other, the mean over
    units; with a logistic model's single unit, the angle between theta_t and theta_t'. Chunks of a
    unified table are compared each with each, and averaged."""
    overlap: float
    """||A B^T|| / (||A|| ||B||) of the two (H, D) blocks in Frobenius norms: 0 where no unit sees
    what moves the row for the other feature, |cos| of the angle with a single unit."""
    independent: float
    """The overlap of independent weights, 1 / sqrt(D): no more than this is chance."""


@dataclass(frozen=True)
class RowNorms:
    """Of the rows of one table."""

    table: str
    num_rows: int
    mean_squared: float
    """Of the squared norm."""
    initial_mean_squared: float
    """The same, expected before training."""
    quantiles: Mapping[str, float]
    """Of the norm, by the part of rows below."""


@dataclass(frozen=True)
class Analysis:
    """All of it, for one model."""

    split: str
    """Whose occurrences weigh the collisions."""
    collisions: tuple[Collisions, ...]
    angles: tuple[Angle, ...]
    norms: tuple[RowNorms, ...]

    @property
    def mean_degrees(self) -> float | None:
        """Over all pairs of features; None: nothing to compare."""
        return _mean([angle.degrees for angle in self.angles])

    @property
    def mean_degrees_sharing(self) -> float | None:
        """Over the pairs of features that share a table."""
        return _mean([angle.degrees for angle in self.angles if angle.share_a_table])

    def document(self) -> dict[str, Any]:
        """As it is written to a file."""
        return {
            **asdict(self),
            "mean_degrees": self.mean_degrees,
            "mean_degrees_sharing": self.mean_degrees_sharing,
        }


def _mean(values: SequenceOf[float]) -> float | None:
    return sum(values) / len(values) if values else None


class _Rows:
    """The rows of one space's ids: column k lies in table `tables[k]`."""

    def __init__(self, scheme: AbstractScheme, seen: SeenIds) -> None:
        ids = seen.ids_N if scheme.raw_ids else scheme.space.bounded(seen.ids_N)
        self.tables = [spec.name for spec in scheme.lookups]
        self.sizes = {spec.name: spec.num_embeddings for spec in scheme.lookups}
        self.rows_NK = torch.stack(scheme.rows(ids), dim=1).numpy()
        self.counts_N = seen.counts_N.numpy()
        self.uses = {name: self._uses(name) for name in self.sizes}

    def _uses(self, table: str) -> np.ndarray:
        """How many ids use each row of a table; an id that meets itself there counts once."""
        columns = [k for k, name in enumerate(self.tables) if name == table]
        uses = np.zeros(self.sizes[table], dtype=np.int64)
        for place, k in enumerate(columns):
            again_N = np.zeros(len(self.rows_NK), dtype=bool)
            for earlier in columns[:place]:
                again_N |= self.rows_NK[:, k] == self.rows_NK[:, earlier]
            uses += np.bincount(self.rows_NK[~again_N, k], minlength=len(uses))
        return uses

    def any_of(self, flagged: Mapping[str, np.ndarray]) -> np.ndarray:
        """(N,) whether some row of each id is flagged in its table."""
        found_N = np.zeros(len(self.rows_NK), dtype=bool)
        for k, table in enumerate(self.tables):
            found_N |= flagged[table][self.rows_NK[:, k]]
        return found_N

    def all_alike(self) -> np.ndarray:
        """(N,) whether some other id has the same row in every look-up."""
        key_N = np.zeros(len(self.rows_NK), dtype=np.int64)
        counts = np.array([len(key_N)])
        for k, table in enumerate(self.tables):
            # Keys are numbered anew for each look-up, so the product never overflows.
            _, key_N, counts = np.unique(
                key_N * self.sizes[table] + self.rows_NK[:, k],
                return_inverse=True,
                return_counts=True,
            )
        return counts[key_N] > 1

    def shares(self, others: Mapping[str, np.ndarray]) -> tuple[Shares, Shares | None]:
        """Of the ids and of their occurrences; `others`: rows that other features use."""
        within = {table: uses > 1 for table, uses in self.uses.items()}
        flags = (self.all_alike(), self.any_of(within), self.any_of(others))
        of_ids = Shares(*(float(flag_N.mean()) for flag_N in flags))
        total = self.counts_N.sum()
        if not total:
            return of_ids, None
        return of_ids, Shares(*(float(self.counts_N[flag_N].sum() / total) for flag_N in flags))


def collisions(
    schemes: Mapping[str, AbstractScheme], seen: Mapping[str, SeenIds]
) -> tuple[Collisions, ...]:
    """Who meets whom, for every space with look-ups and ids, in the order of the schemes.

    Args:
        schemes: by space.
        seen: by space, all its ids; of an unbounded one those that occur.
    """
    spaces = {
        name: _Rows(scheme, seen[name])
        for name, scheme in schemes.items()
        if scheme.lookups and seen[name].ids_N.numel()
    }
    num_features: dict[str, np.ndarray] = {}
    for rows in spaces.values():
        for table, uses in rows.uses.items():
            here = (uses > 0).astype(np.int64)
            num_features[table] = num_features.get(table, 0) + here
    found = []
    for name, rows in spaces.items():
        others = {table: num_features[table] > 1 for table in rows.uses}
        used = {table: uses > 0 for table, uses in rows.uses.items()}
        of_ids, of_occurrences = rows.shares(others)
        both = sum(int((used[table] & others[table]).sum()) for table in used)
        found.append(
            Collisions(
                space=name,
                num_ids=len(rows.rows_NK),
                num_lookups=len(rows.tables),
                ids=of_ids,
                occurrences=of_occurrences,
                shared_rows=both / sum(int(flags.sum()) for flags in used.values()),
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class Block:
    """Weights of the first layer that read one field's vector, cut where its rows meet."""

    field: str
    space: str
    chunks: tuple[tuple[frozenset[str], Tensor], ...]
    """Tables a chunk is made from, and its (H, D) weights."""


def block(field: str, scheme: AbstractScheme, weight_HD: Tensor) -> Block:
    """The weights that read a field, one chunk a row of a unified table, else all in one."""
    if isinstance(scheme, Unified):
        parts = weight_HD.split([spec.embedding_dim for spec in scheme.lookups], dim=1)
        names = [frozenset([spec.name]) for spec in scheme.lookups]
        return Block(field, scheme.space.name, tuple(zip(names, parts, strict=True)))
    tables = frozenset(spec.name for spec in scheme.lookups)
    return Block(field, scheme.space.name, ((tables, weight_HD),))


def angles(blocks: SequenceOf[Block]) -> tuple[Angle, ...]:
    """Of every two fields of different spaces that have chunks of equal width.

    Where the two share a table, only chunks in the same table are compared.
    """
    found = []
    for one, other in combinations(blocks, 2):
        if one.space == other.space:
            continue
        pairs = [
            (bool(mine & theirs), a_HD, b_HD)
            for mine, a_HD in one.chunks
            for theirs, b_HD in other.chunks
            if a_HD.shape == b_HD.shape
        ]
        sharing = any(shared for shared, _, _ in pairs)
        degrees, overlaps = [], []
        for shared, a_HD, b_HD in pairs:
            if shared == sharing and a_HD.any() and b_HD.any():
                degrees.append(mean_degrees(a_HD, b_HD))
                overlaps.append(overlap(a_HD, b_HD))
        if degrees:
            mean, mean_overlap = sum(degrees) / len(degrees), sum(overlaps) / len(overlaps)
            independent = one.chunks[0][1].shape[1] ** -0.5
            found.append(Angle(one.field, other.field, sharing, mean, mean_overlap, independent))
    return tuple(found)


def mean_degrees(a_HD: Tensor, b_HD: Tensor) -> float:
    """The angle between the same unit's weights in both, the mean over units.

    A unit that reads one of the two not at all has no angle and is left out; NaN where all do.
    """
    a_HD, b_HD = a_HD.double(), b_HD.double()
    norms_H = a_HD.norm(dim=1) * b_HD.norm(dim=1)
    cosines_H = (a_HD * b_HD).sum(dim=1)[norms_H > 0] / norms_H[norms_H > 0]
    return math.degrees(float(cosines_H.clamp(-1, 1).arccos().mean()))


def overlap(a_HD: Tensor, b_HD: Tensor) -> float:
    """||A B^T|| / (||A|| ||B||), Frobenius norms; neither is zero."""
    a_HD, b_HD = a_HD.double(), b_HD.double()
    # ||A B^T||^2 = <A^T A, B^T B>, which is D by D however many units there are.
    squared = (a_HD.T @ a_HD * (b_HD.T @ b_HD)).sum().clamp(min=0)
    return float(squared.sqrt() / (a_HD.norm() * b_HD.norm()))


def row_norms(table: Table, weight: Tensor) -> RowNorms:
    """Norms of a whole table's rows."""
    norms = weight.norm(dim=1).numpy()
    return RowNorms(
        table=table.name,
        num_rows=len(norms),
        mean_squared=float(np.mean(np.square(norms, dtype=np.float64))),
        initial_mean_squared=table.embedding_dim * table.settings.init_range**2 / 3,
        quantiles={f"{q:g}": float(np.quantile(norms, q)) for q in QUANTILES},
    )
