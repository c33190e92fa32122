"""The same rows of tables as unsigned 64-bit arithmetic gives."""

import numpy as np
import torch

from recsys.embeddings.hashing import hashed_rows, splitmix64

# First outputs of splitmix64 from state 0: output k mixes the state k * 0x9E37...
PUBLISHED = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
GOLDEN = 0x9E3779B97F4A7C15


def reference(ids: np.ndarray) -> np.ndarray:
    """splitmix64 in NumPy's uint64, as published."""
    with np.errstate(over="ignore"):
        z = ids.view(np.uint64) + np.uint64(GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def drawn(num_ids: int = 20_000) -> np.ndarray:
    random = np.random.default_rng(0)
    edges = np.array([0, 1, -1, 2**63 - 1, -(2**63), 2**31, -(2**31)], dtype=np.int64)
    return np.concatenate([edges, random.integers(-(2**63), 2**63 - 1, num_ids)])


def test_published_outputs() -> None:
    states = [(k * GOLDEN) % 2**64 for k in range(3)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    assert [bits % 2**64 for bits in splitmix64(signed).tolist()] == PUBLISHED
    assert reference(signed.numpy()).tolist() == PUBLISHED


def test_mixing_equals_unsigned_arithmetic() -> None:
    ids = drawn()
    np.testing.assert_array_equal(
        splitmix64(torch.from_numpy(ids)).numpy().view(np.uint64), reference(ids)
    )


def test_rows_equal_unsigned_arithmetic_in_tables_of_any_size() -> None:
    ids = drawn()
    for num_embeddings in (2, 3, 100, 2**20, 2**31 + 11):
        expected = 1 + (reference(ids) >> np.uint64(1)) % np.uint64(num_embeddings - 1)
        expected[ids == 0] = 0
        found = hashed_rows(torch.from_numpy(ids), num_embeddings)
        np.testing.assert_array_equal(found.numpy().astype(np.uint64), expected)


def test_the_missing_id_has_row_zero_for_itself() -> None:
    ids = torch.from_numpy(drawn())
    rows = hashed_rows(ids, 7)
    assert (rows == 0).tolist() == (ids == 0).tolist()
    assert set(rows.tolist()) == set(range(7))


def test_every_id_may_have_its_own_table_size() -> None:
    ids = torch.from_numpy(drawn(100))
    sizes = torch.arange(2, 2 + ids.numel())
    expected = [hashed_rows(i, int(n)).item() for i, n in zip(ids, sizes, strict=True)]
    assert hashed_rows(ids, sizes).tolist() == expected


def test_rows_are_spread_evenly() -> None:
    """Consecutive vocabulary ids over 100 rows: chi-squared, 98 degrees of freedom."""
    counts = torch.bincount(hashed_rows(torch.arange(1, 50_001), 100), minlength=100)[1:]
    expected = 50_000 / 99
    assert float(((counts - expected) ** 2 / expected).sum()) < 150
