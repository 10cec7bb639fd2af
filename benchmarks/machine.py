"""Description of the machine and software of a measurement."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import PIL
import torch

import kd3
from kd3.runtime.compute import Compute
from kd3.runtime.run_folder import origin


def machine(compute: Compute) -> dict[str, object]:
    """Return hardware, versions, commit, command and date."""
    hardware = origin()["machine"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "processor": hardware["processor"],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory, 1),
        "compute": str(compute),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        "load": round(os.getloadavg()[0], 2),
        "kd3": kd3.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    try:
        root = Path(__file__).parents[1]
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, timeout=10
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
