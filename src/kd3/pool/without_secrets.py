"""What may be written down of a URL: where the image is, not what opens the door."""

from __future__ import annotations

import re

HIDDEN = "***"
_URL = re.compile(r"[a-zA-Z][\w+.-]+://[^\s'\"<>]+")
_USER = re.compile(r"(?<=://)[^/?#\s@]+@")
# AWS, Google and Azure signatures, and what people call their keys.
_SECRET = re.compile(
    r"(?<=[?&;])(?P<name>[\w.%-]*(?:signature|credential|token|secret|passw|passwd|pwd|auth|api_?key|access_?key|"
    r"accessid|policy|key-pair-id)[\w.%-]*|sig|key)=[^&;#\s]*",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """Return a URL, or a text with URLs in it, with names, passwords, keys and signatures hidden.

    >>> without_secrets("https://me:pw@host/a.jpg?w=2&X-Amz-Signature=abc")
    'https://***@host/a.jpg?w=2&X-Amz-Signature=***'
    """
    return _URL.sub(_hidden, text) if "://" in text else text


def _hidden(url: re.Match[str]) -> str:
    return _SECRET.sub(rf"\g<name>={HIDDEN}", _USER.sub(f"{HIDDEN}@", url[0]))
