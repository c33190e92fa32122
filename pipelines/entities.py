"""A version's distinct items, or users, with how much their fields tell of each other.

Gathered once, from the encoded training split, when an experiment's objective asks for them: which
field names the entity is the experiment's to say, not the version's. Rows are streamed; memory
holds the distinct entities.
"""

from itertools import combinations

import polars as pl

from feature_store import entities
from feature_store.entities import EntitySide, EntityTable, Information
from feature_store.features import (
    MISSING_ID,
    ROW_COLUMN,
    TIMESTAMP_COLUMN,
    UNSEEN_ID,
    FeatureSet,
)
from feature_store.kinds import columns_of
from feature_store.store import Version
from pipelines.information import (
    adjusted_information,
    entropy,
    expected_information,
    mutual_information,
    symbols,
)
from pipelines.sources import OnProgress


def gather(
    version: Version,
    side: EntitySide,
    entity: str,
    on_progress: OnProgress = lambda *_: None,
) -> EntityTable:
    """The distinct entities of a version's training split, or those that are already there.

    Args:
        version: Of a feature table.
        side: Whose fields are kept.
        entity: The field with the entity's id.
        on_progress: Told of the stages.

    Raises:
        ValueError: The training split has no such entity: all ids are missing or rare.
    """
    found = entities.find(version, side, entity)
    if found is not None:
        return found
    on_progress(f"gathering distinct values of {entity}", 0, None)
    rows = last_seen(version, side, entity)
    if rows.is_empty():
        raise ValueError(
            f"no training row has a known {entity!r}, so there are no {side}s to learn from; check"
            " its source column and min_count"
        )
    on_progress(f"measuring what fields of {entity} tell of each other", 0, None)
    fields = entities.fields_of(version.fitted.feature_set, side)
    return entities.write(version, side, entity, rows, information(rows.select(fields)))


def last_seen(version: Version, side: EntitySide, entity: str) -> pl.DataFrame:
    """Each entity's fields in the latest of its training rows, in the order of the ids.

    The latest is the one of the largest timestamp, of several the last in the source. A missing id,
    and the one id of all values out of vocabulary, are no entity.
    """
    columns = encoded_columns(version.fitted.feature_set, side)
    numbered = version.scan("train").with_row_index(ROW_COLUMN)
    pooled = [MISSING_ID]
    if version.layout.id_field(entity).cardinality is not None:
        pooled.append(UNSEEN_ID)
    known = numbered.filter(~pl.col(entity).is_in(pooled))
    latest = known.group_by(entity).agg(pl.col(TIMESTAMP_COLUMN).max())
    candidates = known.select(entity, TIMESTAMP_COLUMN, ROW_COLUMN).join(
        latest, on=[entity, TIMESTAMP_COLUMN], how="semi"
    )
    chosen = candidates.group_by(entity).agg(pl.col(ROW_COLUMN).max())
    rows = numbered.select(ROW_COLUMN, *columns).join(chosen, on=ROW_COLUMN, how="semi")
    return rows.collect(engine="streaming").sort(entity).drop(ROW_COLUMN)


def encoded_columns(features: FeatureSet, side: EntitySide) -> tuple[str, ...]:
    """All encoded columns of a side's features."""
    mine = (feature for feature in features.inputs if feature.side == side)
    return tuple(column for feature in mine for column in columns_of(feature, features))


def information(rows: pl.DataFrame) -> Information:
    """How much the columns of a frame tell of each other, pair by pair."""
    columns = list(symbols(rows))
    size = len(columns)
    entropies = [entropy(column) for column in columns]
    mutual = [[0.0] * size for _ in range(size)]
    expected = [[0.0] * size for _ in range(size)]
    adjusted = [[0.0] * size for _ in range(size)]
    for place, own in enumerate(entropies):
        mutual[place][place], adjusted[place][place] = own, 1.0
    for a, b in combinations(range(size), 2):
        plain = mutual_information(columns[a], columns[b])
        chance = expected_information(columns[a], columns[b])
        above = adjusted_information(plain, chance, (entropies[a] + entropies[b]) / 2)
        for x, y in ((a, b), (b, a)):
            mutual[x][y], expected[x][y], adjusted[x][y] = plain, chance, above
    return Information(
        fields=tuple(rows.columns),
        num_entities=len(rows),
        entropy=tuple(entropies),
        mutual=tuple(map(tuple, mutual)),
        expected=tuple(map(tuple, expected)),
        adjusted=tuple(map(tuple, adjusted)),
    )
