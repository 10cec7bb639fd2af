"""Copies of tensors to an accelerator and back, without a wait of the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to the device; for an accelerator, through PyTorch's page-locked memory.

    A copy from pageable memory waits for the device.
    """
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class Coming:
    """A tensor on its way to the host.

    Args:
        values: on any device; host tensors are not copied.
    """

    def __init__(self, values: Tensor) -> None:
        self._values, self._event = values, None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    @property
    def is_here(self) -> bool:
        """Whether it has arrived."""
        return self._event is None or self._event.query()  # type: ignore[no-untyped-call]

    def get(self) -> Tensor:
        """Wait for the tensor, and return it on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._values


def fetched(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield tensors on the host in order, each while the next one is computed."""
    before: Coming | None = None
    for part in parts:
        coming = Coming(part)
        if before is not None:
            yield before.get()
        before = coming
    if before is not None:
        yield before.get()
