"""Side tables as of a time: the latest row at or before each row's time, and never a later one."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from feature_store.features import Categorical, FeatureSet, Label, Numeric
from pipelines.leakage import Leak
from pipelines.rejection import TooManyRejected
from pipelines.sources import DataConfig, Source, preview, read

COLUMNS = {"item": "string", "time": "int", "clicked": "int"}
PRICES = {"item": "string", "since": "int", "price": "float"}
FEATURES = FeatureSet(
    inputs=(Categorical(name="item"), Numeric(name="price")),
    labels=(Label(name="clicked"),),
    timestamp="time",
)


def config(folder: Path, log: list[tuple], prices: list[tuple], **join: Any) -> DataConfig:
    for name, rows, columns in (("log", log, COLUMNS), ("prices", prices, PRICES)):
        types = {
            n: {"string": pl.String, "int": pl.Int64}.get(t, pl.Float64) for n, t in columns.items()
        }
        pl.DataFrame(rows, types, orient="row").write_csv(folder / f"{name}.csv")
    side = {"path": str(folder / "prices.csv"), "columns": PRICES, "on": "item", "as_of": "since"}
    values = {"path": str(folder / "log.csv"), "columns": COLUMNS, "joins": [{**side, **join}]}
    return DataConfig.model_validate(values)


def joined(data: DataConfig, folder: Path, **changes: Any) -> Source:
    staged = folder / "staged"
    staged.mkdir()
    return read(data.model_copy(update=changes), FEATURES, staged)


items = st.sampled_from(["a", "b", "c"])


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    log=st.lists(st.tuples(items, st.integers(0, 9), st.just(0)), min_size=1, max_size=8),
    prices=st.dictionaries(st.tuples(items, st.integers(0, 9)), st.integers(1, 9), min_size=1),
)
def test_a_row_gets_what_was_valid_at_its_time(
    tmp_path_factory: pytest.TempPathFactory, log, prices
) -> None:
    folder = tmp_path_factory.mktemp("validity")
    expected = []
    for item, now, _ in log:
        valid = [
            (since, price) for (i, since), price in prices.items() if i == item and since <= now
        ]
        expected.append(max(valid)[1] if valid else None)
    data = config(folder, log, [(i, since, p) for (i, since), p in prices.items()])
    if not any(expected):
        with pytest.raises(ValueError, match=r"prices\.csv"):
            joined(data, folder)
        return
    found = joined(data, folder)
    assert found.frame.collect()["price"].to_list() == expected
    assert found.unmatched == {str(folder / "prices.csv"): expected.count(None)}


def test_the_time_of_validity_may_be_of_another_unit_and_is_a_column_too(tmp_path: Path) -> None:
    prices = [("a", 10_000, 1.0), ("a", 20_000, 2.0)]
    data = config(tmp_path, [("a", 19, 0), ("a", 20, 1)], prices, unit="ms")
    features = FEATURES.model_copy(update={"inputs": (*FEATURES.inputs, Numeric(name="since"))})
    (tmp_path / "staged").mkdir()
    found = read(data, features, tmp_path / "staged").frame.select("price", "since").collect()
    assert found.rows() == [(1.0, 10_000), (2.0, 20_000)]


def test_a_table_from_the_future_is_refused_but_not_in_a_preview(tmp_path: Path) -> None:
    data = config(tmp_path, [("a", 5, 0), ("a", 6, 1)], [("a", 7, 1.0)])
    assert preview(data, FEATURES).rows["price"].to_list() == [None, None]
    with pytest.raises(
        Leak, match=r"prices.csv: all of its times \('since'\) lie after the newest"
    ):
        joined(data, tmp_path)


def test_a_table_of_other_keys_is_an_error(tmp_path: Path) -> None:
    data = config(tmp_path, [("a", 5, 0)], [("z", 1, 1.0)])
    with pytest.raises(ValueError, match=r"no row has a partner under the key 'item'.*\['z'\]"):
        joined(data, tmp_path)


def test_two_rows_of_a_key_from_the_same_time_are_an_error(tmp_path: Path) -> None:
    data = config(tmp_path, [("a", 5, 0)], [("a", 1, 1.0), ("b", 1, 1.0), ("a", 1, 2.0)])
    with pytest.raises(ValueError, match=r"'a' at 1 names several; 1 such pairs"):
        joined(data, tmp_path)


def test_rows_without_a_time_or_a_key_are_kept_aside(tmp_path: Path) -> None:
    prices = [("a", None, 9.0), ("a", 1, 1.0), (None, 2, 9.0), ("b", 1, 9.0)]
    data = config(tmp_path, [("a", 5, 0), (None, 5, 1)], prices)
    found = joined(data, tmp_path, max_rejected=0.5)
    assert found.frame.collect()["price"].to_list() == [1.0, None]
    assert [(r.line, r.reason) for r in found.side_rejections] == [
        (2, "as_of: expected a time, found nothing in 'since'"),
        (4, "the key 'item' is missing"),
    ]
    (tmp_path / "staged").rename(tmp_path / "before")
    with pytest.raises(TooManyRejected, match="2 of 4 rows"):
        joined(data, tmp_path)


def test_what_is_kept_for_later_is_valid_at_the_newest_row(tmp_path: Path) -> None:
    prices = [("a", 3, 3.0), ("a", 1, 1.0), ("a", 9, 9.0), ("b", 7, 2.0)]
    found = joined(config(tmp_path, [("a", 5, 0), ("a", 4, 1)], prices), tmp_path)
    [(key, latest)] = found.sides
    assert (key, latest.collect().to_dicts()) == (
        "item",
        [{"item": "a", "since": 3, "price": 3.0}],
    )


def test_the_time_of_validity_must_be_declared_and_rows_must_have_theirs(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"as_of: 'sinse' is not among.*did you mean 'since'"):
        config(tmp_path, [], [], as_of="sinse")
    data = config(tmp_path, [("a", 5, 0)], [("a", 1, 1.0)])
    (tmp_path / "staged").mkdir()
    without = FEATURES.model_copy(update={"timestamp": None})
    with pytest.raises(ValueError, match=r"as of 'since' needs features\.timestamp"):
        read(data, without, tmp_path / "staged")
