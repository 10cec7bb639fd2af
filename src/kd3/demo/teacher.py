"""The demo's teacher: its training on the lost digits, and the variation of handwriting that it sees. Needs torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from kd3.demo.digits import ARCH, CLASSES, IMAGE_SIZE, DemoData
from kd3.models.arch import build_arch
from kd3.runtime.compute import resolve
from kd3.runtime.console import progress
from kd3.runtime.files import replacing, write_text

EPOCHS = 10  # measured: 99% on the test digits from 8 epochs on
_BATCH_SIZE = 64
_PEAK_LEARNING_RATE = 0.1
_WEIGHT_DECAY = 5e-4


def train_teacher(data: DemoData, out: Path, *, seed: int, epochs: int = EPOCHS, device: str = "auto") -> Path:
    """Train a ResNet-20 on `data.lost_train` and return its description, `out / "teacher.yaml"`."""
    images, labels = _load(data.lost_train)
    mean, std = float(images.mean()), float(images.std())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights are drawn from the global generator
        network = _fit(images, labels, mean, std, seed=seed, epochs=epochs, device=device)
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    with replacing(out / "weights.safetensors") as temporary:
        save_file(weights, str(temporary))
    description = {
        "arch": ARCH,
        "weights": "weights.safetensors",
        "num_classes": len(CLASSES),
        "mean": [round(mean, 6)] * 3,
        "std": [round(std, 6)] * 3,
        "input_size": IMAGE_SIZE,
        "classes": CLASSES,
    }
    path = out / "teacher.yaml"
    write_text(path, yaml.safe_dump(description, sort_keys=False))
    return path


def _load(folder: Path) -> tuple[Tensor, Tensor]:
    """Return grey images (N, 1, H, W) in [0, 1] and their labels (N,)."""
    paths = sorted(folder.glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(path).convert("L")) for path in paths])
    labels = torch.tensor([CLASSES.index(path.parent.name) for path in paths])
    return torch.from_numpy(pixels).unsqueeze(1).float() / 255, labels


def _fit(images: Tensor, labels: Tensor, mean: float, std: float, *, seed: int, epochs: int, device: str) -> nn.Module:
    """Return a network trained on grey images (N, 1, H, W) in [0, 1], on the CPU, in float32."""
    compute = resolve(device, "auto")
    network = compute.place(build_arch(ARCH, num_classes=len(CLASSES))).train()
    images, labels = images.to(compute.device), labels.to(compute.device)
    draw = torch.Generator(compute.device).manual_seed(seed)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=_PEAK_LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=_WEIGHT_DECAY
    )
    steps_per_epoch = len(images) // _BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=_PEAK_LEARNING_RATE, total_steps=epochs * steps_per_epoch
    )
    with progress("teacher", epochs * len(images), "images") as bar:
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=draw, device=compute.device)
            # Each epoch has a new order, without the last incomplete batch.
            for rows in torch.split(order[: steps_per_epoch * _BATCH_SIZE], _BATCH_SIZE):
                batch = (rewrite(bend(images[rows], draw), draw) - mean) / std
                colour = batch.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
                with compute.autocast():
                    logits = network(colour)
                loss = functional.cross_entropy(logits.float(), labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            bar.advance(len(images), note=f"loss {loss.item():.3f}")
    return network.eval().cpu()


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
