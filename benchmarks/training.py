"""Groups `step`, `scoring`, `epoch` and `evaluation`: from the pool to the student."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import kd3
from benchmarks.alternate import alternate
from benchmarks.bounds import bare_scoring, bare_step, counted
from benchmarks.context import Context
from benchmarks.material import SIZE
from benchmarks.reference import Reference, Transformed, loader
from kd3.config.distill import DistillConfig, layered
from kd3.config.methods import KD3Options
from kd3.config.training import TrainSettings
from kd3.evaluation.labelled import LabelledImages
from kd3.methods import Method, Parts, build_method
from kd3.models.arch import build_arch
from kd3.scoring.batches import PoolBatches
from kd3.scoring.scan import SCAN_BATCH, LatestPredictions, PoolScan
from kd3.scoring.teacher_cache import teacher_logits
from kd3.scoring.views import fixed_views
from kd3.selection import Predictions
from kd3.training.learner import Learner

TRAINED_ON = 0.7  # of the pool per round, as in the standard run
VIEWS, KEPT_BATCHES = 2, 20


def step(context: Context) -> dict[str, Any]:
    """Training images a second: the common way, the paper's recipe and the default in kd3, and their bounds."""
    pool, compute = context.pool, context.compute
    paper, default = _method(context, paper_options()), _method(context, KD3Options())
    settings = {
        "paper": _paper().train.model_copy(update={"batch_size": context.pair.batch}),
        "default": TrainSettings(),
    }
    flops: dict[str, float] = {}  # of an image, both networks, forward and backward
    batch, common = context.pair.batch, reference(context)
    with torch.random.fork_rng():
        batches = _endless(context)
        sides: dict[str, tuple[Callable[[], object], int]] = {"reference": (lambda: common.step(next(batches)), batch)}
        for name, method in (("paper", paper), ("default", default)):
            learner = Learner(method, settings[name], seed=0, total_steps=10**6, compute=compute)
            views = 2 if name == "paper" else 1
            sides[f"kd3, {name}"] = (_steps(learner, pool, batch), batch)
            bare = _method(context, paper_options() if views == 2 else KD3Options())
            compute.place(bare)
            bound = bare_step(bare, compute, batch=batch, size=pool.image_size, views=views)
            sides[f"bound, {name}"] = (bound, batch)
            flops[name] = counted(bound) / batch
        sides["kd3, paper, teacher compiled"] = (_compiled(context, settings["paper"]), batch)
        sides["kd3, default, views kept"] = (_on_kept_views(context), batch)
        rates = alternate(sides, rounds=context.rounds, seconds=context.seconds)
    table = {name: rate.to_dict() for name, rate in rates.items()}
    for name, row in table.items():
        recipe = name.rpartition(", ")[2]
        if recipe in flops:
            row["tflops"] = round(flops[recipe] * row["median"] / 1e12, 3)
    return table


def scoring(context: Context) -> dict[str, Any]:
    """Images a second over a pool: both networks the common way, kd3's first and later passes, the bare forward."""
    compute = context.compute
    pool = kd3.ingest([str(s) for s in context.material.shards[:4]], context.work / "scored", image_size=SIZE)
    common, method = reference(context), _method(context, KD3Options())
    teacher, student = method.teacher, method.student
    compute.place(method)
    compute.place(teacher)
    batches, latest = PoolBatches(pool, compute), LatestPredictions(len(pool), teacher.num_classes, compute.device)

    kept_logits = partial(teacher_logits, teacher, batches, compute)

    def predict() -> object:
        scan = PoolScan(student, batches, np.arange(len(pool)), cache(kept_logits), compute, latest)
        return scan.predictions(0.5)

    def predict_first() -> object:
        shutil.rmtree(context.work / "scored" / "teacher_logits", ignore_errors=True)
        return predict()

    predict()
    latest.round += 1
    trained_on = torch.randperm(len(pool))[: int(TRAINED_ON * len(pool))]
    latest.note(trained_on, Predictions(latest.confidence[trained_on], latest.label[trained_on], latest.num_classes))
    seen = latest.seen.clone()

    def predict_rest() -> object:
        latest.seen.copy_(seen)
        scan = PoolScan(student, batches, np.arange(len(pool)), cache(kept_logits), compute, latest)
        return scan.latest_predictions(0.5, refreshed=KD3Options().refreshed)

    fed = _endless(context)
    sides: dict[str, tuple[Callable[[], object], int]] = {
        "reference": (lambda: common.score(next(fed), 0.5), context.pair.batch),
        "kd3, first (teacher and student)": (predict_first, len(pool)),
        "kd3, later (student)": (predict, len(pool)),
        "kd3, later, --kd3.scoring training": (predict_rest, len(pool)),
        "bound, student forward": (bare_scoring(student, compute, batch=SCAN_BATCH, size=pool.image_size), SCAN_BATCH),
    }
    with torch.random.fork_rng():
        rates = alternate(sides, rounds=context.rounds, seconds=context.seconds)
    return {name: rate.to_dict() for name, rate in rates.items()}


def epoch(context: Context) -> dict[str, Any]:
    """A whole epoch with its selection in a real run, beside bare steps before and after it."""
    compute, pool = context.compute, context.pool
    dynamic = {"selection": "dynamic"}
    method = _method(context, KD3Options(**dynamic))
    compute.place(method)
    compute.place(method.teacher)
    bare = bare_step(method, compute, batch=context.pair.batch, size=pool.image_size, views=1)
    forward = bare_scoring(method.student, compute, batch=SCAN_BATCH, size=pool.image_size)
    teacher_logits(method.teacher, PoolBatches(pool, compute), compute)  # the first scoring is another group's
    epochs: list[dict[str, float]] = []
    for number in range(1 if context.quick else 2):
        before = _bounds(bare, forward, context)
        out = context.work / f"epoch{number}"
        images = int(len(pool) * (1.2 if context.quick else 1.7))
        options: dict[str, Any] = {"device": str(compute.device), "precision": compute.precision, "kd3": dynamic}
        options["batch_size"] = context.pair.batch
        teacher, name = context.material.teacher, f"kd3:{context.pair.student}"
        kd3.distill(teacher, name, pool, out, images=images, seed=number, **options)
        after = _bounds(bare, forward, context)
        bound = {name: (before[name] + after[name]) / 2 for name in before}
        epochs += list(_epochs(out, bound))
    ratio = {name: float(np.median([e[name] for e in epochs])) for name in ("steps_bound", "whole_bound")}
    return {"epochs": epochs, "median": ratio}


def _epochs(run: Path, bound: dict[str, float]) -> Iterator[dict[str, float]]:
    """Yield each epoch between two selections: its seconds, and the bound's share of them."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    selections = [e for e in events if e["event"] == "selection"]
    for before, after in itertools.pairwise(selections):
        seconds = after["seconds"] - before["seconds"]
        images = after["images"] - before["images"]
        steps = images / bound["step"]
        yield {
            "images": images,
            "kept": before["kept"],
            "seconds": seconds,
            "steps_bound": steps / seconds,
            "whole_bound": (steps + after["of"] / bound["forward"]) / seconds,
        }


def _bounds(bare: Callable[[], None], forward: Callable[[], None], context: Context) -> dict[str, float]:
    rates = alternate(
        {"step": (bare, context.pair.batch), "forward": (forward, SCAN_BATCH)}, rounds=2, seconds=2 * context.seconds
    )
    return {name: rate.median for name, rate in rates.items()}


def evaluation(context: Context) -> dict[str, Any]:
    """Labelled images a second, decoded already, beside the bare forward of the same student."""
    folder = context.work / "labelled"
    _write_labelled(context, folder)
    method = _method(context, KD3Options())
    context.compute.place(method)
    student = method.student
    names = student.classes
    data = LabelledImages(str(folder), preparation=student.preparation, class_names=names)
    sides: dict[str, tuple[Callable[[], object], int]] = {
        "kd3, evaluate": (lambda: data.accuracy(student, context.compute), len(data.records)),
        "bound, student forward": (
            bare_scoring(student, context.compute, batch=SCAN_BATCH, size=student.input_size),
            SCAN_BATCH,
        ),
    }
    rates = alternate(sides, rounds=context.rounds, seconds=context.seconds)
    return {name: rate.to_dict() for name, rate in rates.items()}


def reference(context: Context) -> Reference:
    """Return the common way's networks, with an untrained student."""
    teacher = kd3.load_teacher(context.material.teacher)
    student = _method(context, paper_options()).student
    return Reference(teacher.module, teacher.shared_head(), student).to(context.compute.device)


def paper_options() -> KD3Options:
    """Return the options of the paper's recipe."""
    return _paper().kd3


def _paper() -> DistillConfig:
    names = {"teacher": "-", "student": "-", "pool": "-", "out": "-"}
    return layered(names, config=None, preset="paper", where="benchmarks")


def _method(context: Context, options: KD3Options) -> Method:
    torch.manual_seed(0)
    teacher = kd3.load_teacher(context.material.teacher)
    name = f"kd3:{context.pair.student}"
    backbone = build_arch(name, num_classes=teacher.num_classes)
    sample = teacher.normalise(torch.from_numpy(context.pool.read(np.arange(64))))
    return build_method("kd3", options, Parts(teacher, backbone, name, sample))


def _compiled(context: Context, settings: TrainSettings) -> Callable[[], object]:
    """Return the paper's steps with --compile-teacher."""
    method = _method(context, paper_options())
    compiled = settings.model_copy(update={"compile_teacher": True, "fold_batch_norms": True})
    method.learn_from(method.teacher.folded())
    learner = Learner(method, compiled, seed=0, total_steps=10**6, compute=context.compute)
    return _steps(learner, context.pool, context.pair.batch)


def _on_kept_views(context: Context) -> Callable[[], object]:
    """Return the default's steps with --fixed-views 2 on images with stored features."""
    method, compute, pool = _method(context, KD3Options()), context.compute, context.pool
    settings = TrainSettings(fixed_views=VIEWS)
    compute.place(method)
    compute.place(method.teacher)
    fixed = fixed_views(settings, method.teacher, pool, compute)
    assert fixed is not None
    views, kept = fixed
    assert kept is not None
    batch = context.pair.batch
    chosen = np.random.default_rng(0).permutation(len(pool))[: KEPT_BATCHES * batch]
    for positions in torch.split(torch.from_numpy(chosen), batch):
        for view in range(VIEWS):
            rows = positions * VIEWS + view
            images = views.of(torch.from_numpy(pool.read(positions.numpy())).to(compute.device), rows)
            kept.outputs(rows, method.teacher.normalise(images))
    learner = Learner(method, settings, seed=0, total_steps=10**6, compute=compute, fixed=fixed)
    return _steps(learner, pool, batch, chosen)


def _steps(learner: Learner, pool: kd3.ImagePool, batch: int, order: np.ndarray | None = None) -> Callable[[], object]:
    """Return a call that takes the next step on the next images of the pool, as in a run."""
    order = np.random.default_rng(0).permutation(len(pool)) if order is None else order
    order = order[: len(order) // batch * batch]
    batches = PoolBatches(pool, learner.compute)
    positions = itertools.cycle(torch.split(torch.from_numpy(order), batch))

    def images() -> Iterator[Tensor]:
        while True:
            yield from batches.iterate(order, batch)

    fed, numbers = images(), itertools.count()
    return lambda: learner.step(next(numbers), next(fed), next(positions))


def _endless(context: Context) -> Iterator[Tensor]:
    """Yield the common way's batches endlessly."""
    teacher = kd3.load_teacher(context.material.teacher)
    dataset = Transformed(context.pool, teacher.normalise.mean, teacher.normalise.std)
    while True:
        for images in loader(dataset, context.pair.batch):
            yield images.to(context.compute.device)


def _write_labelled(context: Context, folder: Path) -> None:
    from PIL import Image

    count = min(len(context.pool), 2048)
    for position in range(count):
        place = folder / str(position % 10)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(context.pool[position].transpose(1, 2, 0)).save(place / f"{position}.png")
