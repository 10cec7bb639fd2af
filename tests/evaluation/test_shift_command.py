"""`kd3 shift` from Python and in processes of its own."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import kd3
from in_process import here
from kd3.evaluation import shift_report
from kd3.evaluation.shift_distances import ClassShift, FeatureShift
from kd3.evaluation.shift_measure import Reference, drawn
from kd3.models.arch import build_arch
from kd3.runtime.compute import resolve

FAST = {"device": "cpu", "workers": 0}


def pictures(count=240, seed=0):
    """Coloured noise of several sizes, uint8 (n, 3, 16, 16)."""
    draw = np.random.default_rng(seed)
    sizes = draw.choice([2, 4, 8, 16], count)
    images = [Image.fromarray(draw.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((16, 16)) for n in sizes]
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])


def changed(images, change):
    return np.stack([np.asarray(change(Image.fromarray(i.transpose(1, 2, 0)))).transpose(2, 0, 1) for i in images])


@pytest.fixture(scope="module")
def teacher():
    """A teacher whose batch norms remember the pictures."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_arch("kd3:resnet8", num_classes=3)
    images = torch.from_numpy(pictures()).float() / 255
    images = (images - 0.5) / 0.25
    network.train()
    with torch.no_grad():
        for _ in range(60):
            network(images)
    return kd3.Teacher(network, mean=[0.5] * 3, std=[0.25] * 3, input_size=16)


def save(folder, images):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number}.png")
    return folder


def test_changed_pictures_are_farther_than_the_original_ones(teacher, tmp_path):
    unseen = pictures(seed=1)
    reference = save(tmp_path / "reference", pictures(60, seed=2))
    pools = {
        "original": unseen,
        "grey": changed(unseen, lambda image: image.convert("L").convert("RGB")),
        "blurred": changed(unseen, lambda image: image.filter(ImageFilter.GaussianBlur(2))),
    }
    found = {
        name: kd3.shift(teacher, kd3.ImagePool.from_array(images), reference=reference, **FAST).measurement
        for name, images in pools.items()
    }
    for name in ("grey", "blurred"):
        assert found[name].batch_norms.mean > 2 * found["original"].batch_norms.mean
        for distance in ("frechet", "sliced_wasserstein", "mmd"):
            far, near = (found[n].features.distance(distance).all_images for n in (name, "original"))
            assert far.value > near.value
    original = found["original"].features.distance("frechet").equal_size
    assert original.images == 60
    assert original.mean < 1.5 * original.same
    assert found["original"].features.per_class == []


def test_images_in_two_batches_are_images_in_one(teacher, monkeypatch):
    pool = kd3.ImagePool.from_array(pictures(40))
    whole = kd3.shift(teacher, pool, **FAST).measurement
    monkeypatch.setattr("kd3.evaluation.shift_measure.scan_batch", lambda compute, side: 7)
    parts = kd3.shift(teacher, pool, **FAST).measurement
    assert parts.opinions.predicted == whole.opinions.predicted
    assert parts.batch_norms.mean == pytest.approx(whole.batch_norms.mean, rel=1e-4)


def test_the_teacher_is_left_as_it_was(teacher):
    before = teacher.fingerprint()
    kd3.shift(teacher, kd3.ImagePool.from_array(pictures(10)), **FAST)
    assert teacher.fingerprint() == before


def test_without_batch_norms_the_part_is_absent(tmp_path):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3))
    teacher = kd3.Teacher(network, mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    found = kd3.shift(teacher, kd3.ImagePool.from_array(pictures(20)), out=tmp_path, **FAST)
    assert found.measurement.batch_norms is None
    assert "no batch norm" in str(found)
    assert not (tmp_path / "layers.png").exists()


def test_a_pool_can_be_the_reference(teacher_file, pool_folder):
    found = kd3.shift(teacher_file, pool_folder, reference=pool_folder, limit=50, **FAST).measurement
    assert found.features.reference_images == 50
    assert found.features.distance("frechet").all_images.value == pytest.approx(0, abs=1e-6)  # the same draw


def test_class_folders_give_distances_a_class(teacher_file, pool_folder, labelled):
    found = kd3.shift(teacher_file, pool_folder, reference=labelled, **FAST).measurement
    assert [shift.reference_images for shift in found.features.per_class] == [8, 8, 8]
    assert sum(shift.pool_images for shift in found.features.per_class) == 120


def test_without_matplotlib_the_rest_is_written(teacher_file, pool_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shift_report, "available", lambda: False)
    kd3.shift(teacher_file, pool_folder, out=tmp_path, **FAST)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shift.json", "shift.md"]
    assert "pip install 'kd3[plots]'" in capsys.readouterr().err


def command(*words):
    line = [sys.executable, "-W", "error", "-m", "kd3", "shift", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_everything_is_written_and_printed(teacher_file, pool_folder, labelled, tmp_path):
    done = command(
        *("--teacher", teacher_file, "--pool", pool_folder, "--reference", labelled, "--out", tmp_path, "--json")
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"]["sentence"].startswith("This pool is ")
    assert found["opinions"]["images"] == 120
    assert found["features"]["distances"][0]["all_images"].keys() == {"value", "low", "high"}
    assert json.loads((tmp_path / "shift.json").read_text()) == found
    page = (tmp_path / "shift.md").read_text()
    assert "![classes.png](classes.png)" in page
    for name in ("layers.png", "classes.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 600


def test_help_names_the_flags():
    done = here("shift", "--help")
    assert done.returncode == 0
    for word in ("--teacher", "--pool", "--reference", "--out", "--limit", "--device", "--precision", "--json"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--pool", "{pool}"], "--teacher is missing"),
        (["--teacher", "{teacher}", "--pool", "nowhere"], "nowhere"),
        (["--teacher", "{teacher}", "--pool", "{pool}", "--reference", "nowhere.zip"], "nowhere.zip"),
        (["--teacher", "{teacher}", "--pool", "{pool}", "--reference", "{empty}"], "holds no image"),
        (["--teacher", "{teacher}", "--pool", "{pool}", "--reference", "{one}"], "has 1 usable image; at least 2"),
        (["--teacher", "{teacher}", "--pool", "{pool}", "--limit", "1"], "limit"),
        (["--teacher", "{teacher}", "--pool", "{pool}", "--out", "{teacher}"], "cannot be made a folder"),
    ],
)
def test_bad_input_is_one_sentence_and_status_two(flags, words, teacher_file, pool_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    save(tmp_path / "one", pictures(1))
    places = {"teacher": teacher_file, "pool": pool_folder, "empty": tmp_path / "empty", "one": tmp_path / "one"}
    done = here("shift", *(flag.format(**places) for flag in flags))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert words in done.stderr.splitlines()[-1]


def test_a_pool_of_another_size_is_refused(teacher):
    with pytest.raises(kd3.KD3Error, match="--image-size 16"):
        kd3.shift(teacher, kd3.ImagePool.from_array(np.zeros((4, 3, 8, 8), np.uint8)), **FAST)


def test_a_draw_is_sorted_without_repetition_and_the_seeds():
    some = [drawn(500, 40, seed).tolist() for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert all(draw == sorted(set(draw)) and len(draw) == 40 for draw in some)
    assert drawn(7, 40, 0).tolist() == list(range(7))


def test_labels_are_those_of_the_usable_files(teacher, tmp_path):
    for label in range(3):
        save(tmp_path / str(label), pictures(2, seed=label))
    (tmp_path / "0" / "0.png").write_text("<html>")
    (tmp_path / "1" / "1.png").write_text("<html>")
    reference = Reference(str(tmp_path), teacher, limit=100, seed=0, workers=0)
    assert sum(len(images) for images, _ in reference.batches(resolve("cpu", "32"))) == 4
    assert reference.labels.tolist() == [0, 1, 2, 2]
    assert reference.skipped == {"not an image": 2}


def test_of_many_classes_the_least_covered_are_shown_each_with_its_own_figures(teacher, tmp_path):
    found = kd3.shift(teacher, kd3.ImagePool.from_array(pictures(60)), **FAST).measurement
    counts = [50, 3, 40, 7]
    opinions = replace(found.opinions, classes=list("abcd"), predicted=counts, confident=[1, 1, 1, 1])
    per_class = [ClassShift(name, 0, number, None, None) for number, name in enumerate("abcd", start=1)]
    features = FeatureShift("r", 1, 1, "f", [], per_class, {})
    many = replace(found, opinions=opinions, kept=replace(found.kept, per_class=[5, 6, 7, 8]), features=features)
    rows = shift_report._classes(many, 2)
    assert [(row[0], row[1], row[3], row[-3]) for row in rows[1:]] == [("b", "3", "6", "2"), ("d", "7", "8", "4")]
    assert [row[0] for row in shift_report._classes(many, None)[1:]] == list("abcd")
