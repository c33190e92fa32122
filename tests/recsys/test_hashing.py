"""The same rows of tables as unsigned 64-bit arithmetic gives."""

import hashlib

import numpy as np
import polars as pl
import pytest
import torch

from recsys.embeddings.hashing import MOST_ROWS, hashed_rows, salted_rows, salts, splitmix64

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


def reference_rows(ids: np.ndarray, name: str, chunk: int, num_rows: int) -> np.ndarray:
    """Row of one chunk by Python's unbounded integers, bit by bit as documented."""
    digest = hashlib.sha256(f"{name}/{chunk // 2}".encode()).digest()
    constant = int.from_bytes(digest[:8], "big")
    found = []
    for number in ids.tolist():
        z = (number + constant + GOLDEN) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        z ^= z >> 31
        bits = z >> 32 if chunk % 2 else z % 2**32
        found.append(bits * num_rows // 2**32)
    return np.array(found)


def rows_of(ids: np.ndarray, name: str, num_lookups: int, num_rows: int) -> np.ndarray:
    found = salted_rows(torch.from_numpy(ids), salts(name, num_lookups), num_lookups, num_rows)
    return torch.stack(found).numpy()


@pytest.mark.parametrize("num_rows", [1, 2, 100, 2**20 + 7, MOST_ROWS - 1])
def test_salted_rows_equal_unbounded_arithmetic(num_rows: int) -> None:
    ids = drawn(300)
    found = rows_of(ids, "item", 3, num_rows)
    for chunk in range(3):
        expected = reference_rows(ids, "item", chunk, num_rows)
        np.testing.assert_array_equal(found[chunk], expected)


def test_salted_rows_are_the_same_in_polars() -> None:
    """What a job on the Arrow side would write: unsigned columns, no Python per row."""
    ids, num_rows = drawn(), 12_345

    def bits(number: int) -> pl.Expr:
        return pl.lit(number % 2**64, dtype=pl.UInt64)

    for pair, constant in enumerate(salts("city", 4)):
        z = pl.col("id").reinterpret(signed=False) + bits(constant) + bits(GOLDEN)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            z = (z ^ (z // bits(2**shift))) * bits(factor)
        low, high = z % bits(2**32), z // bits(2**32)
        found = pl.DataFrame({"id": ids}).select(
            low=low * bits(num_rows) // bits(2**32), high=high * bits(num_rows) // bits(2**32)
        )
        expected = rows_of(ids, "city", 4, num_rows)[2 * pair : 2 * pair + 2]
        np.testing.assert_array_equal(found.to_numpy().T.astype(np.int64), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_salted_rows_are_the_same_on_cuda() -> None:
    ids = torch.from_numpy(drawn())
    for num_rows in (2, 12_345, MOST_ROWS - 1):
        here = salted_rows(ids, salts("item", 3), 3, num_rows)
        there = salted_rows(ids.cuda(), salts("item", 3), 3, num_rows)
        assert all(torch.equal(one, other.cpu()) for one, other in zip(here, there, strict=True))


def test_salted_rows_keep_the_shape_of_the_ids() -> None:
    ids = torch.from_numpy(drawn(65)).view(8, 9)
    flat = salted_rows(ids.flatten(), salts("item", 2), 2, 50)
    for one, other in zip(salted_rows(ids, salts("item", 2), 2, 50), flat, strict=True):
        assert one.shape == (8, 9)
        assert torch.equal(one.flatten(), other)


def test_look_ups_and_features_hash_independently() -> None:
    """Two hashes of the same ids into 50 rows agree on 2% of them, whichever two they are."""
    ids = np.arange(40_000)
    hashes = [*rows_of(ids, "item", 4, 50), *rows_of(ids, "user", 4, 50)]
    for place, one in enumerate(hashes):
        counts = np.bincount(one, minlength=50)
        assert ((counts - 800) ** 2 / 800).sum() < 110  # chi-squared, 49 degrees of freedom
        for other in hashes[:place]:
            pairs = np.bincount(50 * one + other, minlength=2500)
            assert ((pairs - 16) ** 2 / 16).sum() < 2499 + 6 * 71  # 2499 degrees of freedom


def test_salts_are_written_down() -> None:
    """Checkpoints and bundles depend on them: a change would scramble every trained table."""
    assert salts("item", 3) == (-114411777610772258, -2391097248378096087)
    assert len(salts("item", 1)) == len(salts("item", 2)) == 1
