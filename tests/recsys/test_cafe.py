"""CAFE: importance by hand, who becomes hot and what that does to rows, and where the bytes go."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.encoded import LAYOUT
from support.ranks import on_ranks
from support.training import Recipe, embeddings_of, global_losses, optimizer_state, trainer_of

from recsys.embeddings.compression.cafe import Cafe, CafeConfig
from recsys.embeddings.config import EmbeddingsConfig, FeatureEmbedding
from recsys.embeddings.hashing import hashed_rows
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space, StepInfo
from recsys.embeddings.tables import TableSettings
from recsys.training.trainer import Trainer, TrainingConfig

one_rank = pytest.mark.usefixtures("one_rank")
CITY = next(f for f in LAYOUT.ids if f.name == "city")
SIZES: dict[str, Any] = {"num_hot": 3, "num_shared": 4, "num_buckets": 50, "update_every": 1}


def config_of(name: str, **settings: Any) -> EmbeddingsConfig:
    scheme = {"kind": "cafe", **SIZES, **settings}
    feature = FeatureEmbedding(embedding_dim=8, num_embeddings=100, scheme=scheme)
    return EmbeddingsConfig(default=embeddings_of().default, features={name: feature})


def scheme_of(trainer: Trainer, name: str) -> Cafe:
    scheme = trainer.step.embeddings.schemes_by_space()[name]
    assert isinstance(scheme, Cafe)
    return scheme


def trainer_with(files: tuple[Path, ...], folder: Path, **settings: Any) -> Trainer:
    return trainer_of(Recipe(files, folder, embeddings=config_of("city", **settings)))


def step(trainer: Trainer, ids: list[int], gradients: list[float]) -> None:
    """A step in which the loss is so steep along each id's vector; no weight is trained."""
    scheme = scheme_of(trainer, "city")
    vectors = torch.ones(len(ids), 8, requires_grad=True)
    combined = scheme.combine(torch.tensor(ids), [vectors * 1.0])
    # The norm of a gradient of g / sqrt(8) in each of 8 columns is g.
    slopes = torch.tensor(gradients)[:, None] / 8**0.5
    (combined * slopes).sum().backward()
    scheme.after_step(StepInfo(int(scheme.clock), 1000, 0), trainer.step.tables)


def known(scheme: Cafe) -> dict[int, float]:
    """Importance of everybody who is hot or in the sketch."""
    waiting = scheme.sketch.candidates(0.0)
    found = dict(zip(waiting.ids_N.tolist(), waiting.scores_N.tolist(), strict=True))
    hot = scheme.owners.occupied_C
    keys, scores = scheme.owners.map.keys[hot].tolist(), scheme.owners.scores[hot].tolist()
    return found | dict(zip(keys, scores, strict=True))


def hot(scheme: Cafe) -> list[int]:
    return scheme.owners.map.keys[scheme.owners.occupied_C].tolist()


@one_rank
def test_importance_is_the_norm_over_the_steps_mean(files: tuple, tmp_path: Path) -> None:
    trainer = trainer_with(files, tmp_path, threshold=1000.0)
    step(trainer, [11, 12, 11, 0, 13], [3.0, 1.0, 2.0, 99.0, 0.0])
    # Four look-ups, the missing one aside, of norms 3, 1, 2, 0: their mean is 1.5.
    expected = {11: 5 / 1.5, 12: 1 / 1.5, 13: 0.0}
    assert known(scheme_of(trainer, "city")) == pytest.approx(expected, abs=1e-6)
    step(trainer, [12, 14], [40.0, 40.0])
    expected |= {12: 1 / 1.5 + 1, 14: 1.0}
    assert known(scheme_of(trainer, "city")) == pytest.approx(expected, abs=1e-6)


@one_rank
def test_frequency_counts_look_ups(files: tuple, tmp_path: Path) -> None:
    trainer = trainer_with(files, tmp_path, threshold=1000.0, importance="frequency")
    step(trainer, [11, 12, 11, 0], [3.0, 1.0, 2.0, 99.0])
    assert known(scheme_of(trainer, "city")) == {11: 2, 12: 1}


@one_rank
def test_a_hot_id_starts_from_its_shared_vector(files: tuple, tmp_path: Path) -> None:
    trainer = trainer_with(files, tmp_path, threshold=3.0, importance="frequency")
    scheme, tables = scheme_of(trainer, "city"), trainer.step.tables
    global_losses(trainer, 3)
    ids = torch.tensor([21, 22])
    before_RD = tables.read_rows("city_cafe", torch.arange(8)).clone()
    (shared,) = scheme.rows(ids)
    assert shared.tolist() == hashed_rows(ids, 5).tolist()
    step(trainer, [21, 21, 21, 22, 22], [1.0] * 5)
    assert set(hot(scheme)) == {21}
    (rows,) = scheme.rows(ids)
    assert rows[0] == 5, "after the missing one and 4 shared rows"
    assert rows[1] == shared[1], "not hot"
    after_RD = tables.read_rows("city_cafe", torch.arange(8))
    expected_RD = before_RD.clone()
    expected_RD[5] = before_RD[shared[0]]
    torch.testing.assert_close(after_RD, expected_RD, rtol=0, atol=0)
    state = next(v for k, v in optimizer_state(trainer).items() if "city_cafe" in k)
    assert state[5] == 0
    assert state[1:5].max() > 0


@one_rank
def test_hot_ids_stay_until_they_fall_well_below_the_threshold(
    files: tuple, tmp_path: Path
) -> None:
    """Decay is due when 10 * 3 hot * threshold 2 = 60 has been added."""
    trainer = trainer_with(
        files, tmp_path, threshold=2.0, importance="frequency", hysteresis=0.8, decay=0.85
    )
    scheme = scheme_of(trainer, "city")
    step(trainer, [21, 21], [1.0] * 2)
    assert hot(scheme) == [21]
    step(trainer, [99] * 58, [1.0] * 58)
    assert float(scheme.added) == 60
    assert known(scheme)[21] == 2
    step(trainer, [99], [1.0])
    assert known(scheme)[21] == pytest.approx(1.7), "below 2, above 0.8 * 2"
    assert set(hot(scheme)) == {21, 99}
    assert float(scheme.added) == 0
    step(trainer, [99] * 61, [1.0] * 61)
    assert set(hot(scheme)) == {99}
    assert known(scheme)[21] == pytest.approx(1.7 * 0.85), "back in the sketch with what it has"
    metrics = scheme.metrics()
    assert (metrics["promoted"], metrics["demoted"]) == (2, 1)
    assert metrics["occupancy"] == pytest.approx(1 / 3)


@one_rank
def test_a_full_table_takes_only_clearly_more_important_ids(files: tuple, tmp_path: Path) -> None:
    trainer = trainer_with(
        files, tmp_path, threshold=2.0, importance="frequency", hysteresis=0.5, decay=1.0
    )
    scheme = scheme_of(trainer, "city")
    step(trainer, [1] * 3 + [2] * 4 + [3] * 5, [1.0] * 12)
    assert hot(scheme) == [1, 2, 3]
    step(trainer, [4] * 6, [1.0] * 6)
    assert hot(scheme) == [1, 2, 3], "half of 6 is no more than 3"
    (row,) = scheme.rows(torch.tensor([1]))[0].tolist()
    step(trainer, [4], [1.0])
    assert hot(scheme) == [2, 3, 4], "half of 7 is"
    assert scheme.rows(torch.tensor([4]))[0].tolist() == [row], "in the row that came free"
    assert known(scheme)[1] == 3


def _training_importances(recipe: Recipe) -> tuple[list[int], dict[int, float], list[int]]:
    trainer = trainer_of(recipe)
    scheme = scheme_of(trainer, "item")
    global_losses(trainer, 6)
    return hot(scheme), known(scheme), scheme.owners.map.slots.tolist()


@pytest.mark.distributed
@pytest.mark.parametrize("importance", ["gradient", "frequency"])
def test_two_workers_find_what_one_does(
    importance: str, files: tuple[Path, ...], tmp_path: Path
) -> None:
    """Of a feature with a sequence, whose look-ups count too."""
    recipe = Recipe(
        files,
        tmp_path,
        embeddings=config_of(
            "item", importance=importance, threshold=5.0, update_every=2, num_buckets=500
        ),
        training=TrainingConfig(batch_size=60),
    )
    ((ids, scores, slots),) = on_ranks(1, _training_importances, recipe)
    assert len(ids) == 3
    assert len(scores) == 59, "every item but the missing one"
    for other_ids, other_scores, other_slots in on_ranks(2, _training_importances, recipe):
        assert (other_ids, other_slots) == (ids, slots)
        assert other_scores == pytest.approx(scores, rel=1e-4)


def space_of(name: str, num_ids: int | None) -> Space:
    return Space(name, (CITY,), num_ids, None, 8, TableSettings())


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.02, 0.003])
def test_a_budget_is_spent_and_never_exceeded(rate: float) -> None:
    spaces = [space_of("a", 30_000), space_of("b", 2_000), space_of("c", 3)]
    full = sum(space.full_bytes for space in spaces)
    budget = int(rate * full)
    sized = CafeConfig().sized(spaces, budget)
    spent = 0
    for space in spaces:
        config = sized[space.name]
        if config is None:
            spent += space.full_bytes
            continue
        scheme = config.scheme(space, "train", {})
        spent += scheme.serving_bytes() + 32 * scheme.lookups[0].num_embeddings
    assert spent <= budget
    assert budget - spent < 3 * 80, "what is left buys no row"
    assert sized["c"] is None, "a feature that would not shrink"
    big = sized["a"]
    assert big is not None and big.num_shared is not None and big.num_hot is not None
    share, threshold = {0.5: (0.7, 10), 0.1: (0.5, 20), 0.02: (0.3, 50), 0.003: (0.2, 500)}[rate]
    assert big.threshold == threshold
    shared_bytes = 32 * (big.num_shared + 1)
    assert shared_bytes / (shared_bytes + 44 * big.num_hot) == pytest.approx(share, abs=0.02)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(SchemeError, match=r"'city' needs sizes; set embeddings\.budget, or"):
        CafeConfig().sized([space_of("city", 100)], None)
    with pytest.raises(SchemeError, match=r"'city' is hashed to 64 bits"):
        CafeConfig().sized([space_of("city", None)], 1000)
    with pytest.raises(BudgetTooSmall, match=r"108 bytes \(3\.375% of the full tables\).*100"):
        CafeConfig().sized([space_of("city", 100)], 100)


@one_rank
def test_what_is_served_holds_no_sketch(files: tuple, tmp_path: Path) -> None:
    scheme = scheme_of(trainer_with(files, tmp_path), "city")
    assert scheme.serving({}).storage_bytes() == scheme.serving_bytes() == 3 * 12
    # Hot ids with scores, a sketch of four places of 16 bytes a bucket, two counters.
    assert scheme.storage_bytes() == 3 * (12 + 8) + 50 * 4 * 16 + 2 * 8
    assert np.prod(scheme.sketch.ids.shape) == 200
