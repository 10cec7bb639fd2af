"""A picture of recalled images below their original crawl images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kd3.models.preprocessing import Normalisation
from kd3.storage.atomic import replacing

MOST = 16
LARGEST = 96  # pixels; larger images are scaled down
GAP = 2


@dataclass(frozen=True)
class Pairs:
    """A few images before and after, both uint8 (n, 3, S, S)."""

    before: np.ndarray
    after: np.ndarray

    @classmethod
    def of(cls, images: Tensor, recalled: Tensor, normalise: Normalisation) -> Pairs:
        """Return evenly spaced pairs of uint8 images and recalled normalised ones."""
        shown = torch.linspace(0, len(images) - 1, min(MOST, len(images))).round().long()
        mean = torch.tensor(normalise.mean).view(1, -1, 1, 1)
        std = torch.tensor(normalise.std).view(1, -1, 1, 1)
        pixels = ((recalled[shown].float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return cls(images[shown].cpu().numpy(), pixels.expand(-1, 3, -1, -1).numpy())

    def write(self, path: Path) -> None:
        """Write the picture: crawl images above, recalled ones below (PNG)."""
        side = min(LARGEST, self.before.shape[-1])
        count = len(self.before)
        sheet = Image.new("RGB", (count * (side + GAP) - GAP, 2 * side + GAP), "white")
        for row, images in enumerate((self.before, self.after)):
            for column, image in enumerate(images):
                tile = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
                if tile.width != side:
                    tile = tile.resize((side, side), Image.Resampling.LANCZOS)
                sheet.paste(tile, (column * (side + GAP), row * (side + GAP)))
        with replacing(path) as temporary:
            sheet.save(temporary, "PNG", optimize=True)
