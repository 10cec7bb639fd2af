"""The demo's data: the lost ones, scikit-learn's handwritten digits, and the teacher trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from PIL import Image

from kd3.demo.crawl import Crawl, write_crawl
from kd3.runtime.console import progress
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import replacing, write_text

if TYPE_CHECKING:
    from torch import Tensor, nn


_LIBRARIES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def check_extras() -> None:
    """Name missing packages before the demo has written a file.

    Raises:
        KD3Error: scikit-learn or matplotlib is not installed.
    """
    missing = [name for module, name in _LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise KD3Error(f"kd3 demo needs {' and '.join(missing)}: pip install 'kd3[demo]'")


IMAGE_SIZE = 32
CLASSES = [str(digit) for digit in range(10)]

# The digits fill their 8x8 frame to the edge; a margin keeps whole strokes when they are shifted.
_MARGIN = 2
_FULL_INK = 16  # the data set counts inked pixels in blocks of 4x4
_TEST_IMAGES = 597


def write_lost_data(folder: Path, *, seed: int) -> tuple[Path, Path]:
    """Write the 1,797 digits as PNG files and return the folders of the training and the test set.

    The split is stratified by class: 1,200 images to train on, 597 to test on. Each set has a folder
    per class, `0` to `9`; the number in a file's name is the image's row in `load_digits`.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    rows = np.arange(len(digits.target))
    train_rows, test_rows = train_test_split(rows, test_size=_TEST_IMAGES, stratify=digits.target, random_state=seed)
    splits = {"train": train_rows, "test": test_rows}
    for split, chosen in splits.items():
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        for row in sorted(chosen):
            path = folder / split / str(digits.target[row]) / f"{row:04d}.png"
            _enlarge(digits.images[row]).save(path)
    return folder / "train", folder / "test"


def _enlarge(ink: np.ndarray) -> Image.Image:
    """Return an 8x8 count of ink as a smooth grey image, white on black."""
    small = Image.fromarray(np.round(ink * (255 / _FULL_INK)).astype(np.uint8))
    inner = IMAGE_SIZE - 2 * _MARGIN
    image = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    image.paste(small.resize((inner, inner), Image.Resampling.BICUBIC), (_MARGIN, _MARGIN))
    return image


CRAWLED_IMAGES = 6_000


@dataclass(frozen=True)
class DemoData:
    """Locations of the lost data and the crawl."""

    lost_train: Path  # the teacher's training data; nothing else may read it
    lost_test: Path  # unused until the end
    crawl: Crawl


def make_lost_data_and_crawl(folder: Path, *, seed: int, images: int = CRAWLED_IMAGES) -> DemoData:
    """Write `lost/`, `crawl/` and `crawl-truth.csv` below `folder`; same seed, same bytes.

    Raises:
        KD3Error: scikit-learn or matplotlib is not installed.
    """
    check_extras()
    train, test = write_lost_data(folder / "lost", seed=seed)
    return DemoData(lost_train=train, lost_test=test, crawl=write_crawl(folder, images=images, seed=seed))


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

    from kd3.demo.handwriting import bend, rewrite
    from kd3.models.arch import build_arch
    from kd3.runtime.compute import resolve

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
