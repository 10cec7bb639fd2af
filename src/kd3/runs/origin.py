"""Origin of a run: versions, hardware, hashes."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kd3.version import __version__

PACKAGES = ("torch", "lightning-fabric", "numpy", "pillow")


def origin(**identities: str) -> dict[str, Any]:
    """Return versions and hardware of this process with the identities given."""
    return {
        "kd3": __version__,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        **identities,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            for line in handle:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
