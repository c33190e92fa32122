"""One table for all features: rows, the deal over tables, sizes, errors."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.encoded import LAYOUT
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from feature_store.features import IdField
from recsys.embeddings.collection import Embeddings, SequenceVectors, table_weight
from recsys.embeddings.compression.unified import UnifiedConfig, proposed_lookups
from recsys.embeddings.config import EmbeddingsConfig, FeatureEmbedding
from recsys.embeddings.hashing import salted_rows, salts
from recsys.embeddings.scheme import BudgetTooSmall, SchemeError, Space
from recsys.embeddings.tables import TableSettings

CPU = torch.device("cpu")


def space(name: str, num_ids: int | None, dim: int = 16, **settings: object) -> Space:
    field = IdField(name=name, shape="single", side="item", space=name, cardinality=num_ids)
    return Space(name, (field,), num_ids, num_ids, dim, TableSettings(**settings))


def spaces(*sizes: int, dim: int = 16) -> list[Space]:
    return [space(f"f{place}", size, dim) for place, size in enumerate(sizes)]


def bytes_of(spaces: Sequence[Space], sized: dict[str, UnifiedConfig | None]) -> int:
    """Counted from the tables that the schemes ask for, each once."""
    tables, whole = set(), 0
    for each in spaces:
        config = sized[each.name]
        if config is None:
            whole += each.full_bytes
        else:
            tables |= set(config.scheme(each, "train", {}).lookups)
    return whole + sum(4 * spec.num_embeddings * spec.embedding_dim for spec in tables)


def embeddings_of(**scheme: object) -> Embeddings:
    default = FeatureEmbedding(embedding_dim=8, scheme={"kind": "unified", **scheme})
    embeddings = Embeddings(LAYOUT, EmbeddingsConfig(default=default), CPU)
    for table in embeddings.tables:
        torch.nn.init.normal_(table_weight(embeddings, table).detach())
    return embeddings


def ids_of(rows: int) -> KeyedJaggedTensor:
    values, lengths = [], []
    for place, field in enumerate(LAYOUT.ids):
        for row in range(rows):
            length = 1 if field.shape == "single" else (row + place) % 4
            high = field.cardinality or 2**62
            values.append(torch.randint(0, high, (length,)))
            lengths.append(length)
    return KeyedJaggedTensor.from_lengths_sync(
        [field.name for field in LAYOUT.ids], torch.cat(values), torch.tensor(lengths)
    )


def test_vectors_are_rows_of_one_table_side_by_side() -> None:
    """Every field against a loop over its ids, read from the very same tables."""
    embeddings = embeddings_of(num_rows=29, num_lookups=4, num_tables=3, whole_share=0)
    weights = {table.name: table_weight(embeddings, table) for table in embeddings.tables}
    assert list(weights) == ["unified_0", "unified_1", "unified_2"]
    # Chunks are dealt round, on from feature to feature: user 0-3, item 4-7, tags 8-11, city ...
    first_chunk = {"user": 0, "item": 4, "tags": 8, "city": 12}
    batch = ids_of(5)
    vectors = embeddings(batch)
    for field in LAYOUT.ids:
        found = vectors[field.name]
        for row, numbers in enumerate(batch[field.name].to_dense()):
            expected = []
            for number in numbers:
                rows = salted_rows(number, salts(field.space, 4), 4, 29)
                parts = [
                    weights[f"unified_{(first_chunk[field.space] + chunk) % 3}"][place]
                    for chunk, place in enumerate(rows)
                ]
                expected.append(torch.cat(parts))
            if isinstance(found, SequenceVectors):
                for place, vector in enumerate(expected):
                    torch.testing.assert_close(found.values_BLD[row, place], vector)
            else:
                mean = torch.stack(expected).mean(0) if expected else torch.zeros(8)
                torch.testing.assert_close(found[row], mean)


def test_one_table_serves_all_and_stores_nothing_beside_it() -> None:
    embeddings = embeddings_of(num_rows=30, whole_share=0)
    (table,) = embeddings.tables
    assert (table.name, table.num_embeddings, table.embedding_dim) == ("unified", 30, 4)
    assert {field.space for field in table.fields} == {"user", "item", "tags", "city"}
    assert list(embeddings.state_dict()) == ["unpooled.4.embeddings.unified_table.weight"]
    assert all(scheme.storage_bytes() == 0 for scheme in embeddings.own_schemes())


def test_look_ups_by_feature_share_one_setting() -> None:
    config = UnifiedConfig(num_rows=9, dim=4, num_lookups={"a": 3, "c": 2}, whole_share=0)
    each = [space(name, 100) for name in "abc"]
    sized = config.sized(each, None)
    schemes = {s.name: sized[s.name].scheme(s, "train", {}) for s in each}
    assert {name: len(s.lookups) for name, s in schemes.items()} == {"a": 3, "b": 1, "c": 2}
    assert {name: s.embedding_dim for name, s in schemes.items()} == {"a": 12, "b": 4, "c": 8}
    assert len({spec for s in schemes.values() for spec in s.lookups}) == 1
    embeddings = embeddings_of(num_rows=9, num_lookups={"item": 4, "user": 2}, whole_share=0)
    widths = embeddings.embedding_dims
    assert widths == {"user": 4, "history": 8, "item": 8, "tags": 2, "city": 2}


def test_automatic_look_ups_keep_the_widest_vector_as_wide_as_a_full_one() -> None:
    each = spaces(1_000_000, 1000, 12)
    sized = UnifiedConfig(num_rows=50, num_lookups="auto", whole_share=0).sized(each, None)
    schemes = [sized[s.name].scheme(s, "train", {}) for s in each]
    assert [len(s.lookups) for s in schemes] == [4, 2, 1]
    assert schemes[0].embedding_dim == 16
    wide = UnifiedConfig(num_rows=50, num_lookups="auto", dim=2, whole_share=0).sized(each, None)
    assert wide["f0"].num_lookups == {"f0": 8, "f1": 4, "f2": 1}


def test_proposed_lookups_rise_with_the_logarithm() -> None:
    sizes = {"item": 10**6, "user": 10**3, "sex": 3, "none": 1, "hashed": None}
    assert proposed_lookups(sizes) == {"item": 4, "user": 2, "sex": 1, "none": 1, "hashed": 4}
    assert proposed_lookups(sizes, 1) == dict.fromkeys(sizes, 1)
    assert proposed_lookups({"a": 1, "b": None}, 3) == {"a": 1, "b": 3}


def test_the_smallest_features_stay_whole_and_count() -> None:
    each = spaces(4, 900, 100, 6, 5)
    sized = UnifiedConfig(num_tables=2).sized(each, 64 * 101)
    assert [name for name, config in sized.items() if config is None] == ["f0", "f4"]
    # 101 - 9 rows of 16; two tables of rows of 8.
    assert sized["f1"].num_rows == 92
    assert bytes_of(each, sized) == 64 * 101
    none = UnifiedConfig(whole_share=0).sized(each, 64 * 101)
    assert None not in none.values()
    assert none["f1"].num_rows == 202


def test_without_a_budget_whole_features_are_small_beside_the_shared_tables() -> None:
    each = [*spaces(9, 12, 900), space("city", None)]
    sized = UnifiedConfig(num_rows=200).sized(each, None)
    assert [name for name, config in sized.items() if config is None] == ["f0"]
    assert sized["city"].num_lookups == {"f1": 2, "f2": 2, "city": 2}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(2, 5000), min_size=1, max_size=6),
    st.floats(0.0005, 1.2),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4, "auto"]),
)
def test_what_is_sized_fits(sizes: list[int], share: float, tables: int, lookups: object) -> None:
    each = spaces(*sizes)
    full = sum(s.full_bytes for s in each)
    budget = max(1, int(share * full))
    config = UnifiedConfig(num_tables=tables, num_lookups=lookups)
    row_bytes = 64 // (4 if lookups == "auto" else lookups)
    if budget >= full:
        assert set(config.sized(each, budget).values()) == {None}
        return
    try:
        sized = config.sized(each, budget)
    except BudgetTooSmall as error:
        chunks = len(each) * (1 if lookups == "auto" else lookups)
        assert budget < 2 * row_bytes * (tables if lookups == "auto" else min(tables, chunks))
        assert "scheme unified" in str(error)
        return
    used = [c for c in sized.values() if c is not None]
    assert used, "less than the full tables compresses something"
    taken = bytes_of(each, sized)
    assert taken <= budget
    assert taken + tables * row_bytes > budget, "one row more in every table would not fit"
    assert sum(s.full_bytes for s in each if sized[s.name] is None) <= 0.1 * budget


def test_a_budget_for_less_than_two_rows_names_the_least() -> None:
    with pytest.raises(BudgetTooSmall, match=r"unified .* 128 bytes \(0.02%\)"):
        UnifiedConfig(num_tables=2).sized(spaces(9_999, 1), 127)
    assert UnifiedConfig(num_tables=2).sized(spaces(9_999, 1), 128)["f0"].num_rows == 2


def test_settings_are_values() -> None:
    """Schemes group features by equal settings, so those with a mapping are hashed too."""
    one = UnifiedConfig(num_rows=9, num_lookups={"a": 2})
    other = UnifiedConfig(num_rows=9, num_lookups={"a": 2})
    assert one == other
    assert len({one, other, UnifiedConfig(num_rows=9)}) == 2


def test_settings_that_do_not_fit_are_refused_in_the_users_words() -> None:
    def sized(*each: Space, **settings: object) -> None:
        UnifiedConfig(**{"num_rows": 9, **settings}).sized(each, None)

    with pytest.raises(SchemeError, match=r"scheme unified .* set embeddings\.budget"):
        sized(space("a", 50), num_rows=None)
    with pytest.raises(SchemeError, match="embedding_dim 16 of feature 'a' is no multiple of 3"):
        sized(space("a", 50), num_lookups=3)
    with pytest.raises(SchemeError, match=r"embedding_dim \[8, 16\] share a table"):
        sized(space("a", 50), space("b", 50, 8))
    with pytest.raises(SchemeError, match=r"'a' and 'b' .* differ in init_range: 0.05 and 0.1"):
        sized(space("a", 50), space("b", 50, init_range=0.1))
    with pytest.raises(SchemeError, match=r"num_lookups names 'usr'.*did you mean 'user'"):
        sized(space("user", 50), num_lookups={"usr": 2})
    with pytest.raises(ValidationError, match="num_rows"):
        UnifiedConfig(num_rows=2**31)


def test_a_feature_that_stays_whole_may_have_settings_of_its_own() -> None:
    each = [space("a", 900), space("sex", 3, init_range=0.5)]
    assert UnifiedConfig(num_rows=90).sized(each, None)["sex"] is None


def test_two_settings_of_one_table_are_refused() -> None:
    two = EmbeddingsConfig(
        default=FeatureEmbedding(embedding_dim=8, scheme={"kind": "unified", "num_rows": 30}),
        features={"item": FeatureEmbedding(scheme={"kind": "unified", "num_rows": 31})},
    )
    with pytest.raises(ValueError, match="the table 'unified' is asked for as"):
        Embeddings(LAYOUT, two, CPU)


def test_ids_of_one_feature_collide_less_than_in_a_table_of_their_own() -> None:
    """Equal bytes: four features of 1000 ids in 400 rows, or 100 rows each."""
    ids = torch.arange(1000)
    own, shared = (
        salted_rows(ids, salts("item", 1), 1, rows)[0].unique().numel() for rows in (100, 400)
    )
    assert shared > 3 * own
    two = torch.stack(salted_rows(ids, salts("item", 2), 2, 800))
    assert two.unique(dim=1).shape[1] > 990
