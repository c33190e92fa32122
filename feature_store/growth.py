"""Features that grow from an older version: new values get new ids, and no old id moves.

A vocabulary keeps the older version's values at their ids, also those that the new rows no longer
have. New values follow by falling frequency in the new training split; `min_count` is asked of them
alone. `max_size` bounds the whole: where the old values fill it, none is added, and none ever goes.

Buckets, moments and other learnt tables stay the old ones where the feature is declared as it was,
so that its numbers mean what they meant; `features.refit_numbers` fits them to the new rows. Target
encodings are always fitted to the new rows, from whose folds training rows get their values.
"""

from collections.abc import Mapping
from typing import TypeVar

import polars as pl

from feature_store.compatibility import declared_alike
from feature_store.encoding import FittedFeatures
from feature_store.features import FeatureSet, TargetEncoding
from feature_store.kinds import Learned

T = TypeVar("T")


def grown(
    vocabularies: Mapping[str, pl.Series],
    base: FittedFeatures,
    feature_set: FeatureSet,
) -> dict[str, pl.Series]:
    """Vocabularies of new rows, each after the values of the older version's.

    Args:
        vocabularies: By feature, as fitted to the new rows alone.
        base: The older version's features.
        feature_set: The new ones, as declared.
    """
    sizes = {
        feature["name"]: feature.get("max_size") for feature in feature_set.model_dump()["inputs"]
    }
    result = {}
    for name, values in vocabularies.items():
        old = base.vocabularies.get(name)
        if old is None:
            result[name] = values
            continue
        new = values.filter(~values.is_in(old.implode()))
        if (most := sizes.get(name)) is not None:
            new = new.head(max(0, most - len(old)))
        result[name] = pl.concat([old, new]).alias(name)
    return result


def kept(learned: Learned, base: FittedFeatures, feature_set: FeatureSet) -> Learned:
    """What was learnt, with the older version's where a feature is declared as it was there.

    Args:
        learned: Fitted to the new rows.
        base: The older version's features.
        feature_set: The new ones, as declared.
    """
    if feature_set.refit_numbers:
        return learned
    same = declared_alike(base.feature_set, feature_set)
    rates = {f.name for f in feature_set.inputs if isinstance(f, TargetEncoding)}
    return Learned(
        learned.vocabularies,
        _of_base(learned.boundaries, base.boundaries, same),
        _of_base(learned.moments, base.moments, same),
        _of_base(learned.tables, base.tables, same - rates),
    )


def _of_base(mine: Mapping[str, T], theirs: Mapping[str, T], same: set[str]) -> dict[str, T]:
    return {n: theirs[n] if n in same and n in theirs else value for n, value in mine.items()}
