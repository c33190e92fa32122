"""Train, validation and test rows: by time, by each user's chronology, by file, or at random."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import PurePath
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
import polars_hash  # noqa: F401 - registers the `nchash` namespace of expressions
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from feature_store.columns import require_columns, time_number
from feature_store.config import Config
from feature_store.encoding import row_key
from feature_store.features import ROW_COLUMN, SPLIT_COLUMN, SPLITS, FeatureSet, nearest
from pipelines.files import AnyFile
from pipelines.ranked import Ranked


def _usable_pattern(pattern: str) -> str:
    if not PurePath(pattern).parts:
        raise ValueError(f"expected the name of a file or a pattern, found {pattern!r}")
    return pattern


Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Pattern = Annotated[str, AfterValidator(_usable_pattern)]
Moment = int | float | datetime

_TRAIN, _VALID, _TEST = range(3)
_ROWS_AT_ONCE = 1 << 22
"""About so many rows of users are in memory at once."""
_PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9}


class SplitFiles(Config):
    """Which of the files of `data.path` hold which split; every file must fit exactly one.

    Patterns (`*`, `?`, `[...]`) are matched from the end of a file's path: `test.parquet` is any
    file of that name, `test/*` any file of a folder `test`.
    """

    train: Pattern | tuple[Pattern, ...]
    valid: Pattern | tuple[Pattern, ...] = ()
    test: Pattern | tuple[Pattern, ...] = ()

    def patterns(self) -> list[tuple[str, str]]:
        """Split and pattern, for every pattern."""
        by_split = zip(SPLITS, (self.train, self.valid, self.test), strict=True)
        return [
            (name, pattern)
            for name, given in by_split
            for pattern in ((given,) if isinstance(given, str) else given)
        ]


class SplitConfig(Config):
    """How rows are shared out; `train` gets what `valid` and `test` leave."""

    by: Literal["time", "user", "random", "file"] = "random"
    """time: the latest rows are test, those before them valid. user: the same within the rows of
    each user (rows without one count as one user). random: by a stable hash of the row's place in
    the source and the seed. file: as `files` says."""
    test: Share = 0.1
    """Share of the rows; for `user`, of each user's rows, rounded up."""
    valid: Share = 0.1
    """Share of the rows; for `user`, of each user's rows, rounded up."""
    user: str | None = None
    """Raw column of the user for `by: user`; features.group if absent."""
    seed: NonNegativeInt = 0
    """For `by: random`."""
    valid_from: Moment | None = None
    """For `by: time`, instead of shares: the first time of the validation rows, in the timestamp's
    own unit or as a date with time (UTC if it names no zone). Absent: no validation rows."""
    test_from: Moment | None = None
    """The first time of the test rows, likewise."""
    files: SplitFiles | None = None
    """For `by: file`."""

    @model_validator(mode="after")
    def _files_alone(self) -> "SplitConfig":
        if (self.by == "file") != (self.files is not None):
            raise ValueError(
                "split: by: file and `files` belong together, as in"
                " {by: file, files: {train: train.csv, valid: valid.csv, test: test.csv}}"
            )
        others = sorted(self.model_fields_set - {"by", "files"})
        if self.files is not None and others:
            raise ValueError(
                f"split: {' and '.join(others)} cannot be given beside files; the files alone"
                " decide"
            )
        return self

    @model_serializer(mode="wrap")
    def _what_applies(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the keys that could not be given beside the others: what is dumped loads."""
        if self.files is not None:
            return {key: value for key, value in dump(self).items() if key in ("by", "files")}
        shares = () if self.valid_from is None and self.test_from is None else ("valid", "test")
        without = ("files", *shares)
        return {key: value for key, value in dump(self).items() if key not in without}

    @model_validator(mode="after")
    def _consistent(self) -> "SplitConfig":
        if self.test + self.valid >= 1.0:
            raise ValueError(
                f"split: test {self.test} and valid {self.valid} leave no training rows; their sum"
                " must be below 1"
            )
        if self.valid_from is None and self.test_from is None:
            return self
        if self.by != "time":
            raise ValueError("split: valid_from and test_from need by: time")
        shares = sorted({"valid", "test"} & self.model_fields_set)
        if shares:
            raise ValueError(
                f"split: {' and '.join(shares)} cannot be given beside valid_from or test_from;"
                " use either shares or times"
            )
        if self.valid_from is not None and self.test_from is not None:
            if isinstance(self.valid_from, datetime) != isinstance(self.test_from, datetime):
                raise ValueError("split: valid_from and test_from must be of the same type")
            if _comparable(self.valid_from) >= _comparable(self.test_from):
                raise ValueError("split: valid_from must be earlier than test_from")
        return self


def splits_of(files: Sequence[AnyFile], config: SplitFiles) -> list[str]:
    """The split of each file.

    Raises:
        ValueError: A file fits no pattern or those of two splits, or a pattern fits no file.
    """
    patterns = config.patterns()
    fitting = [[name for name, pattern in patterns if file.match(pattern)] for file in files]
    for name, pattern in patterns:
        if not any(file.match(pattern) for file in files):
            raise ValueError(
                f"split.files.{name}: {pattern!r} fits none of the {len(files)} files of data.path;"
                f" {nearest(pattern, sorted({file.name for file in files}))}"
            )
    for file, names in zip(files, fitting, strict=True):
        if not names:
            raise ValueError(
                f"split.files: {file} fits none of {[pattern for _, pattern in patterns]}; name it"
                " under train, valid or test, or leave it out of data.path"
            )
        if len(set(names)) > 1:
            raise ValueError(
                f"split.files: {file} fits the patterns of {' and '.join(dict.fromkeys(names))};"
                " a file belongs to one split"
            )
    return [names[0] for names in fitting]


def split_rule(
    schema: Mapping[str, pl.DataType],
    config: SplitConfig,
    feature_set: FeatureSet,
    files: Sequence[tuple[AnyFile, int]],
    ranked: Callable[[pl.Expr], Ranked],
) -> pl.Expr:
    """The split's name as an expression over one row; not for `by: user`.

    Args:
        schema: Of the rows with `__row`.
        config: How to share them out.
        feature_set: Names the timestamp.
        files: For `by: file`, the files of the rows, each with the `__row` where it begins.
        ranked: Gives all of a number's values that are not null; only asked for `by: time`.

    Raises:
        SchemaMismatch: A column is missing or of a wrong type.
        ValueError: Times that leave a split without rows, or files that do not fit the patterns of
            one split each.
    """
    require_columns(schema, {ROW_COLUMN: "a split"})
    if config.by == "random":
        return _by_hash(config)
    if config.files is not None:
        return _by_file(files, config.files)
    time, unit = _time(schema, config, feature_set)
    return _by_time(ranked, time, unit, config)


def split_by_user(raw: pl.LazyFrame, config: SplitConfig, feature_set: FeatureSet) -> pl.LazyFrame:
    """The same for `by: user`."""
    schema = raw.collect_schema()
    require_columns(schema, {ROW_COLUMN: "a split"})
    time, _ = _time(schema, config, feature_set)
    parts = _by_user(raw, time, _user(schema, config, feature_set), config)
    wide = pl.concat([raw, parts.to_frame(SPLIT_COLUMN).lazy()], how="horizontal")
    part = pl.col(SPLIT_COLUMN)
    return wide.with_columns(_named(part == _TEST, part == _VALID).alias(SPLIT_COLUMN))


def _by_hash(config: SplitConfig) -> pl.Expr:
    text = pl.col(ROW_COLUMN).cast(pl.String)
    bits = text.nchash.xxhash64(seed=config.seed)  # type: ignore[attr-defined]
    place = bits.cast(pl.Float64) / 2.0**64
    return _named(place < config.test, place < config.test + config.valid)


def _by_file(files: Sequence[tuple[AnyFile, int]], config: SplitFiles) -> pl.Expr:
    row = pl.col(ROW_COLUMN)
    within: dict[str, list[pl.Expr]] = {name: [pl.lit(False)] for name in SPLITS}
    names = splits_of([file for file, _ in files], config)
    runs = [
        (name, next(run)[1][1])
        for name, run in groupby(zip(names, files, strict=True), key=lambda pair: pair[0])
    ]
    for place, (name, first) in enumerate(runs):
        ended = row < runs[place + 1][1] if place + 1 < len(runs) else pl.lit(True)
        within[name].append((row >= first) & ended)
    return _named(pl.any_horizontal(within["test"]), pl.any_horizontal(within["valid"]))


def _by_time(
    ranked: Callable[[pl.Expr], Ranked], time: pl.Expr, unit: str, config: SplitConfig
) -> pl.Expr:
    times, missing = ranked(time), ranked(pl.when(time.is_null()).then(pl.lit(1, pl.Int64)))
    _require_times(len(missing), len(times) + len(missing))
    if not len(times):
        raise ValueError("split by time: there are no rows")
    if config.valid_from is None and config.test_from is None:
        valid_from, test_from = _cuts(times, config)
    else:
        valid_from, test_from = (_number(m, unit) for m in (config.valid_from, config.test_from))
    _require_rows(times, {"valid": valid_from, "test": test_from})
    never = pl.lit(False)
    return _named(
        never if test_from is None else time >= test_from,
        never if valid_from is None else time >= valid_from,
    )


def _named(is_test: pl.Expr, is_valid: pl.Expr) -> pl.Expr:
    """The split's name from two conditions, of which the first prevails."""
    train, valid, test = (pl.lit(name) for name in SPLITS)
    return pl.when(is_test).then(test).when(is_valid).then(valid).otherwise(train)


def _cuts(times: Ranked, config: SplitConfig) -> tuple[float | None, float | None]:
    """The first times of the validation and of the test rows; None for a share of zero."""
    valid_from = test_from = None
    end = len(times)
    if config.test:
        end = _cut(times, end, config.test * len(times))
        test_from = times.at(end)
    if config.valid:
        valid_from = times.at(_cut(times, end, config.valid * len(times)))
    return valid_from, test_from


def _cut(times: Ranked, end: int, rows: float) -> int:
    """Where the last `rows` of the first `end` times begin, moved to the nearest change of time.

    The last instant always comes after the cut, and one instant before it where there are two.
    """
    if end == 0:
        return 0
    place = min(max(end - round(rows), 0), end - 1)
    time = times.at(place)
    first, after = times.below(time), min(times.up_to(time), end)
    if after < end and (first == 0 or after - place < place - first):
        return after
    return first


def _require_rows(times: Ranked, cuts: Mapping[str, float | None]) -> None:
    starts = [times.below(cut) for cut in cuts.values() if cut is not None]
    rows = np.diff([0, *starts, len(times)])
    names = ["train", *(name for name, cut in cuts.items() if cut is not None)]
    empty = [name for name, count in zip(names, rows, strict=True) if count <= 0]
    if empty:
        raise ValueError(
            f"split by time leaves no rows for {' and '.join(empty)}: {len(times)} rows at"
            f" {times.num_distinct()} distinct times, cut at {dict(cuts)}; choose other shares or"
            " times, or split by user or at random"
        )


def _by_user(raw: pl.LazyFrame, time: pl.Expr, user: pl.Expr, config: SplitConfig) -> pl.Series:
    """The number of every row's split in SPLITS, in the order of the rows.

    Users are taken some at a time, so that memory holds a byte for every row of the log, and more
    for the rows of those users only.
    """
    num_rows = raw.select(pl.len()).collect(engine="streaming").item()
    shares = -(-num_rows // _ROWS_AT_ONCE) or 1
    keys = raw.select(user=user, time=time, row=ROW_COLUMN).with_row_index("place")
    share = pl.col("user").reinterpret(signed=False) % shares
    parts = np.empty(num_rows, np.uint8)
    missing = 0
    for number in range(shares):
        some = keys.filter(share == number).collect(engine="streaming")
        missing += some.get_column("time").null_count()
        parts[some.get_column("place").to_numpy()] = _parts_of_users(some, config)
    _require_times(missing, num_rows)
    return pl.Series(parts)


def _parts_of_users(keys: pl.DataFrame, config: SplitConfig) -> np.ndarray:
    """The number of every row's split, of all rows of some users."""
    columns = [keys.get_column(n).fill_null(0).to_numpy() for n in ("row", "time", "user")]
    order = np.lexsort(columns)
    users = columns[-1][order]
    runs = np.cumsum(np.diff(users, prepend=users[:1]) != 0)
    counts = np.bincount(runs)
    from_end = np.cumsum(counts)[runs] - np.arange(len(runs))
    num_test, num_valid = (
        _rounded_up(share * counts)[runs] for share in (config.test, config.valid)
    )
    part = np.where(from_end <= num_test, _TEST, _TRAIN)
    part[(from_end > num_test) & (from_end <= num_test + num_valid)] = _VALID
    by_row = np.empty(len(order), np.uint8)
    by_row[order] = part
    return by_row


def _rounded_up(rows: np.ndarray) -> np.ndarray:
    """Rounded up, but for the noise of the product: 0.1 x 30 is 3, not 3.0000000000000004."""
    return np.ceil(np.round(rows, 9)).astype(np.int64)


def _require_times(num_missing: int, num_rows: int) -> None:
    if num_missing:
        raise ValueError(
            f"split: {num_missing} of {num_rows} rows have no timestamp, so they belong to"
            " no split in time; reject or repair them, or split at random"
        )


def _time(
    schema: Mapping[str, pl.DataType], config: SplitConfig, feature_set: FeatureSet
) -> tuple[pl.Expr, str]:
    name = feature_set.timestamp
    if name is None:
        raise ValueError(f"split by {config.by} needs features.timestamp: name the raw column")
    require_columns(schema, {name: "features.timestamp"})
    return time_number(name, schema[name])


def _number(moment: Moment | None, unit: str) -> float | None:
    """A configured time in the unit of the timestamp."""
    if moment is None:
        return None
    if isinstance(moment, datetime) != bool(unit):
        raise ValueError(
            f"split: the time {moment!r} does not fit the timestamp, which holds"
            f" {'dates' if unit else 'numbers'}; write it the same way"
        )
    if not isinstance(moment, datetime):
        return moment
    since = _comparable(moment) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1) * _PER_SECOND[unit] // 10**6


def _comparable(moment: Moment) -> Any:
    if isinstance(moment, datetime) and moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    return moment


def _user(
    schema: Mapping[str, pl.DataType], config: SplitConfig, feature_set: FeatureSet
) -> pl.Expr:
    user = config.user or feature_set.group
    if user is None:
        raise ValueError("split by user needs the user's column: set split.user or features.group")
    require_columns(schema, {user: "split.user"})
    return row_key(user, schema[user])
