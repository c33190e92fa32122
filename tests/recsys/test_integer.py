"""Integer tables: storage, rounding, and steps against a NumPy loop."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.encoded import LAYOUT
from support.training import CPU, TRAINING

from recsys.embeddings.access import TableAccess
from recsys.embeddings.collection import Embeddings
from recsys.embeddings.compression.integer import (
    Bits,
    Codes,
    Int8Config,
    Int16Config,
    IntegerTable,
    code_bytes,
)
from recsys.embeddings.config import EmbeddingsConfig, FeatureEmbedding
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space, StepInfo
from recsys.embeddings.tables import TableSettings
from recsys.training.account import account

NO_TABLES: TableAccess = TableAccess(torch.nn.Module(), None, ())  # type: ignore[arg-type]


def space_of(num_ids: int | None = 6, width: int = 4, **settings: Any) -> Space:
    return Space("item", (), num_ids, num_ids, width, TableSettings(**settings))


def scheme_of(space: Space | None = None, **settings: Any) -> IntegerTable:
    torch.manual_seed(0)
    config = Int8Config.model_validate(settings)
    return config.scheme(space or space_of(), "train", {})


def stepped(scheme: IntegerTable, ids: list[list[int]], seed: int = 1, step: int = 0) -> np.ndarray:
    """One step of sum(v^2 * column), the vectors of every list pooled; what was stored before."""
    before = scheme.store.read(torch.arange(scheme.store.num_embeddings)).numpy()
    scheme.train()
    loss = torch.zeros(())
    for row in ids:
        vectors_VD = scheme.combine(torch.tensor(row), [])
        loss = loss + (vectors_VD.sum(dim=0).square() * torch.arange(1.0, 5.0)).sum()
    loss.backward()
    scheme.after_step(StepInfo(step, 10, seed), NO_TABLES)
    return before


def gradient_by_hand(before_RD: np.ndarray, ids: list[list[int]]) -> np.ndarray:
    gradient_RD = np.zeros_like(before_RD, dtype=np.float64)
    for row in ids:
        pooled_D = before_RD[row].sum(axis=0, dtype=np.float64)
        for identity in row:
            gradient_RD[identity] += 2 * pooled_D * np.arange(1, 5)
    return gradient_RD


@given(st.sampled_from([4, 8, 16]), st.integers(1, 7), st.integers(1, 5), st.integers(0, 2**31))
def test_codes_are_read_as_they_were_written(
    bits: Bits, width: int, num_rows: int, seed: int
) -> None:
    most = 2 ** (bits - 1) - 1
    random = torch.Generator().manual_seed(seed)
    codes_RD = torch.randint(-most - 1, most + 1, (num_rows, width), generator=random)
    codes_RD[0, 0], codes_RD[-1, -1] = -most - 1, most
    stored = Codes(num_rows, width, bits)
    stored.write(torch.arange(num_rows), codes_RD)
    assert torch.equal(stored(torch.arange(num_rows)).long(), codes_RD)
    assert stored.stored.numel() == code_bytes(num_rows, width, bits)
    stored.write(torch.tensor([0]), torch.full((1, width), -1e6))
    stored.write(torch.tensor([num_rows - 1]), torch.full((1, width), 1e6))
    assert set(stored(torch.tensor(num_rows - 1)).tolist()) == {most}
    if num_rows > 1:
        assert set(stored(torch.tensor(0)).tolist()) == {-most - 1}


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
def test_a_step_rounds_the_updated_weight_up_or_down(optimizer: str) -> None:
    """Over many seeds the mean is the updated weight itself."""
    ids = [[1, 3, 3], [3, 5]]
    start = scheme_of(optimizer=optimizer, lr=0.013)
    start.optimizer.state.fill_(0.0001)
    total_RD, tries = np.zeros((6, 4)), 400
    for seed in range(tries):
        scheme = copy.deepcopy(start)
        before_RD = stepped(scheme, ids, seed)
        total_RD += scheme.store.read(torch.arange(6)).numpy()
        if seed == 0:
            gradient_RD = gradient_by_hand(before_RD, ids)
            sums = {
                "rowwise_adagrad": (gradient_RD**2).mean(axis=1, keepdims=True),
                "adagrad": gradient_RD**2,
                "sgd": np.full((6, 1), 1 - 0.0001),
            }[optimizer]
            expected_RD = before_RD - 0.013 * gradient_RD / np.sqrt(0.0001 + sums)
            low_RD = np.floor(expected_RD / 0.01 - 1e-4)
        codes_RD = np.rint(scheme.store.read(torch.arange(6)).numpy() / 0.01)
        assert np.all((codes_RD >= low_RD) & (codes_RD <= low_RD + 1))
    touched = [1, 3, 5]
    assert np.abs(expected_RD - before_RD)[touched].max() > 0.005
    # The standard error of a mean of roundings is at most 0.005 / sqrt(tries).
    np.testing.assert_allclose(total_RD / tries, expected_RD, atol=5 * 0.005 / tries**0.5)
    np.testing.assert_array_equal(
        scheme.store.read(torch.tensor([0, 2, 4])).numpy(), before_RD[[0, 2, 4]]
    )


def test_a_step_is_a_function_of_seed_and_number() -> None:
    found = []
    for seed, step in ((1, 0), (1, 0), (2, 0), (1, 1)):
        scheme = scheme_of(space_of(200), lr=0.003)
        stepped(scheme, [list(range(200))], seed, step)
        found.append(scheme.store.read(torch.arange(200)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])


def test_a_frozen_pass_moves_nothing() -> None:
    scheme = scheme_of()
    scheme.train()
    scheme.frozen = True
    assert not scheme.combine(torch.arange(6), []).requires_grad
    scheme.frozen = False
    before = stepped(scheme, [[1]])
    after = scheme.store.read(torch.arange(6)).numpy()
    np.testing.assert_array_equal(after[[0, 2, 3, 4, 5]], before[[0, 2, 3, 4, 5]])


@pytest.mark.parametrize("config", [Int8Config(), Int16Config(), Int16Config(scale=1e-4)])
def test_rows_start_as_a_full_table_does_to_a_step(config: Int8Config | Int16Config) -> None:
    torch.manual_seed(0)
    scheme = config.scheme(space_of(5000, init_range=0.03), "train", {})
    weights_RD = scheme.eval().combine(torch.arange(5000), [])
    assert weights_RD.abs().max() <= 0.03 + config.scale
    assert weights_RD.mean().item() == pytest.approx(0, abs=1e-3)
    # Rounding a uniform fraction at random adds scale^2 / 6 to the variance.
    expected = (0.03**2 / 3 + config.scale**2 / 6) ** 0.5
    assert weights_RD.std().item() == pytest.approx(expected, rel=0.03)


def test_the_serving_form_drops_the_optimizer() -> None:
    scheme = scheme_of().eval()
    served = scheme.serving({})
    ids = torch.tensor([[0, 5], [2, 2]])
    assert torch.equal(served.combine(ids, []), scheme.combine(ids, []))
    assert served.storage_bytes() == scheme.serving_bytes() == 6 * 4
    assert scheme.storage_bytes() - scheme.serving_bytes() == scheme.optimizer_bytes() == 6 * 4


def test_the_account_tells_state_from_stored_weights() -> None:
    default = FeatureEmbedding(embedding_dim=8, num_embeddings=100, scheme="int16")
    embeddings = Embeddings(LAYOUT, EmbeddingsConfig(default=default), CPU)
    sizes = {size.name: size for size in account(embeddings, TRAINING)}
    assert sizes["user"].parameter_bytes == sizes["user"].serving_bytes == 40 * 8 * 2
    assert sizes["user"].optimizer_bytes == 40 * 4


@pytest.mark.parametrize(("config", "share"), [(Int8Config(), 4), (Int16Config(), 2)])
def test_budgets_below_the_integers_are_refused(
    config: Int8Config | Int16Config, share: int
) -> None:
    spaces = [space_of(100), Space("city", (), 20, 20, 8, TableSettings())]
    full = sum(space.full_bytes for space in spaces)
    sized = {"item": config, "city": config}
    assert config.sized(spaces, full // share) == config.sized(spaces, None) == sized
    with pytest.raises(
        BudgetTooSmall, match=rf"{config.kind} .*{full // share:,} bytes \({100 // share}%"
    ):
        config.sized(spaces, full // share - 1)


def test_settings_that_integers_cannot_keep_are_refused() -> None:
    with pytest.raises(SchemeError, match=r"'item': scheme int8 holds weights up to 0\.127 .*0\.2"):
        Int8Config(scale=0.001).sized([space_of(init_range=0.2)], None)
    with pytest.raises(SchemeError, match=r"'item'.* l2 0.1 cannot apply"):
        Int8Config().sized([space_of(optimizer="dense", l2=0.1)], None)
    with pytest.raises(SchemeError, match=r"'item'.* optimizer 'dense' cannot apply"):
        Int8Config().sized([space_of(optimizer="dense")], None)
    with pytest.raises(SchemeError, match=r"features\.item\.num_embeddings"):
        Int8Config().sized([space_of(None)], None)
