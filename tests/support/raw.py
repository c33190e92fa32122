"""Raw tables of three columns, read as a build reads them."""

from pathlib import Path
from typing import Any

import polars as pl

from feature_store.features import Categorical, FeatureSet, Label, Numeric
from pipelines.sources import DataConfig, Source, read

FEATURES = FeatureSet(
    inputs=(Categorical(name="user"), Numeric(name="price")), labels=(Label(name="clicked"),)
)
COLUMNS = {"user": "string", "price": "float", "clicked": "int"}
HEADER = "user,price,clicked\n"
ROWS = pl.DataFrame({"user": ["ann", "bob"], "price": [1.5, 2.5], "clicked": [1, 0]})


def read_raw(
    folder: Path, path: object, features: FeatureSet = FEATURES, **config: Any
) -> tuple[list[tuple[Any, ...]], Source]:
    """The rows of a table, with their `__row`, and all else that is known of it.

    Args:
        folder: For staged files.
        path: As in the configuration.
        features: What is made of the rows.
        config: Of the data.
    """
    given = [str(entry) for entry in path] if isinstance(path, list) else str(path)
    data = DataConfig.model_validate({"columns": COLUMNS, "path": given, **config})
    staged = folder / "staged"
    staged.mkdir(exist_ok=True)
    source = read(data, features, staged)
    return source.frame.collect().rows(), source
