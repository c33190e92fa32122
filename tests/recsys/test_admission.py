"""Who owns a row: the map, the sums over workers, the sketch against a slow one in plain Python."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ranks import on_ranks

from recsys.embeddings.admission import (
    BUCKET_PLACES,
    NO_KEY,
    Amounts,
    Candidates,
    OwnerMap,
    Owners,
    Ranked,
    Sketch,
    ascending,
    contest,
    owned_rows,
    summed_by_id,
)

IDS = st.integers(-(2**63), 2**63 - 1)


def amounts_of(counted: dict[int, float]) -> Amounts:
    ids = sorted(counted)
    return Amounts(
        torch.tensor(ids, dtype=torch.int64),
        torch.tensor([counted[i] for i in ids], dtype=torch.float64),
    )


def candidates_of(ids: list[int], score: float = 1.0, seen: int = 1) -> Candidates:
    size = len(ids)
    return Candidates(
        torch.tensor(ids, dtype=torch.int64),
        torch.full((size,), score, dtype=torch.float64),
        torch.full((size,), seen),
    )


@settings(deadline=None, max_examples=40)
@given(st.lists(IDS, max_size=30))
def test_sums_are_those_of_a_counter(ids: list[int]) -> None:
    found = summed_by_id(
        torch.tensor(ids, dtype=torch.int64), torch.ones(len(ids), dtype=torch.float64)
    )
    expected = Counter(i for i in ids if i not in (0, NO_KEY))
    assert found.ids_N.tolist() == sorted(expected)
    assert dict(zip(found.ids_N.tolist(), found.amounts_N.tolist(), strict=True)) == expected


def _parts() -> tuple[list[int], list[float]]:
    rank = torch.distributed.get_rank()
    ids = [[5, 7, 5, 0, -3], [7, 9]][rank]
    amounts = [[1.0, 2.0, 4.0, 8.0, 0.5], [16.0, 32.0]][rank]
    found = summed_by_id(torch.tensor(ids), torch.tensor(amounts, dtype=torch.float64))
    return found.ids_N.tolist(), found.amounts_N.tolist()


@pytest.mark.distributed
def test_workers_with_unequal_parts_get_the_same_sums() -> None:
    assert on_ranks(2, _parts) == [([-3, 5, 7, 9], [0.5, 5.0, 18.0, 32.0])] * 2


@settings(deadline=None, max_examples=40)
@given(st.sets(IDS.filter(lambda i: i not in (0, NO_KEY)), max_size=8), st.lists(IDS, max_size=20))
def test_owners_are_found_and_nobody_else(owners: set[int], asked: list[int]) -> None:
    owned = Owners(8)
    slots = owned.exchange(owned.occupied_C, candidates_of(list(owners))).tolist()
    assert sorted(slots) == list(range(len(owners)))
    expected = dict(zip(owners, slots, strict=True))
    ids = [*asked, *owners, 0, NO_KEY]
    assert owned.map(torch.tensor(ids)).tolist() == [expected.get(i, -1) for i in ids]
    rows = owned_rows(torch.tensor(ids), owned.map, num_shared=3)
    for i, row in zip(ids, rows.tolist(), strict=True):
        if i in expected:
            assert row == 4 + expected[i]
        else:
            assert row == 0 if i == 0 else 1 <= row <= 3


def test_the_map_takes_any_shape() -> None:
    owners = OwnerMap(3)
    owners.keys[:2] = torch.tensor([4, 9])
    owners.slots[:2] = torch.tensor([2, 0], dtype=torch.int32)
    assert owners(torch.tensor([[4, 5, 9], [0, 9, 4]])).tolist() == [[2, -1, 0], [-1, 0, 2]]


def test_those_who_stay_keep_their_slots_and_newcomers_take_the_free_ones() -> None:
    owners = Owners(4)
    owners.exchange(owners.occupied_C, candidates_of([10, 20, 30, 40], score=2.0, seen=5))
    stay_C = owners.map.keys != 20
    slots = owners.exchange(stay_C, candidates_of([15], score=7.0, seen=9))
    assert slots.tolist() == [1]
    assert owners.map.keys.tolist() == [10, 15, 30, 40]
    assert owners.map(torch.tensor([10, 15, 20, 30, 40])).tolist() == [0, 1, -1, 2, 3]
    assert owners.scores.tolist() == [2, 7, 2, 2]
    assert owners.seen.tolist() == [5, 9, 5, 5]


def test_a_score_loses_half_in_its_half_life_before_more_is_added() -> None:
    owners = Owners(2)
    owners.exchange(owners.occupied_C, candidates_of([3], score=8.0, seen=10))
    known_N = owners.add(amounts_of({3: 1.0, 4: 5.0}), now=30, half_life=10)
    assert known_N.tolist() == [True, False]
    assert owners.scores.tolist() == [8 / 4 + 1, 0]
    assert owners.seen.tolist() == [30, 0]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12))
def test_the_order_is_pythons_on_tuples(pairs: list[tuple[int, int]]) -> None:
    rows = [(score, seen, i) for i, (score, seen) in enumerate(pairs)]
    scores, seen, ids = (torch.tensor([r[k] for r in rows]).reshape(-1) for k in range(3))
    order = ascending(scores.double(), seen, ids.long())
    assert [rows[i] for i in order.tolist()] == sorted(rows)


def ranked_of(pairs: list[tuple[int, int]], first: int) -> Ranked:
    worth, seen = (torch.tensor([pair[k] for pair in pairs]).reshape(-1) for k in range(2))
    return Ranked(worth.double(), seen.long(), torch.arange(first, first + len(pairs)))


PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=10)


@settings(deadline=None, max_examples=60)
@given(PAIRS, PAIRS)
def test_the_best_rivals_replace_the_weakest_owners(
    rivals: list[tuple[int, int]], owners: list[tuple[int, int]]
) -> None:
    best = sorted(range(len(rivals)), key=lambda i: (-rivals[i][0], -rivals[i][1], i))
    weakest = sorted(range(len(owners)), key=lambda i: (*owners[i], i))
    pairs = [
        (one, other)
        for one, other in zip(best, weakest, strict=False)
        if rivals[one][0] > owners[other][0]
    ]
    winners, losers = contest(ranked_of(rivals, 1), ranked_of(owners, 50))
    assert list(zip(winners.tolist(), losers.tolist(), strict=True)) == pairs


class SlowSketch:
    """The same rule, one id after the other, on lists of [score, seen, id]."""

    def __init__(self, num_buckets: int, inherits: bool) -> None:
        self.buckets = [[[0.0, 0, 0] for _ in range(BUCKET_PLACES)] for _ in range(num_buckets)]
        self.inherits = inherits

    def add(self, counted: dict[int, float], now: int, bucket_of: dict[int, int]) -> None:
        new: dict[int, list[int]] = {}
        for i, amount in counted.items():
            bucket = self.buckets[bucket_of[i]]
            place = next((p for p in bucket if p[2] == i), None)
            if place is None:
                new.setdefault(bucket_of[i], []).append(i)
            else:
                place[0] += amount
                place[1] = now
        for number, ids in new.items():
            least_first = sorted(self.buckets[number])
            coming = sorted(ids, key=lambda i: (-counted[i], i))[:BUCKET_PLACES]
            for i, place in zip(coming, least_first, strict=False):
                place[0] = counted[i] + (place[0] if self.inherits else 0)
                place[1], place[2] = now, i


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.dictionaries(st.integers(1, 40), st.integers(1, 3), max_size=15), max_size=8),
    st.booleans(),
)
def test_the_sketch_is_the_slow_one(batches: list[dict[int, int]], inherits: bool) -> None:
    sketch, slow = Sketch(3, inherits=inherits), SlowSketch(3, inherits)
    everyone = torch.arange(1, 41)
    bucket_of = dict(zip(everyone.tolist(), sketch.buckets(everyone).tolist(), strict=True))
    truth: Counter[int] = Counter()
    for now, counted in enumerate(batches, start=1):
        sketch.add(amounts_of(counted), now)
        slow.add(counted, now, bucket_of)
        truth.update(counted)
    for bucket, (ids, scores, seen) in zip(
        slow.buckets, zip(sketch.ids, sketch.scores, sketch.seen, strict=True), strict=True
    ):
        rows = zip(scores.tolist(), seen.tolist(), ids.tolist(), strict=True)
        assert sorted(rows) == sorted(tuple(place) for place in bucket)
    if not inherits:
        known = sketch.candidates(1.0)
        for i, score in zip(known.ids_N.tolist(), known.scores_N.tolist(), strict=True):
            assert score <= truth[i], "never too high"


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 25), max_size=60))
def test_one_id_a_step_keeps_the_bounds_of_space_saving(ids: list[int]) -> None:
    sketch = Sketch(2, inherits=True)
    for now, i in enumerate(ids, start=1):
        sketch.add(amounts_of({i: 1.0}), now)
    truth = Counter(ids)
    for bucket, scores in zip(sketch.ids.tolist(), sketch.scores.tolist(), strict=True):
        for i, score in zip(bucket, scores, strict=True):
            if i:
                assert truth[i] <= score <= truth[i] + min(scores)


def test_a_sketch_with_room_counts_exactly() -> None:
    sketch = Sketch(200, inherits=False)
    random = np.random.default_rng(0)
    truth: Counter[int] = Counter()
    for now in range(1, 30):
        ids = random.integers(1, 60, 20).tolist()
        truth.update(ids)
        sketch.add(amounts_of(Counter(ids)), now)
    known = sketch.candidates(3.0)
    found = dict(zip(known.ids_N.tolist(), known.scores_N.tolist(), strict=True))
    assert found == {i: count for i, count in truth.items() if count >= 3}


def test_what_is_removed_is_forgotten() -> None:
    sketch = Sketch(4, inherits=True)
    sketch.add(amounts_of({11: 3.0, 12: 4.0, 13: 5.0}), now=1)
    sketch.remove(torch.tensor([13, 11]))
    assert sketch.candidates(0.0).ids_N.tolist() == [12]
    sketch.add(amounts_of({11: 1.0}), now=2)
    known = sketch.candidates(0.0)
    assert dict(zip(known.ids_N.tolist(), known.scores_N.tolist(), strict=True)) == {12: 4, 11: 1}


def test_what_is_added_whole_inherits_nothing() -> None:
    sketch = Sketch(1, inherits=True)
    sketch.add(amounts_of(dict.fromkeys(range(1, 1 + BUCKET_PLACES), 10.0)), now=1)
    sketch.add(amounts_of({50: 2.0}), now=2, whole=True)
    sketch.add(amounts_of({60: 3.0}), now=3)
    known = sketch.candidates(0.0)
    scores = dict(zip(known.ids_N.tolist(), known.scores_N.tolist(), strict=True))
    assert 50 not in scores
    assert scores[60] == 5.0, "3 and the 2 that it replaced"
