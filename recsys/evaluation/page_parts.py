"""What every page is made of: boxes for figures, tables, notes, and the file around them.

Plotly is inlined, and a content security policy forbids the page any request. All text that comes
from data or configuration is escaped.
"""

from collections.abc import Iterable
from html import escape

from plotly.offline import get_plotlyjs

from feature_store.document import to_text
from recsys.evaluation import plots
from recsys.evaluation.page_style import SCRIPT, STYLE

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


class Figures:
    """The page's figures by element id, collected while its sections are written."""

    def __init__(self) -> None:
        self.by_id: dict[str, plots.Figure] = {}

    def place(self, title: str, figure: plots.Figure, note: str = "") -> str:
        """A titled box for the figure."""
        name = f"plot{len(self.by_id)}"
        self.by_id[name] = figure
        height = figure["layout"]["height"]
        return (
            f"<figure><figcaption>{escape(title)}</figcaption>{note_line(note)}"
            f'<div id="{name}" class="plot" style="height:{height}px"></div></figure>'
        )


def whole_page(title: str, sections: Iterable[str], figures: Figures) -> str:
    """Sections as one file that needs nothing else."""
    # "<" inside a script could end it: any name or value may hold "</script>".
    data = to_text({"figures": figures.by_id}, indent=None).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main>"
        f'<script type="application/json" id="figures">{data}</script>'
        f"<script>{get_plotlyjs()}</script><script>{SCRIPT}</script></body></html>\n"
    )


def table_of_rows(
    head: tuple[str, ...],
    rows: Iterable[tuple[str, ...]],
    hints: list[str] | None = None,
    *,
    name: str = "",
) -> str:
    """A table; numbers are aligned by the style, the first column names the row."""
    cells = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    lines = []
    for place, (first, *others) in enumerate(rows):
        hint = f"<small>{escape(hints[place])}</small>" if hints else ""
        values = "".join(f"<td>{escape(text)}</td>" for text in others)
        lines.append(f'<tr><th scope="row">{escape(first)}{hint}</th>{values}</tr>')
    top = f"<thead><tr>{cells}</tr></thead>" if any(head) else ""
    body = f"<tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="{name}">{top}{body}</table></div>'


def details(title: str, body: str) -> str:
    """Something to be unfolded."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def note_line(text: str) -> str:
    """A line in small print; nothing for no text."""
    return f'<p class="note">{escape(text)}</p>' if text else ""


def size_text(size_bytes: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:,.0f} {unit}" if unit == "B" else f"{size_bytes:,.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.1f} TiB"
