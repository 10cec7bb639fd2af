"""Batched augmentation on the device: every image its own shift, zoom and mirror."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd3.ranks import ALONE, Ranks

Augmentation = Literal["crop", "resized-crop", "none"]


def augment(
    images: Tensor, kind: Augmentation, *, flip: bool, generator: torch.Generator, ranks: Ranks = ALONE
) -> Tensor:
    """Return a random view of each image, half of them mirrored if `flip`.

    Shapes: (B, 3, S, S) uint8 -> the same, in channels_last. All randomness comes from
    `generator`, on the images' device, the same on all `ranks`: it is drawn for the batch that their parts make up.
    """
    if kind == "crop":
        return shift(images, flip=flip, generator=generator, ranks=ranks)
    if kind == "resized-crop":
        return resized_crop(images, flip=flip, generator=generator, ranks=ranks)
    mirrored = _coin(len(images), images.device, generator, ranks) if flip else None
    views = images if mirrored is None else torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return views.contiguous(memory_format=torch.channels_last)


def shift(images: Tensor, *, flip: bool = True, generator: torch.Generator, ranks: Ranks = ALONE) -> Tensor:
    """Shift each image by up to an eighth of its side, reflected at the border.

    For 32 pixels this is the usual crop after a padding of 4, with reflection.
    """
    batch, _, height, width = images.shape
    down = _offset(batch, height, images.device, generator, ranks)
    across = _offset(batch, width, images.device, generator, ranks)
    mirrored = _coin(batch, images.device, generator, ranks) if flip else None
    return shifted(images, down, across, mirrored)


def shifted(images: Tensor, down: Tensor, across: Tensor, mirrored: Tensor | None) -> Tensor:
    """Return each image moved by its own offsets, reflected at the border, and mirrored where said.

    Shapes: (B, 3, H, W) uint8; down, across (B,), in pixels; mirrored (B,) bool -> (B, 3, H, W), in channels_last.
    """
    batch, _, height, width = images.shape
    rows, columns = _places(height, down), _places(width, across)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index = torch.arange(batch, device=images.device)[:, None, None]
    # Indices around a slice put the channels last: (B, H, W, 3), the layout that convolutions want.
    return images[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _coin(batch: int, device: torch.device, generator: torch.Generator, ranks: Ranks) -> Tensor:
    total = batch * ranks.count
    return torch.rand(total, generator=generator, device=device)[ranks.part(total)] < 0.5


def _offset(batch: int, side: int, device: torch.device, generator: torch.Generator, ranks: Ranks) -> Tensor:
    reach, total = side // 8, batch * ranks.count
    return torch.randint(-reach, reach + 1, (total, 1), generator=generator, device=device)[ranks.part(total), 0]


def _places(side: int, offset: Tensor) -> Tensor:
    place = (torch.arange(side, device=offset.device) + offset[:, None]).abs()
    return torch.where(place >= side, 2 * (side - 1) - place, place)


def resized_crop(
    images: Tensor,
    *,
    flip: bool = True,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ranks: Ranks = ALONE,
) -> Tensor:
    """Cut a random part of each image, of `scale` times its area, stretch it to full size.

    Bilinear, without antialiasing (parts are mostly enlarged). A part that would not fit is
    trimmed to the image, where torchvision draws again.
    """
    batch = len(images)
    total = batch * ranks.count
    uniform = torch.rand(4, total, generator=generator, device=images.device)[:, ranks.part(total)]
    area = scale[0] + (scale[1] - scale[0]) * uniform[0]
    aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * uniform[1])
    width = (area * aspect).sqrt().clamp_max(1)
    height = (area / aspect).sqrt().clamp_max(1)
    left = (2 * uniform[2] - 1) * (1 - width)
    top = (2 * uniform[3] - 1) * (1 - height)
    if flip:
        width = torch.where(_coin(batch, images.device, generator, ranks), -width, width)
    zero = torch.zeros_like(left)
    affine = torch.stack([torch.stack([width, zero, left], 1), torch.stack([zero, height, top], 1)], 1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    views = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    return views.round().clamp(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)
