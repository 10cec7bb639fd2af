"""Which folder is which class, and data that cannot be judged."""

import numpy as np
import pytest
from PIL import Image

from kd3.errors import KD3Error
from kd3.measure.labelled import LabelledImages


def folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(root / name / "a.png")
    return str(root)


def labels(source, classes):
    images = LabelledImages(source, image_size=8, num_classes=len(classes), class_names=classes)
    return images.labels


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
    images = LabelledImages(folders(tmp_path, "cat"), image_size=8, num_classes=2, class_names=["cat", "dog"])
    assert sum(len(batch) for _, batch in images.batches()) == 1
