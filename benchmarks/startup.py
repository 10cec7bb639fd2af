"""Group `startup`: start-up times of the command line."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.context import Context

CHECK = """
import atexit, sys
sys.argv[0] = "kd3"
atexit.register(lambda: print("torch" in sys.modules))
from kd3.cli import main
raise SystemExit(main())
"""


def startup(context: Context) -> dict[str, Any]:
    """Return the seconds of `kd3 --help` and of an error about an argument, and whether torch was imported."""
    return {"kd3 --help": _timed("--help"), "an argument's error": _timed("distill", "--lr", "much")}


def _timed(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "kd3", *words]
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True)
        seconds.append(time.perf_counter() - start)
    looked = subprocess.run([sys.executable, "-c", CHECK, *words], capture_output=True, text=True)
    return {"seconds": round(statistics.median(seconds[1:]), 3), "torch": looked.stdout.strip().endswith("True")}
