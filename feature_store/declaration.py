"""What every declared feature is, whatever its kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from feature_store.config import Config

if TYPE_CHECKING:
    from feature_store.inputs import Feature

Side = Literal["user", "item", "context"]
Encoding = Literal["vocabulary", "hash"]
Part = Literal["minute", "hour", "weekday", "day", "month", "year"]
TimeUnit = Literal["s", "ms", "us", "ns"]

MAX_DISTINCT = 50_000_000
"""Distinct values that a vocabulary is counted from, unless more are allowed."""


@dataclass(frozen=True)
class Neighbours:
    """What else a feature set declares, for a feature that refers to it."""

    features: Mapping[str, "Feature"]
    """By name."""
    labels: tuple[str, ...]
    timestamp: str | None
    """Raw column with the event time."""
    label_columns: Mapping[str, str] = field(default_factory=dict)
    """By raw column that a label reads: the label's name."""

    def of_kind(self, *kinds: type["Input"]) -> list[str]:
        """Names of the features of some kinds."""
        return [name for name, feature in self.features.items() if isinstance(feature, kinds)]


class Input(Config):
    """The base of every kind."""

    def check(self, neighbours: Neighbours) -> None:
        """Check what the feature says of others; ValueError tells what does not fit."""
