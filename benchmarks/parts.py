"""Gain of each optimisation by itself: `python -m benchmarks.parts`, about two minutes on two idle cores.

Each group compares ways of computing the same thing, in turn, several times; the median of the
rounds is printed in images per second, with the slowest and fastest round.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import kd3
from kd3.models.arch import build_arch
from kd3.models.fold import fold, foldable
from kd3.runtime.compute import Compute, resolve

SIZE, BATCH, SCAN_BATCH, ROUNDS, SECONDS = 32, 128, 256, 5, 1.0


def main() -> None:
    """Print the table."""
    compute = resolve("auto", "auto")
    where = f"{compute}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"ResNet-56 -> ResNet-20, {SIZE} x {SIZE}, {where}")
    for title, ways in (
        ("teacher forward, batch 128", teacher_ways(compute)),
        ("student forward, batch 256", student_ways(compute)),
        ("student forward + backward, 256 images", training_ways(compute)),
    ):
        print(f"\n{title}")
        rates = measure(ways)
        first = statistics.median(next(iter(rates.values())))
        for name, rounds in rates.items():
            rate = statistics.median(rounds)
            print(f"  {name:<44} {rate:>7,.0f}/s  x{rate / first:.2f}  ({min(rounds):,.0f} to {max(rounds):,.0f})")


Way = tuple[Callable[[], object], int]  # a call, and its number of images


def measure(ways: dict[str, Way]) -> dict[str, list[float]]:
    """Return images per second in each round; the ways take turns."""
    for call, _ in ways.values():
        call()
        call()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (call, images) in ways.items():
            calls, start = 0, time.perf_counter()
            while time.perf_counter() - start < SECONDS:
                call()
                calls += 1
            rates[name].append(calls * images / (time.perf_counter() - start))
    return rates


def teacher_ways(compute: Compute) -> dict[str, Way]:
    """The same teacher, run in several ways."""
    network = build_arch("kd3:resnet56", num_classes=10)
    teacher = kd3.Teacher(network, mean=[0.5] * 3, std=[0.25] * 3, input_size=SIZE)
    compute.place(teacher)
    plain_layout = copy.deepcopy(teacher).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    merged = teacher.folded()
    compute.place(merged)
    compiled = merged.compiled()
    images = pictures(BATCH, compute)
    narrow = compute.autocast

    def run(which: kd3.Teacher, batch: Tensor, *, wide: bool = False) -> Way:
        def call() -> object:
            with torch.no_grad(), torch.autocast(compute.device.type, enabled=False) if wide else narrow():
                return which.outputs(batch)

        return call, BATCH

    contiguous = images.contiguous()
    return {
        "float32, NCHW": run(plain_layout, contiguous, wide=True),
        "float32, channels_last": run(teacher, images, wide=True),
        f"{compute.precision}, NCHW": run(plain_layout, contiguous),
        f"{compute.precision}, channels_last": run(teacher, images),
        "... and batch norms folded (--fold-batch-norms)": run(merged, images),
        "... and compiled (--compile-teacher)": run(compiled, images),
    }


def student_ways(compute: Compute) -> dict[str, Way]:
    """The student in a scan."""
    student = build_arch("kd3:resnet20", num_classes=10).eval()
    compute.place(student)
    merged = fold(student, foldable(student, SIZE))
    compute.place(merged)
    images = pictures(SCAN_BATCH, compute)

    def run(network: nn.Module) -> Way:
        def call() -> object:
            with torch.inference_mode(), compute.autocast():
                return network(images)

        return call, SCAN_BATCH

    return {"plain": run(student), "batch norms folded (--fold-batch-norms)": run(merged)}


def training_ways(compute: Compute) -> dict[str, Way]:
    """The student in a training step, on two views of 128 images."""
    two_views = pictures(2 * BATCH, compute)

    def run(network: nn.Module, parts: int) -> Way:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)

        def call() -> object:
            with compute.autocast():
                loss = torch.stack([network(part).float().square().mean() for part in two_views.chunk(parts)]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return None

        return call, 2 * BATCH

    def student() -> nn.Module:
        return compute.place(build_arch("kd3:resnet20", num_classes=10).train())

    return {
        "two passes of 128 (the default)": run(student(), 2),
        "one pass of 256": run(student(), 1),
        "two passes of 128, compiled": run(torch.compile(student(), dynamic=False), 2),  # type: ignore[arg-type]
    }


def pictures(count: int, compute: Compute) -> Tensor:
    """Return normalised noise, (count, 3, S, S), in channels_last."""
    return torch.randn(count, 3, SIZE, SIZE, device=compute.device).contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
