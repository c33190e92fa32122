"""A run's results as files: `report.json` for programs, `report.html` for people."""

from pathlib import Path

from feature_store.document import write_json, write_text
from recsys.evaluation.page import page
from recsys.evaluation.results import Report

JSON_FILE = "report.json"
HTML_FILE = "report.html"


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write both files, each whole or not at all; report.json comes last.

    Returns:
        Paths of report.json and report.html.
    """
    html_path, json_path = folder / HTML_FILE, folder / JSON_FILE
    write_text(page(report), html_path)
    write_json(report.document(), json_path)
    return json_path, html_path
