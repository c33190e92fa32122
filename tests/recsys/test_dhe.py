"""Codes against Python's integers, networks against NumPy, sizes against what is held."""

import math

import numpy as np
import pytest
import torch

from recsys.embeddings.compression.dhe import DHE, MISH_SECOND_MOMENT, PRIME, DHEConfig
from recsys.embeddings.hashing import salt, splitmix64
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space
from recsys.embeddings.tables import TableSettings

INIT_RANGE = 0.05


def space_of(num_ids: int | None, width: int = 16, name: str = "item") -> Space:
    return Space(name, (), num_ids, num_ids, width, TableSettings(init_range=INIT_RANGE))


def coefficients(name: str, letter: str, num_hashes: int) -> list[int]:
    mixed = splitmix64(torch.arange(num_hashes) ^ salt(name, "dhe", letter)).tolist()
    return [1 + (bits % 2**64 >> 1) % (PRIME - 1) for bits in mixed]


def test_codes_equal_unbounded_integers() -> None:
    largest = PRIME - 1
    scheme = DHE(space_of(PRIME), width=2, num_hashes=50, num_buckets=1000)
    ids = [0, 1, 2, 12_345, largest]
    a, b = coefficients("item", "a", 50), coefficients("item", "b", 50)
    for row, x in zip(scheme.codes(torch.tensor(ids)).tolist(), ids, strict=True):
        hashes = [((a[i] * x + b[i]) % PRIME) % 1000 for i in range(50)]
        np.testing.assert_allclose(row, [2 * h / 999 - 1 for h in hashes], atol=1e-6)


def test_codes_of_64_bit_hashes_equal_unbounded_integers() -> None:
    scheme = DHE(space_of(None), width=2, num_hashes=40)
    ids = [0, -1, 2**63 - 1, -(2**63), 987_654_321_987]
    a, b, c = (coefficients("item", letter, 40) for letter in "abc")
    mixed = [bits % 2**64 for bits in splitmix64(torch.tensor(ids)).tolist()]
    for row, bits in zip(scheme.codes(torch.tensor(ids)).tolist(), mixed, strict=True):
        x, y = bits % 2**31, (bits >> 31) % 2**31
        hashes = [((a[i] * x + c[i] * y + b[i]) % PRIME) % 1_000_000 for i in range(40)]
        np.testing.assert_allclose(row, [2 * h / 999_999 - 1 for h in hashes], atol=1e-6)


def test_the_largest_sum_fits_64_bits() -> None:
    assert 2 * (PRIME - 1) * PRIME + PRIME - 1 < 2**63


@pytest.mark.parametrize(("gaussian", "variance"), [(False, 1 / 3), (True, 1.0)])
def test_codes_are_distributed_as_said(gaussian: bool, variance: float) -> None:
    scheme = DHE(space_of(PRIME), width=2, num_hashes=64, gaussian=gaussian)
    ids = np.random.default_rng(0).integers(0, PRIME, 10_000)
    codes = scheme.codes(torch.from_numpy(ids))
    assert codes.mean().item() == pytest.approx(0, abs=0.01)
    assert codes.var().item() == pytest.approx(variance, rel=0.02)
    assert torch.isfinite(codes).all()
    uncorrelated = torch.corrcoef(codes.T) - torch.eye(64)
    assert uncorrelated.abs().max() < 0.06
    if gaussian:
        within = (codes.abs() < 1).float().mean().item()
        assert within == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.01)
    else:
        assert codes.abs().max() <= 1


def test_features_hash_apart_and_every_time_alike() -> None:
    ids = torch.arange(50)
    item, again, user = (
        DHE(space_of(100, name=name), width=2) for name in ("item", "item", "user")
    )
    assert torch.equal(item.codes(ids), again.codes(ids))
    assert not torch.equal(item.codes(ids), user.codes(ids))


def moved(scheme: DHE) -> DHE:
    """With statistics and shifts as after some training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for norm in scheme.norms:
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
            norm.statistics.mean.uniform_(-1, 1)
            norm.statistics.variance.uniform_(0.5, 2)
        scheme.output.bias.uniform_(-1, 1)
    return scheme


def by_hand(scheme: DHE, codes: np.ndarray) -> np.ndarray:
    units = codes
    for linear, norm in zip(scheme.hidden, scheme.norms, strict=True):
        units = units @ linear.weight.detach().numpy().T
        mean, variance = norm.statistics.mean.numpy(), norm.statistics.variance.numpy()
        units = (units - mean) / np.sqrt(variance + 1e-5)
        units = units * norm.weight.detach().numpy() + norm.bias.detach().numpy()
        units = units * np.tanh(np.log1p(np.exp(units)))
    return units @ scheme.output.weight.detach().numpy().T + scheme.output.bias.detach().numpy()


def test_the_network_equals_numpy() -> None:
    scheme = moved(DHE(space_of(100, 8), width=5, num_hashes=32)).eval()
    ids = torch.tensor([[3, 99, 3], [0, 1, 2]])
    expected = by_hand(scheme, scheme.codes(ids.reshape(-1)).numpy())
    found = scheme.combine(ids, []).detach().numpy()
    np.testing.assert_allclose(found, expected.reshape(2, 3, 8), rtol=1e-4, atol=1e-5)


class Combined(torch.nn.Module):
    """A scheme as a program is compiled from."""

    def __init__(self, scheme: DHE) -> None:
        super().__init__()
        self.scheme = scheme

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.scheme.combine(ids, [])


@pytest.mark.slow
def test_the_compiled_program_hashes_alike() -> None:
    module = Combined(DHE(space_of(None), width=4, num_hashes=16)).eval()
    ids = torch.tensor([[0, -1, 2**63 - 1], [-(2**63), 5, 2**40]])
    dynamic = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        exported = torch.export.export(module, (ids,), dynamic_shapes=({0: dynamic, 1: dynamic},))
        program = torch._inductor.aoti_load_package(
            torch._inductor.aoti_compile_and_package(exported)
        )
        for some in (ids, ids[:1, :1].contiguous()):
            torch.testing.assert_close(program(some), module(some), rtol=0, atol=1e-6)


def test_repeated_ids_count_as_often_as_they_occur() -> None:
    """In training every id is decoded once; vectors and statistics are those of all positions."""
    scheme = DHE(space_of(100, 8), width=5, num_hashes=32, num_layers=1).train()
    ids = torch.tensor([7, 7, 7, 2, 50, 2])
    found = scheme.combine(ids, [])
    units = scheme.codes(ids) @ scheme.hidden[0].weight.T
    normed = (units - units.mean(dim=0)) / (units.var(dim=0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(found, scheme.output(torch.nn.functional.mish(normed)))
    statistics = scheme.norms[0].statistics
    torch.testing.assert_close(statistics.mean, 0.1 * units.mean(dim=0))
    torch.testing.assert_close(statistics.variance, 0.9 + 0.1 * units.var(dim=0, correction=0))


def test_no_ids_change_nothing_and_keep_the_gradient() -> None:
    scheme = DHE(space_of(100, 8), width=5, num_hashes=32).train()
    before = [buffer.clone() for buffer in scheme.buffers()]
    found = scheme.combine(torch.zeros(0, dtype=torch.int64), [])
    assert found.shape == (0, 8)
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in scheme.parameters())
    for old, new in zip(before, scheme.buffers(), strict=True):
        assert torch.equal(old, new)


def test_gradients() -> None:
    scheme = moved(DHE(space_of(100, 4), width=3, num_hashes=8, num_layers=2)).double().eval()
    ids = torch.tensor([3, 99, 3])
    # The check moves the weights in place.
    assert torch.autograd.gradcheck(lambda *_: scheme.combine(ids, []), tuple(scheme.parameters()))


SPACES = [
    space_of(7, name="day"),
    space_of(900, 8, "user"),
    space_of(20_000, name="item"),
    space_of(60_000, name="author"),
]
FULL = sum(space.full_bytes for space in SPACES)
SMALL = DHEConfig(num_hashes=64)


def held_bytes(space: Space, width: int, config: DHEConfig = SMALL) -> int:
    scheme = DHE(space, width=width, num_hashes=config.num_hashes)
    tensors = (*scheme.parameters(), *scheme.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_bytes_are_those_of_the_network() -> None:
    config = DHEConfig(width=3).sized(SPACES[2:], None)["item"]
    assert config is not None
    scheme = config.scheme(SPACES[2], "train", {})
    # 1024 codes, four inner layers of 3 x 3, five normalisations of 4 x 3, (3 + 1) x 16.
    assert scheme.serving_bytes() == 4 * (1024 * 3 + 4 * 9 + 5 * 12 + 64)


@pytest.mark.parametrize("percent", [0.5, 1, 5, 20, 60])
def test_widths_use_the_budget_in_proportion(percent: float) -> None:
    budget = int(FULL * percent / 100)
    found = SMALL.sized(SPACES, budget)
    assert found["day"] is None
    widths = {name: c.width for name, c in found.items() if c is not None and c.width is not None}
    spaces = {space.name: space for space in SPACES}
    used = sum(
        held_bytes(space, widths[name]) if name in widths else space.full_bytes
        for name, space in spaces.items()
    )
    assert used <= budget
    # The largest cannot be wider alone, and at its rate the others cannot either.
    author = held_bytes(spaces["author"], widths["author"] + 1)
    assert used - held_bytes(spaces["author"], widths["author"]) + author > budget
    rate = author / spaces["author"].full_bytes
    for name, width in widths.items():
        assert held_bytes(spaces[name], width) <= max(
            rate * spaces[name].full_bytes, held_bytes(spaces[name], 1)
        )


def test_features_smaller_than_the_least_network_stay_whole() -> None:
    found = DHEConfig(width=1).sized([space_of(60, name="day"), space_of(80, name="city")], None)
    # 4 x (1024 + 4 + 20 + 32) = 4,320 bytes, where 60 rows take 3,840 and 80 take 5,120.
    assert held_bytes(space_of(60), 1, DHEConfig()) == 4320
    assert found["day"] is None
    assert found["city"] is not None


def test_a_budget_below_the_least_networks_is_refused() -> None:
    least = 7 * 64 + sum(held_bytes(space, 1) for space in SPACES[1:])
    found = SMALL.sized(SPACES, least)
    assert [config and config.width for config in found.values()] == [None, 1, 1, 1]
    with pytest.raises(BudgetTooSmall, match=f"the least it takes is {least:,} bytes"):
        SMALL.sized(SPACES, least - 1)


def test_errors_say_what_to_set() -> None:
    with pytest.raises(SchemeError, match=r"set its width, or embeddings\.budget"):
        DHEConfig().sized(SPACES, None)
    with pytest.raises(ValueError, match="num_hashes 15 is odd"):
        DHEConfig(num_hashes=15, encoding="gaussian")
    with pytest.raises(SchemeError, match=r"embeddings\.features\.item\.num_embeddings"):
        DHEConfig().sized([space_of(None)], 1000)


def test_64_bit_hashes_need_no_table_size() -> None:
    assert DHEConfig(width=4).sized([space_of(None)], None)["item"] is not None


@pytest.mark.parametrize("gaussian", [False, True])
def test_vectors_start_with_the_spread_of_a_table(gaussian: bool) -> None:
    torch.manual_seed(0)
    scheme = DHE(space_of(3000), width=64, gaussian=gaussian)
    with torch.no_grad():
        for mode in (True, False):
            spread = scheme.train(mode).combine(torch.arange(3000), []).square().mean().sqrt()
            assert spread.item() == pytest.approx(INIT_RANGE / math.sqrt(3), rel=0.2)


def test_the_second_moment_of_mish() -> None:
    z = np.linspace(-12, 12, 200_001)
    mish = z * np.tanh(np.log1p(np.exp(z)))
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    assert np.trapezoid(mish**2 * density, z) == pytest.approx(MISH_SECOND_MOMENT, abs=1e-4)
