"""Memory measurement of a Python call in its own process, including child processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
POLL_SECONDS = 0.01


def watched(module: str, *arguments: str) -> dict[str, Any]:
    """Run `python -m module arguments...` and return the JSON that it prints last, with its peaks in MB.

    anonymous_mb: memory not backed by files, of the process only; resident_mb: everything, with its children.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    anonymous = resident = 0
    while process.poll() is None:
        anonymous = max(anonymous, _status(process.pid, "RssAnon"))
        resident = max(resident, sum(_status(pid, "VmRSS") for pid in [process.pid, *_children(process.pid)]))
        time.sleep(POLL_SECONDS)
    out, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {errors[-2000:]}")
    result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return {**result, "anonymous_mb": round(anonymous / 1e6, 2), "resident_mb": round(resident / 1e6, 1)}


def _status(pid: int, name: str) -> int:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith(name + ":")), 0)
    except OSError:
        return 0  # gone


def _children(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [grandchild for child in map(int, found) for grandchild in (child, *_children(child))]
