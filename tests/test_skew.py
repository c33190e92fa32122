"""No skew: whatever a raw row holds, it is encoded in a request as it was in the build.

Random features of every kind over a log with everything that users' logs have: one row alone, a
file that is scored and a request in JSON must all give what the build wrote.
"""

import json
import math
from datetime import date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from feature_store.columns import column_type, polars_type
from feature_store.encoding import FittedFeatures
from feature_store.features import FeatureSet
from feature_store.kinds import KINDS
from feature_store.store import Store
from pipelines.build import build
from pipelines.sources import DataConfig
from recsys.export import requests
from recsys.export.signature import Signature

LONGEST = 6

texts = st.sampled_from(
    [
        "a", "A", "b", " a", "a b", "3", "3.0", "true", "nan", "None", "null",
        "\u00e9", "e\u0301", "\u1e9e", "stra\u00dfe", "\u0130", "\ufb01",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e8\U0001f1ff",
        "\u05e9\u05dc\u05d5\u05dd \u200f1", "\u0645\u0631\u062d\u0628\u0627",
        "\x00", "a\x00b", "\x1f", "\x1e", "\\", "|", "\t", "\n", "\ufeff", "\ufffd", "\U0010ffff",
    ]
) | st.text(max_size=8)  # fmt: skip
maybe_texts = st.none() | st.just("") | texts
ints = st.integers(-9, 9) | st.sampled_from([2**31, 2**53 + 1, 2**63 - 1, -(2**63)])
floats = st.sampled_from(
    [0.0, -0.0, 1.0, 3.0, 0.1, -2.5, 1e-320, 1e308, -1e308, 2.0**63, math.nan, math.inf, -math.inf]
) | st.floats(width=64)  # fmt: skip
days = (
    st.sampled_from(
        [date(1, 1, 1), date(1969, 12, 31), date(1970, 1, 1), date(2024, 2, 29), date(9999, 12, 31)]
    )
    | st.dates()
)
moments = st.sampled_from(
    [
        datetime(1, 1, 1),
        datetime(1969, 12, 31, 23, 59, 59, 999_999),
        datetime(2016, 12, 31, 23, 59, 59, 999_999),  # a leap second followed
        datetime(2017, 1, 1),
        datetime(2024, 3, 10, 2, 30),  # no such time in New York
        datetime(2024, 11, 3, 1, 30),  # and two such
        datetime(9999, 12, 31, 23, 59, 59),
    ]
) | st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1))  # fmt: skip
weights = st.floats(0, 1e6, width=32)
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


def lists(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | st.lists(values, max_size=LONGEST)


TYPES = {
    "user": "string", "item": "int", "city": "string", "price": "float", "count": "int",
    "flag": "bool", "day": "date", "when": "datetime", "seconds": "int", "fraction": "float",
    "tags": "list<string>", "tag_weights": "list<float>", "sizes": "list<float>",
    "seen": "list<int>", "seen_weights": "list<float>", "seen__time": "list<datetime>",
    "joined": "list<date>", "title": "string", "vector": "list<float>", "rating": "float",
    "label": "int",
}  # fmt: skip


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A raw row."""
    tags = draw(lists(maybe_texts))
    seen = draw(lists(st.none() | st.integers(-2, 6)))
    return {
        "user": draw(maybe_texts),
        "item": draw(st.none() | st.integers(-2, 6) | ints),
        "city": draw(maybe_texts),
        "price": draw(st.none() | floats),
        "count": draw(st.none() | ints),
        "flag": draw(st.none() | st.booleans()),
        "day": draw(st.none() | days),
        "when": draw(moments),
        "seconds": draw(st.none() | ints | st.integers(-(2**40), 2**40)),
        "fraction": draw(st.none() | floats),
        "tags": tags,
        "tag_weights": None if tags is None else draw(_of_length(weights, len(tags))),
        "sizes": draw(lists(st.none() | floats)),
        "seen": seen,
        "seen_weights": None if seen is None else draw(_of_length(weights, len(seen))),
        "seen__time": None if seen is None else draw(_of_length(moments, len(seen))),
        "joined": draw(lists(st.none() | days)),
        "title": draw(maybe_texts | st.lists(texts, max_size=4).map(" ".join)),
        "vector": draw(st.none() | _of_length(st.none() | floats, 3) | _of_length(numbers, 3)),
        "rating": draw(weights),
        "label": draw(st.integers(0, 1)),
    }


def _of_length(values: st.SearchStrategy, length: int) -> st.SearchStrategy:
    return st.lists(values, min_size=length, max_size=length)


@st.composite
def feature_sets(draw: st.DrawFn) -> FeatureSet:
    """Features of every kind, with settings of all sorts."""

    def some(**settings: list[Any]) -> dict[str, Any]:
        return {name: draw(st.sampled_from(values)) for name, values in settings.items()}

    vocabulary = {"encoding": ["vocabulary", "hash"], "min_count": [1, 2], "max_size": [None, 2]}
    yes, units = [False, True], ["s", "ms", "us", "ns"]
    plain = some(source=["price", "count", "fraction", "flag", "per_piece", "epoch"])
    inputs = [
        {"kind": "categorical", "name": "item", **some(**vocabulary)},
        {"kind": "categorical", "name": "user", **some(**vocabulary)},
        {
            "kind": "categorical",
            "name": "any",
            **some(**vocabulary, source=[
                "city", "price", "count", "flag", "day", "when", "fraction", "place", "half",
            ]),
        },
        {"kind": "bag", "name": "tags", **some(**vocabulary, max_length=[None, 1, 3]),
         **some(weights=[None, "tag_weights"])},
        {"kind": "bag", "name": "bag", **some(**vocabulary, max_length=[None, 2]),
         **some(source=["sizes", "joined", "words", "seen"])},
        {"kind": "bag", "name": "friends", "of": "item", "source": "seen"},
        {"kind": "sequence", "name": "seen", "of": "item", **some(max_length=[1, 3, 50]),
         **some(weights=[None, "seen_weights"], gaps=[False, True, 4])},
        {"kind": "sequence", "name": "past", "of": "item", "history": {"by": "user"},
         **some(max_length=[1, 2, 5], gaps=[False, True, 2], weights=[None, "rating"])},
        {"kind": "numeric", "name": "number", **plain, **some(
            log1p=yes, standardize=yes, default=[0.0, -1.5], indicator=yes)},
        {"kind": "numeric", "name": "bucket", **plain, **some(log1p=yes, num_buckets=[2, 5])},
        {"kind": "date_part", "name": "part", **some(
            source=["when", "day", "seconds", "fraction", "later"],
            part=["minute", "hour", "weekday", "day", "month", "year"], unit=units)},
        {"kind": "vector", "name": "vector", "dim": 3, **some(default=[0.0, 2.0], indicator=yes)},
        {"kind": "frequency", "name": "often", **some(
            source=["city", "item", "price", "when", "place"], scale=["log1p", "share"],
            together_with=[(), ("user",), ("flag", "day")])},
        {"kind": "target_encoding", "name": "rate", **some(
            source=["city", "item", "price", "when", "place"], smoothing=[0.0, 20.0],
            together_with=[(), ("user",), ("flag", "day")], folds=[2, 5])},
        {"kind": "elapsed", "name": "age", **some(
            source=["when", "day", "seconds", "fraction", "later"], until=[None, "day", "when"],
            unit=units, log1p=yes, standardize=yes, future=["missing", "negative"],
            default=[0.0, -3.0], indicator=yes)},
        {"kind": "cross", "name": "cross", **some(
            of=[("item", "user"), ("any", "bucket"), ("tags", "item"), ("part", "bag", "user")]),
         **some(**vocabulary)},
        {"kind": "text", "name": "words", **some(
            source=["title", "city", "place"], unit=["word", "character"], lowercase=yes,
            ngrams=[(1,), (1, 2), (3,)], num_buckets=[None, 50], max_length=[None, 3])},
    ]  # fmt: skip
    return FeatureSet.model_validate(
        {
            "inputs": inputs,
            "group": "user",
            "timestamp": "when",
            "derived": {
                "per_piece": "price / NULLIF(count, 0)",
                "place": "LOWER(city) || '/' || COALESCE(title, '')",
                "words": "STRING_TO_ARRAY(title, ' ')",
                "half": "ROUND(fraction / 2, 1)",
                "later": "when + INTERVAL '1 month'",
                "epoch": "EXTRACT(epoch FROM when) * CASE WHEN flag THEN 1 ELSE -1 END",
            },
        }
    )


FILE_TYPES = st.fixed_dictionaries(
    {
        "item": st.sampled_from([pl.Int64, pl.Float64, pl.String]),
        "flag": st.sampled_from([pl.Boolean, pl.Int8]),
        "city": st.sampled_from([pl.String, pl.Categorical]),
        "rating": st.sampled_from([pl.Float64, pl.Float32]),
        "price": st.sampled_from([pl.Float64, pl.Float32]),
        "count": st.sampled_from([pl.Int64, pl.UInt64, pl.Int32]),
        "sizes": st.sampled_from([pl.List(pl.Float64), pl.List(pl.Float32)]),
        "tags": st.sampled_from([pl.List(pl.String), pl.List(pl.Categorical)]),
        "when": st.sampled_from(
            [
                pl.Datetime("us"),
                pl.Datetime("us", "UTC"),
                pl.Datetime("us", "America/New_York"),
                pl.Datetime("us", "Asia/Kathmandu"),
                pl.Datetime("ms"),
                pl.Datetime("ns"),
            ]
        ),
        "vector": st.sampled_from([pl.List(pl.Float64), pl.Array(pl.Float64, 3)]),
    }
)


def as_in_a_file(frame: pl.DataFrame, types: dict[str, Any]) -> pl.DataFrame:
    """The same values in the types that a file happens to have."""
    exact = dict(types)
    if not frame["item"].is_between(-(2**53), 2**53).all():
        del exact["item"]  # no float could hold it
    least = 0 if exact["count"] == pl.UInt64 else -(2**31)
    if not frame["count"].is_between(least, 2**31 - 1).all():
        del exact["count"]
    inside = frame["when"].is_between(datetime(1700, 1, 1), datetime(2200, 1, 1)).all()
    if exact["when"] == pl.Datetime("ns") and not inside:
        del exact["when"]
    if exact.get("when") == pl.Datetime("ms"):
        # a file in milliseconds has none finer: the log itself is cut
        frame = frame.with_columns(pl.col("when").dt.truncate("1ms"))
    columns = []
    for name, dtype in exact.items():
        column = pl.col(name)
        if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
            column = column.dt.replace_time_zone("UTC").dt.convert_time_zone(dtype.time_zone)
        else:
            column = column.cast(dtype)
        columns.append(column)
    return frame.with_columns(columns)


def as_json(raw: pl.DataFrame, fitted: FittedFeatures) -> list[dict[str, Any]]:
    """Rows as a client sends them: through JSON, which knows neither NaN nor nulls in lists."""
    names = [column.name for column in fitted.columns]
    written = []
    for row in raw.iter_rows(named=True):
        sent = {name: row[name] for name in names}
        for values, others in (("tags", ["tag_weights"]), ("seen", ["seen_weights", "seen__time"])):
            if sent.get(values) is not None:
                there = [place for place, value in enumerate(sent[values]) if value is not None]
                for name in (values, *others):
                    if name in sent:
                        sent[name] = [sent[name][place] for place in there]
        written.append({name: jsonable(name, value) for name, value in sent.items()})
    return json.loads(json.dumps(written))


def jsonable(name: str, value: Any) -> Any:
    if isinstance(value, list):
        items = [jsonable(name, item) for item in value]
        if name == "vector" and None in items:
            return None
        return [item for item in items if item is not None]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat() if isinstance(value, date) else value


@settings(
    max_examples=10,
    # A failing example takes minutes to make smaller; it is told as it was found.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    features=feature_sets(),
    train=st.lists(rows(), min_size=3, max_size=8),
    test=st.lists(rows(), min_size=1, max_size=5),
    types=FILE_TYPES,
)
def test_a_row_is_encoded_in_a_request_as_it_was_in_the_build(features, train, test, types):
    assert {feature.kind for feature in features.inputs} == set(KINDS)
    train[0]["label"], train[1]["label"] = 0, 1
    schema = {name: polars_type(kind) for name, kind in TYPES.items()}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for split, log in (("train", train), ("test", test)):
            frame = as_in_a_file(pl.DataFrame(log, schema=schema, orient="row"), types)
            frame.write_parquet(folder / f"{split}.parquet")
        data = config(folder, "parquet", TYPES)
        version = build("clicks", data, features, Store(folder / "store")).version
        fitted, raw = version.fitted, version.raw_sample()
        built = version.scan("test").collect()
        file = pl.read_parquet(folder / "test.parquet")

    layout = fitted.layout
    encoded = fitted.encode(raw.lazy()).collect()
    names = encoded.columns
    assert set(names) >= {field.name for field in layout.ids} | set(layout.dense)
    assert encoded.equals(built.select(names))
    assert fitted.encode(raw.lazy()).collect(engine="streaming").equals(encoded)
    for row in range(raw.height):
        alone = fitted.encode(raw[row : row + 1].lazy()).collect()
        assert alone.equals(encoded[row : row + 1])

    signature = Signature.of(fitted, raw)
    sent = requests.table(as_json(raw, fitted), signature, strict=False)
    assert fitted.encode(sent.lazy()).collect().equals(encoded)

    gathered = raw.select([name for name in raw.columns if name not in file.columns])
    scored = pl.concat([file, gathered], how="horizontal")
    assert fitted.encode(signature.conform(scored).lazy()).collect().equals(encoded)


STORED: dict[str, pl.Series] = {
    "float32": pl.Series([0.1, 1e30, 3.0, math.nan], dtype=pl.Float32),
    "decimal": pl.Series(["0.10", "3.00", "-2.50", None]).str.to_decimal(scale=2),
    "int8": pl.Series([-128, 127, 0, None], dtype=pl.Int8),
    "uint32": pl.Series([2**32 - 1, 1, 0, None], dtype=pl.UInt32),
    "int64": pl.Series([2**63 - 1, -(2**63), 0, None], dtype=pl.Int64),
    "category": pl.Series(["a", "", "e\u0301", None], dtype=pl.Categorical),
    "enum": pl.Series(["a", "b", "a", None], dtype=pl.Enum(["b", "a"])),
    "ms": pl.Series([datetime(1, 1, 1), datetime(1969, 12, 31, 23, 59, 59, 999_000), None, None],
                    dtype=pl.Datetime("ms")),
    "ns": pl.Series([-1, 1, 1_000, None]).cast(pl.Datetime("ns")),
    "zoned": pl.Series(
        [datetime(2024, 3, 10, 7, 30), datetime(2024, 11, 3, 5, 30), datetime(2024, 11, 3, 6, 30),
         None], dtype=pl.Datetime("us", "America/New_York")),
    "float32s": pl.Series([[0.1, None], [], None, [math.nan, 1e30]], dtype=pl.List(pl.Float32)),
    "array": pl.Series([[1, 2], [3, None], None, [1, 1]], dtype=pl.Array(pl.Int16, 2)),
    "categories": pl.Series([["a", ""], [], None, ["b", None]], dtype=pl.List(pl.Categorical)),
    "nanoseconds": pl.Series([[-1, 1], [], None, [1_000]]).cast(pl.List(pl.Datetime("ns"))),
}  # fmt: skip
"""Columns as files of types other than ours have them."""


def test_every_type_of_a_file_is_scored_as_it_was_built(tmp_path):
    features = []
    for name, column in STORED.items():
        is_list = isinstance(column.dtype, pl.List | pl.Array)
        for encoding in ("vocabulary", "hash"):
            features.append(
                {"kind": "bag" if is_list else "categorical", "name": f"{name}_{encoding}",
                 "source": name, "encoding": encoding}
            )  # fmt: skip
    for name in ("ms", "ns", "zoned"):
        features.append(
            {"kind": "date_part", "name": f"{name}_minute", "source": name, "part": "minute"}
        )
        features.append(
            {"kind": "elapsed", "name": f"{name}_age", "source": name, "until": "zoned",
             "future": "negative"}
        )  # fmt: skip
    for name in ("float32", "decimal", "int8", "uint32", "int64"):
        features.append({"kind": "numeric", "name": f"{name}_number", "source": name})
        features.append({"kind": "frequency", "name": f"{name}_often", "source": name})
    frame = pl.DataFrame({**STORED, "label": [0, 1, 0, 1]})
    for split in ("train", "test"):
        frame.write_parquet(tmp_path / f"{split}.parquet")
    types = {name: column_type(name, dtype) for name, dtype in frame.schema.items()}
    data = config(tmp_path, "parquet", types)
    declared = FeatureSet.model_validate({"inputs": features})
    version = build("clicks", data, declared, Store(tmp_path / "store")).version
    encoded = version.fitted.encode(version.raw_sample().lazy()).collect()
    assert version.scan("test").select(encoded.columns).collect().equals(encoded)
    signature = Signature.of(version.fitted, version.raw_sample())
    scored = version.fitted.encode(signature.conform(frame).lazy()).collect()
    for name in encoded.columns:
        assert scored[name].to_list() == encoded[name].to_list(), name
    assert version.fitted.encode(frame.lazy()).collect().equals(scored)


def config(folder: Path, ending: str, types: dict[str, Any]) -> DataConfig:
    """One training and one test file; features that know the label are let through."""
    return DataConfig.model_validate(
        {
            "path": [str(folder / f"{split}.{ending}") for split in ("train", "test")],
            "columns": types,
            "split": {"by": "file", "files": {"train": "train.*", "test": "test.*"}},
            "leakage": {"max_auc": None},
        }
    )


ODD_TIMES = [
    "2016-12-31 23:59:59.999999",
    "2016-12-31 23:59:60",
    "2016-12-31T23:59:60Z",
    "2024-02-29",
    "2023-02-29",
    "2024-02-30 10:00:00",
    "0001-01-01 00:00:00",
    "0000-01-01 00:00:00",
    "9999-12-31T23:59:59",
    "10000-01-01 00:00:00",
    "1969-12-31T23:59:59.999999",
    "1969-12-31T23:59:59.000000001",
    "2024-01-01T00:00:00.123456789",
    "2024-01-01T00:00:00.1",
    "2024-03-10T02:30:00-05:00",
    "2024-03-31 02:30:00+01:00",
    "2024-01-01T12:00:00+05:45",
    "2024-01-01T12:00:00+0545",
    "2024-01-01T12:00:00-00:00",
    "2024-01-01T12:00Z",
    "2024-01-01T12:00",
    "2024-01-01 12",
    "2024-01-01T24:00:00",
    "20240101",
    "20240101T120000",
    "2024-W01-1",
    "2024-1-1",
    "2024-01-01t12:00:00z",
    "1e9",
    "-1",
    "now",
]


def test_a_text_for_a_time_is_read_alike_from_files_and_requests_or_by_neither(tmp_path):
    """One time that is read in one place only would be a value in the build and none online."""
    inputs = [
        {"kind": "date_part", "name": part, "source": "when", "part": part}
        for part in ("minute", "hour", "day", "month", "year")
    ]
    inputs.append({"kind": "categorical", "name": "text", "source": "when", "encoding": "hash"})
    features = FeatureSet.model_validate({"inputs": inputs})
    usual = ["2024-01-01 00:00:00", "2024-01-02 00:00:00"]
    for split, times in (("train", usual), ("test", [*usual, *ODD_TIMES])):
        labels = [place % 2 for place in range(len(times))]
        pl.DataFrame({"when": times, "label": labels}).write_csv(tmp_path / f"{split}.csv")
    data = config(tmp_path, "csv", {"when": "datetime", "label": "int"})
    data = data.model_copy(update={"max_rejected": 1.0})
    result = build("clicks", data, features, Store(tmp_path / "store"))
    rejected = set(pl.read_csv(result.rejected_path)["line"]) if result.rejected_path else set()
    built = iter(result.version.scan("test").collect().drop("label").iter_rows(named=True))
    signature = Signature.of(result.version.fitted, result.version.raw_sample())
    apart = []
    for place, text in enumerate([*usual, *ODD_TIMES]):
        in_file = place + 2 not in rejected
        expected = next(built) if in_file else None
        try:
            sent = requests.table([{"when": text}], signature, strict=False)
        except requests.InvalidRows:
            found = None
        else:
            found = result.version.fitted.encode(sent.lazy()).collect().row(0, named=True)
        if found is None or expected is None:
            same = found is expected
        else:
            same = all(expected[name] == value for name, value in found.items())
        if not same:
            apart.append((text, expected, found))
    assert apart == []
