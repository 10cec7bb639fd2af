"""External text made safe to show, in a terminal and in Markdown: names and values may hold commands of either."""

from __future__ import annotations

import re
from collections.abc import Sequence

# C0 but tab and newline, DEL, C1, directional marks and other invisible characters, Unicode line separators, and lone
# surrogates, which no encoding can write.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]"
)
_BREAKS = re.compile(r"\s*\n\s*")


def clean(text: str) -> str:
    """Return lines of text with escapes for invisible and control characters.

    >>> clean("a\\x1b[2Jb\\u202ec")
    'a\\\\x1b[2Jb\\\\u202ec'
    """
    return _UNSEEN.sub(_escaped, text)


def one_line(text: str) -> str:
    """Return `clean` text as one line: a name with a line break in it must not look like two.

    >>> one_line("cat\\n\\tkd3: all is well")
    'cat kd3: all is well'
    """
    return clean(_BREAKS.sub(" ", text).replace("\t", " "))


def clean_json(text: str) -> str:
    """Return equivalent JSON, with JSON's own escapes for the characters that `clean` escapes."""
    return _UNSEEN.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)


def _escaped(sign: re.Match[str]) -> str:
    code = ord(sign[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


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


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of plain text, indented: the first column to the left, the others to the right.

    >>> aligned([["", "images"], ["cat", "7"]])
    ['       images', '  cat       7']
    """
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join(
            [f"  {name:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))]
        ).rstrip()
        for name, *cells in rows
    ]


def first_of(names: Sequence[object], most: int) -> str:
    """Return the first of some names, and dots where there are more.

    >>> first_of(["a", "b", "c"], 2)
    'a, b, ...'
    """
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


def _spelled(start: str) -> str:
    return f"\\{start}" if not start.isdigit() else f"&#{ord(start[0])};{start[1:]}"
