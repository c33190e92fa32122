"""The two report files: what they hold, and that they need and leak nothing."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest

from feature_store.document import read_json
from feature_store.features import IdField, Layout
from recsys.embeddings.selected import SelectedField
from recsys.evaluation.baselines import TrainingRates
from recsys.evaluation.evaluate import EvaluationConfig, Evaluator, ScoredRows, evaluate
from recsys.evaluation.report import write_report
from recsys.evaluation.results import DataSummary, Report, TableSize

LAYOUT = Layout(
    ids=(
        IdField(name="user", shape="single", side="user", space="user"),
        IdField(name="item", shape="single", side="item", space="item"),
        IdField(name="day", shape="single", side="context", space="day", cardinality=4),
    ),
    dense=(),
    tasks=("click",),
)
HOSTILE = "</script><img src=https://example.org/x onerror=alert(1)>"


def split_result(click_rate=0.3, num_rows=2000, skill=1.0):
    config = EvaluationConfig(user="user", item="item", slices=("day", "user"))
    random = np.random.default_rng(0)
    ids = {name: random.integers(2, 60, num_rows) for name in ("user", "item")}
    ids["day"] = random.integers(2, 4, num_rows)
    labels = random.random((num_rows, 1)) < click_rate
    weights = np.ones(num_rows, np.float32)
    rates = TrainingRates(1, config.counted(LAYOUT))
    rates.update(labels, weights, ids)
    logits = random.normal(size=(num_rows, 1)) - 5 + 2 * skill * labels
    evaluator = Evaluator(config, LAYOUT, rates, {"day": ["monday", HOSTILE]})
    return evaluate(evaluator, [ScoredRows(logits, labels, weights, ids["user"], ids)])


def report_of(result, **changes):
    values = {
        "name": "movielens_din",
        "splits": {"test": result},
        "experiment": {"model": {"kind": "din", "layers": [64, 32]}, "note": HOSTILE},
        "versions": {"torch": "2.13.0"},
        "training": [
            {"step": 20, "epoch": 0, "split": "train", "loss": 0.6, "samples_per_second": 1e4},
            {"step": 20, "epoch": 0, "split": "valid", "logloss": math.nan, "auc": None},
            {"step": 40, "epoch": 1, "split": "valid", "logloss": 0.5, "auc": 0.7},
        ],
        "tables": (
            TableSize("item", 1684, 16, 107_776, 6736, sharding="table_wise", fields=("item",)),
        ),
        "data": DataSummary("ml", 3, "9f", {"train": 10}, 12, 2, "rejected/9f", {HOSTILE: 2}),
    }
    return Report(**(values | changes))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_report(report_of(split_result()), tmp_path_factory.mktemp("run"))


class Page(HTMLParser):
    """Tags and visible text of a page; scripts and styles apart."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.visible, self.scripts, self.styles, self._stack = [], [], [], [], []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._stack.append(tag)

    def handle_endtag(self, tag):
        while self._stack and self._stack.pop() != tag:
            pass

    def handle_data(self, data):
        place = self._stack[-1] if self._stack else ""
        {"script": self.scripts, "style": self.styles}.get(place, self.visible).append(data)

    def text(self):
        return " ".join(self.visible)


def test_report_json_has_the_promised_shape(files):
    written = read_json(files[0])
    test = written["splits"]["test"]
    assert test["rows"] == 2000
    for name in ("auc", "logloss", "ne", "gauc", "calibration"):
        assert isinstance(test["metrics"][name], float)
    baseline = written["baselines"]["user_item_rates"]["splits"]["test"]
    assert 0.5 < baseline["metrics"]["auc"] < test["metrics"]["auc"]
    assert written["experiment"]["model"]["kind"] == "din"
    assert written["versions"] == {"torch": "2.13.0"}
    assert written["tables"][0]["parameters"] == 1684 * 16


def test_report_json_round_trips_and_names_what_is_not_finite(files):
    plain = json.loads(files[0].read_text())
    assert plain["training"][1]["logloss"] is None
    assert plain["not_finite"]["/training/1/logloss"] == "nan"
    assert math.isnan(read_json(files[0])["training"][1]["logloss"])


def test_the_page_loads_nothing(files):
    page = Page(files[1])
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert not {"src", "href", "srcset", "action", "poster"} & attributes.keys(), tag
    assert not re.search(r"url\(|@import", "".join(page.styles))
    policies = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policies[0].startswith("default-src 'none'")


def test_text_from_data_is_escaped_everywhere(files):
    page = Page(files[1])
    assert "</script><img" not in files[1].read_text("utf-8")
    assert page.text().count(HOSTILE) >= 3  # configuration, slice table, rejected reason
    figures = json.loads(page.scripts[0])["figures"]
    labels = [figure["layout"]["yaxis"].get("ticktext", []) for figure in figures.values()]
    assert [label for row in labels for label in row if label.startswith("&lt;/script&gt;&lt;img")]


def test_every_figure_is_valid_and_has_its_place(files):
    page = Page(files[1])
    figures = json.loads(page.scripts[0])["figures"]
    places = [a["id"] for _, a in page.tags if a.get("class") == "plot"]
    assert sorted(figures) == sorted(places)
    assert len(figures) == 3 + 2 + 3  # ROC, calibration, scores; two slices; training
    for figure in figures.values():
        # Plotly's own validation; theme names stand for colours and are no colours to it.
        go.Figure(json.loads(re.sub(r"var\(--[a-z-]+\)", "#123456", json.dumps(figure))))


def test_theme_colours_are_all_defined_in_light_and_dark(files):
    page = Page(files[1])
    style = "".join(page.styles)
    light, dark = style.split("prefers-color-scheme: dark")
    used = set(re.findall(r"var\((--[a-z-]+)\)", style + page.scripts[0]))
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark


def test_the_verdict_comes_first(files):
    text = Page(files[1]).text()
    assert text.index("Better than the baselines") < text.index("Test split")


def test_one_class_has_a_report_that_says_so(tmp_path):
    json_path, html_path = write_report(report_of(split_result(click_rate=0)), tmp_path)
    plain = json.loads(json_path.read_text())
    assert plain["splits"]["test"]["metrics"]["auc"] is None
    assert plain["splits"]["test"]["undefined"]["auc"] == "every row has label 0"
    assert plain["not_finite"]["/splits/test/metrics/auc"] == "nan"
    text = Page(html_path).text()
    assert "The model cannot be judged" in text
    assert "Not defined, as every row has label 0: AUC, " in text


def test_a_bare_report_needs_no_history_tables_or_data(tmp_path):
    bare = report_of(split_result(), training=(), tables=(), data=None)
    _, html_path = write_report(bare, tmp_path)
    assert "Embedding tables" not in Page(html_path).text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_what_a_search_selected_is_shown_by_feature(tmp_path):
    selected = (SelectedField("item", 30, 120), SelectedField("noise", 0, 80))
    json_path, html_path = write_report(report_of(split_result(), selected=selected), tmp_path)
    assert json.loads(json_path.read_text())["selected"] == [
        {"feature": "item", "kept": 30, "total": 120, "ratio": 0.25},
        {"feature": "noise", "kept": 0, "total": 80, "ratio": 0.0},
    ]
    text = " ".join(Page(html_path).text().split())
    section = text[text.index("Selected values") :]
    for cells in ("item 30 120 25.00%", "noise 0 80 0.00%", "all 30 200 15.00%"):
        assert cells.replace(" ", "") in section.replace(" ", "")
