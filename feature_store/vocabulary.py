"""From the text of a categorical value to its id: a position in a vocabulary, or a stable hash.

A vocabulary becomes a Polars Enum whose categories are, in this order, the empty text (missing), a
placeholder (unseen) and the values: the physical value of the Enum is then the id. Its index is
built once and shared by every batch and request; a look-up is one hash probe, without a join.

Hashes are xxHash64 (Collet, 2014) with seed 0 over the UTF-8 bytes, kept as the bits of an int64
because Delta tables and torch have no unsigned 64-bit integers.
"""

import hashlib

import polars as pl
import polars_hash  # registers the `nchash` namespace of expressions

from feature_store.features import FIRST_ID, MISSING_ID, UNSEEN_ID

assert (MISSING_ID, UNSEEN_ID, FIRST_ID) == (0, 1, 2), "the Enum's positions are the ids"

HASH_LIBRARY = f"polars-hash {polars_hash.__version__}"

HASH_OF_ZERO = 1
"""Stands for a hash of 0, since 0 means missing."""

_KNOWN_HASHES = {
    "": 0xEF46DB3751D8E999,
    "a": 0xD24EC4F1A98C6E5B,
    "abc": 0x44BC2CF5AD770999,
}
"""From the reference implementation of xxHash (XXH64, seed 0)."""


def check_hash_library() -> None:
    """Refuse to work with a polars-hash whose xxHash64 differs from the reference.

    Raises:
        RuntimeError: Ids hashed now would not be the ids a model was trained on.
    """
    known = pl.DataFrame(
        {
            "text": list(_KNOWN_HASHES),
            "expected": pl.Series(_KNOWN_HASHES.values(), dtype=pl.UInt64),
        }
    )
    found = known.with_columns(found=pl.col("text").nchash.xxhash64())  # type: ignore[attr-defined]
    wrong = found.filter(pl.col("found") != pl.col("expected"))
    if wrong.height:
        raise RuntimeError(
            f"{HASH_LIBRARY} hashes differently from xxHash64: {wrong.to_dicts()}; install the"
            " version named in requirements/"
        )


def hash_ids(text: pl.Expr) -> pl.Expr:
    """int64 ids of texts: 0 for null and the empty text, else xxHash64, 1 if that is 0."""
    bits = text.nchash.xxhash64().clip(lower_bound=HASH_OF_ZERO)  # type: ignore[attr-defined]
    # A null compares as null, which `when` takes for false.
    missing = pl.lit(MISSING_ID, pl.Int64)
    return pl.when(text != "").then(bits.reinterpret(signed=True)).otherwise(missing)


def bucket_ids(text: pl.Expr, num_buckets: int) -> pl.Expr:
    """int64 ids of texts from FIRST_ID on: the hash modulo some buckets; 0 for null and ""."""
    bucket = text.nchash.xxhash64() % pl.lit(num_buckets, pl.UInt64)  # type: ignore[attr-defined]
    missing = pl.lit(MISSING_ID, pl.Int64)
    return pl.when(text != "").then(bucket.cast(pl.Int64) + FIRST_ID).otherwise(missing)


def index(values: pl.Series) -> pl.Enum:
    """The Enum whose physical values are the ids of a vocabulary.

    Args:
        values: Distinct, non-empty texts in the order of their ids.
    """
    placeholder = "\x00"
    taken = set(values.filter(values.str.starts_with(placeholder)))
    while placeholder in taken:
        placeholder += "\x00"
    return pl.Enum(pl.concat([pl.Series(values.name, ["", placeholder]), values]))


def vocabulary_ids(text: pl.Expr, vocabulary_index: pl.Enum) -> pl.Expr:
    """int64 ids of texts: 0 for null and the empty text, 1 for a text outside; never null."""
    known = text.fill_null("").cast(vocabulary_index, strict=False)
    return known.to_physical().cast(pl.Int64).fill_null(UNSEEN_ID)


def digest(values: pl.Series) -> str:
    """sha256 (hex) over a vocabulary's values and their order."""
    lengths = values.str.len_bytes().cast(pl.Int64).to_numpy()
    sha = hashlib.sha256(lengths.tobytes())
    sha.update("".join(values.to_list()).encode())
    return sha.hexdigest()
