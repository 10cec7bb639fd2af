"""Variation of handwriting: the augmentation of the demo's teacher. Needs torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Variation of hands and pens. No inversion and no colour: the teacher should know only bright ink on a dark ground,
# like the lost data, so that the shift to the crawl is real.
_MAX_TURN = 0.21  # radians, 12 degrees
_MAX_SHEAR = 0.2
_MAX_STRETCH = 0.15  # of width and height, each
_MAX_SHIFT = 0.12  # of the half side: 2 pixels
_STEEPEST = 4.0  # edges of the strokes: 1 leaves them as soft as they are
_STROKE = (0.3, 0.6)  # the grey value where a stroke ends: thick to thin
_FAINTEST_INK = 0.6
_BRIGHTEST_GROUND = 0.25


def bend(images: Tensor, draw: torch.Generator) -> Tensor:
    """Return each image turned, sheared, stretched and shifted a little; black comes in at the edges.

    Shapes: (B, 1, H, W) -> (B, 1, H, W).
    """

    def about(middle: float, reach: float) -> Tensor:
        return _uniform(len(images), middle - reach, middle + reach, draw)

    turn, shear = about(0, _MAX_TURN), about(0, _MAX_SHEAR)
    wide, high = about(1, _MAX_STRETCH), about(1, _MAX_STRETCH)
    cos, sin = torch.cos(turn), torch.sin(turn)
    # Each row says where a pixel of the new image is looked up in the old one.
    row_x = torch.stack([wide * cos, wide * (shear * cos - sin), about(0, _MAX_SHIFT)], dim=1)
    row_y = torch.stack([high * sin, high * (shear * sin + cos), about(0, _MAX_SHIFT)], dim=1)
    affine = torch.stack([row_x, row_y], dim=1)  # (B, 2, 3)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def rewrite(images: Tensor, draw: torch.Generator) -> Tensor:
    """Return each image as another pen and another scanner would give it.

    Strokes get sharper edges and become thicker or thinner, ink fainter, the ground less black.

    Shapes: (B, 1, H, W) -> (B, 1, H, W), in [0, 1].
    """

    def uniform(low: float, high: float) -> Tensor:
        return _uniform(len(images), low, high, draw).view(-1, 1, 1, 1)

    edge = uniform(*_STROKE)
    strokes = ((images - edge) * uniform(1, _STEEPEST) + edge).clamp(0, 1)
    ground = uniform(0, _BRIGHTEST_GROUND)
    return ground + (uniform(_FAINTEST_INK, 1) - ground) * strokes


def _uniform(count: int, low: float, high: float, draw: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=draw, device=draw.device)
