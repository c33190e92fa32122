"""metrics.jsonl says what happened, once, whatever was cut off."""

import json
import math
from pathlib import Path

from recsys.training.log import METRICS_FILE, RunLog, read_metrics


def written(folder: Path, step: int, steps: range) -> None:
    log = RunLog(folder, step)
    for each in steps:
        log.write("train", each, {"loss": each / 10, "epoch": 0})
    log.close()


def test_lines_hold_split_step_and_values(tmp_path: Path) -> None:
    written(tmp_path, 0, range(1, 3))
    first, second = read_metrics(tmp_path)
    assert (first["split"], first["step"], first["loss"]) == ("train", 1, 0.1)
    assert second["time"] >= first["time"] > 1e9


def test_a_run_that_has_not_begun_has_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_a_resumed_run_forgets_what_comes_after_its_checkpoint(tmp_path: Path) -> None:
    written(tmp_path, 0, range(1, 8))
    written(tmp_path, 4, range(5, 7))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_run_begun_anew_forgets_all(tmp_path: Path) -> None:
    written(tmp_path, 0, range(1, 4))
    written(tmp_path, 0, range(1, 2))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


def test_a_line_that_was_cut_off_is_dropped_and_replaced(tmp_path: Path) -> None:
    written(tmp_path, 0, range(1, 4))
    path = tmp_path / METRICS_FILE
    path.write_text(path.read_text()[:-5])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    written(tmp_path, 2, range(3, 5))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_value_that_is_not_a_number_is_null_and_named(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    log.write("valid", 1, {"auc": float("nan"), "logloss": float("inf"), "rows": 3})
    log.close()
    text = (tmp_path / METRICS_FILE).read_text()
    assert "NaN" not in text
    line = json.loads(text)
    assert (line["auc"], line["logloss"], line["rows"]) == (None, None, 3)
    assert line["not_finite"] == {"/auc": "nan", "/logloss": "inf"}
    (read,) = read_metrics(tmp_path)
    assert math.isnan(read["auc"])
    assert read["logloss"] == math.inf


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written(tmp_path, 0, range(1, 4))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, round(event.value, 6)) for event in events.Scalars("loss/train")]
    assert found == [(1, 0.1), (2, 0.2), (3, 0.3)]
