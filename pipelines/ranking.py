"""Which features of a version matter: each alone, in pairs, and together.

OutRank (`pipelines.outrank`) asks what a feature tells of the label beyond chance, alone or with
another, and 3MR orders features so that none repeats the ones before it. QuickSelection
(`pipelines.quick_selection`) reads no labels: it asks what a feature carries about the others. Rows
are streamed in batches of the training split; memory holds one batch, and for pairs a sample.

Shapes: B rows of a batch, I inputs.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.features import nearest
from feature_store.version import Version
from pipelines import outrank
from pipelines.information import symbols
from pipelines.outrank import Labels, Pair
from pipelines.quick_selection import Matrix, QuickSelectionConfig, SparseAutoEncoder
from pipelines.sources import OnProgress

BATCH_ROWS = 1 << 17
"""Rows that a feature is scored on at a time: values that occur once in them tell nothing."""
PAIR_ROWS = 1 << 16
"""Rows, drawn from all batches alike, that pairs are scored on."""
MAX_PAIRS = 1 << 15
"""More pairs than that are a random sample, as in OutRank."""
NOISE = 4.0
"""Standard deviations of chance that count for nothing: of thousands of pairs, some come to three
by chance."""
MAX_VALUES = 32
"""Most frequent values of an id field that QuickSelection sees, each as an input of its own."""


@dataclass(frozen=True)
class RankedFeature:
    """One feature's place."""

    name: str
    score: float
    """OutRank: nats of the label's entropy told beyond chance, alone. QuickSelection: mean strength
    of the feature's inputs."""
    share: float | None = None
    """OutRank: the score as a share of the label's entropy."""
    noise: float | None = None
    """OutRank: standard deviation that the score has where a feature tells nothing."""
    relation: float | None = None
    """What it tells together with the feature of which that is the least likely to be chance; None
    where pairs were not scored."""
    relation_noise: float | None = None
    """Standard deviation that this has where there is no relation."""
    partner: str | None = None
    """That other feature."""
    num_partners: int = 0
    """Features that it was paired with."""
    place: int | None = None
    """From 0, in the order in which 3MR takes the features, none repeating those before it."""

    @property
    def evidence(self) -> float:
        """What speaks for it beyond `NOISE` deviations of chance: alone or with another."""
        alone = self.score - NOISE * (self.noise or 0.0)
        if self.relation is None:
            return alone
        return max(alone, self.relation - NOISE * (self.relation_noise or 0.0))

    @property
    def rank_key(self) -> tuple[float, float]:
        """Larger is better: by evidence, and without any by how unlikely it is by chance.

        The best of k pairs without a relation comes to about sqrt(2 ln k) deviations.
        """
        sign = self.score / self.noise if self.noise else self.score
        if self.relation is not None and self.relation_noise:
            best_by_chance = math.sqrt(2 * math.log(max(1, self.num_partners)))
            sign = max(sign, self.relation / self.relation_noise - best_by_chance)
        return max(0.0, self.evidence), sign


@dataclass(frozen=True)
class RankedPair:
    """Two features as one."""

    first: str
    second: str
    score: float
    """Nats of the label's entropy told beyond chance, by both as one feature."""
    relation: float
    """The score above that of the same pair with either one's rows shuffled."""
    noise: float
    """Standard deviation that the relation has where there is none."""
    redundancy: float
    """Share of the poorer one's entropy that the other tells."""


@dataclass(frozen=True)
class Ranking:
    """Features in their order, best first."""

    method: str
    label: str | None
    rows: int
    features: tuple[RankedFeature, ...]
    """Best first, by their `rank_key`."""
    pairs: tuple[RankedPair, ...] = ()
    """The most related first."""


def rank(
    version: Version,
    *,
    label: str | None = None,
    with_pairs: bool = True,
    seed: int = 0,
    on_progress: OnProgress = lambda *_: None,
) -> Ranking:
    """Rank the features of a version by OutRank.

    Args:
        version: Whose training split is read.
        label: One of its labels; the first if absent.
        with_pairs: Score pairs, too: what tells of the label only together with another feature,
            and the order of 3MR.
        seed: Of the rows and pairs that are drawn.
        on_progress: Told of rows and pairs.

    Raises:
        ValueError: No such label, or only one class of it.
    """
    label = _known_label(version, label)
    names = feature_names(version)
    random = np.random.default_rng(seed)
    total, done = version.rows["train"], 0
    scores: list[list[float]] = []
    noises: list[list[float]] = []
    entropies: list[float] = []
    sampled: list[pl.DataFrame] = []
    for batch in batches(version, [*names, label], BATCH_ROWS):
        columns = symbols(batch.select(names), seed)
        labels = Labels(batch.get_column(label).to_numpy() > 0)
        # What is left over at the end is too few rows to count as much as the others.
        if done == 0 or len(batch) >= BATCH_ROWS // 2:
            tallies = [outrank.tally(codes, labels) for codes in _codes(columns)]
            found = [outrank.score(each, labels) for each in tallies]
            scores.append([each.value for each in found])
            noises.append([each.noise for each in found])
            entropies.append(labels.entropy)
        wanted = -(-PAIR_ROWS * len(batch) // total)
        rows = random.permutation(len(batch))[:wanted]
        sampled.append(columns.with_columns(batch.get_column(label))[rows])
        done += len(batch)
        on_progress("scoring features", done, total)
    entropy = float(np.median(entropies)) if entropies else 0.0
    if entropy == 0.0:
        raise ValueError(
            f"label {label!r} has one class in the training split of {version.name!r}, so no"
            " feature can tell of it"
        )
    alone = [float(np.median(values)) for values in zip(*scores, strict=True)]
    # Of a median over several batches; of one or two it is the mean.
    several = math.sqrt(math.pi / 2) if len(noises) > 2 else 1.0
    spread = several * np.median(noises, axis=0) / math.sqrt(len(noises))
    features = [
        RankedFeature(name=name, score=middle, share=middle / entropy, noise=float(noise))
        for name, middle, noise in zip(names, alone, spread, strict=True)
    ]
    named: tuple[RankedPair, ...] = ()
    if with_pairs and len(names) > 1:
        pairs = _pairs(pl.concat(sampled).head(PAIR_ROWS), label, seed, on_progress)
        order = outrank.select(alone, [pair for pair, _ in pairs])
        named = tuple(sorted((told for _, told in pairs), key=lambda pair: -_sure(pair)))
        features = [_related(f, named, order.index(place)) for place, f in enumerate(features)]
    features.sort(key=lambda feature: feature.rank_key, reverse=True)
    return Ranking("outrank", label, total, tuple(features), named)


def _related(feature: RankedFeature, pairs: Sequence[RankedPair], place: int) -> RankedFeature:
    """With the pair that is least likely to be chance."""
    mine = [pair for pair in pairs if feature.name in (pair.first, pair.second)]
    if not mine:
        return replace(feature, place=place)
    best = max(mine, key=lambda pair: pair.relation / pair.noise if pair.noise else 0.0)
    return replace(
        feature,
        relation=best.relation,
        relation_noise=best.noise,
        partner=best.second if best.first == feature.name else best.first,
        num_partners=len(mine),
        place=place,
    )


def _sure(pair: RankedPair) -> float:
    return pair.relation - NOISE * pair.noise


def rank_unsupervised(
    version: Version,
    config: QuickSelectionConfig | None = None,
    *,
    epochs: int = 10,
    max_rows: int = 20_000,
    seed: int = 0,
    on_progress: OnProgress = lambda *_: None,
) -> Ranking:
    """Rank the features of a version by QuickSelection, without its labels.

    Numbers are inputs as they are; an id field has one for each of its most frequent values, a list
    one for each that it may hold. All are standardised on the rows that are read.

    Args:
        version: Whose training split is read.
        config: Of the auto-encoder; if absent the paper's, with a hidden unit for every fifth input
            at most: one that has room for all inputs keeps noise, too.
        epochs: Passes over the rows; strengths are told apart by the tenth.
        max_rows: Rows of a pass: so many, spread evenly over the split.
        seed: Of connections, noise and the order of rows; not used where a config has one.
        on_progress: Told of epochs.

    Raises:
        ValueError: There are no rows.
    """
    names = feature_names(version)
    total = version.rows["train"]
    every = max(1, total // max_rows)
    parts = [batch[::every] for batch in batches(version, names, BATCH_ROWS)]
    if not parts:
        raise ValueError(f"{version.name!r} has no training rows")
    rows = pl.concat(parts)
    inputs = {name: _inputs(rows.get_column(name)) for name in names}
    x_RI = np.concatenate(list(inputs.values()), axis=1)
    deviation_I = x_RI.std(axis=0)
    varied_I = deviation_I > 0
    x_RI = (x_RI[:, varied_I] - x_RI[:, varied_I].mean(axis=0)) / deviation_I[varied_I]
    if config is None:
        num_hidden = min(QuickSelectionConfig.num_hidden, max(1, x_RI.shape[1] // 5))
        config = QuickSelectionConfig(num_hidden=num_hidden, seed=seed)
    model = SparseAutoEncoder(x_RI.shape[1], config)
    random = np.random.default_rng(config.seed)
    for epoch in range(epochs):
        on_progress("training the auto-encoder", epoch, epochs)
        shuffled_RI = x_RI[random.permutation(len(x_RI))]
        model.epoch(
            shuffled_RI[begin : begin + config.batch_size]
            for begin in range(0, len(shuffled_RI), config.batch_size)
        )
    on_progress("training the auto-encoder", epochs, epochs)
    strength_I = np.zeros(len(varied_I))
    strength_I[varied_I] = model.strengths()
    owner_I = np.repeat(np.arange(len(names)), [part.shape[1] for part in inputs.values()])
    ranked = [
        RankedFeature(name, float(strength_I[owner_I == place].mean()))
        for place, name in enumerate(names)
    ]
    ranked.sort(key=lambda feature: -feature.score)
    return Ranking("quickselection", None, len(x_RI), tuple(ranked))


def feature_names(version: Version) -> list[str]:
    """The encoded columns that a model reads, as far as they are features of their own."""
    return [*(field.name for field in version.layout.ids), *version.layout.dense]


def batches(version: Version, columns: Sequence[str], rows: int) -> Iterator[pl.DataFrame]:
    """Some columns of the training split, so many rows at a time, in the order of the source."""
    held: list[pa.RecordBatch] = []
    size = 0
    for path in version.files("train"):
        for part in pq.ParquetFile(path).iter_batches(rows, columns=list(columns)):
            while size + part.num_rows >= rows:
                held.append(part.slice(0, rows - size))
                part = part.slice(rows - size)
                yield _frame(held)
                held, size = [], 0
            if part.num_rows:
                held.append(part)
                size += part.num_rows
    if held:
        yield _frame(held)


def _frame(parts: list[pa.RecordBatch]) -> pl.DataFrame:
    found = pl.from_arrow(pa.Table.from_batches(parts))
    assert isinstance(found, pl.DataFrame), "a table is a frame"
    return found


def _known_label(version: Version, label: str | None) -> str:
    tasks = list(version.layout.tasks)
    if label is None:
        return tasks[0]
    if label not in tasks:
        raise ValueError(f"{version.name!r} has no label {label!r}; {nearest(label, tasks)}")
    return label


def _codes(columns: pl.DataFrame) -> list[outrank.Codes]:
    return [outrank.compact(column.fill_null(-1).to_numpy()) for column in columns]


def _pairs(
    sample: pl.DataFrame, label: str, seed: int, on_progress: OnProgress
) -> list[tuple[Pair, RankedPair]]:
    """Every pair by places, and by names."""
    labels = Labels(sample.get_column(label).to_numpy() > 0)
    columns = sample.drop(label)
    names, codes = columns.columns, _codes(columns)
    entropies = [outrank.tally(each, labels).entropy for each in codes]
    random = np.random.default_rng(seed)
    shuffled = [random.permutation(each) for each in codes]
    places = list(combinations(range(len(codes)), 2))
    if len(places) > MAX_PAIRS:
        drawn = random.choice(len(places), MAX_PAIRS, replace=False)
        places = [places[place] for place in np.sort(drawn)]
    found = []
    for number, (a, b) in enumerate(places):
        both, one, other = (
            outrank.joint_tally(first, second, labels)
            for first, second in (
                (codes[a], codes[b]),
                (shuffled[a], codes[b]),
                (codes[a], shuffled[b]),
            )
        )
        score, noise = outrank.score(both, labels)
        relation = score - max(outrank.score(each, labels).value for each in (one, other))
        repeated = outrank.redundancy(entropies[a], entropies[b], both.entropy, other.entropy)
        # The shuffled pairs, too, are drawn.
        named = RankedPair(names[a], names[b], score, relation, noise * math.sqrt(2), repeated)
        found.append((Pair(a, b, relation, repeated), named))
        if number % 64 == 0:
            on_progress("scoring pairs", number, len(places))
    return found


def _inputs(column: pl.Series) -> Matrix:
    """(R, 1) of a number, (R, values) of an id or a list."""
    if column.dtype.is_float():
        return column.to_numpy().astype(np.float32)[:, None]
    lists = column.dtype == pl.List
    counts = (column.explode() if lists else column).drop_nulls().value_counts(sort=True)
    frequent = counts.get_column(column.name).head(MAX_VALUES)
    held = [column.list.contains(v) if lists else column == v for v in frequent.to_list()]
    if not held:
        return np.zeros((len(column), 1), np.float32)
    return np.stack([each.to_numpy().astype(np.float32) for each in held], axis=1)
