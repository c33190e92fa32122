"""How many workers train, and what each one has: a value that needs no Ray to be read."""

from pydantic import NonNegativeInt, PositiveInt

from feature_store.config import Config


class ScalingConfig(Config):
    """How many workers, and what each one has; Ray's own terms."""

    num_workers: PositiveInt = 1
    """One worker without an address runs in this process; more run under Ray."""
    use_gpu: bool = False
    """One GPU a worker and nccl; else CPU and gloo."""
    resources_per_worker: dict[str, float] | None = None
    """What Ray reserves for each worker; one CPU (and one GPU) if absent."""
    max_failures: NonNegativeInt = 0
    """How often a lost worker restarts the group, from the last checkpoint."""
    address: str | None = None
    """A running Ray cluster ("auto" finds it from inside); absent: a local Ray of this machine."""
