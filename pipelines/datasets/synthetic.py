"""A synthetic click log with planted truth, at any size, equal for equal (seed, part).

Five layouts share what is planted: Zipf ids whose popularity drifts, known weights, known useless
fields, and the true probability of every click, hence the best AUC that any model can reach.

- `sequence`: users with a changing taste for a few categories, items with a category. The taste is
  in no column, it shows only in what the user clicked before, so a model that reads the history of
  categories beats one that does not.
- `criteo`: 13 counts and 26 categories, with missing values, as in the display-advertising log.
- `zipf`: one field of very many ids, a smaller one of users and a few small ones. Much of what can
  be known of a click is a weight of the item's id alone, so that a table with fewer rows than ids
  has something to lose.
- `useless`: fields of which about half the values say nothing of the click and the others much, and
  fields that say nothing at all; for whoever is to find out which.
- `tail`: items most of which are clicked hardly ever, with attributes that tell much of each other
  and, through an item's topic, which is in no column, of who clicks it.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, NonNegativeInt, PositiveInt

from feature_store.config import Config
from pipelines.datasets.dataset import Dataset
from pipelines.sources import OnProgress

FORMAT = 1
"""Raised with every change of what a configuration generates."""
CHUNK_ROWS = 1 << 18
"""Rows made at once; bounds the memory."""
EXACT_ROWS = 1 << 22
"""The AUC of more rows is rounded, so that memory stays bounded."""
PART_ROWS = 1_000_000
"""Rows of a file, unless told otherwise."""
DAYS = 28
START = 1_704_067_200
"""The log begins on 2024-01-01, in seconds since 1970, UTC."""

_TRUTH = "truth.json"
_SHARE_OF_LAST = 0.1
_PILOT_ROWS = 100_000
_SCALE = math.sqrt(12.0)


class SyntheticConfig(Config):
    """Size, shape and difficulty of the log."""

    layout: Literal["sequence", "criteo", "zipf", "useless", "tail"] = "sequence"
    rows: PositiveInt = 200_000
    seed: NonNegativeInt = 0
    click_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Expected share of clicks."""
    zipf: Annotated[float, Field(ge=0.0, le=3.0)] = 1.1
    """Exponent of the popularity of ids: 0 is uniform."""
    drift: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3
    """Share of the ids by which the ranking of popularity has moved on when the log ends. In the
    zipf layout: share of the ids that have then changed places with another in that ranking."""
    useless: PositiveInt = 2
    """Numeric and categorical fields, of each so many, that say nothing of the click; the useless
    layout has categorical ones alone."""
    users: PositiveInt = 4_000
    items: PositiveInt = 3_000
    categories: PositiveInt = 30
    """Categories of items, or their topics in the tail layout; distinct values of each field of the
    useless layout."""
    taste: float = 3.0
    """Log-odds that an item gains when its category is to the user's present taste."""
    changes: PositiveInt = 4
    """How often a user's taste changes in the time of the log."""
    values: PositiveInt = 100_000
    """Distinct values of each categorical field of the criteo layout and of each attribute of the
    tail layout; items of the zipf layout."""


def generate(
    config: SyntheticConfig,
    folder: Path,
    parts: int | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> dict[str, Any]:
    """Write the log as Parquet parts with `truth.json`, or leave an equal one as it is.

    Rows are in the order of their time; part k holds the k-th stretch of it.

    Args:
        config: The log.
        folder: Gets `part-*.parquet` and `truth.json`, all at once; replaced if it differs.
        parts: Number of files; a million rows each if absent.
        on_progress: Told of rows.

    Returns:
        The truth: `bayes_auc` and `bayes_logloss` (of the true probabilities, on these rows),
        `bayes_auc_last_tenth` (on the last tenth), `click_rate`, `useless` fields, `weights`;
        of the useless layout also `useless_values`, by field.
    """
    parts = parts or math.ceil(config.rows / PART_ROWS)
    asked = {"format": FORMAT, "config": config.model_dump(mode="json"), "parts": parts}
    known = _read_truth(folder)
    if known is not None and {key: known.get(key) for key in asked} == asked:
        on_progress("already there", config.rows, config.rows)
        return known
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        made = Path(work) / "made"
        made.mkdir()
        truth = {**asked, **_write(config, made, parts, on_progress)}
        (made / _TRUTH).write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            if known is None and any(folder.iterdir()):
                raise ValueError(f"{folder} holds something else than a synthetic log; move it")
            shutil.rmtree(folder)
        made.rename(folder)
    return truth


def _write(
    config: SyntheticConfig, folder: Path, parts: int, on_progress: OnProgress
) -> dict[str, Any]:
    log = _LOGS[config.layout](config)
    bias = _bias(log, config)
    bounds = [config.rows * part // parts for part in range(parts + 1)]
    everything, last = _Tally(), _Tally()
    last_from = config.rows - max(1, round(_SHARE_OF_LAST * config.rows))
    for part in range(parts):
        writer = None
        file = folder / f"part-{part:05d}.parquet"
        for table in _chunks(log, config, bias, part, (bounds[part], bounds[part + 1])):
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
            chance = table["true_probability"].to_numpy()
            clicked = table[log.label].to_numpy().astype(bool)
            late = max(0, last_from - everything.rows)
            everything.add(chance, clicked)
            last.add(chance[late:], clicked[late:])
            on_progress("generating", everything.rows, config.rows)
        if writer is not None:
            writer.close()
    return {
        "rows": config.rows,
        "click_rate": everything.clicks / everything.rows,
        "bayes_auc": everything.auc,
        "bayes_auc_last_tenth": last.auc,
        "bayes_logloss": everything.logloss,
        "useless": log.useless,
        "weights": {"bias": bias, **log.weights},
        **log.more_truth,
    }


class _Tally:
    """What is kept of probabilities and clicks, in a memory that is bounded.

    The AUC is exact up to EXACT_ROWS. Beyond, probabilities that agree in the first 17 digits of
    their binary fraction count as equal; among so many rows that changes it by less than 1e-8.
    """

    _DROPPED_BITS = 7

    def __init__(self) -> None:
        self.rows = self.clicks = 0
        self._loss = 0.0
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []
        self._counts: np.ndarray | None = None

    def add(self, chance: np.ndarray, clicked: np.ndarray) -> None:
        """Take in some rows: float32 probabilities, and whether they were clicked."""
        self.rows += len(chance)
        self.clicks += int(clicked.sum())
        self._loss -= float(np.log(np.where(clicked, chance, 1 - chance)).sum(dtype=np.float64))
        self._kept.append((chance, clicked))
        if self.rows > EXACT_ROWS:
            self._count()

    def _count(self) -> None:
        if self._counts is None:
            largest = int(np.float32(1.0).view(np.int32)) >> self._DROPPED_BITS
            self._counts = np.zeros((2, largest + 1), np.int32)
        for chance, clicked in self._kept:
            places = chance.astype(np.float32).view(np.int32) >> self._DROPPED_BITS
            for label in (0, 1):
                found, counts = np.unique(places[clicked == label], return_counts=True)
                self._counts[label, found] += counts.astype(np.int32)
        self._kept.clear()

    @property
    def logloss(self) -> float:
        """Of the probabilities."""
        return self._loss / self.rows

    @property
    def auc(self) -> float:
        """Of the probabilities; ties count one half."""
        if self._counts is None:
            chances, clicks = zip(*self._kept, strict=True)
            return exact_auc(np.concatenate(chances), np.concatenate(clicks))
        negative, positive = self._counts.astype(np.float64)
        below = np.cumsum(negative) - negative
        pairs = (positive * (below + negative / 2)).sum()
        return float(pairs / (self.clicks * (self.rows - self.clicks)))


def _chunks(
    log: "_Log",
    config: SyntheticConfig,
    bias: float,
    part: int,
    rows: tuple[int, int],
) -> Iterator[pa.Table]:
    random = np.random.default_rng((config.seed, 1, part))
    for begin in range(*rows, CHUNK_ROWS):
        end = min(begin + CHUNK_ROWS, rows[1])
        when = (np.arange(begin, end) + random.random(end - begin)) / config.rows
        columns, logit = log.rows(when, random)
        chance = 1.0 / (1.0 + np.exp(-(logit + bias)))
        clicked = random.random(end - begin) < chance
        yield pa.table(
            {
                log.label: clicked.astype(np.int8),
                "time": (START + when * DAYS * 86_400).astype(np.int64),
                **columns,
                "true_probability": chance.astype(np.float32),
            }
        )


def _bias(log: "_Log", config: SyntheticConfig) -> float:
    """The constant of the log-odds that gives the click rate, by bisection on a pilot sample."""
    random = np.random.default_rng((config.seed, 2))
    _, logit = log.rows(np.sort(random.random(_PILOT_ROWS)), random)
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        too_high = (1.0 / (1.0 + np.exp(-(logit + middle)))).mean() > config.click_rate
        low, high = (low, middle) if too_high else (middle, high)
    return (low + high) / 2


class _SequenceLog:
    """Users, items and a taste that only the history shows."""

    label = "clicked"
    more_truth: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        random = np.random.default_rng((config.seed, 0))
        size = (config.users, config.changes + 1, 2)
        self.tastes = random.integers(0, config.categories, size).astype(np.int32)
        self.phases = random.random(config.users)
        self.prices = np.exp(random.normal(2.0, 1.0, config.items)).round(2)
        self.useless = [
            *(f"noise_{i}" for i in range(config.useless)),
            *(f"noise_id_{i}" for i in range(config.useless)),
        ]
        self.weights = {"taste": config.taste, "log_price": -0.4, "item": 0.5, "device": 0.4}

    def rows(
        self, when: np.ndarray, random: np.random.Generator
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Columns and log-odds without the constant, at moments 0 .. 1 of the log."""
        config, num_rows = self.config, len(when)
        user = _zipf(random, num_rows, config.users, 0.5)
        epoch = (when * config.changes + self.phases[user]).astype(np.int64)
        liked = self.tastes[user, epoch, random.integers(0, 2, num_rows)]
        item = _drifting(random, when, config.items, config)
        # A recommender shows its users what they like more often than chance would.
        shown = random.random(num_rows) < 0.3
        item = np.where(shown, item - item % config.categories + liked, item) % config.items
        category = item % config.categories
        match = (self.tastes[user, epoch] == category[:, None]).any(axis=1)
        device = random.integers(0, 4, num_rows)
        weights = self.weights
        logit = weights["taste"] * match + weights["log_price"] * np.log(self.prices[item])
        logit += _planted(0, item, weights["item"]) + _planted(1, device, weights["device"])
        columns: dict[str, Any] = {
            "user": _texts("u", user),
            "item": _texts("i", item),
            "category": _texts("c", category),
            "price": self.prices[item],
            "device": pa.array(np.array(["phone", "tablet", "desktop", "tv"])[device]),
        }
        for i in range(config.useless):
            columns[f"noise_{i}"] = random.normal(size=num_rows)
        for i in range(config.useless):
            columns[f"noise_id_{i}"] = _texts("n", _zipf(random, num_rows, 1000, config.zipf))
        return columns, logit


class _CriteoLog:
    """Thirteen counts and twenty-six categories; the last of each are useless."""

    label = "label"
    more_truth: ClassVar[dict[str, Any]] = {}
    num_counts, num_categories = 13, 26

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self.counts = [f"n{i + 1}" for i in range(self.num_counts)]
        self.categories = [f"c{i + 1}" for i in range(self.num_categories)]
        useless = min(config.useless, self.num_counts - 1)
        self.useless = [*self.counts[-useless:], *self.categories[-useless:]]
        self.weights = {name: 0.3 / (i + 1) for i, name in enumerate(self.counts)}
        self.weights |= {name: 0.6 / math.sqrt(i + 1) for i, name in enumerate(self.categories)}
        self.weights = {n: 0.0 if n in self.useless else w for n, w in self.weights.items()}
        self.weights["c1 x c2"] = 0.5

    def rows(
        self, when: np.ndarray, random: np.random.Generator
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Columns and log-odds without the constant, at moments 0 .. 1 of the log."""
        num_rows = len(when)
        logit = np.zeros(num_rows)
        columns: dict[str, Any] = {}
        for place, name in enumerate(self.counts):
            level = random.normal(size=num_rows)
            missing = random.random(num_rows) < 0.04 * place
            count = np.floor(np.exp(1.0 + 1.2 * level)).astype(np.int64)
            columns[name] = pa.array(count, mask=missing)
            logit += self.weights[name] * np.where(missing, 0.0, level)
        groups = []
        for place, name in enumerate(self.categories):
            value = _drifting(random, when, self.config.values, self.config)
            missing = random.random(num_rows) < (0.05 if place % 3 == 2 else 0.0)
            columns[name] = _hexadecimal(_mixed(place, value), missing)
            logit += np.where(missing, 0.0, _planted(place, value, self.weights[name]))
            groups.append(_mixed(place, value) % 64)
        logit += _planted(99, groups[0] * 64 + groups[1], self.weights["c1 x c2"])
        return columns, logit


class _ZipfLog:
    """Items by number, users and small fields; weights of ids and a product of two tastes.

    log-odds = sum of a weight of each field's id + w sum_k a_k(item) b_k(segment of the user)
    with k over `num_tastes`; weights and tastes are functions of the id, so nothing is stored.
    """

    label = "clicked"
    more_truth: ClassVar[dict[str, Any]] = {}
    small: ClassVar = {"device": 4, "position": 10, "hour": 24, "region": 50}
    num_segments, num_tastes = 16, 2

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self.useless = [
            *(f"noise_{i}" for i in range(config.useless)),
            *(f"noise_id_{i}" for i in range(config.useless)),
        ]
        self.weights = {"item": 1.2, "user": 0.4, **dict.fromkeys(self.small, 0.3)}
        self.weights["item x segment"] = 0.5

    def rows(
        self, when: np.ndarray, random: np.random.Generator
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Columns and log-odds without the constant, at moments 0 .. 1 of the log."""
        config, num_rows = self.config, len(when)
        columns: dict[str, Any] = {
            "item": _churning(random, when, config.values, config),
            "user": _zipf(random, num_rows, config.users, 0.5),
        }
        for name, num_values in self.small.items():
            columns[name] = random.integers(0, num_values, num_rows)
        logit = np.zeros(num_rows)
        for place, (name, ids) in enumerate(columns.items()):
            logit += _planted(place, ids, self.weights[name])
        segment = columns["user"] % self.num_segments
        for taste in range(self.num_tastes):
            theirs = _planted(200 + taste, segment, 1.0)
            weight = self.weights["item x segment"] / math.sqrt(self.num_tastes)
            logit += _planted(100 + taste, columns["item"], weight) * theirs
        columns["segment"] = segment
        for i in range(config.useless):
            columns[f"noise_{i}"] = random.normal(size=num_rows)
        for i in range(config.useless):
            columns[f"noise_id_{i}"] = _zipf(random, num_rows, 1000, config.zipf)
        return columns, logit


class _UselessLog:
    """Fields with useless values, and useless fields.

    log-odds = sum over fields of weight * effect(field, value), the effect 0 for half the values by
    a hash of both, 1 or -1 for the others; the weight of a useless field is 0.
    """

    label = "clicked"
    num_useful = 6

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        useful = [f"field_{i}" for i in range(self.num_useful)]
        self.useless = [f"noise_id_{i}" for i in range(config.useless)]
        self.weights = dict.fromkeys(useful, 1.0) | dict.fromkeys(self.useless, 0.0)
        every = np.arange(config.categories)
        values = np.array(_texts("v", every).to_pylist())
        useless_values = {
            name: values[weight * self._effect(place, every) == 0].tolist()
            for place, (name, weight) in enumerate(self.weights.items())
        }
        self.more_truth = {"useless_values": useless_values}

    @staticmethod
    def _effect(field: int, ids: np.ndarray) -> np.ndarray:
        bits = _mixed(field, ids)
        sign = (bits >> np.uint64(1) & np.uint64(1)).astype(np.int64) * 2 - 1
        return np.where(bits & np.uint64(1), sign, 0)

    def rows(
        self, when: np.ndarray, random: np.random.Generator
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Columns and log-odds without the constant, at moments 0 .. 1 of the log."""
        config, num_rows = self.config, len(when)
        logit = np.zeros(num_rows)
        columns: dict[str, Any] = {}
        for place, (name, weight) in enumerate(self.weights.items()):
            ids = _zipf(random, num_rows, config.categories, config.zipf)
            columns[name] = _texts("v", ids)
            logit += weight * self._effect(place, ids)
        return columns, logit


class _TailLog:
    """Items with a topic that no column names, and attributes that go by it.

    An item belongs to a part of its topic by `brand` and `creator`, and to another by `series` and
    `material`; its three `tags` are of its topic. One attribute in ten is of anything else. So
    brand and creator tell much of each other, series and material too, and all tell of the topic.
    Each value of an attribute is of one such group, and most values are rare.

    log-odds = taste * (the topic is one of the user's two) + weight of the item.
    """

    label = "clicked"
    more_truth: ClassVar[dict[str, Any]] = {}
    parts_of_topic, num_tags, loyalty = 8, 3, 0.9
    pairs: ClassVar = (("brand", "creator"), ("series", "material"))

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        random = np.random.default_rng((config.seed, 0))
        self.tastes = random.integers(0, config.categories, (config.users, 2))
        self.useless: list[str] = []
        self.weights = {"taste": config.taste, "item": 0.5}

    def rows(
        self, when: np.ndarray, random: np.random.Generator
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Columns and log-odds without the constant, at moments 0 .. 1 of the log."""
        config, num_rows = self.config, len(when)
        user = _zipf(random, num_rows, config.users, 0.3)
        item = _drifting(random, when, config.items, config)
        # A recommender shows its users what they like more often than chance would.
        shown = random.random(num_rows) < 0.3
        liked = self.tastes[user, random.integers(0, 2, num_rows)]
        item = np.where(shown, item - item % config.categories + liked, item) % config.items
        topic = item % config.categories
        match = (self.tastes[user] == topic[:, None]).any(axis=1)
        columns: dict[str, Any] = {"user": _texts("u", user), "item": _texts("i", item)}
        num_parts = config.categories * self.parts_of_topic
        for place, pair in enumerate(self.pairs):
            part = (_mixed(400 + place, item) % self.parts_of_topic).astype(np.int64)
            for number, name in enumerate(pair):
                group = topic * self.parts_of_topic + part
                value = self._value(410 + 2 * place + number, item, group, num_parts)
                columns[name] = _texts(name[0], value)
        tags = [
            _texts("t", self._value(420 + number, item, topic, config.categories))
            for number in range(self.num_tags)
        ]
        columns["tags"] = pc.binary_join_element_wise(*tags, " ")
        logit = self.weights["taste"] * match + _planted(0, item, self.weights["item"])
        return columns, logit

    def _value(
        self, field: int, item: np.ndarray, group: np.ndarray, num_groups: int
    ) -> np.ndarray:
        """The item's value of an attribute: one of its group's, the first of which are common."""
        loyal = _mixed(field, item) / 2.0**64 < self.loyalty
        other = (_mixed(field + 20, item) % num_groups).astype(np.int64)
        size = max(1, self.config.values // num_groups)
        rank = ((size + 1) ** (_mixed(field + 40, item) / 2.0**64)).astype(np.int64) - 1
        return np.where(loyal, group, other) + num_groups * np.minimum(rank, size - 1)


_Log = _SequenceLog | _CriteoLog | _ZipfLog | _UselessLog | _TailLog
_LOGS: dict[str, type[_Log]] = {
    "sequence": _SequenceLog,
    "criteo": _CriteoLog,
    "zipf": _ZipfLog,
    "useless": _UselessLog,
    "tail": _TailLog,
}


def exact_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Share of (positive, negative) pairs that the scores order rightly; ties count one half."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2.0
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    ranks = mean_rank[place][positive].sum()
    return float((ranks - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def _zipf(random: np.random.Generator, num_rows: int, num_values: int, exponent: float) -> Any:
    """Ids 0 .. num_values - 1 with a probability that falls as (id + 1) ** -exponent.

    By the inverse of the continuous distribution function: no table, whatever the number of ids.
    """
    uniform = random.random(num_rows)
    power = 1.0 - exponent
    if abs(power) < 1e-9:
        place = np.exp(uniform * math.log(num_values + 1))
    else:
        place = (uniform * ((num_values + 1) ** power - 1.0) + 1.0) ** (1.0 / power)
    return np.minimum(place.astype(np.int64) - 1, num_values - 1)


def _drifting(
    random: np.random.Generator, when: np.ndarray, num_values: int, config: SyntheticConfig
) -> np.ndarray:
    """Zipf ids whose ranking moves on with time."""
    rank = _zipf(random, len(when), num_values, config.zipf)
    return (rank + (when * config.drift * num_values).astype(np.int64)) % num_values


def _churning(
    random: np.random.Generator, when: np.ndarray, num_values: int, config: SyntheticConfig
) -> np.ndarray:
    """Zipf ids of which a share trades places with an id half the ranking away.

    Unlike a ranking that moves on as a whole, this keeps the frequency of the others, however many
    ids there are.
    """
    rank = _zipf(random, len(when), num_values, config.zipf)
    half = num_values // 2
    pair = rank % max(half, 1)
    traded = (_mixed(300, pair) / 2.0**64 < when * config.drift) & (rank < 2 * half)
    return np.where(traded, (rank + half) % max(2 * half, 1), rank)


def _mixed(field: int, ids: np.ndarray) -> np.ndarray:
    """64 well-mixed bits of (field, id) as unsigned integers (splitmix64, Steele et al. 2014)."""
    state = ids.astype(np.uint64) + np.uint64((field + 1) * 0x9E3779B97F4A7C15 % 2**64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _planted(field: int, ids: np.ndarray, weight: float) -> np.ndarray:
    """The effect of an id: fixed, uniform around zero, with `weight` as its deviation."""
    return (_mixed(field, ids) / 2.0**64 - 0.5) * (_SCALE * weight)


def _texts(prefix: str, ids: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pc.cast(pa.array(ids), pa.string()), "")


def _hexadecimal(bits: np.ndarray, missing: np.ndarray) -> pa.Array:
    """The lower 32 bits as eight hexadecimal digits."""
    digits = bits.astype(">u4").tobytes().hex().encode()
    offsets = np.arange(0, 8 * len(bits) + 8, 8, dtype=np.int32)
    present = np.packbits(~missing, bitorder="little")
    buffers = [pa.py_buffer(values) for values in (present, offsets, digits)]
    return pa.Array.from_buffers(pa.string(), len(bits), buffers)


def _read_truth(folder: Path) -> dict[str, Any] | None:
    path = folder / _TRUTH
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _fetch(folder: Path, on_progress: OnProgress) -> None:
    generate(SyntheticConfig(), folder, on_progress=on_progress)


ZIPF = SyntheticConfig(
    layout="zipf", rows=2_000_000, users=20_000, values=1_000_000, drift=0.1, click_rate=0.3
)
"""What `DATASET_ZIPF` generates."""


def _fetch_zipf(folder: Path, on_progress: OnProgress) -> None:
    generate(ZIPF, folder, on_progress=on_progress)


USELESS = SyntheticConfig(layout="useless", useless=6, zipf=0.5, click_rate=0.3)
"""What `DATASET_USELESS` generates."""


def _fetch_useless(folder: Path, on_progress: OnProgress) -> None:
    generate(USELESS, folder, on_progress=on_progress)


TAIL = SyntheticConfig(
    layout="tail", rows=100_000, users=1_000, items=10_000, categories=20, values=1_500, drift=0.0
)
"""What `DATASET_TAIL` generates."""


def _fetch_tail(folder: Path, on_progress: OnProgress) -> None:
    generate(TAIL, folder, on_progress=on_progress)


DATASET = Dataset(
    name="synthetic",
    description="generated clicks with planted truth: a taste that only the history shows",
    rows=SyntheticConfig().rows,
    licence="none needed",
    fetch=_fetch,
)

DATASET_ZIPF = Dataset(
    name="synthetic-zipf",
    description="generated clicks on a million items: what a smaller table loses",
    rows=ZIPF.rows,
    licence="none needed",
    fetch=_fetch_zipf,
)

DATASET_USELESS = Dataset(
    name="synthetic-useless",
    description="generated clicks with planted useless fields and values, for feature selection",
    rows=USELESS.rows,
    licence="none needed",
    fetch=_fetch_useless,
)

DATASET_TAIL = Dataset(
    name="synthetic-tail",
    description="generated clicks on items most of which are rare, with telling attributes",
    rows=TAIL.rows,
    licence="none needed",
    fetch=_fetch_tail,
)
