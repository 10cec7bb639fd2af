"""A pool whose images are larger than the teacher's: resized for everything, and parts of them as training views."""

import pickle

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

import kd3
from kd3.commands.inspect import inspect
from kd3.models.preprocessing import Normalisation
from kd3.pool.derive import derive_pool
from kd3.pool.image_pool import ImagePool, at_size
from kd3.pool.merge import merge_pools
from kd3.runtime.errors import KD3Error
from kd3.scoring.views import augment

SMALL = {
    "images": 96, "batch_size": 16, "holdout": 12, "precision": "32", "device": "cpu", "warmup_steps": 2,
    "recall": "off", "quiet": True,
}  # fmt: skip


def noise(count, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


@pytest.fixture(scope="module")
def large_pool(crawl, tmp_path_factory):
    """The crawl's pool at 40 pixels; the teacher of `teacher_file` takes 16."""
    out = tmp_path_factory.mktemp("large") / "pool"
    kd3.ingest(crawl, out, image_size=40, workers=0, quiet=True)
    return out


@given(side=st.integers(5, 40), size=st.integers(4, 40), seed=st.integers(0, 99))
def test_a_pool_at_a_smaller_size_has_its_images_resized_as_pillow_does(side, size, seed):
    images = noise(6, side, seed)
    pool = ImagePool.from_array(images)
    if size > side:
        with pytest.raises(KD3Error, match=f"here has images of {side} pixels but the teacher takes {size}"):
            at_size(pool, size, who="the teacher", where="here")
        return
    smaller = at_size(pool, size, who="the teacher", where="here")
    places = np.array([4, 0, 4])
    for image, place in zip(smaller.read(places), places, strict=True):
        whole = Image.fromarray(images[place].transpose(1, 2, 0))
        wanted = whole.resize((size, size), Image.Resampling.BICUBIC)
        assert np.array_equal(image, np.asarray(wanted).transpose(2, 0, 1))
    assert smaller.image_size == smaller.preparation.size == size
    assert (smaller.content_hash, len(smaller), smaller.stored) == (pool.content_hash, 6, pool)
    assert smaller.read(np.array([], dtype=int)).shape == (0, 3, size, size)
    assert (smaller is pool) == (size == side)


def test_another_process_gets_the_same_images(large_pool):
    smaller = ImagePool.open(large_pool).at(16)
    again = pickle.loads(pickle.dumps(smaller))
    assert np.array_equal(again.read(slice(3, 9)), smaller.read(slice(3, 9)))
    assert again.stored.image_size == 40
    assert smaller.at(10).stored.image_size == 40  # from the stored pixels, not from resized ones
    assert smaller.at(40) is smaller.stored


def test_parts_of_images_have_the_students_size_and_the_pools_detail():
    stripes = torch.zeros(64, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255  # which resizing to 16 pixels makes grey
    views = augment(stripes, "resized-crop", flip=True, size=16, generator=torch.Generator().manual_seed(1))
    assert views.shape == (64, 3, 16, 16)
    assert float(views.float().std(dim=(1, 2, 3)).max()) > 60  # a small part keeps them


def test_a_run_on_parts_of_larger_images_is_repeatable(teacher_file, large_pool, tmp_path):
    weights = {}
    for name, augmentation in (("one", "resized-crop"), ("two", "resized-crop"), ("crop", "crop")):
        run = kd3.distill(teacher_file, "kd3:resnet8", large_pool, tmp_path / name, augmentation=augmentation, **SMALL)
        assert run.student.input_size == 16
        weights[name] = load_file(run.folder / "student" / "model.safetensors")
    same = {name: all(torch.equal(weights["one"][key], found[key]) for key in found) for name, found in weights.items()}
    assert same == {"one": True, "two": True, "crop": False}


def test_every_command_that_reads_a_pool_takes_larger_images(teacher_file, large_pool, tmp_path):
    more = {"recall": 32, "share": 0.8, "kd3": {"selection": "dynamic"}}
    run = kd3.distill(teacher_file, "kd3:resnet8", large_pool, tmp_path / "run", **{**SMALL, **more})
    assert kd3.shift(teacher_file, large_pool, quiet=True).measurement
    kd3.select(teacher_file, large_pool, tmp_path / "selection", device="cpu", quiet=True)
    assert inspect(teacher_file, pool=large_pool).normalisation is not None
    assert kd3.adapt(run.folder, device="cpu", quiet=True).folder == run.folder
    kd3.report(run.folder)
    exported = kd3.export(run.folder, tmp_path / "out", format=["torchscript"], check_images=6, quiet=True)
    assert exported


def test_a_report_asks_both_networks_at_their_own_size(teacher_file, large_pool, tmp_path, monkeypatch):
    run = kd3.distill(teacher_file, "kd3:resnet8", large_pool, tmp_path / "run", **SMALL)
    seen = set()
    asked = Normalisation.__call__
    monkeypatch.setattr(Normalisation, "__call__", lambda self, x: seen.add(x.shape[-1]) or asked(self, x))
    kd3.report(run.folder)
    assert seen == {16}


def test_pools_made_of_a_resized_pool_are_sound_and_no_others(large_pool, tmp_path):
    stored = ImagePool.open(large_pool)
    half, rest = (derive_pool(stored, tmp_path / name, without=range(*part)) for name, part in (
        ("half", (0, 60)), ("rest", (60, len(stored))),
    ))  # fmt: skip
    small = merge_pools([half.at(10), rest.at(10)], tmp_path / "small")
    assert (small.verify(), small.image_size) == ([], 10)
    assert np.array_equal(small[0], half.at(10)[0])
    for make in (lambda pool: derive_pool(pool, tmp_path / "half", without=range(60)),
                 lambda pool: merge_pools([pool, pool], tmp_path / "small")):  # fmt: skip
        with pytest.raises(KD3Error):
            make(stored.at(20))  # the folder holds images of another size


def test_a_description_of_another_size_is_not_taken_for_the_one_before(teacher_file, large_pool, tmp_path):
    described = yaml.safe_load(teacher_file.read_text())
    described["weights"] = str(teacher_file.parent / described["weights"])
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(yaml.safe_dump(described))
    run = kd3.distill(teacher, "kd3:resnet8", large_pool, tmp_path / "run", **SMALL)
    kd3.select(teacher, large_pool, tmp_path / "selection", device="cpu", quiet=True)
    teacher.write_text(yaml.safe_dump({**described, "input_size": 24}))
    for ask in (kd3.adapt, kd3.cascade):
        with pytest.raises(KD3Error, match=r"takes images of 24 pixels but the student of .* of 16"):
            ask(run.folder, device="cpu", quiet=True)
    with pytest.raises(KD3Error, match="pool's image_size"):
        kd3.select(teacher, large_pool, tmp_path / "selection", device="cpu", quiet=True)
    assert "takes images of 24 pixels, but its student takes 16" in kd3.report(run.folder).path.read_text()
