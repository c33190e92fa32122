"""Numbers that may be missing: the indicator that says so."""

from typing import Protocol

import polars as pl


class Indicated(Protocol):
    """A feature that may have an indicator."""

    @property
    def name(self) -> str:
        """Of the feature."""

    @property
    def indicator(self) -> bool:
        """Whether the feature has one."""


def indicator_names(feature: Indicated) -> tuple[str, ...]:
    """Name of the column that says where a feature was missing; none where not declared."""
    return (f"{feature.name}__missing",) if feature.indicator else ()


def indicators(feature: Indicated, present: pl.Expr) -> list[pl.Expr]:
    """1.0 where a feature was missing, else 0.0; none where not declared."""
    missing = pl.when(present).then(pl.lit(0.0, pl.Float32)).otherwise(pl.lit(1.0, pl.Float32))
    return [missing.alias(name) for name in indicator_names(feature)]
