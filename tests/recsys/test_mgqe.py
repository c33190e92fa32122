"""Rare values choose among the first centroids alone, and their codes are shorter."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from recsys.embeddings.compression.mgqe import MGQE, MGQEConfig
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space
from recsys.embeddings.tables import TableSettings

NUM_IDS, WIDTH = 100, 8


def space_of(num_ids: int = NUM_IDS, cardinality: int | None = None) -> Space:
    return Space("item", (), num_ids, cardinality or num_ids, WIDTH, TableSettings())


def scheme_of(**settings: Any) -> MGQE:
    torch.manual_seed(3)
    chosen = {"num_choices": 16, "num_choices_rare": 3, "num_parts": 2, **settings}
    return MGQEConfig.model_validate(chosen).scheme(space_of(), "train", {})


def table() -> Tensor:
    return torch.empty(NUM_IDS, WIDTH).uniform_(-0.05, 0.05, generator=torch.manual_seed(4))


def test_every_part_becomes_its_nearest_allowed_centroid() -> None:
    """Nearest by distances that each centroid's mean and deviation are taken from."""
    scheme, weights_RD = scheme_of(frequent_share=0.25), table()
    ids_V = torch.randperm(NUM_IDS, generator=torch.manual_seed(0))
    found_VD = scheme.train().combine(ids_V, [weights_RD[ids_V]]).detach().numpy()
    values_PKW = scheme.values_PKW.detach().double().numpy()
    chosen: dict[bool, set[int]] = {True: set(), False: set()}
    for part in range(2):
        queries_VW = weights_RD[ids_V, 4 * part : 4 * part + 4].double().numpy()
        responses_VK = -np.square(queries_VW[:, None, :] - values_PKW[part]).sum(axis=2)
        scores_VK = (responses_VK - responses_VK.mean(axis=0)) / responses_VK.std(axis=0)
        for row, identity in enumerate(ids_V.tolist()):
            frequent = identity < 25
            code = int(np.argmax(scores_VK[row, : 16 if frequent else 3]))
            chosen[frequent].add(code)
            np.testing.assert_allclose(
                found_VD[row, 4 * part : 4 * part + 4], values_PKW[part, code], rtol=0, atol=1e-7
            )
    assert chosen[False] == {0, 1, 2}
    assert chosen[True] > chosen[False]


def test_the_distance_of_a_batch_is_added_to_the_loss() -> None:
    scheme, weights_RD = scheme_of(regularization=2.0), table()
    queries_VD = weights_RD[:40].requires_grad_()
    vectors_VD = scheme.train().combine(torch.arange(40), [queries_VD])
    scheme.combine(torch.arange(5), [queries_VD[:5]])
    penalty = scheme.penalty()
    assert penalty is not None
    other_VD = scheme.combine(torch.arange(5), [queries_VD[:5]])
    expected = 2 * (vectors_VD - queries_VD).square().mean()
    expected += 2 * (other_VD - queries_VD[:5]).square().mean()
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-4)
    assert scheme.penalty() is not None
    assert scheme.penalty() is None


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_served_codes_give_the_evaluated_vectors_exactly(share: float) -> None:
    scheme, weights_RD = scheme_of(frequent_share=share), table()
    scheme.train().combine(torch.arange(60), [weights_RD[:60]])
    scheme.eval()
    served = scheme.serving({"item": weights_RD})
    ids = torch.arange(NUM_IDS).view(4, 25)
    assert torch.equal(served.combine(ids, []), scheme.combine(ids, [weights_RD[ids]]))
    assert served.storage_bytes() == scheme.serving_bytes()


def test_bytes_are_codes_of_two_widths_and_the_codebooks() -> None:
    """A thousand rows: 100 of 4 bytes, 900 of 4 x 6 bits, 256 centroids of 8 floats."""
    config = MGQEConfig(num_parts=4)
    assert config.bytes_of(space_of(1000), 4) == 100 * 4 + 900 * 3 + 256 * 8 * 4
    assert config.num_frequent(space_of(1000)) == 100
    assert config.num_frequent(space_of(1001)) == 101
    assert config.num_frequent(space_of(2)) == 1


def test_the_least_budget_is_one_code_a_row() -> None:
    space = space_of(10_000)
    least = 1000 + 9000 + 256 * 8 * 4
    assert MGQEConfig().sized([space], least) == {"item": MGQEConfig(num_parts=1)}
    with pytest.raises(BudgetTooSmall, match=f"mgqe.*{least:,} bytes"):
        MGQEConfig().sized([space], least - 1)
    assert MGQEConfig().sized([space], space.full_bytes) == {"item": MGQEConfig(num_parts=8)}
    assert MGQEConfig().sized([space], None) == {"item": MGQEConfig(num_parts=4)}
    assert MGQEConfig().sized([space_of(200)], None) == {"item": None}


def test_hashed_ids_are_refused() -> None:
    with pytest.raises(SchemeError, match="'item' are hashed"):
        MGQEConfig().sized([space_of(50, cardinality=100)], None)


def test_rare_values_cannot_have_more_choices() -> None:
    with pytest.raises(ValidationError, match="num_choices_rare 64 is a part of num_choices 32"):
        MGQEConfig(num_choices=32)
