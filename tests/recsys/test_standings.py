"""Who is ahead: decided by validation, tested on test, held to earlier means."""

import json
import math
import re
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from scipy import stats

from feature_store.document import read_json
from recsys.evaluation.significance import delong, paired_losses
from recsys.evaluation.standings import (
    Metric,
    Result,
    Scores,
    head,
    markdown,
    read_baseline,
    regressions,
    rows_of,
    standings,
    without_result,
    write_baseline,
    write_standings,
)

ROWS = 2000
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.random(ROWS) < 0.3
NOISE = {seed: RANDOM.normal(size=ROWS) for seed in range(3)}


def scores(strength: float, seed: int) -> Scores:
    """A model that sees so much of the labels through the seed's noise."""
    logits = strength * LABELS + NOISE[seed] - 1
    return Scores(logits.astype(np.float32), LABELS.astype(np.float32), np.ones(ROWS, np.float32))


STRENGTHS = {"strong": 1.5, "plain": 1.0, "twin": 1.0}


def result(name: str, seed: int, valid: float, test: float, **changes: object) -> Result:
    values = {
        "model": "dnn", "parameters": 1000, "served_bytes": 4096, "seconds": 10.0,
        "valid": {"auc": valid, "logloss": 1 - valid},
        "test": {"auc": test, "logloss": 1 - test},
    }  # fmt: skip
    return Result(name, seed, "done", **{**values, **changes})


RESULTS = [
    # Worse on validation though better on test: must stand below.
    *(result("twin", seed, 0.70, 0.95 + 0.01 * seed) for seed in range(3)),
    *(result("plain", seed, 0.75, 0.74 + 0.002 * seed) for seed in range(3)),
    *(
        result("strong", seed, 0.80, 0.79 + 0.002 * seed + 0.0001 * (seed == 1))
        for seed in range(3)
    ),
    Result("broken", 0, "failed", "lr is <b>"),
]


def of(result: Result) -> Scores:
    return scores(STRENGTHS[result.experiment], result.seed)


def test_validation_orders_and_the_best_of_it_is_the_reference() -> None:
    found = standings(RESULTS, "auc", None, of)
    assert [each.experiment for each in found] == ["strong", "plain", "twin"]
    strong, plain, _ = found
    assert strong.comparison is None
    assert plain.comparison is not None and plain.comparison.reference == "strong"
    assert plain.test == pytest.approx(0.742)
    assert plain.test_deviation == pytest.approx(0.002)
    assert plain.seeds == 3
    losses = standings(RESULTS, "logloss", None, of)
    assert [each.experiment for each in losses] == ["strong", "plain", "twin"]


def test_a_difference_is_paired_by_seed_and_by_row() -> None:
    found = {each.experiment: each for each in standings(RESULTS, "auc", "plain", of)}
    comparison = found["strong"].comparison
    assert comparison is not None
    mine = [r.test["auc"] for r in RESULTS if r.experiment == "strong"]
    theirs = [r.test["auc"] for r in RESULTS if r.experiment == "plain"]
    assert comparison.seeds_p == pytest.approx(stats.ttest_rel(mine, theirs).pvalue, rel=1e-3)
    by_row = [
        delong(scores(1.5, s).logits_N, scores(1.0, s).logits_N, LABELS, np.ones(ROWS)).p
        for s in range(3)
    ]
    assert comparison.rows_p == pytest.approx(max(by_row))
    assert comparison.verdict == "better"
    # The test metric is ahead, but the very same scores cannot be: rows do not agree.
    twin = found["twin"].comparison
    assert twin is not None and twin.seeds_p < 0.05
    assert (twin.rows_p, twin.verdict) == (1.0, "not told apart")


@pytest.mark.parametrize("metric", ["auc", "logloss"])
def test_worse_is_worse_under_either_metric(metric: Metric) -> None:
    found = {each.experiment: each for each in standings(RESULTS, metric, "strong", of)}
    plain = found["plain"].comparison
    assert plain is not None and plain.verdict == "worse"
    assert (plain.difference < 0) == (metric == "auc")
    if metric == "logloss":
        losses = [
            paired_losses(scores(1.0, s).logits_N, scores(1.5, s).logits_N, LABELS, np.ones(ROWS))
            for s in range(3)
        ]
        assert plain.by_row == tuple(losses)


def test_one_seed_is_called_neither_better_nor_worse() -> None:
    found = standings([r for r in RESULTS if r.seed == 0], "auc", None, of)
    comparison = found[1].comparison
    assert comparison is not None
    assert comparison.verdict == "one seed"
    assert math.isnan(comparison.seeds_p) and comparison.rows_p < 0.05
    assert math.isnan(found[1].test_deviation)


def test_only_seeds_of_both_and_equal_rows_are_paired() -> None:
    kept = [r for r in RESULTS if (r.experiment, r.seed) != ("plain", 2)]

    def other_rows(result: Result) -> Scores:
        found = of(result)
        if result.experiment == "plain":
            return Scores(found.logits_N[1:], found.labels_N[1:], found.weights_N[1:])
        return found

    comparison = standings(kept, "auc", "strong", other_rows)[1].comparison
    assert comparison is not None
    assert comparison.by_row == () and math.isnan(comparison.rows_p)
    assert comparison.difference == pytest.approx(-0.05005)
    assert len(standings(kept, "auc", "strong", of)[1].comparison.by_row) == 2  # type: ignore


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = scores(1.0, 0)
    written.save(tmp_path / "a.npz")
    for mine, theirs in zip(Scores.load(tmp_path / "a.npz"), written, strict=True):
        assert (mine == theirs).all() and mine.dtype == theirs.dtype


def test_a_baseline_allows_what_chance_explains_and_no_more(tmp_path: Path) -> None:
    found, path = standings(RESULTS, "auc", None, of), tmp_path / "baseline.json"
    write_baseline(found, [], "auc", path)
    baseline = read_baseline(path, "auc")
    assert regressions(found, [], baseline) == []
    twin = baseline["experiments"]["twin"]["tolerance"]
    assert twin["test"] == pytest.approx(2 * 0.01 * math.sqrt(2 / 3))
    assert twin["valid"] == 0.001
    worse = [
        result(r.experiment, r.seed, r.valid["auc"] - 0.0009, r.test["auc"] - lost)
        for r in RESULTS[:9]
        for lost in [0.02 if r.experiment == "strong" else 0.001]
    ]
    told = regressions(standings(worse, "auc", None, of), [], baseline)
    assert len(told) == 1
    assert told[0].startswith("strong: test AUC 0.7720, the baseline has 0.7920 and allows 0.003")


def test_a_lost_experiment_and_a_failed_training_are_regressions(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    write_baseline(standings(RESULTS, "auc", None, of), [], "auc", path)
    left = [r for r in RESULTS if r.experiment != "twin" and (r.experiment, r.seed) != ("plain", 0)]
    left.append(Result("plain", 0, "failed", "out of memory"))
    told = regressions(
        standings(left, "auc", None, of), without_result(left), read_baseline(path, "auc")
    )
    assert "twin: has no result, the baseline has" in told
    assert any("plain: seed 0, failed: out of memory" in line for line in told)


def test_less_log_loss_is_no_regression(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    write_baseline(standings(RESULTS, "logloss", None, of), [], "logloss", path)
    better = [
        result(r.experiment, r.seed, r.valid["auc"] + 0.1, r.test["auc"]) for r in RESULTS[:9]
    ]
    assert regressions(standings(better, "logloss", None, of), [], read_json(path)) == []
    worse = [result(r.experiment, r.seed, r.valid["auc"] - 0.1, r.test["auc"]) for r in RESULTS[:9]]
    told = regressions(standings(worse, "logloss", None, of), [], read_json(path))
    assert len(told) == 3 and all("valid log loss" in line and "more" in line for line in told)


def test_a_wrong_baseline_is_named(tmp_path: Path) -> None:
    path, found = tmp_path / "baseline.json", standings(RESULTS, "auc", None, of)
    with pytest.raises(ValueError, match=r"no baseline is written while .*broken, seed 0"):
        write_baseline(found, without_result(RESULTS), "auc", path)
    assert not path.exists()
    write_baseline(found, [], "auc", path)
    with pytest.raises(ValueError, match="is a baseline of auc, but the suite's metric is logloss"):
        read_baseline(path, "logloss")
    path.write_text('{"metric": "auc", "experiments": {"a": {"valid": 1}}}')
    with pytest.raises(ValueError, match="is no baseline"):
        read_baseline(path, "auc")
    with pytest.raises(FileNotFoundError):
        read_baseline(tmp_path / "absent.json", "auc")


def test_files_hold_the_table_and_escape_what_they_say(tmp_path: Path) -> None:
    renamed = [result("a<b", r.seed, r.valid["auc"], r.test["auc"]) for r in RESULTS[:3]]
    results = [*RESULTS, *renamed]
    found = standings(results, "auc", "plain", lambda r: scores(1.0, r.seed))
    page = write_standings(results, found, "x<y", "auc", tmp_path).read_text()
    visible = page.split("<script")[0]
    assert "a&lt;b" in visible and "x&lt;y" in visible and "lr is &lt;b&gt;" in visible
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])["figures"]
    for figure in figures.values():
        go.Figure(json.loads(re.sub(r"var\(--[a-z-]+\)", "#123456", json.dumps(figure))))
    text = (tmp_path / "leaderboard.md").read_text()
    assert text == markdown(results, found, "auc")
    lines = text.splitlines()
    assert lines[0].startswith(
        "| experiment | model | seeds | valid AUC | test AUC | against plain"
    )
    assert lines[2].startswith("| strong | dnn | 3 | 0.8000 ± 0.0000 | 0.7920 ± 0.0020 | +0.05")
    assert "| plain | dnn | 3 | 0.7500 ± 0.0000 | 0.7420 ± 0.0020 |  |  |  | reference |" in text
    assert "- broken, seed 0, failed: lr is <b>" in lines
    document = read_json(tmp_path / "leaderboard.json")
    assert document["standings"][0]["comparison"]["verdict"] == "not told apart"
    assert len(document["results"]) == len(results)


def test_nothing_done_is_a_page_that_says_so(tmp_path: Path) -> None:
    failed = RESULTS[-1:]
    assert standings(failed, "auc", None, of) == []
    assert "No result yet" in write_standings(failed, [], "x", "auc", tmp_path).read_text()


def test_what_a_search_kept_is_told() -> None:
    gated = [result("gated", seed, 0.7, 0.7, kept=0.25 + 0.5 * seed) for seed in range(2)]
    found = standings([*gated, result("whole", 0, 0.6, 0.6)], "auc", None, lambda r: scores(1.0, 0))
    column = head(found, "auc").index("rows kept")
    assert [row[column] for row in rows_of(found)] == ["50.0%", "all"]
