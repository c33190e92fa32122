"""Which scheme each space of a checkpoint was trained under."""

from recsys.checkpoint import Checkpoint, CheckpointMismatch
from recsys.embeddings.collection import Embeddings
from recsys.embeddings.config import kind_of

STATE_KEY = "schemes"


def scheme_names(embeddings: Embeddings) -> dict[str, str]:
    """The method of every space; goes into every checkpoint's state."""
    return {sized.space.name: kind_of(sized.config) for sized in embeddings.spaces}


def require_schemes(
    checkpoint: Checkpoint, embeddings: Embeddings, *, shared_only: bool = False
) -> None:
    """Check that a checkpoint was written under the same schemes.

    Args:
        checkpoint: to load.
        embeddings: to load it into.
        shared_only: features that only one of them has are no matter.

    Raises:
        CheckpointMismatch: names both schemes of every space that differs.
    """
    written, here = checkpoint.state.get(STATE_KEY), scheme_names(embeddings)
    if written is None:
        return
    different = [
        f"{space!r} was trained as {written.get(space, 'nothing')!r} and is loaded as"
        f" {here.get(space, 'nothing')!r}"
        for space in dict.fromkeys([*written, *here])
        if written.get(space) != here.get(space)
        and not (shared_only and (space not in written or space not in here))
    ]
    if not different:
        return
    raise CheckpointMismatch(
        f"{checkpoint.folder} holds other embedding schemes: {'; '.join(different)}. Load it with"
        " the experiment beside it (experiment.yaml), or train anew"
    )
