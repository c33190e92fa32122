"""The distinct items, or users, of a version: one row each, kept beside the version.

A row has the encoded fields of the entity's side as they were when the entity was last seen in the
training split. Beside the rows stands how much the fields tell of each other. Both follow from the
version alone and appear together or not at all:

```
<version's build>/entities/<side>-<entity>/rows.arrow
<version's build>/entities/<side>-<entity>/information.json
```
"""

import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa

from feature_store.config import Config
from feature_store.features import FeatureSet
from feature_store.kinds import kind_of
from feature_store.store import Version

EntitySide = Literal["item", "user"]

FORMAT = 1
"""Raised with every change of what the rows or the information mean."""

_FOLDER, _ROWS, _INFORMATION = "entities", "rows.arrow", "information.json"


class EntitiesNotFound(LookupError):
    """A version's entities have not been gathered."""


class Information(Config):
    """How much the fields of one side tell of each other, over the entities; in nats."""

    format: int = FORMAT
    fields: tuple[str, ...]
    """Declared features of the side, in their order."""
    num_entities: int
    entropy: tuple[float, ...]
    """H of each field."""
    mutual: tuple[tuple[float, ...], ...]
    """I of each pair of fields; the diagonal is the entropy."""
    expected: tuple[tuple[float, ...], ...]
    """What `mutual` would be by chance: of fields with the same counts, paired at random."""
    adjusted: tuple[tuple[float, ...], ...]
    """(I - E[I]) / (mean of the two entropies - E[I]): 0 by chance, 1 where each field decides the
    other (Vinh et al., JMLR 2010); 0 for a field that tells every entity apart."""


@dataclass(frozen=True)
class EntityTable:
    """Distinct entities of a version."""

    folder: Path
    side: EntitySide
    entity: str
    """The field with the entity's id."""

    @cached_property
    def information(self) -> Information:
        """How much the fields tell of each other."""
        return Information.model_validate_json((self.folder / _INFORMATION).read_text("utf-8"))

    def rows(self) -> pa.Table:
        """The entities' encoded columns, in the order of their ids.

        The file is mapped into memory, so the workers of a machine share one copy.
        """
        with pa.memory_map(str(self.folder / _ROWS)) as file:
            return pa.ipc.open_file(file).read_all()


def fields_of(features: FeatureSet, side: EntitySide) -> tuple[str, ...]:
    """Names of the features that are declared for a side."""
    return tuple(feature.name for feature in features.inputs if feature.side == side)


def dense_columns(features: FeatureSet, side: EntitySide) -> dict[str, tuple[str, ...]]:
    """The numbers of a side: by feature, its columns of floats in an encoded row."""
    dense = {f.name: kind_of(f).dense(f) for f in features.inputs if f.side == side}
    return {name: columns for name, columns in dense.items() if columns}


def find(version: Version, side: EntitySide, entity: str) -> EntityTable | None:
    """The entities that were gathered from a version; None if they have not been."""
    table = EntityTable(_folder(version, side, entity), side, entity)
    if not table.folder.exists() or table.information.format != FORMAT:
        return None
    return table


def open_entities(version: Version, side: EntitySide, entity: str) -> EntityTable:
    """The entities that were gathered from a version.

    Raises:
        EntitiesNotFound: They have not been.
    """
    table = find(version, side, entity)
    if table is None:
        raise EntitiesNotFound(
            f"version {version.number} of {version.name!r} has no table of {entity!r} yet; build"
            " the experiment (recsys build) with the objective that needs it"
        )
    return table


def save(folder: Path, rows: pl.DataFrame, information: Information) -> None:
    """Write entities into a new folder."""
    folder.mkdir()
    table = rows.rechunk().to_arrow()
    # One chunk, so that a reader finds every column in one piece of the mapped file.
    with pa.ipc.new_file(folder / _ROWS, table.schema) as file:
        file.write_table(table, max_chunksize=max(1, table.num_rows))
    (folder / _INFORMATION).write_text(information.model_dump_json(indent=1) + "\n", "utf-8")


def write(
    version: Version, side: EntitySide, entity: str, rows: pl.DataFrame, information: Information
) -> EntityTable:
    """Keep entities beside their version; where another process was first, its are taken."""
    target = _folder(version, side, entity)
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as work:
        made = Path(work) / "made"
        save(made, rows, information)
        if target.exists() and find(version, side, entity) is None:
            shutil.rmtree(target)
        try:
            made.rename(target)
        except OSError:
            if find(version, side, entity) is None:
                raise
    return open_entities(version, side, entity)


def _folder(version: Version, side: EntitySide, entity: str) -> Path:
    return version.folder / _FOLDER / f"{side}-{entity}"
