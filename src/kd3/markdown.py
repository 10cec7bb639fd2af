"""Markdown from external values, which always stay text on the page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kd3.text import one_line

# What begins markup or HTML anywhere in a line. ":" is none: "kd3:resnet20" stays as it is.
_MARKUP = re.compile(r"([\\`*_\[\]|~#!])")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
# Lists, rulers and underlined headings; "71.5" and "-0.3" are none.
_AT_THE_START = re.compile(r"^(\s*)([-+](?=\s|$)|[-=](?=[-=]*\s*$)|\d+(?=[.)](?:\s|$)))")


def escaped(text: object) -> str:
    """Return a value as text that Markdown and HTML show as it is, in one line.

    >>> escaped("<script>a|b</script> *c*")
    '&lt;script&gt;a\\\\|b&lt;/script&gt; \\\\*c\\\\*'
    """
    plain = _MARKUP.sub(r"\\\1", one_line(str(text)).translate(_HTML))
    return _AT_THE_START.sub(lambda start: f"{start[1]}{_spelled(start[2])}", plain)


def code(text: object) -> str:
    """Return a value as code within a line."""
    plain = one_line(str(text))
    if "`" in plain or "|" in plain:  # which would end the code, or the cell that it stands in
        return escaped(plain)
    return f"`{plain}`" if plain else ""


def table(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """Return a table of cells that are Markdown already: the first row is its head.

    `numbers`: all columns but the first stand to the right.
    """
    rules = ["---", *(["---:" if numbers else "---"] * (len(rows[0]) - 1))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rules, *rows[1:]])


def _spelled(start: str) -> str:
    return f"\\{start}" if not start.isdigit() else f"&#{ord(start[0])};{start[1:]}"
