"""Calls of kd3 to an accelerator, case by case, run by `test_pretended_device.py` in a separate process.

python scenarios.py FOLDER CASE...
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pretended_device
import torch
from pretended_device import WATCH

import kd3
from kd3.config.distill import preset_values
from kd3.config.methods import METHODS
from kd3.config.training import TrainSettings
from kd3.methods import Parts, build_method
from kd3.models.libraries.zoo import build_by_name
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.runtime.compute import Compute
from kd3.scoring import scan
from kd3.scoring.batches import PoolBatches
from kd3.scoring.scan import LatestPredictions, PoolScan
from kd3.scoring.views import fixed_views
from kd3.training.learner import Learner
from kd3.training.optimizer import hold_rates

torch.set_num_threads(1)
warnings.simplefilter("ignore")
SIDE, BATCH, IMAGES = 16, 4, 600
CUDA = torch.device("cuda", 0)
PAPER = preset_values("paper")
STEPS = {
    "kd3": ("kd3", {}, {}),
    "kd3 sgd": ("kd3", {}, {"optimizer": "sgd"}),
    "kd3 paper": ("kd3", PAPER["kd3"], PAPER["train"]),
    "kd3 training": ("kd3", {"selection": "dynamic", "scoring": "training"}, {}),
    "kd3 resized-crop": ("kd3", {}, {"augmentation": "resized-crop"}),
    "kd3 none": ("kd3", {}, {"augmentation": "none"}),
    "kd3 mixup": ("kd3", {}, {"mixup": 1.0}),
    "kd3 fixed views": ("kd3", {}, {"fixed_views": 2}),
    "kd": ("kd", {}, {}),
    "dfnd": ("dfnd", {}, {}),
    "simkd": ("simkd", {}, {}),
    "labels": ("labels", {}, {}),
}


def learner_of(case, folder, device=CUDA, *, pair=("resnet8", "resnet8"), precision="bf16", fold=False, **more):
    """Return a learner, as `Fit` would make it, and the pool."""
    method_name, options, settings = STEPS[case]
    torch.manual_seed(0)
    teacher = Teacher(build_by_name(pair[0], num_classes=5), mean=[0.5] * 3, std=[0.25] * 3, input_size=SIDE)
    backbone, sample = build_by_name(pair[1], num_classes=5), torch.randn(4, 3, SIDE, SIDE)
    made = METHODS[method_name].options(**options)
    method = build_method(method_name, made, Parts(teacher, backbone, pair[1], sample))
    if fold:
        method.learn_from(teacher.folded())
    values = TrainSettings(
        **{**({} if "epochs" in settings else {"images": 6400}), **settings, "batch_size": BATCH, **more}
    )
    compute = Compute(device, precision)
    pool = ImagePool.open(folder / "pool")
    compute.place(method.teacher)
    fixed = fixed_views(values, method.teacher, pool, compute)
    labels = torch.zeros(IMAGES, dtype=torch.int64) if method.needs_labels else None
    learner = Learner(method, values, seed=0, total_steps=100, compute=compute, fixed=fixed, labels=labels)
    method.train()
    if method_name == "kd3":
        method.alpha.fill_(0.5)
    return learner, pool


def steps(learner, pool, numbers):
    """Take steps on images that the device holds; return the losses."""
    places = torch.arange(BATCH)
    images = torch.from_numpy(pool.read(places.numpy())).pin_memory().to(learner.compute.device, non_blocking=True)
    found = []
    for number in numbers:
        WATCH.part = "augment"
        found.append(learner.step(number, images, places))
    return found


def counted(case, folder, **more):
    """Return the device's calls in a later step."""
    learner, pool = learner_of(case, folder, cuda_graph="off", **more)
    steps(learner, pool, range(2))
    WATCH.clear()
    steps(learner, pool, [2])
    return {"operations": dict(WATCH.operations), "waits": dict(WATCH.waits)}


def recorded(case, folder):
    """Return the device's calls in a recorded step, and the distance of its student from that of plain steps."""
    learner, pool = learner_of(case, folder, precision="32")
    first = steps(learner, pool, range(5))
    WATCH.clear()
    last = steps(learner, pool, [5])
    said = {"operations": dict(WATCH.operations), "waits": dict(WATCH.waits)}
    plain, pool = learner_of(case, folder, precision="32", cuda_graph="off")
    hold_rates(plain.optimizer, CUDA)
    others = steps(plain, pool, range(6))
    pairs = zip(learner.method.state_dict().values(), plain.method.state_dict().values(), strict=True)
    return {
        **said,
        "recorded": learner._graph.is_recorded,
        "losses": [float(result.loss) for result in first + last],
        "plain losses": [float(result.loss) for result in others],
        "same": all(torch.equal(one.cpu(), other.cpu()) for one, other in pairs),
    }


def scanned(folder):
    """Return the device's calls in a later scan of the pool by the blend, in six batches."""
    learner, pool = learner_of("kd3", folder)
    compute, positions = learner.compute, np.arange(IMAGES)
    scan.SCAN_BATCH = scan.DEVICE_SCAN_BATCH = IMAGES // 6
    logits = np.zeros((IMAGES, 5), dtype=np.float32)
    latest = LatestPredictions(IMAGES, 5, CUDA)
    student, batches = learner.method.student, PoolBatches(pool, compute)
    looked = PoolScan(student, batches, positions, lambda: logits, compute, latest)
    looked.predictions(0.5)
    WATCH.clear()
    WATCH.part = "scan"
    looked.predictions(0.5)
    return {"operations": dict(WATCH.operations), "waits": dict(WATCH.waits)}


def runs(folder, *, number, student="kd3:resnet8", **settings):
    """Return the final states of two whole runs, on the device and on the CPU."""
    told = {}
    for device in ("cuda", "cpu"):
        WATCH.clear()
        done = kd3.distill(
            folder / "teacher.yaml", student, folder / "pool", folder / f"run-{device}-{number}", images=64,
            batch_size=8, holdout=20, device=device, precision="32", quiet=True, **settings,
        )  # fmt: skip
        weights = torch.cat([value.flatten().float() for value in done.student.state_dict().values()])
        told[device] = {"agreement": done.agreement, "weights": weights, "waits": sum(WATCH.waits.values())}
    far = (told["cuda"].pop("weights") - told["cpu"].pop("weights")).abs().max()
    return {**told, "difference": float(far)}


def waited(folder):
    """Return the waits of whole runs of 40 and of 120 steps, by the file that waits."""
    waits = {}
    for steps in (40, 120):
        WATCH.clear()
        kd3.distill(
            folder / "teacher.yaml", "kd3:resnet8", folder / "pool", folder / f"waits-{steps}", images=4 * steps,
            batch_size=4, holdout=20, evals=2, device="cuda", precision="32", quiet=True, recall="off",
            teacher_statistics="lost",
        )  # fmt: skip
        found = Counter()
        for place, count in WATCH.waits.items():
            found[place.partition(" at ")[2].partition(" < ")[0].partition(":")[0]] += count
        waits[steps] = found
    return waits


def evaluated(folder, number):
    """Return the accuracy on labelled images, on both."""
    return {
        device: kd3.evaluate(folder / f"run-cpu-{number}", folder / "labelled", device=device, quiet=True).top1
        for device in ("cuda", "cpu")
    }


def chosen(folder):
    """Return the batch that `auto` is on the device and on the CPU, and with too little memory for a larger one."""

    def batch(device):
        planned = kd3.distill(
            folder / "teacher.yaml", "kd3:resnet8", folder / "pool", folder / "auto", images=60_000, dry_run=True,
            batch_size="auto", holdout=20, device=device, quiet=True,
        )  # fmt: skip
        return planned.to_dict()["budget"]["batch_size"]

    sizes = {device: batch(device) for device in ("cuda", "cpu")}
    torch.cuda.mem_get_info = lambda device=None: (4 << 20, 64 << 30)
    return {**sizes, "little memory": batch("cuda")}


def make(folder):
    """Make a pool and a teacher."""
    draw = np.random.default_rng(0)
    from PIL import Image

    (folder / "crawl").mkdir()
    for number in range(IMAGES):
        pixels = draw.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((SIDE, SIDE)).save(folder / "crawl" / f"{number:03d}.png")
    kd3.ingest(folder / "crawl", folder / "pool", image_size=SIDE, workers=0, quiet=True)
    torch.manual_seed(3)
    network = build_by_name("resnet8", num_classes=3)
    network.linear.weight.data *= 20
    torch.save(network.state_dict(), folder / "weights.pt")
    (folder / "teacher.yaml").write_text(
        f"{{arch: 'kd3:resnet8', weights: weights.pt, num_classes: 3, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25], "
        f"input_size: {SIDE}, classes: [cat, dog, ship]}}"
    )
    for name in ("cat", "dog", "ship"):
        (folder / "labelled" / name).mkdir(parents=True)
        for number in range(4):
            pixels = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "labelled" / name / f"{number}.png")


def main():
    """Run the cases and print the results, a line of JSON each."""
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    if not (folder / "pool").is_dir():
        make(folder)
    with pretended_device.pretended_device():
        for number, case in enumerate(cases):
            kind, _, name = case.partition(": ")
            try:
                if kind == "step":
                    said = counted(name, folder)
                elif kind == "pair":
                    first, second, *fold = name.split(" ")
                    said = counted("kd3", folder, pair=(first, second), fold=bool(fold))
                elif kind == "auto":
                    said = chosen(folder)
                elif kind == "scan":
                    said = scanned(folder)
                elif kind == "waits":
                    said = waited(folder)
                elif kind == "graph":
                    said = recorded(name, folder)
                else:
                    ended = runs(folder, number=number, **json.loads(name))
                    said = {**ended, "evaluation": evaluated(folder, number)}
            except Exception as problem:
                said = {"failed": f"{type(problem).__name__}: {problem}", "trace": traceback.format_exc()}
            print(json.dumps({case: said}), flush=True)


if __name__ == "__main__":
    main()
