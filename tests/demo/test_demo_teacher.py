"""The demo's lost data and the teacher trained on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kd3.demo import digits
from kd3.demo.crawl import Crawl
from kd3.demo.digits import CLASSES, DemoData, make_lost_data_and_crawl, write_lost_data
from kd3.demo.teacher import bend, rewrite, train_teacher
from kd3.models.descriptions import read_description
from kd3.runtime.errors import KD3Error


@pytest.fixture
def few_digits(tmp_path: Path) -> DemoData:
    """Just enough images for one training step."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(7):
            pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{number}.png")
    nothing = Crawl(sources=[], truth_file=tmp_path / "none.csv", files=0, images=0)
    return DemoData(lost_train=tmp_path / "train", lost_test=tmp_path / "test", crawl=nothing)


def test_lost_data_has_a_folder_per_class_and_shares_no_image(tmp_path: Path) -> None:
    train, test = write_lost_data(tmp_path, seed=0)
    assert sorted(path.name for path in train.iterdir()) == CLASSES
    assert sorted(path.name for path in test.iterdir()) == CLASSES
    train_names, test_names = ({path.name for path in folder.rglob("*.png")} for folder in (train, test))
    assert (len(train_names), len(test_names), len(train_names & test_names)) == (1200, 597, 0)
    sizes = [len(list(folder.iterdir())) for folder in test.iterdir()]
    assert max(sizes) - min(sizes) <= 4  # stratified; the data set has 174 to 183 a class


def test_a_lost_digit_is_white_on_black_at_32_pixels(tmp_path: Path) -> None:
    _, test = write_lost_data(tmp_path, seed=0)
    image = Image.open(min((test / "0").iterdir()))
    assert (image.mode, image.size) == ("L", (32, 32))
    pixels = np.asarray(image)
    assert pixels[0].max() == 0
    assert pixels.max() > 200


def test_data_and_crawl_lie_below_one_folder(tmp_path: Path) -> None:
    made = make_lost_data_and_crawl(tmp_path, seed=0, images=8)
    assert made.lost_test == tmp_path / "lost" / "test"
    assert all(Path(source).is_relative_to(tmp_path / "crawl") for source in made.crawl.sources)


def test_missing_libraries_are_named_before_a_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd3.demo.digits.find_spec", lambda name: None)
    with pytest.raises(KD3Error, match=r"scikit-learn and matplotlib: pip install 'kd3\[demo\]'"):
        digits.make_lost_data_and_crawl(tmp_path, seed=0)
    assert not list(tmp_path.iterdir())


def test_the_description_reads_back_and_lies_beside_its_weights(few_digits: DemoData, tmp_path: Path) -> None:
    path = train_teacher(few_digits, tmp_path / "teacher", seed=0, epochs=2, device="cpu")
    description = read_description(path)
    assert (description.arch, description.input_size, description.classes) == ("kd3:resnet20", 32, CLASSES)
    assert (path.parent / description.weights).is_file()


def test_the_same_seed_gives_the_same_teacher(few_digits: DemoData, tmp_path: Path) -> None:
    weights = [
        train_teacher(few_digits, tmp_path / name, seed=seed, epochs=2, device="cpu")
        .with_name("weights.safetensors")
        .read_bytes()
        for name, seed in (("one", 0), ("two", 0), ("three", 1))
    ]
    assert weights[0] == weights[1] != weights[2]


def test_training_leaves_the_global_generator_alone(few_digits: DemoData, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train_teacher(few_digits, tmp_path / "teacher", seed=0, epochs=2, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_augmented_digits_stay_images_with_bright_ink() -> None:
    images = torch.zeros(16, 1, 32, 32)
    images[:, :, 8:24, 14:18] = 1
    changed = rewrite(bend(images, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    assert (changed.amax(dim=(1, 2, 3)) > changed[:, 0, 0, 0] + 0.3).all()


def test_importing_the_demo_is_light() -> None:
    modules = "kd3.demo.digits, kd3.demo.digits, kd3.demo.picture"
    heavy = "{'torch', 'sklearn', 'matplotlib'}"
    code = f"import sys, {modules}; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
