"""The pool: from a heap of crawled files to equal-sized images in one memory-mapped place.

Names are imported when first used: a decoding process needs NumPy and Pillow, not all the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd3.pool.decode import Decoded, DecodeSettings, Rejected
    from kd3.pool.decoding import Outcome, decode_records
    from kd3.pool.image_pool import ImagePool
    from kd3.pool.ingestion import ingest
    from kd3.pool.sources import list_records

__all__ = [
    "DecodeSettings",
    "Decoded",
    "ImagePool",
    "Outcome",
    "Rejected",
    "decode_records",
    "ingest",
    "list_records",
]

_PLACES = {
    "DecodeSettings": "decode",
    "Decoded": "decode",
    "ImagePool": "image_pool",
    "Outcome": "decoding",
    "Rejected": "decode",
    "decode_records": "decoding",
    "ingest": "ingestion",
    "list_records": "sources",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'kd3.pool' has no attribute {name!r}")
    return getattr(import_module(f"kd3.pool.{_PLACES[name]}"), name)
