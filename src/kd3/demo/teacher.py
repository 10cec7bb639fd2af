"""Training of the demo's teacher on the data that are lost afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from PIL import Image

from kd3.console import progress
from kd3.demo.data import DemoData
from kd3.demo.digits import CLASSES, IMAGE_SIZE
from kd3.storage.atomic import replacing, write_text

if TYPE_CHECKING:
    from torch import Tensor, nn

ARCH = "kd3:resnet20"
EPOCHS = 10  # measured: 99% on the test digits from 8 epochs on
_BATCH_SIZE = 64
_PEAK_LEARNING_RATE = 0.1
_WEIGHT_DECAY = 5e-4


def train_teacher(data: DemoData, out: Path, *, seed: int, epochs: int = EPOCHS, device: str = "auto") -> Path:
    """Train a ResNet-20 on `data.lost_train` and return its description, `out / "teacher.yaml"`."""
    import torch
    from safetensors.torch import save_file

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
    import torch

    paths = sorted(folder.glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(path).convert("L")) for path in paths])
    labels = torch.tensor([CLASSES.index(path.parent.name) for path in paths])
    return torch.from_numpy(pixels).unsqueeze(1).float() / 255, labels


def _fit(images: Tensor, labels: Tensor, mean: float, std: float, *, seed: int, epochs: int, device: str) -> nn.Module:
    """Return a network trained on grey images (N, 1, H, W) in [0, 1], on the CPU, in float32."""
    import torch
    from torch.nn import functional

    from kd3.compute import resolve
    from kd3.demo.handwriting import bend, rewrite
    from kd3.models.arch import build_arch

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
