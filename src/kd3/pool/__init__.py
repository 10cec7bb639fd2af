"""The pool: from a heap of crawled files to equal-sized images in one memory-mapped place."""

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
