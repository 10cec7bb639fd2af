"""Markdown from external values, which always stay text on the page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kd3.text import one_line

# Characters that begin markup or HTML anywhere in a line. ":" does not: "kd3:resnet20" stays as it is.
_MARKUP = re.compile(r"([\\`*_\[\]|~#!])")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
# Lists, rulers and underlined headings; not "71.5" or "-0.3".
_AT_THE_START = re.compile(r"^(\s*)([-+](?=\s|$)|[-=](?=[-=]*\s*$)|\d+(?=[.)](?:\s|$)))")


def escaped(text: object) -> str:
    """Return a value as one line of text that Markdown and HTML show literally.

    >>> escaped("<script>a|b</script> *c*")
    '&lt;script&gt;a\\\\|b&lt;/script&gt; \\\\*c\\\\*'
    """
    plain = _MARKUP.sub(r"\\\1", one_line(str(text)).translate(_HTML))
    return _AT_THE_START.sub(lambda start: f"{start[1]}{_spelled(start[2])}", plain)


def code(text: object) -> str:
    """Return a value as code within a line."""
    plain = one_line(str(text))
    if "`" in plain or "|" in plain:  # either would end the code or its table cell
        return escaped(plain)
    return f"`{plain}`" if plain else ""


def table(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """Return a Markdown table. The cells are Markdown already; the first row is the header.

    `numbers`: all columns but the first are right-aligned.
    """
    rules = ["---", *(["---:" if numbers else "---"] * (len(rows[0]) - 1))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rules, *rows[1:]])


def _spelled(start: str) -> str:
    return f"\\{start}" if not start.isdigit() else f"&#{ord(start[0])};{start[1:]}"
