"""Image processors of transformers: compared with the library's own."""

import json

import numpy as np
import pytest
import torch
from model_libraries import need

from kd3.models.libraries.common import facts_of_processor
from kd3.models.preprocessing import Normalisation

HALF = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
SQUARE = {"size": {"height": 16, "width": 16}}
PROCESSORS = {
    "plain": ("ViT", {**SQUARE, **HALF}),
    "another factor": ("ViT", {**SQUARE, **HALF, "rescale_factor": 1 / 127.5}),
    "not rescaled": ("ViT", {**SQUARE, "do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 55, 50]}),
    "not normalised": ("ViT", {**SQUARE, **HALF, "do_normalize": False}),
    "neither": ("ViT", {**SQUARE, "do_rescale": False, "do_normalize": False}),
    "divided twice": ("EfficientNet", {**SQUARE, **HALF, "include_top": True}),
    "divided twice by default": ("EfficientNet", {**SQUARE, **HALF}),
    "divided once": ("EfficientNet", {**SQUARE, **HALF, "include_top": False}),
    "only the second time": ("EfficientNet", {**SQUARE, **HALF, "include_top": True, "do_normalize": False}),
    "from -1 to 1": ("EfficientNet", {**SQUARE, **HALF, "rescale_offset": True, "rescale_factor": 1 / 127.5}),
    "blue first": ("MobileViT", {"size": {"shortest_edge": 18}, "crop_size": {"height": 16, "width": 16}}),
    "blue not first": (
        "MobileViT",
        {"size": {"shortest_edge": 18}, "crop_size": {"height": 16, "width": 16}, "do_flip_channel_order": False},
    ),
    "enlarged and cut": ("ConvNext", {"size": {"shortest_edge": 16}, "crop_pct": 0.8, **HALF}),
    "cut": ("DeiT", {"size": {"height": 18, "width": 18}, "crop_size": {"height": 16, "width": 16}, **HALF}),
    "cut, but not asked to": (
        "Beit",
        {**SQUARE, "crop_size": {"height": 8, "width": 8}, "do_center_crop": False, **HALF},
    ),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_mean_std_and_colours_are_what_the_librarys_processor_does(kind):
    need("transformers")
    family, values = PROCESSORS[kind]
    name = f"{family}ImageProcessor"
    module = f"transformers.models.{family.lower()}.image_processing_pil_{family.lower()}"
    processor = getattr(pytest.importorskip(module), f"{name}Pil")(**values)
    # One colour all over, so that resizing changes nothing.
    picture = np.zeros((16, 16, 3), np.uint8) + np.array([200, 120, 30], np.uint8)
    expected = torch.as_tensor(np.array(processor(picture, return_tensors="np")["pixel_values"])).float()

    facts = facts_of_processor({"image_processor_type": name, **values})
    ours = Normalisation(facts.settings["mean"], facts.settings["std"])(
        torch.from_numpy(picture).permute(2, 0, 1)[None]
    )
    ours = ours.flip(1) if facts.settings.get("colours") == "bgr" else ours
    side = facts.settings["input_size"]
    assert tuple(expected.shape[2:]) == (side, side)
    torch.testing.assert_close(ours[..., :1, :1], expected[..., 8:9, 8:9], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": 224, "resample": 2}, "squashed to 224 x 224, bilinear (kd3 ingest --fit squash)"),
        (
            {"size": {"shortest_edge": 224}, "resample": 3},
            "the shorter side to 224, the middle 224 x 224, bicubic (kd3",
        ),
        ({"size": {"shortest_edge": 256}, "crop_size": 224}, "to 256, the middle 224 x 224 of it (kd3 ingest --fit cr"),
        ({"size": {"shortest_edge": 256}, "crop_size": 224}, "keeps 14% more of each side)"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}}, "squashed to 384 x 384"),
        ({"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224}, "crop_size": 224}, "to 256"),
        ({"do_resize": False, "crop_size": 32}, "the middle 32 x 32"),
        ({"size": {"height": 224, "width": 192}}, ""),
    ],
)
def test_how_pictures_become_squares_is_reported(values, words):
    said = facts_of_processor(values).preparation
    assert words in said if words else said == ""


def test_what_is_not_square_or_not_said_is_left_out():
    assert "input_size" not in facts_of_processor({"size": {"height": 224, "width": 192}}).settings
    assert "mean" not in facts_of_processor({"size": 224}).settings
    assert facts_of_processor(json.loads("{}")).settings == {}
