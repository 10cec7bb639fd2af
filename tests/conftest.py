"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The machine's speed in drawing examples is irrelevant to kd3.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared real data; tests that need it are skipped if it is absent."""
    place = Path(os.environ.get("KD3_SHARED", REPOSITORY.parent / "shared"))
    if not (place / "data").is_dir():
        pytest.skip(f"the shared data are not at {place} (set KD3_SHARED)")
    return place / "data"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Limit parallel tests to one thread each; more threads would compete for the cores."""
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"  # for subprocesses
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def crawl(tmp_path_factory) -> Path:
    """A folder of 120 small pictures of coloured noise, and a file that is no picture."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("crawl")
    draw = np.random.default_rng(0)
    for number in range(120):
        colours = draw.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((20, 20)).save(folder / f"{number:03d}.png")
    (folder / "page.jpg").write_text("<html>")
    return folder


@pytest.fixture(scope="session")
def pool_folder(crawl, tmp_path_factory) -> Path:
    """A pool of that crawl, 16 x 16 pixels."""
    import kd3

    out = tmp_path_factory.mktemp("pools") / "pool"
    kd3.ingest(crawl, out, image_size=16, workers=0)
    return out


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory) -> Path:
    """The description of an untrained teacher of three classes."""
    import torch
    import yaml

    from kd3.models.arch import build_arch

    folder = tmp_path_factory.mktemp("teacher")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = build_arch("kd3:resnet8", num_classes=3)
        network.linear.weight.data *= 20  # confident predictions, if arbitrary ones
    torch.save(network.state_dict(), folder / "weights.pt")
    description = {
        "arch": "kd3:resnet8",
        "weights": "weights.pt",
        "num_classes": 3,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "input_size": 16,
        "classes": ["cat", "dog", "ship"],
    }
    (folder / "teacher.yaml").write_text(yaml.safe_dump(description))
    return folder / "teacher.yaml"


@pytest.fixture(scope="session")
def centred_teacher_file(teacher_file, pool_folder, tmp_path_factory) -> Path:
    """That teacher with its logits centred on that pool, so that it sees several classes in it: a study asks for it."""
    import numpy as np
    import torch

    from kd3.models.load_teacher import load_teacher
    from kd3.pool import ImagePool

    teacher = load_teacher(str(teacher_file))
    images = torch.from_numpy(ImagePool.open(pool_folder).read(np.arange(100)))
    with torch.inference_mode():
        mean = teacher(teacher.normalise(images)).mean(0)
    folder = tmp_path_factory.mktemp("centred")
    weights = torch.load(teacher_file.parent / "weights.pt", weights_only=True)
    weights["linear.bias"] = weights["linear.bias"] - mean
    torch.save(weights, folder / "weights.pt")
    (folder / "teacher.yaml").write_text(teacher_file.read_text())
    return folder / "teacher.yaml"


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> Path:
    """A folder of 8 pictures for each of the teacher's classes."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("labelled")
    draw = np.random.default_rng(1)
    for name in ("cat", "dog", "ship"):
        (folder / "test" / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
                folder / "test" / name / f"{number}.png"
            )
    return folder / "test"
