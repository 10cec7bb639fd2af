"""Matching of folders to classes, and data that cannot be evaluated."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kd3.config.records import Preparation
from kd3.evaluation.labelled import LabelledImages
from kd3.models.preprocessing import Normalisation
from kd3.runtime.compute import resolve
from kd3.runtime.errors import KD3Error


def folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(root / name / "a.png")
    return str(root)


def labels(source, classes):
    images = LabelledImages(source, preparation=Preparation(8), class_names=classes)
    return images.matching.labels


def test_numbered_classes_are_matched_by_number_not_by_text(tmp_path):
    numbers = [str(n) for n in range(12)]
    assert labels(folders(tmp_path, *numbers), numbers) == {name: int(name) for name in numbers}


def test_unnamed_classes_take_the_folders_in_sorted_order(tmp_path):
    assert labels(folders(tmp_path, "dog", "cat"), ["0", "1"]) == {"cat": 0, "dog": 1}


def test_named_classes_are_matched_by_name_and_may_be_missing(tmp_path):
    assert labels(folders(tmp_path, "dog"), ["cat", "dog"]) == {"dog": 1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cow",), "no classes of the model: 'cow'"),
        (("train/cat", "test/cat"), "several places"),
        (("cat", "cat/more"), "several places"),
    ],
)
def test_folders_that_fit_no_class_are_refused(names, message, tmp_path):
    with pytest.raises(KD3Error, match=message):
        labels(folders(tmp_path, *names), ["cat", "dog"])


def test_data_without_a_usable_image_are_refused_at_once(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_text("<html>")
    with pytest.raises(KD3Error, match="no usable images: 1 not an image"):
        labels(str(tmp_path), ["cat", "dog"])


def test_small_images_are_judged_too(tmp_path):
    images = LabelledImages(folders(tmp_path, "cat"), preparation=Preparation(8), class_names=["cat", "dog"])
    assert sum(len(batch) for _, batch in images.batches()) == 1


def test_accuracy_on_changed_images_is_that_of_a_changed_copy(tmp_path):
    import numpy as np
    from PIL import Image

    from kd3.pool.changes import change_images

    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / name / f"{number}.png")
    options = {"preparation": Preparation(16), "class_names": ["a", "b"], "workers": 0}
    plain = LabelledImages(str(tmp_path), **options)
    grey = LabelledImages(str(tmp_path), **options, change=("greyscale", 1.0))
    ((images, labels),) = plain.batches()
    ((changed, same),) = grey.batches()
    assert labels.tolist() == same.tolist()
    np.testing.assert_array_equal(changed.numpy(), change_images("greyscale", 1.0, images.numpy(), np.arange(6)))
    with pytest.raises(KD3Error, match="unknown change"):
        LabelledImages(str(tmp_path), **options, change=("grayscal", 1.0))


def test_a_change_depends_on_an_images_place_in_the_source(tmp_path):
    """Also after a file that is none, so that the same images are changed alike with and without it."""
    from kd3.pool.changes import change_images

    draw = np.random.default_rng(0)
    (tmp_path / "cat").mkdir()
    for number in (0, 2, 3):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "cat" / f"{number}.png")
    (tmp_path / "cat" / "1.png").write_text("<html>")

    def images(change):
        found = LabelledImages(
            str(tmp_path),
            preparation=Preparation(8),
            class_names=["cat", "dog"],
            change=change,
            workers=0,
        )
        return torch.cat([batch for batch, _ in found.batches(2)]).numpy()

    expected = change_images("noise", 0.2, images(None), np.array([0, 2, 3]))
    assert np.array_equal(images(("noise", 0.2)), expected)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_left_in_its_mode(training, tmp_path):
    data = LabelledImages(folders(tmp_path, "cat"), preparation=Preparation(8), class_names=["cat", "dog"], workers=0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).train(training)
    model[2].train(not training)  # such as a batch norm that its user keeps frozen
    tally = data.tally(model, Normalisation([0.5] * 3, [0.5] * 3), resolve("cpu", "32"))
    assert tally.count == 1
    assert model.training == training
    assert model[2].training == (not training)
