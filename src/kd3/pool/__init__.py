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
    from kd3.sources.finding import list_records

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
    "CHANGES": "kd3.pool.changes",
    "DecodeSettings": "kd3.pool.decode",
    "Decoded": "kd3.pool.decode",
    "ImagePool": "kd3.pool.image_pool",
    "Outcome": "kd3.pool.decoding",
    "Rejected": "kd3.pool.decode",
    "change_images": "kd3.pool.changes",
    "decode_records": "kd3.pool.decoding",
    "derive_pool": "kd3.pool.derive",
    "ingest": "kd3.pool.ingestion",
    "list_records": "kd3.sources.finding",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'kd3.pool' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
