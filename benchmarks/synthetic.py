"""Synthetic pools and networks, to measure the growth of time and memory, for which pixels do not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kd3.pool.pool_files import FORMAT, NAME, VERSION, Counts, Manifest, Part
from kd3.runtime.files import write_json

SIZE = 8
CLASSES = 10
PER_PART = 1_000_000


class TinyNet(nn.Module):
    """One convolution, one batch norm, one linear layer. Shapes: (B, 3, H, W) -> (B, 10)."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, width, 3, 2, 1)
        self.norm = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.linear(torch.relu(self.norm(self.convolution(images))).mean((2, 3)))
        return logits


def write_pool(folder: Path, images: int) -> Path:
    """Write a pool of noise as `kd3 ingest` would have left it, without its index, and return its folder."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    parts = []
    for number, start in enumerate(range(0, images, PER_PART)):
        count = min(PER_PART, images - start)
        part = Part(file=f"images-{number:05d}.bin", images=count)
        draw.integers(0, 256, (count, 3 * SIZE * SIZE), dtype=np.uint8).tofile(folder / part.file)
        parts.append(part)
    manifest = Manifest(
        format=FORMAT,
        version=VERSION,
        image_size=SIZE,
        images=images,
        content_hash=f"{images:064x}",
        counts=Counts(found=images, kept=images, duplicates=0, rejected={}, skipped=0),
        parts=parts,
        sources=["noise"],
        settings={},
        kd3="0",
        created="",
        seconds=1.0,
    )
    write_json(folder / NAME, manifest.to_dict())
    return folder
