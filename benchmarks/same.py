"""Do two versions of kd3 train the same students, bit for bit? `make same`, or `make same REF=a-branch`.

A change that moves code and means to change nothing shows it by this: short runs of every method are made with the
sources of this checkout and with those of another commit, from the same teacher, pool, and seeds. Their weights,
selections, and recorded losses are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLOCKS = ("seconds", "images_per_second")  # of an event: these differ from run to run
COMMON = ["--images", "512", "--batch-size", "32", "--holdout", "40", "--device", "cpu", "--precision", "32", "--quiet"]
RUNS = {
    "kd3": [],
    "kd3, another seed": ["--seed", "1"],
    "kd3, random start, the teacher as it is": ["--init", "random", "--teacher-statistics", "lost", "--recall", "off"],
    "kd3, dynamic selection and contrast": ["--kd3.selection", "dynamic", "--kd3.contrastive", "mixdistribution"],
    "kd3, fixed views": ["--fixed-views", "2"],
    "simkd": ["--method", "simkd"],
    "kd": ["--method", "kd"],
    "dfnd": ["--method", "dfnd"],
}


def digests(run: Path) -> dict[str, str]:
    """Return digests of a run's outputs that do not depend on time."""
    found = {name.name: _digest(name.read_bytes()) for name in sorted((run / "selections").glob("*.npy"))}
    found["model.safetensors"] = _digest((run / "student" / "model.safetensors").read_bytes())
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in event.items() if name not in CLOCKS} for event in events]
    return {**found, "metrics.jsonl": _digest(json.dumps(kept, sort_keys=True).encode())}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def differences(here: dict[str, dict[str, str]], there: dict[str, dict[str, str]]) -> list[str]:
    """Return a line for each run with different outputs, and name them."""
    lines = []
    for name in RUNS:
        mine, other = here[name], there[name]
        parts = [part for part in sorted({*mine, *other}) if mine.get(part) != other.get(part)]
        if parts:
            lines.append(f"{name}: {', '.join(parts)}")
    return lines


def trained_with(sources: Path, material: Path, work: Path) -> dict[str, dict[str, str]]:
    """Make every run with the kd3 in a folder of sources, and return the digests of each."""
    environment = {**os.environ, "PYTHONPATH": str(sources), "OMP_NUM_THREADS": "1"}
    found = {}
    for number, (name, flags) in enumerate(RUNS.items()):
        out = work / f"run{number}"
        command = [sys.executable, "-m", "kd3", "distill", "--teacher", str(material / "teacher.yaml")]
        command += ["--student", "kd3:resnet8", "--pool", str(work / "pool"), "--out", str(out), *COMMON, *flags]
        if number == 0:
            ingest = [sys.executable, "-m", "kd3", "ingest", str(material / "crawl"), "--out", str(work / "pool")]
            _run([*ingest, "--image-size", "32", "--quiet"], environment)
        _run(command, environment)
        found[name] = digests(out)
    return found


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"this run failed:\n  {' '.join(command)}\n{done.stderr}")


def main() -> None:
    """Compare this checkout with a commit; exit 1 where a student differs."""
    from benchmarks.material import make_shards, make_teacher

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ref", default="HEAD", help="commit to compare with (default: the last one)")
    ref = parser.parse_args().ref
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        before = work / "before"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", before, ref], check=True)
        try:
            material = work / "material"
            material.mkdir()
            make_teacher(material, "resnet14")
            make_shards(material / "crawl", 400)
            there = trained_with(before / "src", material, work / "there")
            here = trained_with(ROOT / "src", material, work / "here")
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", before], check=True)
    if found := differences(here, there):
        sys.exit(f"not the same as {ref}:\n  " + "\n  ".join(found))
    print(f"the same as {ref}, bit for bit: {len(RUNS)} runs")


if __name__ == "__main__":
    main()
