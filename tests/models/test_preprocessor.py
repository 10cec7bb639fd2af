"""What transformers' image processors do to pixels, against the processors' own words; and what is refused."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from model_libraries import need
from torch import nn

from kd3.errors import KD3Error
from kd3.models.sources.model_file import check_settled
from kd3.models.sources.preprocessor import normalisation, side, takes_bgr
from kd3.models.teacher import load_teacher

MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]


def as_processed(pixels, processor):
    """What the library does, step by step, to values from 0 to 255 of shape (3,)."""
    values = np.asarray(pixels, dtype=np.float64)
    if processor.get("do_rescale", True):
        values = values * processor.get("rescale_factor", 1 / 255)
    if processor.get("rescale_offset"):
        values = values - 1
    if processor.get("do_normalize", "image_mean" in processor):
        values = (values - np.array(processor["image_mean"])) / np.array(processor["image_std"])
        if processor.get("image_processor_type", "").startswith("EfficientNet") and processor.get("include_top", True):
            values = values / np.array(processor["image_std"])
    return values


@pytest.mark.parametrize(
    "processor",
    [
        {"image_mean": MEAN, "image_std": STD},
        {"do_normalize": False, "image_mean": MEAN, "image_std": STD},
        {"image_mean": MEAN, "image_std": STD, "do_rescale": False},
        {"image_mean": [127.5] * 3, "image_std": [128.0] * 3, "do_rescale": False},
        {"image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 127.5, "rescale_offset": True},
        {"do_normalize": False, "rescale_factor": 1 / 127.5, "rescale_offset": True},
        {"image_mean": MEAN, "image_std": STD, "image_processor_type": "EfficientNetImageProcessor"},
        {"image_mean": MEAN, "image_std": STD, "image_processor_type": "EfficientNetImageProcessorFast"},
        {
            "image_mean": MEAN,
            "image_std": STD,
            "image_processor_type": "EfficientNetImageProcessor",
            "include_top": False,
        },
        {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 288}},
    ],
    ids=[
        "usual",
        "unnormalised",
        "of 255",
        "in 255",
        "offset",
        "offset alone",
        "twice",
        "twice, fast",
        "once",
        "mobile",
    ],
)
def test_mean_and_std_do_what_the_processor_does(processor):
    pixels = np.array([0.0, 100.0, 255.0])
    if processor.get("image_processor_type") == "EfficientNetImageProcessorFast":
        expected = as_processed(pixels, {**processor, "image_processor_type": "EfficientNetImageProcessor"})
    else:
        expected = as_processed(pixels, processor)
    found = normalisation(processor)
    np.testing.assert_allclose((pixels / 255 - found["mean"]) / found["std"], expected, atol=1e-9)


def test_what_a_file_does_not_say_is_left_to_the_description():
    assert normalisation({}) == {}
    assert normalisation({"do_normalize": True}) == {}
    assert [side(size) for size in ({"height": 16, "width": 16}, {"shortest_edge": 32}, [24, 24], 8, None, {})] == [
        16,
        32,
        24,
        8,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("processor", "bgr"),
    [
        ({"image_processor_type": "MobileViTImageProcessor"}, True),
        ({"feature_extractor_type": "MobileViTFeatureExtractor"}, True),
        ({"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": False}, False),
        ({"image_processor_type": "ViTImageProcessor"}, False),
    ],
)
def test_the_order_of_colours(processor, bgr):
    assert takes_bgr(processor) == bgr


@pytest.fixture
def folder(tmp_path):
    """A small network of transformers, with its processor."""
    need("transformers")
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    names = {0: "cat", 1: "dog", 2: "ship"}
    config = ViTConfig(**sizes, patch_size=8, image_size=32, id2label=names, label2id={v: k for k, v in names.items()})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ViTForImageClassification(config).save_pretrained(tmp_path / "net")
    processor(tmp_path / "net", image_mean=MEAN, image_std=STD, size={"height": 32, "width": 32})
    return tmp_path / "net"


def processor(folder, **values):
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def test_a_network_that_takes_bgr_is_given_rgb(folder):
    plain = load_teacher(f"hf:{folder}")
    processor(folder, image_mean=MEAN, image_std=STD, size=32, do_flip_channel_order=True)
    turned = load_teacher(f"hf:{folder}")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(turned(images), plain(images.flip(1)))
    assert not torch.allclose(turned(images), plain(images))


def test_a_classifier_that_would_be_drawn_at_random_is_refused(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KD3Error, match=r"no trained classifier of this kind: classifier\.bias, classifier\.w"):
        load_teacher(f"hf:{folder}")


def test_a_model_with_code_of_its_own_is_refused_in_a_sentence(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(KD3Error, match="needs code of its own, which kd3 does not run"):
        load_teacher(f"hf:{folder}")


@pytest.mark.parametrize(
    ("layer", "words"),
    [(nn.Dropout(0.5), "from one run to the next"), (nn.BatchNorm1d(8), "with the images beside it")],
)
def test_a_network_that_was_saved_in_training_mode_is_refused(layer, words):
    features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(features, layer, nn.Linear(8, 3))
    check_settled(network.eval(), "torchscript", 16)
    with pytest.raises(KD3Error, match=f"in training mode: what it says of an image changes {words}"):
        check_settled(network.train(), "torchscript", 16)


BESIDE_A_BROKEN_ONE = """
import sys
from kd3.models.teacher import load_teacher
print(load_teacher(sys.argv[1]).num_classes, any(name.startswith("torchvision") for name in sys.modules))
"""


def test_models_of_transformers_load_beside_a_broken_torchvision(folder, tmp_path):
    """In a process of its own, in which torchvision is found and cannot be imported."""
    broken = tmp_path / "path" / "torchvision"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    path = os.pathsep.join([str(broken.parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", BESIDE_A_BROKEN_ONE, f"hf:{folder}"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout.split() == ["3", "False"], done.stderr[-2000:]
