"""Choosing a scheme at a budget: by validation, with spread, and never by the test split."""

import json
import math
from pathlib import Path

import pytest

from recsys.evaluation.pareto import Cell, advice, markdown, points, write_pareto

FULL = 1000


def cell(
    scheme: str, budget: str, seed: int, valid: float, test: float, served: int, **changes: object
) -> Cell:
    values = {"full_bytes": FULL, "training_bytes": 5, "test_logloss": 0.5, "seconds": 2.0}
    return Cell(
        scheme, budget, seed, "done",
        valid_auc=valid, test_auc=test, serving_bytes=served, **{**values, **changes},
    )  # fmt: skip


CELLS = [
    cell("full", "100%", 0, 0.80, 0.790, FULL),
    cell("full", "100%", 1, 0.80, 0.794, FULL),
    # Better on test, worse on validation: must not be chosen.
    cell("robe", "10%", 0, 0.70, 0.900, 100),
    cell("robe", "10%", 1, 0.70, 0.900, 100),
    cell("hash", "10%", 0, 0.75, 0.740, 99),
    cell("hash", "10%", 1, 0.77, 0.780, 100),
    # Best of all, but over the budget.
    cell("fat", "10%", 0, 0.79, 0.789, 200),
    Cell("int8", "10%", 0, "unreachable", "needs 250 bytes <b>"),
    Cell("int8", "10%", 1, "unreachable", "needs 250 bytes <b>"),
]


def test_points_are_means_over_seeds_with_their_deviation() -> None:
    full, robe, hashing, fat = points(CELLS)
    assert (full.scheme, full.seeds) == ("full", 2)
    assert full.test_auc == pytest.approx(0.792)
    assert full.deviation == pytest.approx(0.004 / math.sqrt(2))
    assert (robe.deviation, math.isnan(fat.deviation)) == (0.0, True)
    assert (hashing.serving_bytes, hashing.share) == (100, 0.1)


def test_advice_is_chosen_by_validation_within_the_budget() -> None:
    (entry,) = advice(CELLS)
    assert (entry.budget, entry.best.scheme) == ("10%", "hash")
    assert entry.behind_full == pytest.approx(0.792 - 0.760)
    assert entry.sentence() == (
        "At 10% use hash: test AUC 0.7600 ± 0.0283 in 100 B (10.00% of the full tables), 0.0320"
        " below uncompressed."
    )


def test_schemes_that_validation_cannot_tell_apart_are_named() -> None:
    (entry,) = advice([*CELLS, cell("dhe", "10%", 0, 0.755, 0.7, 80)])
    assert entry.best.scheme == "hash" and entry.alike == ("dhe",)


def test_a_budget_in_bytes_is_kept_too() -> None:
    (entry,) = advice(
        [cell("hash", "150", 0, 0.7, 0.7, 140), cell("robe", "150", 0, 0.8, 0.8, 160)]
    )
    assert entry.best.scheme == "hash" and entry.behind_full is None
    assert "uncompressed" not in entry.sentence()


def test_files_hold_all_cells_and_escape_what_they_say(tmp_path: Path) -> None:
    path = write_pareto(CELLS, "a<b", tmp_path)
    page = path.read_text()
    assert "needs 250 bytes &lt;b&gt;" in page and "<b>" not in page.split("<script")[0]
    assert "a&lt;b" in page
    document = json.loads((tmp_path / "pareto.json").read_text())
    assert len(document["cells"]) == len(CELLS)
    assert [point["scheme"] for point in document["points"]] == ["full", "robe", "hash", "fat"]
    text = (tmp_path / "pareto.md").read_text()
    assert text == markdown(CELLS)
    assert text.count("int8 at 10% unreachable") == 1
    assert "| hash | 10% | 0.7600 ± 0.0283 |" in text


def test_nothing_done_is_a_page_that_says_so(tmp_path: Path) -> None:
    assert "No result yet" in write_pareto(CELLS[-1:], "x", tmp_path).read_text()
