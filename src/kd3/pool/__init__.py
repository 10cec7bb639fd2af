"""The pool: crawled files become equal-sized images in memory-mapped files.

Names are imported on first use: a decoding process needs only NumPy and Pillow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd3.pool.changes import CHANGES, change_images
    from kd3.pool.decode import Decoded, DecodeSettings, Rejected
    from kd3.pool.decoding import Outcome, decode_records
    from kd3.pool.derive import derive_pool
    from kd3.pool.image_pool import ImagePool
    from kd3.pool.ingestion import ingest
    from kd3.pool.sources import list_records

__all__ = [
    "CHANGES",
    "DecodeSettings",
    "Decoded",
    "ImagePool",
    "Outcome",
    "Rejected",
    "change_images",
    "decode_records",
    "derive_pool",
    "ingest",
    "list_records",
]

_PLACES = {
    "CHANGES": "changes",
    "DecodeSettings": "decode",
    "Decoded": "decode",
    "ImagePool": "image_pool",
    "Outcome": "decoding",
    "Rejected": "decode",
    "change_images": "changes",
    "decode_records": "decoding",
    "derive_pool": "derive",
    "ingest": "ingestion",
    "list_records": "sources",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'kd3.pool' has no attribute {name!r}")
    return getattr(import_module(f"kd3.pool.{_PLACES[name]}"), name)
