"""Names that users write: what they may look like, and the nearest one to a wrong one."""

import re
from difflib import get_close_matches

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""Names of features and labels: they name columns, files and tables."""


def nearest(name: str, known: list[str]) -> str:
    """The end of an error message: the known name nearest to a wrong one, or all of them."""
    close = get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(sorted(known)) or 'none'}"
