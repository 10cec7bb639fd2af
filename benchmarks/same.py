"""Compare the students that two versions of kd3 train, bit for bit: `make same`, or `make same REF=a-branch`.

A change that moves code and means to change nothing shows it by this: short runs of every method are made with the
sources of this checkout and with those of another commit, from the same teacher, pool, and seeds. Their weights,
selections, and recorded losses are compared. All runs of one version share a process, since it takes longer to start
than they do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
CLOCKS = ("seconds", "images_per_second")  # of an event: these differ from run to run
IMAGES = 160  # in the pool
COMMON = ["--images", "256", "--batch-size", "32", "--holdout", "40", "--device", "cpu", "--precision", "32", "--quiet"]
COMMON += ["--recall", "off"]  # recall takes ten times as long as such a run: one run has it
CHILD = """
import json, sys
from pathlib import Path
import kd3
from kd3.cli import main
assert Path(sys.argv[1]) in Path(kd3.__file__).parents, kd3.__file__
for command in json.loads(sys.argv[2]):
    if main(command):
        sys.exit(" ".join(command))
"""
RUNS = {
    "kd3": ["--recall", "auto"],
    "kd3, another seed": ["--seed", "1"],
    "kd3, random start, the teacher as it is": ["--init", "random", "--teacher-statistics", "lost"],
    "kd3, dynamic selection and contrast": ["--kd3.selection", "dynamic", "--kd3.contrastive", "mixdistribution"],
    "kd3, fixed views": ["--fixed-views", "2"],
    "simkd": ["--method", "simkd"],
    "kd": ["--method", "kd"],
    "dfnd": ["--method", "dfnd"],
}


def digests(run: Path) -> dict[str, str]:
    """Return digests of a run's outputs that do not depend on time."""
    found = {name.name: _digest(name.read_bytes()) for name in sorted((run / "selections").glob("*.npy"))}
    found["model.safetensors"] = _weights(run / "student" / "model.safetensors")
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in event.items() if name not in CLOCKS} for event in events]
    return {**found, "metrics.jsonl": _digest(json.dumps(kept, sort_keys=True).encode())}


def _weights(path: Path) -> str:
    # Not of the file: its metadata name the pool's folder.
    tensors = load_file(path)
    return _digest(b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors)))


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
    """Make every run with the kd3 in a folder of sources, in one process, and return the digests of each."""
    pool = ["--pool", str(work / "pool")]
    commands = [["ingest", str(material / "crawl"), "--out", str(work / "pool"), "--image-size", "32", "--quiet"]]
    for number, flags in enumerate(RUNS.values()):
        networks = ["--teacher", str(material / "teacher.yaml"), "--student", "kd3:resnet8"]
        commands.append(["distill", *networks, *pool, "--out", str(work / f"run{number}"), *COMMON, *flags])
    environment = {**os.environ, "PYTHONPATH": str(sources), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(sources), json.dumps(commands)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"a run of {sources} failed: {done.stdout}\n{done.stderr}")
    return {name: digests(work / f"run{number}") for number, name in enumerate(RUNS)}


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
            make_shards(material / "crawl", IMAGES)
            sources, works = (before / "src", ROOT / "src"), (work / "there", work / "here")
            with ThreadPoolExecutor(2) as both:
                there, here = both.map(trained_with, sources, (material, material), works)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", before], check=True)
    if found := differences(here, there):
        sys.exit(f"not the same as {ref}:\n  " + "\n  ".join(found))
    print(f"the same as {ref}, bit for bit: {len(RUNS)} runs")


if __name__ == "__main__":
    main()
