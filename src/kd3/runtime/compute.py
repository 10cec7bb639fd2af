"""Device and precision, decided once, and device memory that ran out, as one sentence."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from kd3.runtime.errors import KD3Error, out_of_memory_in_words
from kd3.runtime.ranks import ALONE, Ranks

CONTIGUOUS = "kd3_contiguous"  # marks networks that cannot run in channels_last (`models.calling`)
_FABRIC_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass(frozen=True)
class Compute:
    """Resolved device and precision, and the cooperating processes."""

    device: torch.device
    precision: str  # "32", "bf16" or "16"
    ranks: Ranks = ALONE
    launched: Fabric | None = None  # the engine, if it started several processes

    def fabric(self) -> Fabric:
        """Return the engine that places modules, autocasts and averages gradients over ranks."""
        index: Any = [self.device.index or 0] if self.device.type == "cuda" else 1
        return self.launched or self.new_fabric(devices=index)

    def new_fabric(self, *, devices: Any, nodes: int = 1, strategy: Any = "auto") -> Fabric:
        """Return an engine for the given number of devices."""
        # Its messages about precision repeat ours.
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        return Fabric(
            accelerator="cuda" if self.device.type == "cuda" else "cpu",
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            precision=_FABRIC_PRECISION[self.precision],
        )

    @property
    def autocast_type(self) -> torch.dtype | None:
        """The type that matrix products are computed in; None: float32."""
        return {"bf16": torch.bfloat16, "16": torch.float16}.get(self.precision)

    def autocast(self) -> torch.autocast:
        """Return the context that runs matrix products in this precision."""
        dtype = self.autocast_type
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, with convolution weights in channels_last if it supports that."""
        return laid_out(module.to(self.device), torch.channels_last)

    @contextmanager
    def tuned(self, *, tf32: bool, deterministic: bool) -> Iterator[None]:
        """Let an accelerator tune its kernels within the context; a CPU is unaffected.

        Args:
            tf32: float32 matrix products may use TF32 (ten-bit mantissas) on tensor cores.
            deterministic: use only reproducible kernels, and do not benchmark convolutions.
        """
        if self.device.type != "cuda":
            yield
            return
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it on initialisation
        cudnn = torch.backends.cudnn
        before = (
            torch.get_float32_matmul_precision(),
            (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic),
            torch.are_deterministic_algorithms_enabled(),
        )
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = tf32, not deterministic, deterministic
        torch.use_deterministic_algorithms(deterministic)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before[1]
            torch.use_deterministic_algorithms(before[2])

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        several = f"{self.ranks.count} x " if self.ranks.count > 1 else ""
        return f"{several}{name}, {'float32' if self.precision == '32' else self.precision + ' autocast'}"


def laid_out(module: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Return a module with its four-dimensional weights in this format, unless it is marked `CONTIGUOUS`."""
    kept = [part for part in module.modules() if getattr(part, CONTIGUOUS, False)]
    as_they_are = {id(tensor) for part in kept for tensor in (*part.parameters(), *part.buffers())}
    for tensor in (*module.parameters(), *module.buffers()):
        # Five dimensions (video) have another format, others none.
        if id(tensor) not in as_they_are and not torch.nn.parameter.is_lazy(tensor) and tensor.ndim == 4:
            # Not `contiguous`: it keeps the strides of 1 x 1 convolutions, which differ from their gradients'.
            tensor.data = tensor.data.to(memory_format=memory_format)
    return module


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on this number of the CPU's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute in IEEE float32, without TF32 or autocast, so that checks give the same verdict on every device."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with ExitStack() as off:
            for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
                off.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def resolve(device: str, precision: str) -> Compute:
    """Resolve `auto` to a device and precision, or check the requested ones.

    Raises:
        KD3Error: the device is unknown or absent, or the precision does not run on it.
    """
    try:
        chosen = (
            torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
        )
    except RuntimeError:
        raise KD3Error(f"unknown device {device!r}; allowed: auto, cpu, cuda, cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise KD3Error(f"device {device!r} is not supported; allowed: auto, cpu, cuda, cuda:N")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise KD3Error(f"device {device!r} was asked for, but PyTorch sees no CUDA GPU here")
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise KD3Error(f"device {device!r} does not exist; there are {torch.cuda.device_count()} GPUs")
    if precision == "auto":
        precision = "bf16" if _has_bfloat16(chosen) else "32"
    if precision == "16" and chosen.type == "cpu":
        raise KD3Error("precision 16 needs a GPU; on a CPU use 32, bf16 or auto")
    return Compute(chosen, precision)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    # Without these instructions bfloat16 is emulated, slower than float32.
    return any(
        getattr(torch.cpu, probe, lambda: False)()
        for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    )


HOST = "can't allocate memory"


@contextmanager
def out_of_memory_as_error(what: str, *, less: str) -> Iterator[None]:
    """Convert out-of-memory errors to KD3Error.

    Args:
        what: the work in progress.
        less: how to reduce its need.

    Raises:
        KD3Error: there was not enough memory.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as problem:
        raise KD3Error(out_of_memory_in_words(str(problem), what=what, less=less)) from problem
    except RuntimeError as problem:
        if HOST not in str(problem):
            raise
        raise KD3Error(
            out_of_memory_in_words(str(problem), what=what, less=less, where="memory of the machine")
        ) from problem
