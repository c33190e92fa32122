"""What the README shows in Python, run as it is printed."""

import re
from pathlib import Path

import polars as pl
import pytest

from pipelines.datasets.synthetic import SyntheticConfig, generate

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_python_example_trains_evaluates_exports_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    generate(SyntheticConfig(rows=3_000, users=50, items=40), tmp_path / "clicks")
    rows = pl.read_parquet(tmp_path / "clicks" / "*.parquet").head(20)
    histories = pl.Series(
        "past", [["a"] * (row % 3) for row in range(20)], dtype=pl.List(pl.String)
    )
    rows.with_columns(histories).write_parquet(tmp_path / "rows.parquet")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(README), "exec"), {})
    scores = pl.read_parquet("scores.parquet")["clicked"]
    assert len(scores) == 20
    assert scores.is_between(0, 1, closed="none").all()
    assert (tmp_path / "runs" / "clicks" / "latest" / "report.html").exists()
