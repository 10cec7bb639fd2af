"""`kd3 dataset` on damaged, half, exchanged and foreign files: one sentence, and nothing left behind."""

import gzip
import pickle
import struct
import zipfile

import numpy as np
import pytest

import datasets_made as made
from archives_made import tar_of, zip_of
from datasets_made import dataset, refused
from kd3.config.published import DATASETS, DataSet

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


def refused_of(name, place, tmp_path, *, checked=False):
    out = tmp_path / "new" / "out"
    message = refused(dataset(name, place, "--out", out, *([] if checked else ["--no-check"])), out)
    assert not out.parent.exists()  # nor the folder that was made for it
    return message


def unpacked(folder):
    """MNIST's files without gzip."""
    for path in sorted(made.mnist(folder).iterdir()):
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    return folder


def folder_of(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


# MNIST


def ints(data):
    return struct.pack(">HBB3I", 0, 12, 3, 10, 28, 28) + data[16 : 16 + 10 * 28 * 28]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (TRAIN_IMAGES, ints, "train-images-idx3-ubyte.gz: no images (it is no idx file of bytes)"),
        (TEST_IMAGES, lambda data: data + b"more", "it goes on after the 15,696 bytes that its header announces"),
        (TEST_LABELS, lambda data: data + b"more", "has no labels beside it, or not as many as it has images"),
        (TRAIN_LABELS, lambda data: data[:-1], "has no labels beside it, or not as many as it has images"),
        (TEST_LABELS, lambda data: data[:8] + b"\x63" + data[9:], "has test images of the class '99', and no train"),
    ],
)
def test_an_idx_file_of_other_contents_is_refused(name, change, message, tmp_path):
    folder = made.mnist(tmp_path / "files")
    path = folder / name
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
    assert message in refused_of("mnist", folder, tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (TRAIN_IMAGES, TRAIN_LABELS, "is damaged: train-images-idx3-ubyte.gz: no images (its shape is (40,)"),
        (TRAIN_IMAGES, TEST_IMAGES, "train-images-idx3-ubyte.gz has no labels beside it, or not as many"),
    ],
)
def test_exchanged_idx_files_are_refused(one, other, message, tmp_path):
    folder = made.mnist(tmp_path / "files")
    first, second = (folder / one).read_bytes(), (folder / other).read_bytes()
    (folder / one).write_bytes(second)
    (folder / other).write_bytes(first)
    assert message in refused_of("mnist", folder, tmp_path)


@pytest.mark.parametrize("place", [-8, -12, 900])
def test_a_gzipped_idx_file_with_one_changed_byte_is_refused(place, tmp_path):
    """In its checksum, in its last pixels, in the middle; no published MD5 is asked for."""
    folder = made.mnist(tmp_path / "files")
    data = bytearray((folder / TEST_IMAGES).read_bytes())
    data[place] ^= 0xFF
    (folder / TEST_IMAGES).write_bytes(data)
    assert f"is damaged: {TEST_IMAGES}: archive damaged" in refused_of("mnist", folder, tmp_path)


def test_one_of_mnists_files_is_not_enough(tmp_path):
    file = made.mnist(tmp_path / "files") / TRAIN_IMAGES
    message = "is one of four files that belong together; give the folder that holds them"
    assert message in refused_of("mnist", file, tmp_path)


def test_a_plain_file_never_stands_in_for_the_gzipped_one_that_was_checked(tmp_path):
    folder = made.mnist(tmp_path / "files")
    (folder / "train-images-idx3-ubyte").write_bytes(b"something else")
    assert dataset("mnist", folder, "--out", tmp_path / "a", "--no-check").returncode == 0


def test_unpacked_files_have_checksums_too(tmp_path):
    message = refused_of("mnist", unpacked(tmp_path / "files"), tmp_path, checked=True)
    assert "train-images-idx3-ubyte is not the published file: its MD5 is" in message


# CIFAR


def changed(files, name, change):
    """The files of an archive with one batch changed."""
    key = next(key for key in files if key.endswith(f"/{name}"))
    batch = pickle.loads(files[key])
    change(batch)
    return {**files, key: pickle.dumps(batch, 2)}


@pytest.mark.parametrize(
    ("batch", "change", "message"),
    [
        ("data_batch_4", lambda b: b.update({b"data": b[b"data"] / 255}), "data_batch_4: data: its values are float64"),
        ("test_batch", lambda b: b[b"labels"].pop(), "test_batch says no class of its images"),
        ("test_batch", lambda b: b[b"labels"].append(10), "test_batch says no class of its images"),
        ("data_batch_1", lambda b: b[b"labels"].__setitem__(3, 10), "data_batch_1 says no class of its images"),
        ("data_batch_1", lambda b: b.pop(b"data"), "data_batch_1: no array is in it"),
        ("batches.meta", lambda b: b.pop(b"label_names"), "is damaged: batches.meta: it names no classes"),
        ("batches.meta", lambda b: b[b"label_names"].__setitem__(0, b"dog"), "batches.meta: label_names has a class"),
        ("batches.meta", lambda b: b[b"label_names"].__setitem__(0, b"../x"), "'../x' is no name of a class"),
        ("batches.meta", lambda b: b[b"label_names"].__setitem__(0, b""), "'' is no name of a class"),
    ],
)
def test_a_batch_of_other_contents_is_refused(batch, change, message, tmp_path):
    path = tar_of(tmp_path / "cifar-10-python.tar.gz", changed(made.cifar10_files(), batch, change), "w:gz")
    assert message in refused_of("cifar10", path, tmp_path)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize(
    ("name", "other", "message"),
    [("cifar10", made.cifar100_files, "it has no batches.meta"), ("cifar100", made.cifar10_files, "it has no meta")],
)
def test_the_other_cifar_is_refused(name, other, message, checked, tmp_path):
    """Both have as many images, so numbers do not tell."""
    folder = folder_of(tmp_path / "files", other())
    assert message in refused_of(name, folder, tmp_path, checked=checked)


def test_both_cifars_side_by_side_are_told_apart(tmp_path):
    folder_of(tmp_path / "files", {**made.cifar10_files(), **made.cifar100_files()})
    for name, classes in (("cifar10", 10), ("cifar100", 4)):
        done = dataset(name, tmp_path / "files", "--out", tmp_path / name, "--no-check")
        assert done.returncode == 0, done.stderr
        assert f"of {classes} classes" in done.stdout


@pytest.mark.parametrize("missing", ["data_batch_3", "test_batch"])
def test_an_unpacked_folder_without_one_batch_is_refused(missing, tmp_path, monkeypatch):
    files = made.cifar10_files()
    folder = folder_of(tmp_path / "files", {key: data for key, data in files.items() if not key.endswith(missing)})
    monkeypatch.setattr("kd3.studies.published_files.md5_of", lambda path: DATASETS["cifar10"].unpacked[path.name])
    message = refused_of("cifar10", folder, tmp_path, checked=True)
    assert f"is not CIFAR-10 as its authors publish it: it has no {missing}" in message


# Folders of classes, TinyImageNet


def cut(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("where", "change", "reason"),
    [
        ("train/frog/", cut, "truncated"),
        ("test/frog/", cut, "truncated"),
        ("train/ship/", lambda data: b"", "empty"),
        ("test/ship/", lambda data: b"<html>not found</html>", "not an image"),
        ("test/deer/", lambda data: data[:60] + bytes(16) + data[76:], "unreadable"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_an_image_that_is_damaged_is_named(packed, where, change, reason, tmp_path):
    files = made.cinic10_files()
    key = next(key for key in files if where in key)
    files[key] = change(files[key])
    if packed:
        place = tar_of(tmp_path / "CINIC-10.tar.gz", files, "w:gz")
    else:
        place = folder_of(tmp_path / "files", files)
    assert f"is damaged: {key.removeprefix('./')}: {reason}" in refused_of("cinic10", place, tmp_path)


def test_hidden_files_beside_images_are_passed_over(tmp_path):
    files = {**made.cinic10_files(), "./train/cat/.DS_Store": b"Bud1", "./test/cat/._a.png": b"Mac"}
    for place in (folder_of(tmp_path / "files", files), tar_of(tmp_path / "CINIC-10.tar.gz", files, "w:gz")):
        done = dataset("cinic10", place, "--out", tmp_path / "made" / place.name, "--no-check")
        assert done.returncode == 0, done.stderr
        assert "20 images of 10 classes" in done.stdout


def test_a_class_without_train_images_is_refused(tmp_path):
    files = {key: data for key, data in made.cinic10_files().items() if "train/horse/" not in key}
    path = tar_of(tmp_path / "CINIC-10.tar.gz", files, "w:gz")
    assert "has test images of the class 'horse', and no train images of it" in refused_of("cinic10", path, tmp_path)


def test_another_number_of_classes_is_refused(tmp_path, monkeypatch):
    """The numbers of images are right."""
    few = DataSet("CINIC-10", (), side=32, train=18, test=18, layout="folders")
    monkeypatch.setattr("kd3.studies.datasets.DATASETS", {"cinic10": few})
    files = {key: data for key, data in made.cinic10_files().items() if "/truck/" not in key}
    message = refused_of("cinic10", folder_of(tmp_path / "files", files), tmp_path, checked=True)
    assert "it has 9 classes, not 10" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.partition(b"\n")[2], "val/val_annotations.txt says no class of val_0.JPEG"),
        (lambda text: text.replace(b"\t", b" "), "val/val_annotations.txt says no class of val_0.JPEG"),
        (lambda text: bytes(range(256)), "val/val_annotations.txt says no class of val_0.JPEG"),
        (lambda text: text.replace(made.WNIDS[2].encode(), b"n0"), "has test images of the class 'n0', and no train"),
    ],
)
def test_annotations_of_other_images_or_classes_are_refused(change, message, tmp_path):
    files = made.tinyimagenet_files()
    name = "tiny-imagenet-200/val/val_annotations.txt"
    path = zip_of(tmp_path / "tiny-imagenet-200.zip", {**files, name: change(files[name])}, zipfile.ZIP_DEFLATED)
    assert message in refused_of("tinyimagenet", path, tmp_path)


# The crawl


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"train": {"data": np.zeros((4, 3072), np.float32)}}, "its values are float32, not uint8"),
        ({"train": {"data": np.zeros((4, 3000), np.uint8)}}, "its shape is (4, 3000)"),
        ({"train": {"target": np.arange(4)}}, "holds no images that kd3 can read"),
        ({"train": print}, "it asks for builtins.print"),
    ],
)
def test_a_pickle_of_something_else_is_refused(contents, message, tmp_path):
    path = tmp_path / "I32.pkl"
    path.write_bytes(pickle.dumps(contents, 4))
    assert message in refused_of("imagenet32", path, tmp_path, checked=True)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = zip_of(tmp_path / "Imagenet32_train.zip", made.imagenet_files(numbers=(1,)))
    data = bytearray(path.read_bytes())
    data[6] |= 1  # flags of the member's own header, and of the directory's
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "Imagenet32_train.zip is encrypted; unpack it" in refused_of("imagenet32", path, tmp_path)


def test_a_batch_that_is_damaged_is_refused_where_the_number_of_images_is_right(tmp_path, monkeypatch):
    """A record of the damage is one of them."""
    files = {**made.imagenet_files(numbers=(1, 2)), "train_data_batch_3": b"\x80\x04no pickle"}
    crawl = DataSet("ImageNet in 32 pixels", (), side=32, train=121)
    monkeypatch.setattr("kd3.studies.datasets.DATASETS", {"imagenet32": crawl})
    message = refused_of("imagenet32", folder_of(tmp_path / "files", files), tmp_path, checked=True)
    assert "is damaged: 1 archive damaged" in message


def test_a_folder_that_was_there_before_stays(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.txt").write_text("mine")
    (tmp_path / "I32.pkl").write_bytes(b"")
    out = tmp_path / "new" / "deep" / "out"
    refused(dataset("imagenet32", tmp_path / "I32.pkl", "--out", out), out)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine.txt"]
