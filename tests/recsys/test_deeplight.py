"""DeepLight: the schedule, what is pruned when, and that validation sees what is served."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.encoded import LAYOUT
from support.padding import padded_ids
from support.training import CPU, EMBEDDING, Recipe, trainer_of, weights

from recsys.batch import Batch
from recsys.embeddings.collection import Embeddings, SequenceVectors
from recsys.embeddings.compression.deeplight import DeepLight, DeepLightConfig
from recsys.embeddings.compression.full import FullConfig
from recsys.embeddings.config import EmbeddingsConfig, sized_spaces
from recsys.embeddings.serving import serving_form
from recsys.training.trainer import Trainer, TrainingConfig

one_rank = pytest.mark.usefixtures("one_rank")
TOTAL = 8 * (40 + 60 + 12 + 100)
"""Weights of all tables of the layout."""


def recipe_of(
    files: tuple, folder: Path, config: DeepLightConfig, budget: str | None = None
) -> Recipe:
    default = EMBEDDING.model_copy(update={"scheme": config})
    training = TrainingConfig(batch_size=60, max_steps=40, epochs=9)
    embeddings = EmbeddingsConfig(default=default, budget=budget)
    return Recipe(files, folder, embeddings=embeddings, training=training)


def tables_of(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: w for name, w in weights(trainer).items() if "_table" in name}


def nonzero(trainer: Trainer) -> int:
    return sum(int((table != 0).sum()) for table in tables_of(trainer).values())


def test_the_share_follows_the_paper() -> None:
    config = DeepLightConfig(warm_up=0, omega=100)
    for iteration in (1, 70, 5000, 60_000):
        expected = 0.9 * (1 - 0.99 ** (iteration / 100))
        assert config.pruned_share(iteration, 100_000, 0.9) == pytest.approx(expected)
    first = next(n for n in range(60_000, 90_000) if config.pruned_share(n, 100_000, 0.9) == 0.9)
    assert 0.9 * 0.99 ** (first / 100) <= 1e-3 < 0.9 * 0.99 ** ((first - 1) / 100)


@pytest.mark.parametrize("target", [0.0005, 0.5, 0.99])
@pytest.mark.parametrize("num_steps", [40, 1000, 10**6])
def test_the_ramp_begins_after_the_warm_up_and_ends_in_time(num_steps: int, target: float) -> None:
    config = DeepLightConfig(warm_up=0.25, ramp_end=0.75)
    shares = [
        config.pruned_share(done, num_steps, target)
        for done in range(0, num_steps + 1, max(1, num_steps // 200))
    ]
    assert shares == sorted(shares)
    begins = math.floor(0.25 * num_steps)
    assert config.pruned_share(begins, num_steps, target) == 0
    assert config.pruned_share(begins + 1, num_steps, target) > 0
    assert config.pruned_share(math.ceil(0.75 * num_steps) + 1, num_steps, target) == target
    if num_steps == 10**6 and target > 0.1:  # the paper's speed where there is time
        expected = target * (1 - 0.99**10)
        assert config.pruned_share(begins + 1000, num_steps, target) == pytest.approx(expected)


@one_rank
def test_counts_are_exact_at_every_pruning(files: tuple[Path, ...], tmp_path: Path) -> None:
    config = DeepLightConfig(density=0.2, every=3)
    trainer = trainer_of(recipe_of(files, tmp_path, config))
    kept = int(0.2 * TOTAL)
    target = 1 - kept / TOTAL
    batches = trainer.readers["train"].epoch(0)
    counts = {}
    for done in range(1, 41):
        if done in (10, 19, 28, 37):
            batches = trainer.readers["train"].epoch(done)
        trainer.step.progress(batches)
        since = done - 4
        if since > 0 and since % 3 == 0:
            share = config.pruned_share(done, 40, target)
            expected = kept if share == target else TOTAL - math.floor(share * TOTAL)
            assert nonzero(trainer) == expected, done
            counts[done] = expected
        elif done <= 4:
            assert nonzero(trainer) == TOTAL
    assert len(set(counts.values())) > 3
    assert nonzero(trainer) == kept
    largest_bytes = sum(s.serving_bytes() for s in trainer.step.embeddings.own_schemes())
    assert largest_bytes <= 4 * kept + (1 + 4) * TOTAL // 8


@one_rank
def test_a_pruned_weight_may_come_back(files: tuple[Path, ...], tmp_path: Path) -> None:
    config = DeepLightConfig(density=0.5, every=2, warm_up=0, ramp_end=0.1)
    trainer = trainer_of(recipe_of(files, tmp_path, config))
    batches = trainer.readers["train"].epoch(0)
    zero: list[dict[str, np.ndarray]] = []
    for _ in range(8):
        trainer.step.progress(batches)
        zero.append({name: table == 0 for name, table in tables_of(trainer).items()})
    assert any((zero[5][name] & ~zero[7][name]).any() for name in zero[0])


def seen(trainer: Trainer) -> dict[str, np.ndarray]:
    """The vectors of all ids of the single fields in evaluation."""
    found = {}
    for name, scheme in trainer.step.embeddings.schemes_by_space().items():
        table = next(t for n, t in tables_of(trainer).items() if f"{name}_table" in n)
        ids = torch.arange(table.shape[0])
        scheme.eval()
        found[name] = scheme.combine(ids, [torch.from_numpy(table)]).detach().numpy()
        scheme.train()
    return found


@one_rank
@pytest.mark.parametrize("steps", [2, 10, 38])
def test_evaluation_sees_the_tables_at_the_budget(
    files: tuple[Path, ...], tmp_path: Path, steps: int
) -> None:
    """In the warm-up, in the ramp and after it; training goes on with what it had."""
    config = DeepLightConfig(density=0.2, every=3)
    trainer = trainer_of(recipe_of(files, tmp_path, config))
    for done in range(steps):
        batches = trainer.readers["train"].epoch(done)
        trainer.step.progress(batches, evaluated=done == steps - 1)
    kept = int(0.2 * TOTAL)
    before = {name: table.copy() for name, table in tables_of(trainer).items()}
    found = seen(trainer)
    assert sum(int((vectors != 0).sum()) for vectors in found.values()) == kept
    magnitudes = np.sort(np.concatenate([np.abs(t).ravel() for t in before.values()]))[::-1]
    for name, vectors in found.items():
        table = next(t for n, t in before.items() if f"{name}_table" in n)
        expected = np.where(np.abs(table) >= magnitudes[kept - 1], table, 0)
        np.testing.assert_array_equal(vectors, expected)
    if steps < 20:
        assert nonzero(trainer) > 1.5 * kept


@one_rank
@pytest.mark.parametrize("budget", ["50%", "20%", "4%"])
def test_what_is_validated_is_served_within_the_budget(
    files: tuple[Path, ...], tmp_path: Path, batch: Batch, budget: str
) -> None:
    """Evaluated half-way up the ramp, where the tables themselves are far from the budget."""
    recipe = recipe_of(files, tmp_path, DeepLightConfig(every=3), budget)
    trainer = trainer_of(recipe)
    for done in range(12):
        trainer.step.progress(trainer.readers["train"].epoch(done), evaluated=done == 11)
    embeddings = Embeddings(LAYOUT, recipe.embeddings, CPU)
    trained = weights(trainer)
    for name, value in embeddings.state_dict().items():
        value.copy_(torch.from_numpy(next(v for n, v in trained.items() if n.endswith(name))))
    with torch.no_grad():
        expected = embeddings.eval()(batch.ids)
        served = serving_form(embeddings).eval()
        found = served(padded_ids(batch.ids, 1))
    for field in LAYOUT.ids:
        one, other = found[field.name], expected[field.name]
        if isinstance(one, SequenceVectors):
            assert isinstance(other, SequenceVectors)
            length = other.mask_BL.shape[1]
            torch.testing.assert_close(one.values_BLD[:, :length], other.values_BLD)
        else:
            torch.testing.assert_close(one, other)
    allowed = float(budget[:-1]) / 100 * 4 * TOTAL
    assert sum(served.storage_bytes().values()) <= allowed
    promised = sum(scheme.serving_bytes() for scheme in embeddings.own_schemes())
    assert 0.9 * allowed < promised <= allowed


def test_small_tables_are_pruned_with_the_others() -> None:
    config = EmbeddingsConfig(
        default=EMBEDDING.model_copy(update={"scheme": DeepLightConfig()}), budget="40%"
    )
    sized = {each.space.name: each.config for each in sized_spaces(LAYOUT, config)}
    for each in sized.values():
        assert isinstance(each, DeepLightConfig)
        assert each.group == ("user", "item", "tags", "city")
        assert each.group_kept == (int(0.4 * 4 * TOTAL) - 5 * TOTAL // 8) // 4
    everything = config.model_copy(update={"budget": "100%"})
    assert {each.config for each in sized_spaces(LAYOUT, everything)} == {FullConfig()}


def test_a_ramp_without_steps_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"ramp_end 0\.1 is not after warm_up 0\.5"):
        DeepLightConfig(warm_up=0.5, ramp_end=0.1)


def test_training_keeps_pruned_weights_alive() -> None:
    config = EmbeddingsConfig(default=EMBEDDING.model_copy(update={"scheme": DeepLightConfig()}))
    scheme = Embeddings(LAYOUT, config, CPU).schemes_by_space()["user"]
    assert isinstance(scheme, DeepLight)
    scheme.level.fill_(0.5)
    vectors = torch.tensor([[0.4, -0.6, 0.5, -0.5]])
    assert scheme.train().combine(torch.tensor([0]), [vectors]) is vectors
    found = scheme.eval().combine(torch.tensor([0]), [vectors])
    torch.testing.assert_close(found, torch.tensor([[0.0, -0.6, 0.0, 0.0]]))
