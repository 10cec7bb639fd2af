"""The demo's data: the lost ones, scikit-learn's handwritten digits, and the crawl."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from kd3.demo.crawl import Crawl, write_crawl
from kd3.runtime.errors import KD3Error

_LIBRARIES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def check_extras() -> None:
    """Name missing packages before the demo has written a file.

    Raises:
        KD3Error: scikit-learn or matplotlib is not installed.
    """
    missing = [name for module, name in _LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise KD3Error(f"kd3 demo needs {' and '.join(missing)}: pip install 'kd3[demo]'")


ARCH = "kd3:resnet20"  # of the teacher
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
