"""The comparison of an export's files with the student: differences, the images, speed."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import kd3
from kd3.config.records import Preparation
from kd3.exports import comparison
from kd3.exports.comparison import Comparison, images_of, images_of_run, in_batches, milliseconds, parity
from kd3.runtime.run_folder import RunFolder
from kd3.scoring.batches import split_pool

EXPECTED = torch.tensor([[0.0, 2.0], [4.0, 1.0], [0.0, -3.0], [1.0, 0.5]])
INPUTS = torch.zeros(4, 3, 2, 2)


def giving(logits):
    """A file that puts out these logits, whatever it gets."""
    left = iter(logits)
    return lambda batch: torch.stack([next(left) for _ in batch])


@pytest.mark.parametrize(
    ("scale", "shift", "same"),
    [(1, 1e-4 * 0.99, True), (1, 1e-4 * 1.5, False), (10, 1e-3 * 3.9, True), (10, 1e-3 * 4.5, False)],
)
def test_a_ten_thousandth_of_the_largest_logit_and_of_one_is_the_same(scale, shift, same):
    expected = EXPECTED / 4 * scale * (4 if scale > 1 else 1)
    found = parity(expected, giving(expected + shift), INPUTS, what="a.onnx")
    assert found.holds is same
    assert found.largest_difference == pytest.approx(shift, rel=0.01)
    assert found.largest_logit == float(expected.abs().max())


def test_parity_counts_the_images_of_the_same_class():
    other = EXPECTED.clone()
    other[0] = torch.tensor([2.0, 0.0])
    found = parity(EXPECTED, giving(other), INPUTS, what="a.onnx")
    assert (found.images, found.same_class, found.largest_difference) == (4, 75.0, 2.0)


def test_logits_that_are_not_finite_are_another_function():
    other = EXPECTED.clone()
    other[2, 0] = float("nan")
    assert parity(EXPECTED, giving(other), INPUTS, what="a.onnx").largest_difference == float("inf")


def test_a_file_of_other_outputs_or_one_that_does_not_run_is_named():
    with pytest.raises(kd3.KD3Error, match=r"a\.onnx puts out \(4, 3\) where the student gives \(4, 2\)"):
        parity(EXPECTED, lambda batch: torch.zeros(len(batch), 3), INPUTS, what="a.onnx")
    with pytest.raises(kd3.KD3Error, match=r"a\.onnx was written but does not run: ZeroDivisionError: division"):
        parity(EXPECTED, lambda batch: 1 / 0, INPUTS, what="a.onnx")


@pytest.mark.parametrize(("images", "sizes"), [(1, [1]), (5, [1, 4]), (8, [1, 7]), (140, [1, 7, 64, 64, 4])])
def test_batches_of_several_sizes_are_run_in_order(images, sizes):
    seen = []

    def run(batch):
        seen.append(len(batch))
        return batch

    inputs = torch.arange(images).view(-1, 1)
    assert torch.equal(in_batches(run, inputs), inputs)
    assert seen == sizes


@pytest.mark.parametrize(("images", "sizes"), [(1, [1]), (63, [1]), (64, [1, 64]), (99, [1, 64])])
def test_times_are_medians_of_one_call_in_milliseconds(images, sizes, monkeypatch):
    clock = [0.0]
    calls = {"quick": 0, "slow": 0}

    def running(name, seconds):
        def run(batch):
            calls[name] += 1
            stalled = 50 if calls[name] == 3 else 1  # once the machine is busy with something else
            clock[0] += seconds * len(batch) * stalled

        return run

    monkeypatch.setattr(comparison.time, "perf_counter", lambda: clock[0])
    runners = {"quick": running("quick", 0.001), "slow": running("slow", 0.003)}
    found = milliseconds(runners, torch.zeros(images, 1))
    assert found == {"quick": {n: 1.0 * n for n in sizes}, "slow": {n: 3.0 * n for n in sizes}}
    # A batch of one is too quick for the clock: 16 calls a turn.
    assert calls["quick"] == 1 + 7 * 16 + (1 + 7 if 64 in sizes else 0)


def test_a_file_that_is_not_the_student_is_refused_unless_it_need_not_be(tmp_path, monkeypatch):
    (tmp_path / "a.onnx").write_bytes(bytes(7))
    teacher = EXPECTED.flip(1)
    compared = Comparison(EXPECTED, teacher, "pictures")

    def other(batch):
        return EXPECTED[: len(batch)] + 0.5 if len(batch) == 1 else EXPECTED[1:] + 0.5

    with pytest.raises(kd3.KD3Error, match=r"a\.onnx is not the student: logits differ by up to 0\.5 \(of 4;"):
        compared.add(tmp_path / "a.onnx", "r", other, INPUTS)
    compared.add(tmp_path / "a.onnx", "r", other, INPUTS, exact=False)
    (tmp_path / "student").mkdir()
    for name in ("x", "y"):
        (tmp_path / "student" / name).write_bytes(bytes(20))
    compared.add(tmp_path / "student", "r", lambda batch: other(batch) - 0.5, INPUTS + 1)
    rough, folder = compared.timed()
    seen = []

    def timing(runners, inputs):
        seen.append((list(runners), float(inputs.max())))
        return {name: {1: 2.5} for name in runners}

    monkeypatch.setattr(comparison, "milliseconds", timing)
    assert [one.milliseconds for one in compared.timed()] == [{1: 2.5}] * 2
    assert seen == [(["a.onnx"], 0.0), (["student/"], 1.0)]  # each with the input that it takes
    assert (rough.file, rough.bytes, rough.largest_difference, rough.same_class) == ("a.onnx", 7, None, 100.0)
    assert (folder.file, folder.bytes, folder.largest_difference) == ("student/", 40, 0.0)
    assert rough.teacher_agreement == folder.teacher_agreement == 0.0
    assert list(rough.milliseconds) == list(folder.milliseconds) == [1]


def test_images_of_a_pool_are_divided_in_proportion_without_a_common_one(pool_folder, capsys):
    found = images_of(str(pool_folder), Preparation(16), compare=20, calibrate=10)
    assert (len(found.compared), len(found.calibrating)) == (20, 10)
    assert len({image.tobytes() for image in torch.cat([found.compared, found.calibrating]).numpy()}) == 30
    # Drawn from all of the pool, since one made of class folders begins with one class.
    whole = [image.tobytes() for image in kd3.ImagePool.open(pool_folder).read(np.arange(120))]
    assert max(whole.index(image.tobytes()) for image in found.compared.numpy()) > 60
    few = images_of(str(pool_folder), Preparation(16), compare=300, calibrate=100)
    assert (len(few.compared), len(few.calibrating)) == (90, 30)
    assert len(images_of(str(pool_folder), Preparation(16), compare=1, calibrate=30).compared) == 2
    assert capsys.readouterr().err == ""
    images_of(str(pool_folder), Preparation(16, "squash"), compare=3, calibrate=0)
    assert "was made by --fit crop, but the student gets pictures by squash" in capsys.readouterr().err
    assert images_of(str(pool_folder), Preparation(15), compare=2, calibrate=0).compared.shape == (2, 3, 15, 15)
    with pytest.raises(kd3.KD3Error, match="has images of 16 pixels but the student takes 17"):
        images_of(str(pool_folder), Preparation(17), compare=2, calibrate=0)


@pytest.mark.parametrize("count", [2, 3])
def test_a_folder_needs_three_images_and_names_what_was_left_out(count, tmp_path):
    for number in range(count):
        Image.new("RGB", (20, 20), (9 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "page.png").write_text("<html>")
    if count < 3:
        with pytest.raises(kd3.KD3Error, match=r"holds 2 usable images \(left out: 1 not an image\); at least 3"):
            images_of(str(tmp_path), Preparation(16), compare=8, calibrate=8)
    else:
        assert len(images_of(str(tmp_path), Preparation(16), compare=8, calibrate=8).compared) == 2
        assert (
            len(images_of(str(tmp_path), Preparation(16), compare=1, calibrate=1).compared) == 2
        )  # and no more is read


@pytest.mark.parametrize(("compare", "expected"), [(12, 12), (20, 20), (30, 30)])
def test_a_runs_export_is_compared_on_images_that_it_did_not_learn(compare, expected, pool_folder, tmp_path):
    pool = kd3.ImagePool.open(pool_folder)
    split = split_pool(pool, 20, share=1.0)
    selected = split.train[::2]
    (tmp_path / "selections").mkdir()
    np.save(tmp_path / "selections" / "00000.npy", selected)
    (tmp_path / "config.yaml").write_text(f"teacher: t\npool: {pool_folder}\ntrain:\n  holdout: 20\n")
    (tmp_path / "origin.json").write_text(json.dumps({"pool": pool.content_hash}))
    found = images_of_run(RunFolder(tmp_path), Preparation(16), compare=compare, calibrate=25)
    whole = [image.tobytes() for image in pool.read(np.arange(120))]
    compared = [whole.index(image.tobytes()) for image in found.compared.numpy()]
    calibrating = {whole.index(image.tobytes()) for image in found.calibrating.numpy()}
    assert len(compared) == expected
    held = split.holdout[:compare].tolist()
    assert compared[: len(held)] == held
    assert not set(compared) & set(selected.tolist())
    assert len(calibrating) == 25
    assert calibrating <= set(selected.tolist())


def test_a_pool_that_was_made_anew_is_not_the_runs(pool_folder, tmp_path):
    (tmp_path / "config.yaml").write_text(f"teacher: t\npool: {pool_folder}\n")
    (tmp_path / "origin.json").write_text(json.dumps({"pool": "that of an earlier crawl"}))
    with pytest.raises(kd3.KD3Error, match=r"is not the one that the run .* learned from; .* --images POOL_OR_FOLDER"):
        images_of_run(RunFolder(tmp_path), Preparation(16), compare=4, calibrate=4)
