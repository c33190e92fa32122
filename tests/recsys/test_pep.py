"""PEP: the thresholds' mathematics, exact masks, and training again under them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support.encoded import LAYOUT
from support.training import CPU, EMBEDDING, Recipe, fitted, trainer_of, weights

from recsys.embeddings.collection import NO_DECISIONS, Embeddings
from recsys.embeddings.compression.pep import Masked, PepConfig, PepSearch, Thresholds
from recsys.embeddings.config import EmbeddingsConfig
from recsys.embeddings.packed import unpack_bits
from recsys.embeddings.scheme import SchemeError
from recsys.embeddings.serving import serving_form, whole_tables
from recsys.training.trainer import TrainingConfig

one_rank = pytest.mark.usefixtures("one_rank")
KINDS: tuple[Thresholds, ...] = ("global", "dimension", "feature", "feature_dimension")
SIZES = {"user": 40, "item": 60, "tags": 12, "city": 100}
TOTAL = 8 * sum(SIZES.values())


def config_of(budget: str | None = None, **settings: object) -> EmbeddingsConfig:
    scheme = PepConfig.model_validate(settings)
    return EmbeddingsConfig(default=EMBEDDING.model_copy(update={"scheme": scheme}), budget=budget)


def searching(thresholds: Thresholds, **settings: object) -> dict[str, PepSearch]:
    config = config_of(thresholds=thresholds, **settings)
    embeddings = Embeddings(LAYOUT, config, CPU, stage="search")
    schemes = embeddings.schemes_by_space()
    return {name: s for name, s in schemes.items() if isinstance(s, PepSearch)}


@pytest.mark.parametrize("thresholds", KINDS)
def test_weights_are_soft_thresholded(thresholds: Thresholds) -> None:
    scheme = searching(thresholds)["item"]
    shapes = {
        "global": (1, 1),
        "dimension": (1, 8),
        "feature": (60, 1),
        "feature_dimension": (60, 8),
    }
    assert scheme.s.shape == shapes[thresholds]
    torch.manual_seed(0)
    with torch.no_grad():
        scheme.s.uniform_(-6, -2)
    table = torch.randn(60, 8) * 0.06
    ids = torch.tensor([[3, 59], [3, 0]])
    found = scheme.train().combine(ids, [table[ids]]).detach().numpy()
    s = scheme.s.detach().double().expand(60, 8).numpy()
    zeros = 0
    for place in np.ndindex(2, 2, 8):
        row, column = int(ids[place[:2]]), place[2]
        weight = float(table[row, column])
        left = abs(weight) - 1 / (1 + math.exp(-s[row, column]))
        expected = math.copysign(max(left, 0.0), weight)
        zeros += expected == 0
        assert found[place] == pytest.approx(expected, abs=1e-7)
    assert 0 < zeros < 32
    block = scheme.score(table[10:20, 4:], 10, 4)
    expected_block = (
        table[10:20, 4:].abs() - torch.sigmoid(scheme.s.detach().expand(60, 8))[10:20, 4:]
    )
    torch.testing.assert_close(block, expected_block)


@pytest.mark.parametrize("thresholds", KINDS)
def test_gradients_reach_weights_and_thresholds(thresholds: Thresholds) -> None:
    scheme = searching(thresholds)["tags"].double().train()
    torch.manual_seed(0)
    table = torch.randn(12, 8, dtype=torch.float64)
    ids = torch.tensor([1, 5, 5, 11])
    threshold = scheme.s.detach().clone().uniform_(-2, 1).requires_grad_()
    del scheme.s
    vectors = table[ids].requires_grad_()

    def combined(v: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        scheme.s = s  # type: ignore[assignment]
        return scheme.combine(ids, [v])

    assert torch.autograd.gradcheck(combined, (vectors, threshold))


def test_it_prunes_nothing_at_first() -> None:
    scheme = searching("dimension")["item"]
    table = torch.randn(60, 8)
    found = scheme.train().combine(torch.arange(60), [table])
    torch.testing.assert_close(found, table, rtol=0, atol=1e-6)
    assert scheme.learning_rates == {"s": 0.01}


@pytest.mark.parametrize("start", [-15.0, -2.0, 2.0])
@pytest.mark.parametrize("thresholds", KINDS)
def test_the_mask_keeps_exactly_what_exceeds_by_most(thresholds: Thresholds, start: float) -> None:
    """Thresholds that prune nothing, too little, and everything."""
    schemes = searching(thresholds, density=0.3)
    torch.manual_seed(1)
    tables = {name: torch.randn(size, 8) for name, size in SIZES.items()}
    excess = []
    for name, scheme in schemes.items():
        with torch.no_grad():
            scheme.s.uniform_(start - 0.5, start + 0.5)
        s = torch.sigmoid(scheme.s.detach()).expand(SIZES[name], 8)
        excess.append((tables[name].abs() - s).flatten())
    config = next(iter(schemes.values())).config
    decided = config.decide("search", schemes, tables, lambda: 0.5)
    found = torch.cat([unpack_bits(decided[name]["mask"], 8).flatten() for name in schemes]).numpy()
    expected = np.zeros(TOTAL, bool)
    order = np.argsort(-torch.cat(excess).numpy(), kind="stable")
    expected[order[: int(0.3 * TOTAL)]] = True
    np.testing.assert_array_equal(found, expected)


def test_training_again_reaches_kept_weights_alone() -> None:
    config = config_of(density=0.3)
    mask = torch.randint(0, 256, (60, 1), dtype=torch.uint8)
    embeddings = Embeddings(LAYOUT, config, CPU, decisions={"item": {"mask": mask}})
    scheme = embeddings.schemes_by_space()["item"]
    assert isinstance(scheme, Masked)
    kept = np.unpackbits(mask.numpy(), axis=1, bitorder="little").astype(bool)
    table = torch.randn(60, 8, requires_grad=True)
    ids = torch.tensor([4, 9, 4])
    vectors = scheme.combine(ids, [table[ids]])
    np.testing.assert_array_equal(
        vectors.detach().numpy(), np.where(kept, table.detach().numpy(), 0)[ids.numpy()]
    )
    vectors.sum().backward()
    assert table.grad is not None
    expected = np.zeros((60, 8), np.float32)
    np.add.at(expected, ids.numpy(), kept[ids.numpy()].astype(np.float32))
    np.testing.assert_array_equal(table.grad.numpy(), expected)
    served = scheme.serving({"item": table.detach()})
    torch.testing.assert_close(served.combine(ids, []), vectors.detach(), rtol=0, atol=0)
    assert sum(b.numel() * b.element_size() for b in scheme.buffers()) == 60


def recipe_of(files: tuple, folder: Path, stage: str, decisions: object = NO_DECISIONS) -> Recipe:
    return Recipe(
        files,
        folder,
        valid=files,
        embeddings=config_of("30%", thresholds="feature", threshold_lr=0.3, initial=-6.0),
        training=TrainingConfig(batch_size=60, max_steps=12, epochs=3, early_stopping=None),
        stage=stage,
        decisions=decisions,  # type: ignore[arg-type]
    )


@one_rank
def test_search_and_training_keep_the_budget(files: tuple[Path, ...], tmp_path: Path) -> None:
    searched = fitted(recipe_of(files, tmp_path / "search", "search"))
    embeddings = searched.step.embeddings
    schemes = {n: s.eval() for n, s in embeddings.schemes_by_space().items()}
    tables = {
        name: next(
            torch.from_numpy(w) for n, w in weights(searched).items() if f"{name}_table" in n
        )
        for name in schemes
    }
    seen = {
        name: scheme.combine(torch.arange(SIZES[name]), [tables[name]])
        for name, scheme in schemes.items()
    }
    first = next(iter(schemes.values()))
    assert isinstance(first, PepSearch)
    num_kept = (int(0.3 * 4 * TOTAL) - 5 * TOTAL // 8) // 4
    assert first.config.group_kept == num_kept
    assert sum(int((vectors != 0).sum()) for vectors in seen.values()) == num_kept
    assert float(first.s.detach().min()) < -6.0 < float(first.s.detach().max())
    decisions = first.config.decide("search", schemes, tables, lambda: 0.5)
    kept = {name: unpack_bits(found["mask"], 8) for name, found in decisions.items()}
    for name, vectors in seen.items():
        assert torch.equal(vectors != 0, kept[name])

    recipe = recipe_of(files, tmp_path / "train", "train", decisions)
    fresh = weights(trainer_of(recipe))
    start = weights(trainer_of(recipe_of(files, tmp_path / "other", "search")))
    again = fitted(recipe)
    for name, weight in weights(again).items():
        if "_table" in name:
            space = next(n for n in SIZES if f"{n}_table" in name)
            np.testing.assert_array_equal(fresh[name], start[name])
            pruned = ~kept[space].numpy()
            np.testing.assert_array_equal(weight[pruned], start[name][pruned])
            assert (weight[~pruned] != start[name][~pruned]).any()

    whole = Embeddings(LAYOUT, recipe.embeddings, CPU, decisions=decisions)
    trained = weights(again)
    for name, value in whole.state_dict().items():
        value.copy_(torch.from_numpy(next(v for n, v in trained.items() if n.endswith(name))))
    taken = sum(serving_form(whole).storage_bytes().values())
    assert 0.9 * 0.3 * 4 * TOTAL < taken <= 0.3 * 4 * TOTAL
    assert set(whole_tables(whole)) == set(SIZES)


def test_the_search_may_have_its_own_epochs() -> None:
    config = PepConfig(search_epochs=3)
    assert (config.epochs("search"), config.epochs("train")) == (3, None)
    assert PepConfig().epochs("search") is None
    assert PepConfig.stages == ("search", "train")


def test_a_feature_without_a_table_is_refused() -> None:
    default = EMBEDDING.model_copy(update={"scheme": PepConfig(), "num_embeddings": None})
    with pytest.raises(SchemeError, match=r"feature 'city' is hashed to 64 bits"):
        Embeddings(LAYOUT, EmbeddingsConfig(default=default, budget="20%"), CPU)
