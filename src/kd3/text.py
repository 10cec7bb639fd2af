"""Escaping of external text: names, messages and values may hold terminal control sequences."""

from __future__ import annotations

import re

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
