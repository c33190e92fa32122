"""A training batch as what a model in serving form reads, by a loop over rows."""

import torch
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from recsys.batch import Batch
from recsys.embeddings.serving import PaddedIds, ServedBatch


def padded_ids(ids: KeyedJaggedTensor, extra: int = 0) -> dict[str, PaddedIds]:
    """Rectangles of ids, `extra` columns wider than the longest list (single ids: 1 wide)."""
    found = {}
    for name in ids.keys():  # noqa: SIM118 (no mapping)
        lists = ids[name].to_dense()
        lengths_B = torch.tensor([len(part) for part in lists])
        single = bool((lengths_B == 1).all())
        ids_BL = torch.zeros(len(lists), 1 if single else int(lengths_B.max()) + extra, dtype=int)
        for row, part in enumerate(lists):
            ids_BL[row, : len(part)] = part
        found[name] = PaddedIds(ids_BL, lengths_B, _padded_weights(ids[name], ids_BL))
    return found


def some_rows(padded: PaddedIds, rows: slice) -> PaddedIds:
    """Those rows alone."""
    return PaddedIds(*(None if part is None else part[rows] for part in padded))


def _padded_weights(ids: JaggedTensor, ids_BL: torch.Tensor) -> torch.Tensor | None:
    if ids.weights_or_none() is None:
        return None
    weights_BL = torch.zeros(ids_BL.shape)
    for row, part in enumerate(ids.to_dense_weights()):
        weights_BL[row, : len(part)] = part
    return weights_BL


def served(batch: Batch, extra: int = 0) -> ServedBatch:
    """The batch in serving form."""
    return ServedBatch(padded_ids(batch.ids, extra), batch.dense_BN)
