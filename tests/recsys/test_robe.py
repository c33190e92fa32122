"""Vectors and gradients against the definition, number by number; sizes against what is held."""

import numpy as np
import pytest
import torch
from support.encoded import LAYOUT
from support.training import CPU

from recsys.batch import Batch
from recsys.embeddings.collection import Embeddings, SequenceVectors, table_weight
from recsys.embeddings.compression.robe import Robe, RobeConfig
from recsys.embeddings.config import EmbeddingsConfig, FeatureEmbedding
from recsys.embeddings.hashing import salt, splitmix64
from recsys.embeddings.initial import initialize
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space
from recsys.embeddings.tables import TableSettings

IDS = torch.tensor([[0, 1, 2**62], [-1, -(2**63), 5]])


def space_of(num_ids: int | None, width: int = 16, name: str = "item") -> Space:
    return Space(name, (), num_ids, num_ids, width, TableSettings())


def mixed(x: int, *parts: str | int) -> int:
    """The id's 64 hashed bits, unsigned."""
    return int(splitmix64(torch.tensor([x]) + salt(*parts)).item()) % 2**64


def places_and_signs(
    x: int, name: str, width: int, size: int, block: int, signs: bool
) -> list[tuple[int, int]]:
    """By the definition: where each number of a vector lies in the array, and its sign."""
    found = []
    for k in range(width):
        start = (mixed(x, name, "robe", k // block) >> 1) % size
        bit = mixed(x, name, "robe sign", k // 62) >> (k % 62) & 1
        found.append(((start + k % block) % size, -1 if signs and bit else 1))
    return found


def looked_up(scheme: Robe, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return scheme.combine(ids, [table[rows] for rows in scheme.rows(ids)])


@pytest.mark.parametrize("block", [1, 2, 3, 4, 7, 16, 20])
@pytest.mark.parametrize("width", [8, 16, 70])
@pytest.mark.parametrize("signs", [True, False])
def test_vectors_and_gradients_equal_the_definition(block: int, width: int, signs: bool) -> None:
    config = RobeConfig(block=block, size=100, signs=signs).sized([space_of(None, width)], None)
    assert config["item"] is not None
    scheme = config["item"].scheme(space_of(None, width), "train", {})
    (spec,) = set(scheme.lookups)
    assert spec.embedding_dim % 4 == 0
    size = spec.num_embeddings * spec.embedding_dim
    assert 100 - spec.embedding_dim < size <= 100
    table = torch.randn(spec.num_embeddings, spec.embedding_dim, dtype=torch.float64)
    table.requires_grad_()
    factors = torch.randn(*IDS.shape, width, dtype=torch.float64)
    found = looked_up(scheme, table, IDS)
    (found * factors).sum().backward()

    array = table.detach().numpy().reshape(-1)
    expected = np.zeros(found.shape)
    gradient = np.zeros(size)
    for place in np.ndindex(*IDS.shape):
        x = int(IDS[place])
        for k, (index, sign) in enumerate(places_and_signs(x, "item", width, size, block, signs)):
            expected[place][k] = sign * array[index]
            gradient[index] += sign * factors[place][k].item()
    np.testing.assert_array_equal(found.detach().numpy(), expected)
    assert table.grad is not None
    np.testing.assert_allclose(table.grad.numpy().reshape(-1), gradient, atol=1e-12)


class LookedUp(torch.nn.Module):
    """A scheme with its array, as a program is compiled from."""

    def __init__(self, scheme: Robe) -> None:
        super().__init__()
        self.scheme = scheme
        (spec,) = set(scheme.lookups)
        self.table = torch.nn.Parameter(torch.randn(spec.num_embeddings, spec.embedding_dim))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return looked_up(self.scheme, self.table, ids)


@pytest.mark.slow
def test_the_compiled_program_hashes_alike() -> None:
    module = LookedUp(Robe(space_of(None, 70), "array", size=400, block=16, signs=True)).eval()
    dynamic = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        exported = torch.export.export(module, (IDS,), dynamic_shapes=({0: dynamic, 1: dynamic},))
        program = torch._inductor.aoti_load_package(
            torch._inductor.aoti_compile_and_package(exported)
        )
        for ids in (IDS, IDS[:1, :1]):
            assert torch.equal(program(ids.contiguous()), module(ids))


def test_blocks_start_anywhere_and_signs_are_fair() -> None:
    scheme = Robe(space_of(None), "array", size=40, block=16, signs=True)
    ids = torch.arange(20_000)
    starts = scheme._starts(ids, scheme.block_salts[0])
    counts = np.bincount(starts.numpy(), minlength=40)
    # Binomial with mean 500 and deviation 22.
    assert counts.min() > 390
    assert counts.max() < 610
    negative = scheme._negative(ids).double()
    assert (negative.mean(dim=0) - 0.5).abs().max() < 0.02
    assert (torch.corrcoef(negative.T) - torch.eye(16)).abs().max() < 0.04


def test_features_have_hashes_of_their_own() -> None:
    ids = torch.arange(100)
    item, user = (
        Robe(space_of(None, name=name), "array", size=10_000, block=16, signs=True)
        for name in ("item", "user")
    )
    assert (item.rows(ids)[0] == user.rows(ids)[0]).float().mean() < 0.1


def test_all_features_share_one_array(batch: Batch) -> None:
    """Widths differ; singles, bags and sequences read the same numbers."""
    config = EmbeddingsConfig(
        default=FeatureEmbedding(embedding_dim=8, scheme=RobeConfig(block=5, size=64)),
        features={"item": FeatureEmbedding(embedding_dim=12)},
    )
    embeddings = Embeddings(LAYOUT, config, CPU)
    initialize(embeddings, embeddings.tables, seed=1)
    (table,) = embeddings.tables
    array = table_weight(embeddings, table).detach().numpy().reshape(-1)
    assert array.size == 64

    def vector(x: int, name: str, width: int) -> np.ndarray:
        places = places_and_signs(x, name, width, 64, 5, signs=True)
        return np.array([sign * array[index] for index, sign in places])

    found = embeddings(batch.ids)
    history = found["history"]
    assert isinstance(history, SequenceVectors)
    for row in range(8):
        city = batch.ids["city"].to_dense()[row].item()
        np.testing.assert_array_equal(found["city"][row].detach(), vector(city, "city", 8))
        for place, item in enumerate(batch.ids["history"].to_dense()[row].tolist()):
            np.testing.assert_array_equal(
                history.values_BLD[row, place].detach(), vector(item, "item", 12)
            )
        tags = batch.ids["tags"].to_dense()[row].tolist()
        mean = sum((vector(tag, "tags", 8) for tag in tags), np.zeros(8)) / max(1, len(tags))
        np.testing.assert_allclose(found["tags"][row].detach(), mean, atol=1e-7)


SPACES = [space_of(5, name="day"), space_of(300, 8, "user"), space_of(5000, name="item")]
FULL = 4 * (5 * 16 + 300 * 8 + 5000 * 16)


@pytest.mark.parametrize("block", [1, 16, 24])
@pytest.mark.parametrize("percent", [1, 10, 50, 99])
def test_the_array_takes_what_is_left_of_the_budget(block: int, percent: int) -> None:
    budget = FULL * percent // 100
    found = RobeConfig(block=block).sized(SPACES, budget)
    members = [space for space in SPACES if found[space.name] is not None]
    tables = {
        spec
        for space in members
        if (config := found[space.name]) is not None
        for spec in config.scheme(space, "train", {}).lookups
    }
    (table,) = tables
    whole = [space for space in SPACES if space not in members]
    kept = sum(space.full_bytes for space in whole)
    assert kept <= 0.1 * budget
    assert [space.name for space in whole] == (["day"] if budget >= 3200 else []) + (
        ["user"] if budget >= 10 * (320 + 9600) else []
    )
    row_bytes = 4 * table.embedding_dim
    assert budget - row_bytes < kept + table.num_embeddings * row_bytes <= budget


def test_a_share_of_zero_puts_all_features_into_the_array() -> None:
    found = RobeConfig(whole_share=0).sized(SPACES, FULL // 2)
    assert {config and config.array for config in found.values()} == {"day_robe"}


def test_nothing_is_gained_by_an_array_of_everything() -> None:
    assert RobeConfig().sized(SPACES, FULL) == dict.fromkeys(["day", "user", "item"])
    assert RobeConfig(size=FULL // 4).sized(SPACES, None) == dict.fromkeys(["day", "user", "item"])


def test_a_budget_below_one_row_is_refused() -> None:
    RobeConfig().sized(SPACES, 64)
    with pytest.raises(BudgetTooSmall, match="the least it takes is 64 bytes"):
        RobeConfig().sized(SPACES, 63)


def test_errors_say_what_to_set() -> None:
    with pytest.raises(SchemeError, match=r"set its size, or embeddings\.budget"):
        RobeConfig().sized(SPACES, None)
    with pytest.raises(SchemeError, match="blocks of 17 need an array of at least 20 numbers"):
        RobeConfig(block=17, size=19).sized(SPACES, None)
    other = Space("shop", (), 900, 900, 16, TableSettings(init_range=0.1))
    with pytest.raises(SchemeError, match="features 'day' and 'shop' in one array"):
        RobeConfig(size=100).sized([*SPACES, other], None)
