"""Sum losses in float32 or wider, whatever the precision of the networks."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(values: Tensor) -> Tensor:
    """Return float32 and float64 as they are, anything narrower as float32."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
