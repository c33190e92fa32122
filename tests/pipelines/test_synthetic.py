"""The synthetic log: equal for equal settings, and what is planted in it is there."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from pipelines.datasets.synthetic import TAIL, SyntheticConfig, exact_auc, generate
from pipelines.entities import information


def rows(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "*.parquet")


@pytest.fixture(scope="module")
def sequence_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs") / "sequence"
    generate(SyntheticConfig(rows=60_000, users=1_000, items=600), folder)
    return folder


@pytest.fixture(scope="module")
def criteo_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs") / "criteo"
    generate(SyntheticConfig(layout="criteo", rows=60_000, values=1_000), folder)
    return folder


@pytest.fixture(scope="module")
def zipf_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs") / "zipf"
    generate(SyntheticConfig(layout="zipf", rows=60_000, values=5_000, drift=0.2), folder)
    return folder


@pytest.mark.parametrize("layout", ["sequence", "criteo", "zipf", "useless", "tail"])
def test_equal_settings_give_equal_files_and_another_seed_others(
    tmp_path: Path, layout: str
) -> None:
    config = SyntheticConfig.model_validate({"layout": layout, "rows": 5_000, "values": 100})
    one = generate(config, tmp_path / "one", parts=2)
    two = generate(config, tmp_path / "two", parts=2)
    other = generate(config.model_copy(update={"seed": 1}), tmp_path / "other", parts=2)
    assert one == two
    assert other["bayes_auc"] != one["bayes_auc"]
    for part in ("part-00000.parquet", "part-00001.parquet"):
        assert (tmp_path / "one" / part).read_bytes() == (tmp_path / "two" / part).read_bytes()
    assert len(rows(tmp_path / "one")) == 5_000
    assert not rows(tmp_path / "one").equals(rows(tmp_path / "other"))


def test_a_log_that_is_there_is_left_as_it_is_and_another_replaces_it(tmp_path: Path) -> None:
    config = SyntheticConfig(rows=1_000)
    generate(config, tmp_path / "log")
    before = (tmp_path / "log" / "part-00000.parquet").stat().st_mtime_ns
    generate(config, tmp_path / "log")
    assert (tmp_path / "log" / "part-00000.parquet").stat().st_mtime_ns == before
    generate(config.model_copy(update={"rows": 1_500}), tmp_path / "log")
    assert len(rows(tmp_path / "log")) == 1_500
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds something else than a synthetic log"):
        generate(SyntheticConfig(rows=100), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_rows_are_in_the_order_of_time_over_all_parts(tmp_path: Path) -> None:
    generate(SyntheticConfig(rows=3_000), tmp_path / "log", parts=3)
    times = rows(tmp_path / "log")["time"]
    assert times.is_sorted()
    assert times[-1] - times[0] > 27 * 86_400


@pytest.mark.parametrize("name", ["sequence_log", "criteo_log", "zipf_log"])
def test_the_truth_is_that_of_the_rows(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    truth, log = json.loads((folder / "truth.json").read_text()), rows(folder)
    clicked = log["label" if name == "criteo_log" else "clicked"]
    chance = log["true_probability"]
    assert truth["rows"] == len(log) == 60_000
    assert truth["click_rate"] == pytest.approx(clicked.mean())
    assert truth["click_rate"] == pytest.approx(0.2, abs=0.01)
    assert truth["bayes_auc"] == pytest.approx(roc_auc_score(clicked, chance), abs=1e-9)
    assert truth["bayes_auc_last_tenth"] == pytest.approx(
        roc_auc_score(clicked[-6_000:], chance[-6_000:]), abs=1e-9
    )
    # Chances that are true are calibrated: in every tenth of them, clicks come as often as said.
    tenths = pl.DataFrame({"clicked": clicked, "chance": chance}).sort("chance")
    for tenth in tenths.iter_slices(6_000):
        deviation = np.sqrt((tenth["chance"] * (1 - tenth["chance"])).sum())
        assert abs(tenth["clicked"].sum() - tenth["chance"].sum()) < 4 * deviation


@pytest.mark.parametrize("name", ["sequence_log", "criteo_log", "zipf_log"])
def test_useless_fields_say_nothing_and_useful_ones_do(
    name: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    truth, log = json.loads((folder / "truth.json").read_text()), rows(folder)
    surprise = log["label" if name == "criteo_log" else "clicked"] - log["true_probability"]
    assert set(truth["useless"]) < set(log.columns)

    def signal(field: str) -> float:
        """The largest deviation of the click rate among the field's values, in deviations."""
        values = log[field].rank() if log[field].dtype.is_numeric() else log[field].rank("dense")
        groups = pl.DataFrame(
            {"g": (values * 7.99 / values.max()).floor(), "p": log["true_probability"]}
        )
        means = groups.group_by("g").agg(pl.col("p").mean(), pl.col("p").std().alias("s"), pl.len())
        error = (means["s"] / means["len"].sqrt()).fill_null(1.0)
        return float(((means["p"] - log["true_probability"].mean()).abs() / error).max())

    for field in truth["useless"]:
        assert signal(field) < 4.5, field
    telling = {"sequence_log": "price", "criteo_log": "n1", "zipf_log": "position"}
    assert signal(telling[name]) > 20
    assert abs(surprise.mean()) < 0.01


def test_the_history_of_categories_tells_what_no_column_does(sequence_log: Path) -> None:
    """A linear model with the share of the category among one's last clicks beats one without."""
    log = rows(sequence_log).with_row_index("row")
    clicks = log.filter(pl.col("clicked") == 1)
    past: dict[str, list[str]] = {}
    share = []
    clicked_rows = set(clicks["row"])
    for row, user, category in log.select("row", "user", "category").iter_rows():
        recent = past.setdefault(user, [])[-10:]
        share.append(recent.count(category) / max(len(recent), 1))
        if row in clicked_rows:
            past[user].append(category)
    train = np.arange(len(log)) < 45_000
    rates = {}
    for field in ("user", "item", "category"):
        rate = log[:45_000].group_by(field).agg((pl.col("clicked").sum() + 4) / (pl.len() + 20))
        rates[field] = log.join(rate, on=field, how="left", maintain_order="left")[
            "clicked_right"
        ].fill_null(0.2)
    plain = np.column_stack([*rates.values(), np.log(log["price"])])
    clicked = log["clicked"].to_numpy()
    aucs = []
    for inputs in (plain, np.column_stack([plain, share])):
        model = LogisticRegression(max_iter=1000).fit(inputs[train], clicked[train])
        scores = model.decision_function(inputs[~train])
        aucs.append(roc_auc_score(clicked[~train], scores))
    truth = json.loads((sequence_log / "truth.json").read_text())
    assert aucs[1] > aucs[0] + 0.05
    assert truth["bayes_auc"] > aucs[1] + 0.005


def test_ids_are_zipf_and_their_popularity_drifts(sequence_log: Path, criteo_log: Path) -> None:
    for log, field in ((rows(sequence_log), "item"), (rows(criteo_log), "c1")):
        counts = log[:6_000][field].value_counts(sort=True)
        assert counts["count"][0] > 20 * counts["count"].median()
        heads = [
            set(part[field].value_counts(sort=True)[field][:10])
            for part in (log[:6_000], log[-6_000:])
        ]
        assert len(heads[0] & heads[1]) <= 5


def test_popularity_stays_where_there_is_no_drift(tmp_path: Path) -> None:
    generate(SyntheticConfig(layout="criteo", rows=20_000, values=1_000, drift=0.0), tmp_path / "x")
    log = rows(tmp_path / "x")
    heads = [
        set(part["c1"].value_counts(sort=True)["c1"][:10]) for part in (log[:10_000], log[-10_000:])
    ]
    assert len(heads[0] & heads[1]) >= 8


def test_the_criteo_layout_has_its_columns_and_missing_values(criteo_log: Path) -> None:
    log = rows(criteo_log)
    assert log.columns == [
        "label",
        "time",
        *(f"n{i + 1}" for i in range(13)),
        *(f"c{i + 1}" for i in range(26)),
        "true_probability",
    ]
    assert log["c1"].str.contains("^[0-9a-f]{8}$").all()
    assert log["n1"].null_count() == 0
    assert 0.4 < log["n13"].null_count() / len(log) < 0.56
    assert 0.03 < log["c3"].null_count() / len(log) < 0.07


def splitmix64(state: int) -> int:
    """The finaliser of splitmix64, with Python's integers."""
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


def test_the_chance_in_the_zipf_layout_is_a_function_of_the_ids(zipf_log: Path) -> None:
    """Row by row: the weights of the ids, and the product of the item's and the segment's taste."""

    def weight(field: int, value: int) -> float:
        bits = splitmix64((value + (field + 1) * 0x9E3779B97F4A7C15) % 2**64)
        return (bits / 2**64 - 0.5) * np.sqrt(12.0)

    weights = json.loads((zipf_log / "truth.json").read_text())["weights"]
    assert {"item", "user", "device", "position", "hour", "region"} < set(weights)
    for row in rows(zipf_log)[::977].iter_rows(named=True):
        assert row["segment"] == row["user"] % 16
        logit = weights["bias"]
        fields = ["item", "user", "device", "position", "hour", "region"]
        for place, name in enumerate(fields):
            logit += weights[name] * weight(place, row[name])
        for taste in range(2):
            product = weight(100 + taste, row["item"]) * weight(200 + taste, row["segment"])
            logit += weights["item x segment"] / np.sqrt(2) * product
        assert row["true_probability"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)


def test_the_zipf_layout_writes_numbers_and_as_many_items_as_told(tmp_path: Path) -> None:
    config = SyntheticConfig(layout="zipf", rows=50_000, values=10_000_000, zipf=1.0, users=7)
    generate(config, tmp_path / "log")
    log = rows(tmp_path / "log")
    assert log.schema["item"] == log.schema["user"] == pl.Int64
    assert log["item"].is_between(0, 9_999_999).all()
    assert log["item"].max() > 9_000_000
    assert set(log["user"]) == set(range(7))


def test_in_the_zipf_layout_a_share_of_the_ids_trades_places(tmp_path: Path) -> None:
    """The frequency of a rank stays; which id has it changes once, for a share of `drift`."""
    frequent = {}
    for drift in (0.0, 0.5):
        config = SyntheticConfig(layout="zipf", rows=400_000, values=2_000, drift=drift)
        generate(config, tmp_path / str(drift))
        log = rows(tmp_path / str(drift))
        heads = [
            set(part["item"].value_counts(sort=True)["item"][:100])
            for part in (log[:20_000], log[-20_000:])
        ]
        frequent[drift] = len(heads[0] & heads[1])
        # What comes into the head in the end was rare at first, and what falls out of it is rare.
        if drift:
            counts = dict(log[:20_000]["item"].value_counts().iter_rows())
            late = dict(log[-20_000:]["item"].value_counts().iter_rows())
            assert {item - 1_000 for item in heads[1] if item >= 1_000} <= set(range(200))
            for item in range(20):
                pair = (item, item + 1_000)
                first, last = (sum(found.get(i, 0) for i in pair) for found in (counts, late))
                assert first == pytest.approx(last, rel=0.35)
    assert frequent[0.0] > 80
    assert 35 <= frequent[0.5] <= 65


def test_two_items_and_one_are_no_trouble(tmp_path: Path) -> None:
    for values in (1, 2, 3):
        config = SyntheticConfig(layout="zipf", rows=500, values=values, drift=1.0)
        generate(config, tmp_path / str(values))
        assert set(rows(tmp_path / str(values))["item"]) == set(range(values))


def test_the_auc_is_that_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    scores, positive = random.integers(0, 20, 300) / 7, random.random(300) < 0.3
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in scores[positive]
        for b in scores[~positive]
    ]
    assert exact_auc(scores, positive) == pytest.approx(np.mean(wins))


def test_the_useless_layout_says_which_fields_and_values_say_nothing(tmp_path: Path) -> None:
    """Held against the true chance itself: it does not change with a useless value."""
    config = SyntheticConfig(layout="useless", rows=80_000, categories=12, useless=3, zipf=0.5)
    truth = generate(config, tmp_path / "useless")
    log = rows(tmp_path / "useless").with_columns(
        logit=(pl.col("true_probability") / (1 - pl.col("true_probability"))).log()
    )
    assert truth["useless"] == ["noise_id_0", "noise_id_1", "noise_id_2"]
    fields = [*(f"field_{i}" for i in range(6)), *truth["useless"]]
    assert list(truth["useless_values"]) == fields
    shares = []
    for field in fields:
        means = dict(log.group_by(field).agg(pl.col("logit").mean()).iter_rows())
        useless = truth["useless_values"][field]
        assert set(useless) <= set(means)
        assert len(means) == 12
        if field in truth["useless"]:
            assert len(useless) == 12
            continue
        shares.append(len(useless) / 12)
        level = np.mean([means[value] for value in useless])
        # A mean over a value's rows is off by its other fields, 1.7 / sqrt(rows) or so.
        for value, mean in means.items():
            expected = 0 if value in useless else 1
            assert abs(abs(mean - level) - expected) < 0.15, (field, value)
    assert 0.3 < np.mean(shares) < 0.7


def test_most_items_of_the_tail_are_rare_and_attributes_tell_of_each_other(tmp_path: Path) -> None:
    config = TAIL.model_copy(update={"rows": 30_000})
    truth = generate(config, tmp_path / "tail")
    log = rows(tmp_path / "tail")
    counts = log["item"].value_counts(sort=True)["count"]
    assert counts.median() <= 3
    assert counts.head(len(counts) // 10).sum() > 0.6 * len(log)
    # An item has the same attributes in all of its rows.
    attributes = ["brand", "creator", "series", "material", "tags"]
    distinct = log.select("item", *attributes).unique()
    assert distinct["item"].is_unique().all()
    told = information(distinct.select(attributes[:4])).adjusted
    for first, second, strong in ((0, 1, True), (2, 3, True), (0, 2, False), (1, 3, False)):
        assert (told[first][second] > 0.12) == strong
        assert told[first][second] > 0.01  # by the topic
    # The topic decides, as far as it goes.
    topic = log["item"].str.strip_prefix("i").cast(pl.Int64) % config.categories
    tastes = np.random.default_rng((0, 0)).integers(0, config.categories, (config.users, 2))
    user = log["user"].str.strip_prefix("u").cast(pl.Int64).to_numpy()
    match = (tastes[user] == topic.to_numpy()[:, None]).any(axis=1)
    assert roc_auc_score(log["clicked"], match) > truth["bayes_auc"] - 0.08
    assert truth["bayes_auc"] > 0.8


def test_many_rows_are_told_of_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SyntheticConfig(layout="criteo", rows=30_000)
    exact = generate(config, tmp_path / "exact", parts=3)
    monkeypatch.setattr("pipelines.datasets.synthetic.EXACT_ROWS", 5_000)
    rounded = generate(config, tmp_path / "rounded", parts=3)
    assert rounded["bayes_auc"] != exact["bayes_auc"]
    for name in ("bayes_auc", "bayes_auc_last_tenth"):
        assert rounded[name] == pytest.approx(exact[name], abs=1e-5)
    assert rounded["bayes_logloss"] == exact["bayes_logloss"]
