"""AutoSrh: groups and gates as written down, exactly the largest weights of all features kept."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from support.training import EMBEDDING, Recipe, global_losses, trainer_of

from feature_store.features import IdField
from recsys.embeddings.compression.autosrh import (
    AutoSrhConfig,
    AutoSrhSearch,
    GatedWeights,
    group_of,
)
from recsys.embeddings.config import EmbeddingsConfig, FeatureEmbedding
from recsys.embeddings.packed import unpack_bits
from recsys.embeddings.scheme import SchemeError, Space
from recsys.embeddings.tables import TableSettings


def space_of(name: str, num_ids: int, width: int = 4) -> Space:
    field = IdField(name=name, shape="single", side="user", space=name, cardinality=num_ids)
    return Space(name, (field,), num_ids, num_ids, width, TableSettings())


def config_of(spaces: list[Space], **settings: float) -> AutoSrhConfig:
    config = AutoSrhConfig(**settings).sized(spaces, None)[spaces[0].name]
    assert config is not None
    return config


@pytest.mark.parametrize(("num_ids", "num_groups"), [(60, 6), (61, 6), (4, 6), (1000, 7)])
def test_groups_are_of_equal_size_from_the_most_frequent_on(num_ids: int, num_groups: int) -> None:
    groups = group_of(torch.arange(num_ids), num_ids, num_groups).tolist()
    assert groups == sorted(groups)
    assert 0 <= groups[0] <= groups[-1] < num_groups
    sizes = [groups.count(group) for group in range(num_groups)]
    assert max(sizes) - min(sizes) <= 1


def test_gates_multiply_their_groups_columns_and_are_clipped() -> None:
    torch.manual_seed(0)
    space = space_of("a", 12)
    scheme = AutoSrhSearch(space, config_of([space], num_groups=3, gate_l1=0.5))
    gates = torch.tensor([[0.5, 1.2, 0, 1], [0.1, 0.2, 0.3, 0.4], [-0.1, 0.6, 0.7, 0.8]])
    with torch.no_grad():
        scheme.architecture["gates"].copy_(gates)
    rows = torch.randn(12, 4)
    found = scheme.combine(torch.arange(12), (rows,))
    clipped = np.clip(gates.numpy(), 0, 1)
    for place, vector in enumerate(found.detach().numpy()):
        np.testing.assert_allclose(vector, rows[place].numpy() * clipped[place // 4], rtol=1e-6)
    assert scheme.penalty().item() == pytest.approx(0.5 * clipped.sum())
    found.sum().backward()
    gradient = scheme.architecture["gates"].grad
    expected = [rows[group * 4 : group * 4 + 4].sum(dim=0).tolist() for group in range(3)]
    torch.testing.assert_close(gradient, torch.tensor(expected))


@pytest.mark.usefixtures("one_rank")
def test_gates_learn_from_validation_alone_and_stay_between_0_and_1(
    files: tuple[Path, ...], valid_files: tuple[Path, ...]
) -> None:
    def gates(train: tuple[Path, ...], gate_lr: float) -> torch.Tensor:
        default = EMBEDDING.model_copy(update={"scheme": AutoSrhConfig(gate_lr=gate_lr)})
        plain = {"city": FeatureEmbedding(scheme="full")}
        embeddings = EmbeddingsConfig(default=default, features=plain)
        recipe = Recipe(
            train, Path("unused"), valid=valid_files, embeddings=embeddings, stage="search"
        )
        trainer = trainer_of(recipe)
        global_losses(trainer, 1)
        schemes = trainer.step.embeddings.schemes_by_space()
        return schemes["item"].architecture["gates"].detach().clone()

    one, other = gates(files, 0.01), gates(tuple(reversed(files)), 0.01)
    assert torch.equal(one, other), "the first step's gates see no training row"
    assert (one < 1).any()
    wild = gates(files, 5.0)
    assert wild.min() == 0
    assert wild.max() == 1


def test_exactly_the_largest_gated_weights_of_all_features_are_kept() -> None:
    torch.manual_seed(0)
    spaces = [space_of("a", 10), space_of("b", 33)]
    config = config_of(spaces, num_groups=2, density=0.25)
    schemes = {space.name: AutoSrhSearch(space, config) for space in spaces}
    weights = {space.name: torch.randn(space.num_rows, 4) for space in spaces}
    with torch.no_grad():
        for scheme in schemes.values():
            scheme.architecture["gates"].uniform_(0, 1)
    found = config.decide("search", schemes, weights, lambda: 0.5)
    scored = []
    for space in spaces:
        gates = schemes[space.name].architecture["gates"].detach().numpy()
        for row, column in itertools.product(range(space.num_rows), range(4)):
            gate = gates[row * 2 // space.num_rows, column]
            scored.append((abs(gate * weights[space.name][row, column].item()), space, row, column))
    largest = sorted(scored, key=lambda each: -each[0])[: int(0.25 * 43 * 4)]
    for space in spaces:
        expected = torch.zeros(space.num_rows, 4, dtype=torch.bool)
        for _, owner, row, column in largest:
            if owner == space:
                expected[row, column] = True
        assert torch.equal(unpack_bits(found[space.name]["mask"], 4), expected)


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_what_is_served_is_within_the_budget(share: float) -> None:
    torch.manual_seed(0)
    spaces = [space_of("a", 100, width=16), space_of("b", 300, width=16)]
    budget = int(share * sum(space.full_bytes for space in spaces))
    sized = AutoSrhConfig().sized(spaces, budget)
    config = sized["a"]
    assert config is not None
    schemes = {space.name: AutoSrhSearch(space, config) for space in spaces}
    weights = {space.name: torch.randn(space.num_rows, 16) for space in spaces}
    found = config.decide("search", schemes, weights, lambda: 0.5)
    total, promised = 0, 0
    for space in spaces:
        each = sized[space.name]
        assert each is not None
        trained = GatedWeights(space, each, found[space.name])
        served = trained.serving(weights)
        ids = torch.arange(space.num_rows)
        expected = trained.combine(ids, (weights[space.name],))
        torch.testing.assert_close(served.combine(ids, ()), expected, rtol=0, atol=0)
        total += served.storage_bytes()
        promised += trained.serving_bytes()
    assert 0.9 * budget < total <= promised <= budget


def test_hashed_ids_are_refused() -> None:
    hashed = Space("city", (), 100, None, 8, TableSettings())
    with pytest.raises(SchemeError, match=r"by frequency, and those of feature 'city' are hashed"):
        AutoSrhConfig().sized([hashed], None)
