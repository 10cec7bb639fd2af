"""Picture formats that Pillow reads only with a plug-in: recognised by their first bytes, read if it is installed."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from PIL import Image


class Plugin(NamedTuple):
    """Plug-in for a kind of pictures."""

    name: str  # of the kind, as Pillow has it once it can read it
    module: str
    register: str  # function of the module that makes it known to Pillow; empty: importing it does
    package: str


PLUGINS = {
    "HEIC": Plugin("HEIF", "pillow_heif", "register_heif_opener", "pillow-heif"),
    "AVIF": Plugin("AVIF", "pillow_avif", "", "pillow-avif-plugin"),  # Pillow from 11.3 on reads it itself, as a rule
    "JPEG XL": Plugin("JXL", "pillow_jxl", "", "pillow-jxl-plugin"),
}
JPEG_XL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def kind_of_plugin(data: bytes) -> str | None:
    """Return which of `PLUGINS` a file that Pillow does not know needs, None for any other file."""
    kind = _kind(data)
    return None if kind is None or PLUGINS[kind].name in Image.OPEN else kind


def _kind(data: bytes) -> str | None:
    if data.startswith(JPEG_XL_STARTS):
        return "JPEG XL"
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[place : place + 4] for place in (8, *range(16, end, 4))}  # between them stands a version
    if brands & AVIF_BRANDS:
        return "AVIF"
    return "HEIC" if brands & HEIC_BRANDS else None


def plug_in(kind: str) -> bool:
    """Make Pillow read a kind of pictures; return whether that worked."""
    plugin = PLUGINS[kind]
    try:
        found = importlib.import_module(plugin.module)
        if plugin.register:
            getattr(found, plugin.register)()
    except Exception:  # missing, or built for another Pillow
        return False
    return True


def what_to_install(kind: str) -> str:
    """Return the installation advice for such pictures."""
    return f"{kind}, which Pillow reads with a plug-in: pip install {PLUGINS[kind].package}"
