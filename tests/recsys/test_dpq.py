"""Product quantisation against its formulas, restated row by row."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.ranks import on_ranks
from torch import Tensor
from torch.nn.functional import softmax

from recsys.embeddings.compression.dpq import DPQ, DPQConfig, PackedCodes, packed_bytes
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space
from recsys.embeddings.tables import TableSettings

NUM_IDS, WIDTH = 60, 8


def space_of(num_ids: int | None = NUM_IDS, width: int = WIDTH, name: str = "item") -> Space:
    return Space(name, (), num_ids, num_ids, width, TableSettings())


def scheme_of(**settings: Any) -> DPQ:
    torch.manual_seed(3)
    config = DPQConfig.model_validate({"num_choices": 6, "num_parts": 2, **settings})
    return config.scheme(space_of(), "train", {})


def table() -> Tensor:
    return torch.empty(NUM_IDS, WIDTH).uniform_(-0.05, 0.05, generator=torch.manual_seed(4))


def expected_codes(scheme: DPQ, queries_VD: np.ndarray) -> np.ndarray:
    """By the statistics of these very rows."""
    values = scheme.values_PKW.detach().double().numpy()
    codes = np.zeros((len(queries_VD), scheme.num_parts), np.int64)
    for part in range(scheme.num_parts):
        width = values.shape[2]
        queries_VW = queries_VD[:, part * width : (part + 1) * width].astype(np.float64)
        responses_VK = np.zeros((len(queries_VD), scheme.num_choices))
        for row, choice in itertools.product(range(len(queries_VD)), range(scheme.num_choices)):
            if scheme.mode == "vq":
                distance = np.sum((queries_VW[row] - values[part, choice]) ** 2)
                responses_VK[row, choice] = -distance
            else:
                key = scheme.keys_PKW[part, choice].detach().double().numpy()
                responses_VK[row, choice] = queries_VW[row] @ key
        deviations_K = responses_VK.std(axis=0)
        codes[:, part] = np.argmax((responses_VK - responses_VK.mean(axis=0)) / deviations_K, 1)
    return codes


def picked_by_hand(scheme: DPQ, codes_VP: np.ndarray) -> np.ndarray:
    values = scheme.values_PKW.detach().numpy()
    rows = [[values[part, code] for part, code in enumerate(codes)] for codes in codes_VP]
    return np.array(rows).reshape(len(codes_VP), -1)


@pytest.mark.parametrize("mode", ["vq", "sx"])
def test_every_part_becomes_the_value_of_its_highest_normalised_response(mode: str) -> None:
    scheme, ids_V = scheme_of(mode=mode), torch.arange(0, NUM_IDS, 2)
    queries_VD = table()[ids_V]
    codes_VP = expected_codes(scheme, queries_VD.numpy())
    found_VD = scheme.train().combine(ids_V, [queries_VD])
    assert len(np.unique(codes_VP)) == scheme.num_choices
    np.testing.assert_allclose(
        found_VD.detach(), picked_by_hand(scheme, codes_VP), rtol=0, atol=1e-7
    )


def test_the_nearest_centroid_passes_gradients_to_the_row_and_learns_from_the_distance() -> None:
    scheme, ids_V = scheme_of(mode="vq", regularization=0.3), torch.arange(9)
    queries_VD = table()[ids_V].requires_grad_()
    upstream_VD = torch.randn(9, WIDTH, generator=torch.manual_seed(1))
    found_VD = scheme.train().combine(ids_V, [queries_VD])
    penalty = scheme.penalty()
    assert penalty is not None
    ((found_VD * upstream_VD).sum() + penalty).backward()
    torch.testing.assert_close(queries_VD.grad, upstream_VD)

    codes_VP = expected_codes(scheme, queries_VD.detach().numpy())
    values_VD = picked_by_hand(scheme, codes_VP)
    differences_VD = values_VD - queries_VD.detach().numpy()
    assert penalty.item() == pytest.approx(0.3 * np.mean(differences_VD**2), rel=1e-5)
    expected_PKW = np.zeros(tuple(scheme.values_PKW.shape))
    for row, part in itertools.product(range(9), range(2)):
        slope_W = 0.3 * 2 * differences_VD[row, 4 * part : 4 * part + 4] / differences_VD.size
        expected_PKW[part, codes_VP[row, part]] += slope_W
    np.testing.assert_allclose(scheme.values_PKW.grad, expected_PKW, rtol=1e-4, atol=1e-9)


def test_the_softmax_has_the_gradient_of_the_soft_choice() -> None:
    """The values' gradient is that of the hard choice, which the forward pass takes."""
    scheme, ids_V = scheme_of(mode="sx", temperature=0.7), torch.arange(11)
    queries_VD = table()[ids_V].requires_grad_()
    upstream_VD = torch.randn(11, WIDTH, generator=torch.manual_seed(1))
    (scheme.train().combine(ids_V, [queries_VD]) * upstream_VD).sum().backward()
    assert scheme.penalty() is None

    soft_VD = queries_VD.detach().clone().requires_grad_()
    keys_PKW = scheme.keys_PKW.detach().clone().requires_grad_()
    parts = []
    for part in range(2):
        responses_VK = soft_VD[:, 4 * part : 4 * part + 4] @ keys_PKW[part].T
        deviation_K = responses_VK.std(dim=0, correction=0)
        shares_VK = softmax((responses_VK - responses_VK.mean(dim=0)) / deviation_K / 0.7, dim=1)
        parts.append(shares_VK @ scheme.values_PKW[part].detach())
    (torch.cat(parts, dim=1) * upstream_VD).sum().backward()
    torch.testing.assert_close(queries_VD.grad, soft_VD.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(scheme.keys_PKW.grad, keys_PKW.grad, rtol=1e-3, atol=1e-6)

    codes_VP = expected_codes(scheme, queries_VD.detach().numpy())
    expected_PKW = np.zeros(tuple(scheme.values_PKW.shape), np.float32)
    for row, part in itertools.product(range(11), range(2)):
        expected_PKW[part, codes_VP[row, part]] += upstream_VD[row, 4 * part : 4 * part + 4].numpy()
    np.testing.assert_allclose(scheme.values_PKW.grad, expected_PKW, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["vq", "sx"])
@pytest.mark.parametrize("num_choices", [2, 5, 8, 256])
def test_served_codes_give_the_evaluated_vectors_exactly(mode: str, num_choices: int) -> None:
    scheme, weights_RD = scheme_of(mode=mode, num_choices=num_choices), table()
    scheme.train().combine(torch.arange(40), [weights_RD[:40]])
    scheme.eval()
    served = scheme.serving({"item": weights_RD})
    for ids in (torch.arange(NUM_IDS), torch.tensor(7), torch.tensor([[3, 3], [59, 0]])):
        evaluated = scheme.combine(ids, [weights_RD[ids]])
        assert evaluated.shape == (*ids.shape, WIDTH)
        assert torch.equal(served.combine(ids, []), evaluated)
    assert served.storage_bytes() == scheme.serving_bytes()
    assert not served.lookups
    assert not scheme.served_lookups()


def test_vectors_start_with_the_spread_of_a_full_table() -> None:
    config = DPQConfig(mode="vq", num_choices=64, num_parts=4)
    space = Space("item", (), 2000, 2000, 16, TableSettings(init_range=0.02))
    torch.manual_seed(0)
    scheme = config.scheme(space, "train", {})
    ids_V = torch.arange(2000)
    weights_RD = torch.empty(2000, 16).uniform_(-0.02, 0.02)
    vectors_VD = scheme.train().combine(ids_V, [weights_RD])
    assert vectors_VD.std().item() == pytest.approx(0.02 / 3**0.5, rel=0.15)


def test_a_batch_without_ids_gives_no_vectors_and_no_distance() -> None:
    for mode in ("vq", "sx"):
        scheme = scheme_of(mode=mode).train()
        queries_VD = torch.zeros(0, WIDTH, requires_grad=True)
        found_VD = scheme.combine(torch.zeros(0, dtype=torch.int64), [queries_VD])
        penalty = scheme.penalty()
        loss = found_VD.sum() if penalty is None else found_VD.sum() + penalty
        loss.backward()
        assert found_VD.shape == (0, WIDTH)
        assert loss.item() == 0
        assert scheme.values_PKW.grad is not None
        assert scheme.values_PKW.grad.abs().sum() == 0
        scheme.eval()
        assert scheme.combine(torch.zeros(0, dtype=torch.int64), [queries_VD]).shape == (0, WIDTH)


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**31))
def test_packed_codes_are_read_back(
    num_bits: int, num_parts: int, num_rows: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    codes_RP = torch.randint(2**num_bits, (num_rows, num_parts), generator=random)
    packed = PackedCodes(codes_RP, num_bits)
    assert torch.equal(packed(torch.arange(num_rows)), codes_RP)
    assert packed.packed.numel() == packed_bytes(num_rows, num_parts, num_bits)
    assert packed.packed.numel() - num_rows * num_parts * num_bits / 8 < num_rows


def test_a_budget_takes_the_most_parts_and_keeps_small_features_whole() -> None:
    large, small = space_of(1000, 12), space_of(15, 12, "city")
    config = DPQConfig(num_choices=16)
    codebook = 16 * 12 * 4
    row_bytes = {1: 1, 2: 1, 3: 2, 4: 2, 6: 3, 12: 6}
    for allowed in (1, 2, 3, 4, 5, 6, 7):
        parts = max(p for p, size in row_bytes.items() if size <= allowed)
        found = config.sized([large, small], 1000 * allowed + codebook + small.full_bytes)
        chosen = found["item"]
        assert chosen == config.model_copy(update={"num_parts": parts})
        assert found["city"] is None
        served = chosen.scheme(large, "train", {}).serving_bytes()
        assert served == 1000 * row_bytes[parts] + codebook
    least = 1000 + codebook + small.full_bytes
    with pytest.raises(BudgetTooSmall, match=f"{least:,} bytes"):
        config.sized([large, small], least - 1)


def test_parts_must_divide_the_width() -> None:
    with pytest.raises(SchemeError, match=r"'item': embedding_dim 8 .* \[1, 2, 4, 8\]"):
        DPQConfig(num_parts=3).sized([space_of()], None)


def test_unbounded_ids_are_refused() -> None:
    with pytest.raises(SchemeError, match=r"embeddings\.features\.item\.num_embeddings"):
        DPQConfig().sized([space_of(None)], None)


def worker_gradients(mode: str, ids_V: Tensor, world_size: int, rank: int) -> list[np.ndarray]:
    """This worker's share of the mean over workers, as data parallelism makes it."""
    scheme = scheme_of(mode=mode).train()
    mine_V = ids_V[rank::world_size]
    queries_VD = table()[mine_V].requires_grad_()
    slope_D = torch.linspace(-1, 1, WIDTH)
    found_VD = scheme.combine(mine_V, [queries_VD])
    penalty = scheme.penalty()
    loss = world_size * (found_VD.square() @ slope_D).sum() + (0 if penalty is None else penalty)
    loss.backward()
    gradients = [p.grad / world_size for p in scheme.parameters() if p.grad is not None]
    buffers = list(scheme.buffers())
    whole_RD = torch.zeros(NUM_IDS, WIDTH).index_add(0, mine_V, queries_VD.grad / world_size)
    return [tensor.numpy() for tensor in (whole_RD, *gradients, *buffers)]


def on_worker(mode: str, ids_V: Tensor, world_size: int) -> list[np.ndarray]:
    return worker_gradients(mode, ids_V, world_size, torch.distributed.get_rank())


@pytest.mark.distributed
@pytest.mark.parametrize("mode", ["vq", "sx"])
def test_gradients_are_those_of_the_whole_batch_on_any_number_of_workers(mode: str) -> None:
    """The workers hold unequally many ids."""
    ids_V = torch.arange(23)
    (alone,) = on_ranks(1, on_worker, mode, ids_V, 1)
    first, second = on_ranks(2, on_worker, mode, ids_V, 2)
    num_sums = len(alone) - 2
    for place, expected in enumerate(alone):
        found = first[place] + second[place] if place < num_sums else first[place]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    for one, other in zip(first[num_sums:], second[num_sums:], strict=True):
        np.testing.assert_array_equal(one, other)
