"""Memory that a distillation needs on its device, estimated from two small forward passes, and the batch that fits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd3.config.training import TrainSettings
from kd3.methods import Batch, Method
from kd3.models.costs import parameters_of
from kd3.models.head import evaluating, hooked
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.scoring.batches import free_bytes
from kd3.scoring.scan import SCAN_BATCH

TRIED = (2, 6)  # images of the two batches to extrapolate from
SHARE = 0.5  # of a device's free memory, for a batch size of `auto`; the pool may take 0.4
VALUE = 4  # bytes of a weight, its gradient and its momentum


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device, without those of Python and PyTorch themselves."""

    weights: int  # of teacher and student, with the student's gradients and momentum
    step: int  # the student's activations for the backward pass
    scoring: int  # the widest layer's input and output of a batch that is only scored

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + max(self.step, self.scoring)


def footprint(method: Method, compute: Compute, batch_size: int) -> Footprint:
    """Estimate the memory of training, for batches of this size in this process.

    The method runs two small forward passes, without a change of its weights. Activations grow linearly with the batch,
    so the two determine any size.
    """
    trained = parameters_of(method)
    taught = sum(tensor.numel() for tensor in (*method.teacher.parameters(), *method.teacher.buffers()))
    few, more = (_kept(method, compute, images) for images in TRIED)
    step = few + (more - few) * (batch_size - TRIED[0]) // (TRIED[1] - TRIED[0])
    scoring = max(_widest(network, method, compute) for network in (method.teacher, method.student))
    return Footprint(VALUE * (3 * trained + taught), step, scoring * SCAN_BATCH // TRIED[0])


def _kept(method: Method, compute: Compute, count: int) -> int:
    """Return the bytes that autograd keeps for a batch, without weights."""
    compute.place(method)
    compute.place(method.teacher)
    weights = {parameter.untyped_storage().data_ptr() for parameter in method.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = _random_images(method, compute, count)
    labels = torch.zeros(count, dtype=torch.int64, device=compute.device) if method.needs_labels else None
    generator = torch.Generator(compute.device).manual_seed(0)
    buffers = [buffer.clone() for buffer in method.buffers()]
    with torch.random.fork_rng(devices=[]), compute.autocast(), torch.autograd.graph.saved_tensors_hooks(keep, _same):
        method.train()
        result = method(Batch(images, generator, labels=labels))  # keeps the graph alive
    total = sum(kept.values())
    del result
    for buffer, before in zip(method.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return total


def _widest(network: nn.Module, method: Method, compute: Compute) -> int:
    """Return the largest sum of a layer's input and output bytes, for the smaller batch."""
    most = 0

    def measure(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal most
        tensors = [value for value in (*inputs, output) if isinstance(value, Tensor)]
        most = max(most, sum(tensor.nbytes for tensor in tensors))

    images = _random_images(method, compute, TRIED[0])
    leaves = (module for module in network.modules() if next(module.children(), None) is None)
    handles = (leaf.register_forward_hook(measure) for leaf in leaves)
    with hooked(handles), torch.inference_mode(), compute.autocast(), evaluating(network):
        network(images)
    return most


def _random_images(method: Method, compute: Compute, count: int) -> Tensor:
    side, channels = method.student.input_size, method.student.normalise.channels
    images = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))
    return images.to(compute.device).contiguous(memory_format=torch.channels_last)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def memory_for_training(compute: Compute) -> int | None:
    """Return the bytes that each process may use on its device, the same for all; None on a CPU. Collective."""
    if compute.device.type != "cuda":
        return None
    return int(SHARE * min(compute.ranks.from_each(free_bytes(compute.device))))


def training_of(
    settings: TrainSettings,
    method: Method,
    compute: Compute,
    *,
    inherited: bool,
    normalised: bool,
    images: int,
    processes: int,
    memory: int | None,
) -> TrainSettings:
    """Return settings with all rates, and with a number for a batch size of `auto`.

    On a device this is the largest batch of `TrainSettings.larger_batches` that fits there, otherwise the default.

    Args:
        inherited: whether the student starts with weights of the teacher.
        normalised: whether it has normalisation layers.
        images: of the pool, to train on.
        processes: that share a batch.
        memory: bytes of each process; None on a CPU.
    """
    settled = settings.settled(inherited=inherited, normalised=normalised)
    if settings.batch_size != "auto":
        return settled
    if memory is not None:
        for batch in settings.larger_batches(inherited=inherited, images=images):
            if footprint(method, compute, batch // processes).total > memory:
                break
            settled = settings.settled(inherited=inherited, normalised=normalised, batch=batch)
    rates = f"--lr {settled.peak:.3g}, --matrix-lr {settled.matrix_peak:.3g}"
    console.info(f"--batch-size auto is {settled.batch} images per step; learning rates: {rates}")
    return settled
