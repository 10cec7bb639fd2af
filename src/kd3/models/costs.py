"""Costs of a network: parameters, multiply-adds, disk, memory, and time on this machine's CPU."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd3.models.head import evaluating, hooked
from kd3.runtime import console
from kd3.runtime.compute import threads


def parameters_of(module: nn.Module) -> int:
    """Return the number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(network: nn.Module, images: Tensor) -> int:
    """Return the multiply-adds of an image in convolutions, matrix products and attention.

    Shapes: images (B, C, H, W), the network's input.
    """
    return _counted(network, images, {})


def multiply_adds_of(network: nn.Module, images: Tensor, modules: Iterable[nn.Module]) -> list[int]:
    """Return the multiply-adds per image within each of the given modules; 0 for an uncalled one."""
    found = dict.fromkeys(modules, 0)
    _counted(network, images, found)
    return list(found.values())


def _counted(network: nn.Module, images: Tensor, within: dict[nn.Module, int]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    def start(module: nn.Module, _: object) -> None:
        within[module] -= counter.get_total_flops()

    def end(module: nn.Module, _: object, __: object) -> None:
        within[module] += counter.get_total_flops()

    with FlopCounterMode(display=False) as counter, torch.no_grad(), evaluating(network):
        before = (module.register_forward_pre_hook(start) for module in within)
        after = (module.register_forward_hook(end) for module in within)
        with hooked(before), hooked(after):
            network(images)
    # A multiply-add is two operations.
    for module in within:
        within[module] //= 2 * len(images)
    return int(counter.get_total_flops()) // (2 * len(images))


def idle_seconds(device: torch.device) -> float:
    """Return a clock's reading, for differences.

    On the CPU: this process's CPU time divided by its threads, so that other work on the machine hardly counts. On a
    GPU: the wall clock, after synchronisation.
    """
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    torch.cuda.synchronize(device)
    return time.perf_counter()


CPU = torch.device("cpu")
SECONDS = 10.0  # for the latencies of all networks together
TURNS = 7  # at most
REPEATS = 8  # of a single image in a turn
SMALL_SIDE = 64  # pixels


@dataclass(frozen=True)
class SampleSize:
    """Number of images that a measurement takes: fewer of large ones, which have pixels enough and cost more."""

    small: int
    large: int

    def of(self, side: int) -> int:
        """Return the number of images with sides of so many pixels."""
        return self.small if side <= SMALL_SIDE else self.large


TIMED = SampleSize(64, 8)  # images of a batch


@dataclass(frozen=True)
class Cost:
    """Costs of one network, in float32."""

    parameters: int
    multiply_adds: int  # per image
    bytes: int  # of its weights on disk
    memory: int  # bytes: weights, and the largest input and output of a layer
    one: float  # milliseconds for one image, on one thread: median of the turns; NaN if not timed
    many: float  # milliseconds for a batch, likewise
    batch: int  # images in the batch

    @property
    def is_timed(self) -> bool:
        """Whether the times were measured."""
        return not math.isnan(self.one)


def costs(networks: Mapping[str, nn.Module], images: Tensor, *, timed: bool = True) -> dict[str, Cost]:
    """Return the costs of each network, timed in turns, so a slower machine slows all of them.

    Shapes: images (B, C, H, W), network inputs.
    """
    batch = TIMED.of(images.shape[-1])
    many = images.cpu().repeat(-(-batch // len(images)), 1, 1, 1)[:batch]
    times = _milliseconds(networks, many) if timed else defaultdict[tuple[str, int], float](lambda: math.nan)
    return {
        name: Cost(
            parameters=parameters_of(network),
            multiply_adds=multiply_adds(network, many[:1]),
            bytes=_weights(network),
            memory=_weights(network) + _largest_layer(network, many[:1]),
            one=times[name, 1],
            many=times[name, batch],
            batch=batch,
        )
        for name, network in networks.items()
    }


def _milliseconds(networks: Mapping[str, nn.Module], many: Tensor) -> dict[tuple[str, int], float]:
    found: dict[tuple[str, int], list[float]] = {}
    total = (TURNS + 1) * len(networks)
    with threads(1), torch.inference_mode(), console.progress("latency", total, "measurements") as bar:
        began = idle_seconds(CPU)
        for turn in range(TURNS + 1):
            if turn > 1 and idle_seconds(CPU) - began > SECONDS:
                break
            for name, network in networks.items():
                with evaluating(network):
                    for images, repeats in ((many[:1], REPEATS), (many, 1)):
                        start = idle_seconds(CPU)
                        for _ in range(repeats):
                            network(images)
                        taken = 1000 * (idle_seconds(CPU) - start) / repeats
                        if turn:  # the first warms up
                            found.setdefault((name, len(images)), []).append(taken)
                bar.advance()
    return {key: round(statistics.median(values), 3) for key, values in found.items()}


def _weights(network: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


def _largest_layer(network: nn.Module, image: Tensor) -> int:
    largest = 0

    def hook(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal largest
        held = [value for value in (*inputs, output) if isinstance(value, Tensor)]
        largest = max(largest, sum(value.numel() * value.element_size() for value in held))

    leaves = (module for module in network.modules() if not list(module.children()))
    with hooked(leaf.register_forward_hook(hook) for leaf in leaves), torch.inference_mode(), evaluating(network):
        network(image)
    return largest
