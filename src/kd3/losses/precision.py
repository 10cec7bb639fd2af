"""Losses are summed in float32 or wider, whatever precision the networks ran in."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(values: Tensor) -> Tensor:
    """Return float32 and float64 as they are, anything narrower as float32."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
