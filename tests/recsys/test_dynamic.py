"""The dynamic vocabulary against one in plain Python, and what becomes of rows and their state."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from support import encoded
from support.encoded import LAYOUT
from support.ranks import on_ranks
from support.training import CPU, Recipe, global_losses, optimizer_state, trainer_of

from recsys.checkpoint import Checkpoints
from recsys.embeddings.access import TableAccess
from recsys.embeddings.collection import Embeddings
from recsys.embeddings.compression.dynamic import Dynamic, DynamicConfig
from recsys.embeddings.config import EmbeddingsConfig, FeatureEmbedding
from recsys.embeddings.initial import initial_values
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space, StepInfo
from recsys.embeddings.tables import TableSettings
from recsys.training.trainer import Trainer, TrainingConfig

one_rank = pytest.mark.usefixtures("one_rank")
CITY = next(f for f in LAYOUT.ids if f.name == "city")
NUM_CITIES = 30


def config_of(**settings: Any) -> EmbeddingsConfig:
    city = FeatureEmbedding(embedding_dim=8, scheme={"kind": "dynamic", **settings})
    default = FeatureEmbedding(embedding_dim=8, num_embeddings=100)
    return EmbeddingsConfig(default=default, features={"city": city})


def cities(num_rows: int, seed: int) -> np.ndarray:
    """Few cities come often, many seldom."""
    names = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, NUM_CITIES)
    chance = 1 / np.arange(1, NUM_CITIES + 1)
    random = np.random.default_rng(seed)
    return random.choice(names, num_rows, p=chance / chance.sum())


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    path = tmp_path_factory.mktemp("repeated") / "a.parquet"
    rows = encoded.rows(600, seed=3).with_columns(pl.Series("city", cities(600, seed=4)))
    rows.write_parquet(path)
    return (path,)


def scheme_of(trainer: Trainer) -> Dynamic:
    scheme = trainer.step.embeddings.schemes_by_space()["city"]
    assert isinstance(scheme, Dynamic)
    return scheme


def step(trainer: Trainer, ids: list[int], number: int) -> None:
    """A step in which some ids come; no weight is trained."""
    scheme = scheme_of(trainer)
    scheme.combine(torch.tensor(ids), [torch.zeros(len(ids), 8)])
    scheme.after_step(StepInfo(number, 1000, 0), trainer.step.tables)


@dataclass
class SlowVocabulary:
    """The rule in the module's words, one id after the other."""

    config: DynamicConfig
    owners: dict[int, list[float]] = field(default_factory=dict)
    """Score, step and slot."""
    waiting: dict[int, list[float]] = field(default_factory=dict)
    """Score and step."""
    admitted: int = 0
    evicted: int = 0

    def worth(self, score: float, seen: float, now: int) -> float:
        if self.config.policy == "lru":
            return seen
        return score * self.fade(now - seen)

    def fade(self, age: float) -> float:
        life = self.config.half_life if self.config.policy == "lfu" else None
        return 1.0 if life is None else 0.5 ** (age / life)

    def step(self, ids: list[int], now: int) -> None:
        for i, count in Counter(i for i in ids if i != 0).items():
            if i in self.owners:
                score, seen, slot = self.owners[i]
                self.owners[i] = [score * self.fade(now - seen) + count, now, slot]
            else:
                score, _ = self.waiting.get(i, [0.0, 0])
                self.waiting[i] = [score + count, now]
        if now % self.config.update_every == 0:
            self.update(now)

    def update(self, now: int) -> None:
        config = self.config
        assert config.capacity is not None
        before = set(self.owners)
        if config.max_age is not None:
            old = [i for i, (_, seen, _) in self.owners.items() if now - seen > config.max_age]
            for i in old:
                del self.owners[i]
        coming = sorted(
            (i for i, (score, _) in self.waiting.items() if score >= config.min_count),
            key=lambda i: (-self.worth(*self.waiting[i], now), -self.waiting[i][1], i),
        )
        free = config.capacity - len(self.owners)
        chosen, rivals = coming[:free], coming[free:]
        weakest = sorted(
            self.owners, key=lambda i: (self.worth(*self.owners[i][:2], now), self.owners[i][1], i)
        )
        for rival, owner in zip(rivals, weakest, strict=False):
            if self.worth(*self.waiting[rival], now) > self.worth(*self.owners[owner][:2], now):
                del self.owners[owner]
                chosen.append(rival)
        self.evicted += len(before - set(self.owners))
        taken = {slot for _, _, slot in self.owners.values()}
        slots = [slot for slot in range(config.capacity) if slot not in taken]
        for i, slot in zip(chosen, slots, strict=False):
            self.owners[i] = [*self.waiting.pop(i), slot]
        self.admitted += len(chosen)


POLICIES: dict[str, dict[str, Any]] = {
    "lfu": {"policy": "lfu", "half_life": None},
    "lfu that fades": {"policy": "lfu", "half_life": 7.0},
    "lru": {"policy": "lru"},
    "lfu and age": {"policy": "lfu", "half_life": 20.0, "max_age": 5},
}


@one_rank
@pytest.mark.parametrize("policy", list(POLICIES))
def test_ids_come_and_go_as_in_plain_python(policy: str, files: tuple, tmp_path: Path) -> None:
    settings = {"capacity": 9, "min_count": 3, "num_candidates": 800, "update_every": 4}
    settings |= POLICIES[policy]
    trainer = trainer_of(Recipe(files, tmp_path, embeddings=config_of(**settings)))
    scheme, slow = scheme_of(trainer), SlowVocabulary(DynamicConfig(**settings))
    random = np.random.default_rng(0)
    look_ups, unowned = 0, 0
    for now in range(1, 61):
        # What is common changes as time goes by.
        ids = [int(i) for i in random.geometric(0.15, 12) + (now // 20) * 7 - 1]
        look_ups += sum(i != 0 for i in ids)
        unowned += sum(i != 0 and i not in slow.owners for i in ids)
        slow.step(ids, now)
        step(trainer, ids, now - 1)
        owned = scheme.owners.occupied_C
        keys = scheme.owners.map.keys[owned].tolist()
        assert keys == sorted(slow.owners)
        slots = scheme.owners.map.slots[owned].tolist()
        assert slots == [slow.owners[i][2] for i in keys]
        assert scheme.owners.scores[owned].tolist() == pytest.approx(
            [slow.owners[i][0] for i in keys], rel=1e-5
        )
    assert slow.evicted > 5, "the test must evict"
    metrics = scheme.metrics()
    assert metrics == {
        "out_of_vocabulary": pytest.approx(unowned / look_ups),
        "admitted": slow.admitted,
        "evicted": slow.evicted,
        "occupancy": pytest.approx(len(slow.owners) / 9),
    }
    assert scheme.metrics()["admitted"] == 0, "of the steps since the last call"


@one_rank
def test_owners_have_rows_of_their_own_and_others_share(files: tuple, tmp_path: Path) -> None:
    embeddings = config_of(capacity=4, min_count=2, num_shared=3, update_every=1)
    trainer = trainer_of(Recipe(files, tmp_path, embeddings=embeddings))
    step(trainer, [70, 70, -8, -8, -8, 5, 0, 0], 0)
    (rows,) = scheme_of(trainer).rows(torch.tensor([0, -8, 70, 5, 6, -8]))
    assert rows[0] == 0
    assert rows[[1, 2, 5]].tolist() == [4, 5, 4], "the more frequent first"
    assert all(1 <= row <= 3 for row in rows[3:5].tolist())


@one_rank
def test_an_admitted_ids_row_starts_anew(repeated: tuple[Path, ...], tmp_path: Path) -> None:
    """Trained rows that change hands go back to their initial values, and their state to zero."""
    embeddings = config_of(capacity=5, min_count=1, policy="lru", update_every=1000)
    training = TrainingConfig(batch_size=60)
    trainer = trainer_of(Recipe(repeated, tmp_path, embeddings=embeddings, training=training))
    scheme, tables = scheme_of(trainer), trainer.step.tables
    table = tables.tables["city_dynamic"]
    first = np.unique(cities(600, seed=4))[:5].tolist()
    for i in first:
        step_ids(trainer, [i])
    update(trainer)
    global_losses(trainer, 6)
    before_RD = tables.read_rows("city_dynamic", torch.arange(7)).clone()
    assert state_of(trainer)[2:].max() > 0, "owned rows were trained"
    step_ids(trainer, [12345])
    update(trainer)
    (row,) = scheme.rows(torch.tensor([12345]))[0].tolist()
    assert row >= 2
    after_RD = tables.read_rows("city_dynamic", torch.arange(7))
    expected_RD = before_RD.clone()
    expected_RD[row] = initial_values(table, 0, torch.tensor([row]))[0]
    others = [r for r in range(7) if r in (0, 1)]
    torch.testing.assert_close(after_RD[row], expected_RD[row], rtol=0, atol=0)
    torch.testing.assert_close(after_RD[others], expected_RD[others], rtol=0, atol=0)
    assert state_of(trainer)[row] == 0


def step_ids(trainer: Trainer, ids: list[int]) -> None:
    step(trainer, ids, int(scheme_of(trainer).clock))


def update(trainer: Trainer) -> None:
    """What is due every `update_every` steps, now."""
    scheme = scheme_of(trainer)
    scheme._update(0, int(scheme.clock), trainer.step.tables)


def state_of(trainer: Trainer) -> np.ndarray:
    return next(v for k, v in optimizer_state(trainer).items() if "city_dynamic" in k)


def _owned(recipe: Recipe) -> tuple[list[int], list[int], float]:
    trainer = trainer_of(recipe)
    global_losses(trainer, 8)
    scheme = scheme_of(trainer)
    known = scheme.owners.map
    metrics = scheme.metrics()
    return known.keys.tolist(), known.slots.tolist(), metrics["out_of_vocabulary"]


@pytest.mark.distributed
def test_any_number_of_workers_admits_the_same_ids(
    repeated: tuple[Path, ...], tmp_path: Path
) -> None:
    recipe = Recipe(
        repeated,
        tmp_path,
        embeddings=config_of(capacity=8, update_every=2, num_candidates=8),
        training=TrainingConfig(batch_size=60),
    )
    (alone,) = on_ranks(1, _owned, recipe)
    assert max(alone[1]) == 7, "the rows are given away"
    assert 0 < alone[2] < 1
    assert on_ranks(2, _owned, recipe) == [alone, alone]


def vectors_of(trainer: Trainer, ids: list[int]) -> torch.Tensor:
    scheme = scheme_of(trainer)
    (rows,) = scheme.rows(torch.tensor(ids))
    return trainer.step.tables.read_rows("city_dynamic", rows).clone()


def _moved(recipe: Recipe, capacity: int, num_shared: int, sharding: str | None) -> None:
    """Train, save, and carry on with another capacity; asserts on every rank."""
    old = trainer_of(recipe)
    global_losses(old, 8)
    old.progress.step = 8
    old.save()
    owned = scheme_of(old).owners
    here = owned.occupied_C
    worth = zip(
        owned.scores[here].tolist(),
        owned.seen[here].tolist(),
        owned.map.keys[here].tolist(),
        strict=True,
    )
    kept = [i for _, _, i in sorted(worth)[-capacity:]]
    expected_ND, shared_ND = vectors_of(old, kept), vectors_of(old, [0, 999, 77])
    city = config_of(
        capacity=capacity, num_shared=num_shared, half_life=None, update_every=3
    ).features["city"]
    if sharding is not None:
        city = city.model_copy(update={"sharding_types": (sharding,)})
    changed = recipe.embeddings.model_copy(update={"features": {"city": city}})
    new = trainer_of(
        Recipe(recipe.files, recipe.folder / "new", embeddings=changed, training=recipe.training)
    )
    new.start_from(Checkpoints(recipe.folder / "checkpoints").last())
    found = scheme_of(new)
    there = found.owners.map.keys[found.owners.occupied_C].tolist()
    assert there == sorted(kept)
    torch.testing.assert_close(
        vectors_of(new, there), expected_ND[[kept.index(i) for i in there]], rtol=0, atol=0
    )
    shared = vectors_of(new, [0, 999, 77])
    torch.testing.assert_close(shared[0], shared_ND[0], rtol=0, atol=0)
    if num_shared == 2:
        torch.testing.assert_close(shared, shared_ND, rtol=0, atol=0)
    table = new.step.tables.tables["city_dynamic"]
    taken = {int(r) for r in found.rows(torch.tensor(there))[0]}
    free = [r for r in range(1 + num_shared, table.num_embeddings) if r not in taken]
    torch.testing.assert_close(
        new.step.tables.read_rows("city_dynamic", torch.tensor(free, dtype=torch.int64)),
        initial_values(table, new.config.seed, torch.tensor(free, dtype=torch.int64)),
        rtol=0,
        atol=0,
    )
    assert int(found.clock) == 8, "its time goes on"
    losses = global_losses(new, 4)
    assert all(np.isfinite(losses))


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("workers", "capacity", "num_shared", "sharding"),
    [
        (1, 14, 2, None),
        (1, 4, 2, None),
        (1, 9, 3, None),
        (2, 14, 2, "row_wise"),
        (2, 4, 2, "column_wise"),
        (2, 10, 2, "table_wise"),
    ],
)
def test_known_ids_keep_their_vectors_in_another_capacity(
    workers: int,
    capacity: int,
    num_shared: int,
    sharding: str | None,
    repeated: tuple[Path, ...],
    tmp_path: Path,
) -> None:
    """9 and 3 make a table of as many rows as 10 and 2, with other rows in it."""
    recipe = Recipe(
        repeated,
        tmp_path,
        embeddings=config_of(capacity=10, num_shared=2, half_life=None, update_every=2),
        training=TrainingConfig(batch_size=60),
    )
    on_ranks(workers, _moved, recipe, capacity, num_shared, sharding)


def space_of(name: str, num_ids: int | None, dim: int = 8) -> Space:
    return Space(name, (CITY,), num_ids, None, dim, TableSettings())


@pytest.mark.parametrize("budget", [700, 2_000, 5_000, 20_000, 30_000])
def test_a_budget_is_spent_and_never_exceeded(budget: int) -> None:
    spaces = [space_of("a", 1_000), space_of("b", 40), space_of("c", 3)]
    sized = DynamicConfig(num_shared=2).sized(spaces, budget)
    spent = 0
    for space in spaces:
        config = sized[space.name]
        if config is None:
            spent += space.full_bytes
            continue
        scheme = config.scheme(space, "train", {})
        spent += scheme.serving_bytes() + 32 * scheme.lookups[0].num_embeddings
    assert spent <= budget
    assert budget - spent < 3 * 44 + 32 * 40, "what is left buys no row more in every feature"
    assert sized["c"] is None, "a feature that would not shrink"


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(SchemeError, match=r"'city' is hashed to 64 bits.*capacity.*num_embeddings"):
        DynamicConfig().sized([space_of("city", None)], None)
    with pytest.raises(BudgetTooSmall, match=r"108 bytes \(0\.338% of the full tables\).*100"):
        DynamicConfig().sized([space_of("city", 1_000)], 100)
    known = DynamicConfig().sized([space_of("city", 1_000)], None)["city"]
    assert known is not None
    assert (known.capacity, known.num_candidates) == (1_000, 1_000)


def test_a_hashed_feature_needs_no_number_of_ids() -> None:
    embeddings = Embeddings(LAYOUT, config_of(capacity=6), CPU)
    assert [t.num_embeddings for t in embeddings.tables if t.name == "city_dynamic"] == [8]


@one_rank
def test_what_is_served_holds_no_scores(files: tuple, tmp_path: Path) -> None:
    trainer = trainer_of(Recipe(files, tmp_path, embeddings=config_of(capacity=6)))
    scheme = scheme_of(trainer)
    served = scheme.serving({})
    assert served.storage_bytes() == scheme.serving_bytes() == 6 * 12
    assert scheme.storage_bytes() == 6 * (12 + 8) + 8 * 16 + 8, "a map, scores, 2 buckets, a clock"
    assert isinstance(trainer.step.tables, TableAccess)
