"""Which ids own a row of a table: found while training, of fixed size, equal on all workers.

A sorted map from id to slot, with a score of every owner; and a sketch of the ids that own none.
Ids are any 64-bit numbers but 0 (missing) and 2^63 - 1, which stands for an empty place and so
never owns a row. The state is buffers: it is in the checkpoint, and it changes by the whole global
batch on every worker alike, so that one worker is as good as two.

Shapes: C slots, N distinct ids, V ids of a worker's batch, W buckets, S places of a bucket.
"""

from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recsys.embeddings.hashing import hashed_rows, splitmix64
from recsys.embeddings.scheme import AbstractScheme, Space
from recsys.embeddings.tables import TableSpec

NO_KEY = 2**63 - 1
OWNER_BYTES = 12
"""Of one slot when served: a 64-bit id, a 32-bit slot."""
BUCKET_PLACES = 4
_BUCKET_SALT = 0x6A09E667F3BCC908


class Amounts(NamedTuple):
    """What every id of the global batch has gathered, in ascending order of the ids."""

    ids_N: Tensor
    amounts_N: Tensor
    """float64."""


class Candidates(NamedTuple):
    """What a sketch knows of the ids in it."""

    ids_N: Tensor
    scores_N: Tensor
    """float64."""
    seen_N: Tensor
    """int64: the step when each was last added to."""


def summed_by_id(ids_V: Tensor, amounts_V: Tensor) -> Amounts:
    """Sums of what each id gathered over all workers; missing ids and 2^63 - 1 are left out.

    Every worker calls this, each with its own part of the batch, and gets the same.

    Args:
        ids_V: int64.
        amounts_V: float64; counts add up exactly.
    """
    mine = _summed(ids_V, amounts_V)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mine
    size = torch.tensor([mine.ids_N.numel()], device=ids_V.device)
    sizes = [torch.zeros_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    lengths = torch.cat(sizes).tolist()
    # One exchange of a rectangle: the bits of the amounts travel beside the ids.
    sent = ids_V.new_zeros(2, max(lengths))
    sent[0, : mine.ids_N.numel()] = mine.ids_N
    sent[1, : mine.ids_N.numel()] = mine.amounts_N.view(torch.int64)
    received = [torch.zeros_like(sent) for _ in lengths]
    dist.all_gather(received, sent)
    parts = [both[:, :length] for both, length in zip(received, lengths, strict=True)]
    ids, bits = torch.cat(parts, dim=1)
    return _summed(ids, bits.contiguous().view(torch.float64))


def _summed(ids_V: Tensor, amounts_V: Tensor) -> Amounts:
    real_V = (ids_V != 0) & (ids_V != NO_KEY)
    ids_N, places_V = torch.unique(ids_V[real_V], return_inverse=True)
    sums_N = torch.zeros(ids_N.numel(), dtype=torch.float64, device=ids_V.device)
    return Amounts(ids_N, sums_N.index_add(0, places_V, amounts_V[real_V]))


def ascending(scores_N: Tensor, seen_N: Tensor, ids_N: Tensor) -> Tensor:
    """Order along the last dimension by score, then by step, then by id; the first are worth least.

    No two ids are equal, so there is one such order.
    """
    order = ids_N.argsort(dim=-1)
    for key_N in (seen_N, scores_N):
        order = order.gather(-1, key_N.gather(-1, order).argsort(dim=-1, stable=True))
    return order


class Ranked(NamedTuple):
    """Some ids with what ranks them: worth, then step, then id."""

    worth_N: Tensor
    seen_N: Tensor
    ids_N: Tensor

    def at(self, places_M: Tensor) -> "Ranked":
        """Some of them."""
        return Ranked(*(values_N[places_M] for values_N in self))

    def best_first(self) -> Tensor:
        """(N,) places from the most valuable on; of two worth the same the smaller id first."""
        return ascending(-self.worth_N, -self.seen_N, self.ids_N)


def contest(rivals: Ranked, owners: Ranked) -> tuple[Tensor, Tensor]:
    """Who replaces whom: the best rival the weakest owner, as long as it is worth more.

    Returns:
        Places among the rivals, the best first, and as many places among the owners.
    """
    none = rivals.ids_N.new_zeros(0)
    if not rivals.ids_N.numel() or not owners.ids_N.numel():
        return none, none
    # Most have no part in it, and sorting them all would be most of the work.
    strong_N = (rivals.worth_N > owners.worth_N.min()).nonzero()[:, 0]
    weak_C = (owners.worth_N < rivals.worth_N.max()).nonzero()[:, 0]
    strong_N = strong_N[rivals.at(strong_N).best_first()]
    weak_C = weak_C[ascending(*owners.at(weak_C))]
    size = min(strong_N.numel(), weak_C.numel())
    strong_N, weak_C = strong_N[:size], weak_C[:size]
    # One side falls and the other rises, so those who win come first.
    wins = rivals.worth_N[strong_N] > owners.worth_N[weak_C]
    return strong_N[wins], weak_C[wins]


class OwnerMap(nn.Module):
    """From ids to slots 0 .. num_slots - 1; what is served of it all.

    Args:
        num_slots: how many ids can own one.
    """

    keys: Tensor
    """(C,) int64, ascending; empty places hold 2^63 - 1 and come last."""
    slots: Tensor
    """(C,) int32: of each key; -1 at empty places."""

    def __init__(self, num_slots: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.full((num_slots,), NO_KEY, dtype=torch.int64))
        self.register_buffer("slots", torch.full((num_slots,), -1, dtype=torch.int32))

    def places(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Place of each id among the keys, and whether it is there; both shaped as the ids."""
        places = torch.searchsorted(self.keys, ids.contiguous())
        places = places.clamp(max=self.keys.shape[0] - 1)
        return places, (self.keys[places] == ids) & (ids != NO_KEY)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 slot of each id, -1 where it owns none."""
        places, owned = self.places(ids)
        return torch.where(owned, self.slots[places].to(torch.int64), -1)


class Owners(nn.Module):
    """The map with what decides who stays in it.

    Args:
        num_slots: how many ids can own one.
    """

    scores: Tensor
    """(C,) float32 beside `map.keys`."""
    seen: Tensor
    """(C,) int32: the step when each was last looked up."""

    def __init__(self, num_slots: int) -> None:
        super().__init__()
        self.map = OwnerMap(num_slots)
        self.register_buffer("scores", torch.zeros(num_slots))
        self.register_buffer("seen", torch.zeros(num_slots, dtype=torch.int32))

    @property
    def occupied_C(self) -> Tensor:
        """bool: places that hold an id."""
        return self.map.slots >= 0

    @torch.no_grad()
    def add(self, amounts: Amounts, now: int, half_life: float | None = None) -> Tensor:
        """Add to the scores of the owners among some ids; (N,) bool: which they are.

        Args:
            amounts: of distinct ids.
            now: the step.
            half_life: steps in which a score loses half; None: it keeps.
        """
        places_N, owned_N = self.map.places(amounts.ids_N)
        places = places_N[owned_N]
        before = faded(self.scores[places].double(), now - self.seen[places], half_life)
        self.scores[places] = (before + amounts.amounts_N[owned_N]).float()
        self.seen[places] = now
        return owned_N

    @torch.no_grad()
    def exchange(self, stay_C: Tensor, new: Candidates) -> Tensor:
        """Let owners go and others come; (N,) int64 slots of the new ones, in their order.

        Args:
            stay_C: bool, which places keep their id.
            new: ids that own no slot; no more than are free then.
        """
        num_slots = stay_C.numel()
        taken_C = torch.zeros_like(stay_C)
        taken_C[self.map.slots[stay_C].to(torch.int64)] = True
        slots_N = (~taken_C).nonzero()[: new.ids_N.numel(), 0]
        self.fill(
            torch.cat([self.map.keys[stay_C], new.ids_N]),
            torch.cat([self.map.slots[stay_C], slots_N.to(torch.int32)]),
            torch.cat([self.scores[stay_C], new.scores_N.float()]),
            torch.cat([self.seen[stay_C], new.seen_N.to(torch.int32)]),
        )
        assert slots_N.numel() == new.ids_N.numel() <= num_slots, "no more than are free"
        return slots_N

    @torch.no_grad()
    def fill(self, keys_N: Tensor, slots_N: Tensor, scores_N: Tensor, seen_N: Tensor) -> None:
        """Replace all owners; N is at most the number of slots."""
        order = keys_N.argsort()
        size = keys_N.numel()
        for buffer, values_N, empty in (
            (self.map.keys, keys_N, NO_KEY),
            (self.map.slots, slots_N, -1),
            (self.scores, scores_N, 0),
            (self.seen, seen_N, 0),
        ):
            buffer.fill_(empty)
            buffer[:size] = values_N[order]


def faded(scores: Tensor, age: Tensor, half_life: float | None) -> Tensor:
    """Scores after `age` more steps: half of them every `half_life`."""
    return scores if half_life is None else scores * torch.exp2(-age.double() / half_life)


class Sketch(nn.Module):
    """Scores of ids in buckets with few places, so that memory is bounded whatever ids come.

    An id has one bucket, by its hash. Where a bucket is full, new ids take the places of those that
    are worth least (score, then the step when they came last, then id). New ids of one step come
    in the order of their amounts, each to the next place, so a step can only replace what was
    there before it.

    `inherits` False: a new id begins at its amount. Scores are never too high, and too low by what
    an id gathered before it was forgotten last. True (SpaceSaving; Metwally et al., ICDT 2005): it
    begins at its amount and the score it replaces, so that an id climbs that comes again and again
    and is crowded out in between. Where a bucket gets one new id a step and none is removed, scores
    are never too low, and too high by at most the least in the bucket.

    Args:
        num_buckets: of `BUCKET_PLACES` places.
        inherits: see above.
    """

    ids: Tensor
    """(W, S) int64, 0 where empty."""
    scores: Tensor
    """(W, S) float32."""
    seen: Tensor
    """(W, S) int32."""

    def __init__(self, num_buckets: int, *, inherits: bool) -> None:
        super().__init__()
        self.inherits = inherits
        shape = (num_buckets, BUCKET_PLACES)
        self.register_buffer("ids", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("scores", torch.zeros(shape))
        self.register_buffer("seen", torch.zeros(shape, dtype=torch.int32))

    def buckets(self, ids_N: Tensor) -> Tensor:
        """(N,) bucket of each id."""
        positive_N = (splitmix64(ids_N ^ _BUCKET_SALT) >> 1) & ((1 << 63) - 1)
        return positive_N % self.ids.shape[0]

    @torch.no_grad()
    def add(self, amounts: Amounts, now: int, *, whole: bool = False) -> None:
        """Add to the scores of distinct ids, none of them 0.

        Args:
            amounts: of the ids.
            now: the step.
            whole: new ids among them have gathered no more than this, so they inherit nothing.
        """
        ids_N, amounts_N = amounts
        buckets_N = self.buckets(ids_N)
        match_NS = self.ids[buckets_N] == ids_N[:, None]
        known_N = match_NS.any(dim=1)
        known, place = buckets_N[known_N], match_NS[known_N].int().argmax(dim=1)
        self.scores[known, place] += amounts_N[known_N].float()
        self.seen[known, place] = now
        inherits = self.inherits and not whole
        new = Amounts(ids_N[~known_N], amounts_N[~known_N])
        self._insert(new, buckets_N[~known_N], now, inherits)

    def _insert(self, new: Amounts, buckets_N: Tensor, now: int, inherits: bool) -> None:
        ids_N, amounts_N = new
        if not ids_N.numel():
            return
        order_N = ids_N.argsort()
        order_N = order_N[amounts_N[order_N].argsort(descending=True, stable=True)]
        order_N = order_N[buckets_N[order_N].argsort(stable=True)]
        ids_N, amounts_N, buckets_N = ids_N[order_N], amounts_N[order_N], buckets_N[order_N]
        turns_N = torch.arange(ids_N.numel(), device=ids_N.device)
        turns_N = turns_N - torch.searchsorted(buckets_N, buckets_N)
        fits_N = turns_N < BUCKET_PLACES
        ids_N, amounts_N, buckets_N = ids_N[fits_N], amounts_N[fits_N].float(), buckets_N[fits_N]
        order_NS = ascending(self.scores[buckets_N], self.seen[buckets_N], self.ids[buckets_N])
        places_N = order_NS.gather(1, turns_N[fits_N][:, None])[:, 0]
        if inherits:
            amounts_N = amounts_N + self.scores[buckets_N, places_N]
        self.ids[buckets_N, places_N] = ids_N
        self.scores[buckets_N, places_N] = amounts_N
        self.seen[buckets_N, places_N] = now

    def candidates(self, at_least: float) -> Candidates:
        """Ids whose score is so high."""
        chosen_WS = (self.ids != 0) & (self.scores >= at_least)
        ids_N, seen_N = self.ids[chosen_WS], self.seen[chosen_WS].to(torch.int64)
        return Candidates(ids_N, self.scores[chosen_WS].double(), seen_N)

    @torch.no_grad()
    def remove(self, ids_N: Tensor) -> None:
        """Forget some ids, all of them in it."""
        buckets_N = self.buckets(ids_N)
        places_N = (self.ids[buckets_N] == ids_N[:, None]).int().argmax(dim=1)
        for buffer in (self.ids, self.scores, self.seen):
            buffer[buckets_N, places_N] = 0


def owned_rows(ids: Tensor, owners: OwnerMap, num_shared: int) -> Tensor:
    """Rows in a table of the missing id's row, then the shared ones, then those with an owner."""
    slots = owners(ids)
    return torch.where(slots >= 0, slots + 1 + num_shared, hashed_rows(ids, num_shared + 1))


class ServedOwners(AbstractScheme):
    """The table with the map from ids to rows: served, and trained no more."""

    raw_ids = True

    def __init__(
        self, space: Space, owners: OwnerMap, num_shared: int, lookups: tuple[TableSpec, ...]
    ) -> None:
        super().__init__(space)
        self.owners = owners
        self.num_shared = num_shared
        self.lookups = lookups

    def rows(self, ids: Tensor) -> tuple[Tensor, ...]:
        """See `AbstractScheme`."""
        return (owned_rows(ids, self.owners, self.num_shared),)

    def combine(self, ids: Tensor, vectors: SequenceOf[Tensor]) -> Tensor:
        """See `AbstractScheme`."""
        return vectors[0]
