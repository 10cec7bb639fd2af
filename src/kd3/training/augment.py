"""Batched augmentation on the device: a shift, zoom and mirror for each image."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from kd3.ranks import ALONE, Ranks

TRIES = 10  # to find a fitting crop, as in torchvision
Augmentation = Literal["crop", "resized-crop", "none"]


def augment(
    images: Tensor, kind: Augmentation, *, flip: bool, generator: torch.Generator, ranks: Ranks = ALONE
) -> Tensor:
    """Return a random view of each image, half of them mirrored if `flip`.

    Shapes: (B, 3, S, S) uint8 -> the same, in channels_last. All randomness comes from
    `generator`, on the images' device, the same on all `ranks`, whose parts make up the batch.
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
    """Return each image moved by its own offsets, reflected at the border, and mirrored where requested.

    Shapes: (B, 3, H, W) uint8; down, across (B,), in pixels; mirrored (B,) bool -> (B, 3, H, W), in channels_last.
    """
    batch, _, height, width = images.shape
    rows, columns = _places(height, down), _places(width, across)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index = torch.arange(batch, device=images.device)[:, None, None]
    # Indices around a slice put the channels last: (B, H, W, 3), the layout that convolutions want.
    return images[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def mixed_up(images: Tensor, *, generator: torch.Generator, ranks: Ranks = ALONE) -> Tensor:
    """Mix each image with another of the batch, by a share drawn uniformly from [0, 1].

    Shapes: (B, 3, S, S), normalised floats -> the same. Partners are those of the batch that the parts of all `ranks`
    make up.

    Source: function matching (arXiv 2106.05237): teacher and student see the same mixtures.
    """
    total = len(images) * ranks.count
    mine = ranks.part(total)
    partner = torch.randperm(total, generator=generator, device=images.device)[mine]
    share = torch.rand(total, generator=generator, device=images.device)[mine].view(-1, 1, 1, 1)
    return torch.lerp(images, ranks.gather(images)[partner], share.to(images.dtype)).contiguous(
        memory_format=torch.channels_last
    )


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
    size: int | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Crop a random part of each image, of `scale` times its area, and resize it to `size` (None: the images' own).

    As torchvision's RandomResizedCrop: area and aspect are drawn up to ten times until the crop fits; otherwise the
    whole image is taken. Bilinear, with antialiasing when shrinking.

    Shapes: (B, 3, S, S) uint8 -> (B, 3, size, size) uint8, in channels_last.
    """
    total, side = len(images) * ranks.count, images.shape[-1]
    boxes = crop_boxes(total, side, scale=scale, ratio=ratio, generator=generator)[ranks.part(total)]
    mirrored = _coin(len(images), images.device, generator, ranks) if flip else None
    return resampled(images, boxes, size or side, mirrored)


def crop_boxes(
    count: int, side: int, *, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Draw crops of square images, as torchvision's RandomResizedCrop does: top, left, height and width in pixels.

    Shapes: -> (count, 4) int64, on the generator's device.
    """
    uniform = torch.rand(2 * TRIES + 2, count, generator=generator, device=generator.device)
    area = side * side * (scale[0] + (scale[1] - scale[0]) * uniform[:TRIES])
    aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * uniform[TRIES : 2 * TRIES])
    sizes = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()]).round().long()  # (2, TRIES, count)
    fits = ((sizes > 0) & (sizes <= side)).all(0)
    first = fits.int().argmax(0)[None, None].expand(2, 1, count)
    chosen = torch.where(fits.any(0), sizes.gather(1, first)[:, 0], side)
    start = (uniform[2 * TRIES :] * (side - chosen + 1)).long().minimum(side - chosen)
    return torch.stack([start[0], start[1], chosen[0], chosen[1]], dim=1)


def resampled(images: Tensor, boxes: Tensor | None, size: int, mirrored: Tensor | None = None) -> Tensor:
    """Return a crop of each image (None: the whole), resized, and mirrored where requested.

    Bilinear, with antialiasing when shrinking, as in Pillow and torch's `antialias`.

    Shapes: (B, 3, S, S) uint8; boxes (B, 4): top, left, height, width; mirrored (B,) bool -> (B, 3, size, size) uint8,
    in channels_last.
    """
    if boxes is None:
        boxes = torch.tensor([[0, 0, images.shape[-2], images.shape[-1]]], device=images.device).expand(len(images), 4)
    rows = _weights(boxes[:, 0], boxes[:, 2], images.shape[-2], size)
    columns = _weights(boxes[:, 1], boxes[:, 3], images.shape[-1], size)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    views = rows[:, None] @ images.float() @ columns.mT[:, None]
    return views.round().clamp(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def _weights(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Return the weights of `side` input pixels in `size` output pixels: triangles, (B, size, side), rows sum to 1."""
    step = (length / size)[:, None, None]
    pixel = torch.arange(side, device=start.device) - start[:, None, None]  # counted from the part's first
    centre = (torch.arange(size, device=start.device)[:, None] + 0.5) * step
    weights = (1 - (pixel + 0.5 - centre).abs() / step.clamp_min(1)).clamp_min(0)
    weights = weights * ((pixel >= 0) & (pixel < length[:, None, None]))
    return weights / weights.sum(dim=2, keepdim=True)
