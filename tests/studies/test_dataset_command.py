"""`kd3 dataset`: from published files to pool, training set and test set."""

import hashlib
import json
import zipfile
from collections import Counter, namedtuple
from dataclasses import replace

import numpy as np
import pytest
from pool_containers import web_server

import datasets_made as made
import kd3.studies.datasets
from datasets_made import dataset, refused
from kd3.config.published import DATASETS, Published
from kd3.pool import ImagePool
from kd3.sources.labels import labelled_files
from kd3.studies.published_files import LAYOUTS

WITH_CLASSES = {
    "mnist": (40, 20, [str(number) for number in range(10)]),
    "cifar10": (50, 20, made.CIFAR10),
    "cifar100": (40, 20, ["fine0", "fine1", "fine2", "fine3"]),
    "cinic10": (20, 20, made.CIFAR10),
    "tinyimagenet": (36, 9, made.WNIDS),
}


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return made.downloads(tmp_path_factory.mktemp("downloads"))


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_archives_as_published_become_a_pool_a_training_set_and_a_test_set(name, downloads, tmp_path):
    train, test, classes = WITH_CLASSES[name]
    done = dataset(name, downloads, "--out", tmp_path / name, "--no-check", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["train"], said["test"], said["classes"]) == (train, test, classes)
    pool = ImagePool.open(tmp_path / name / "pool")
    assert (len(pool), pool.image_size) == (train, 64 if name == "tinyimagenet" else 32)
    labels = pool.labels(classes)
    assert set(labels) == set(range(len(classes)))
    tests = labelled_files(str(tmp_path / name / "test.zip"))
    assert Counter(label.name for label in tests.labels).keys() <= set(classes)
    assert len(tests.records) == test


def test_pixels_and_labels_are_those_of_the_batches(downloads, tmp_path):
    assert dataset("cifar10", downloads, "--out", tmp_path / "a", "--no-check").returncode == 0
    pool = ImagePool.open(tmp_path / "a" / "pool")
    images = np.concatenate([made.pictures(10, seed=number) for number in (1, 2, 3, 4, 5)]).transpose(0, 3, 1, 2)
    wanted = {image.tobytes(): number % 10 for number, image in enumerate(images)}
    found = {pool[place].tobytes(): label for place, label in enumerate(pool.labels(made.CIFAR10))}
    assert found == wanted


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "cinic10", "tinyimagenet"])
def test_unpacked_they_are_the_same(name, downloads, tmp_path):
    files = getattr(made, f"{name}_files")()
    for member, data in files.items():
        path = tmp_path / "unpacked" / member
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for place, out in ((downloads, "packed"), (tmp_path / "unpacked", "own")):
        assert dataset(name, place, "--out", tmp_path / out, "--no-check").returncode == 0
    for split in ("train", "test"):
        zips = [zipfile.ZipFile(tmp_path / out / f"{split}.zip") for out in ("packed", "own")]
        contents = [Counter((n.split("/")[1], archive.read(n)) for n in archive.namelist()) for archive in zips]
        assert contents[0] == contents[1]


def test_mnist_is_read_unpacked_too(tmp_path):
    import gzip

    folder = made.mnist(tmp_path / "gz")
    (tmp_path / "plain").mkdir()
    for path in folder.iterdir():
        (tmp_path / "plain" / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    found = [
        [(e.split, e.label, e.image.read()) for e in LAYOUTS["idx"](place)] for place in (folder, tmp_path / "plain")
    ]
    assert found[0] == found[1]
    assert [label for split, label, _ in found[0] if split == "test"][:12] == [*"012345678901"]


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_folders_of_classes_of_ones_own_take_their_place(name, tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        for label in ("3", "10"):
            (tmp_path / "own" / split / label).mkdir(parents=True)
            for number, image in enumerate(made.pictures(count, 24, seed=len(split + label))):
                (tmp_path / "own" / split / label / f"{number}.png").write_bytes(made.encoded(image, "PNG"))
    done = dataset(name, tmp_path / "own", "--out", tmp_path / "a", "--no-check", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["train"], said["test"], said["classes"]) == (12, 4, ["3", "10"])


@pytest.mark.parametrize(("name", "images"), [("imagenet32", 120), ("imagenet64", 80)])
def test_a_crawl_in_zips_of_batches_becomes_a_pool(name, images, downloads, tmp_path):
    done = dataset(name, downloads, "--out", tmp_path / "a", "--no-check")
    assert done.returncode == 0, done.stderr
    assert len(ImagePool.open(tmp_path / "a" / "pool")) == images
    done = dataset(name, downloads, "--out", tmp_path / "some", "--no-check", "--limit", "70")
    assert len(ImagePool.open(tmp_path / "some" / "pool")) == 70 - 70 // (images // 2)  # a batch has a mean, too


def test_the_papers_own_pickle_of_the_crawl_is_one(tmp_path):
    path = made.authors_pickle(tmp_path / "I32.pkl")
    done = dataset("imagenet32", path, "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    pool = ImagePool.open(tmp_path / "a" / "pool")
    assert (pool.read(slice(None)) == made.pictures(100, seed=200).transpose(0, 3, 1, 2)).all()


def test_the_same_command_again_has_nothing_to_do_and_another_name_is_refused(downloads, tmp_path):
    words = [downloads, "--out", tmp_path / "a", "--no-check"]
    first = dataset("cifar100", *words)
    before = (tmp_path / "a" / "train.zip").stat().st_mtime_ns
    again = dataset("cifar100", *words)
    assert again.stdout == first.stdout
    assert "train.zip   40 images of 4 classes" in again.stdout
    assert (tmp_path / "a" / "train.zip").stat().st_mtime_ns == before
    other = dataset("cifar10", *words)
    assert "holds cifar100, not cifar10; choose another folder" in other.stderr
    assert (tmp_path / "a" / "train.zip").is_file()


# Errors in one sentence, without leftovers.


@pytest.mark.parametrize("name", [name for name in DATASETS if any(file.md5 for file in DATASETS[name].files)])
def test_a_file_with_another_checksum_is_refused(name, downloads, tmp_path):
    message = refused(dataset(name, downloads, "--out", tmp_path / "a"), tmp_path / "a")
    assert "is not the published file: its MD5 is" in message
    assert "--no-check takes files as they are" in message


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "cinic10", "tinyimagenet", "imagenet32"])
def test_half_an_archive_is_refused(name, downloads, tmp_path):
    whole = downloads / DATASETS[name].files[0].name
    half = tmp_path / whole.name
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert f"{whole.name} is damaged" in refused(
        dataset(name, half, "--out", tmp_path / "a", "--no-check"), tmp_path / "a"
    )


def test_half_an_idx_file_is_refused(downloads, tmp_path):
    folder = made.mnist(tmp_path / "half")
    images = folder / "t10k-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:2000])
    message = refused(dataset("mnist", folder, "--out", tmp_path / "a", "--no-check"), tmp_path / "a")
    assert "half is damaged" in message


def test_half_a_pickle_is_refused(tmp_path):
    path = made.authors_pickle(tmp_path / "I32.pkl")
    path.write_bytes(path.read_bytes()[:100_000])
    message = refused(dataset("imagenet32", path, "--out", tmp_path / "a"), tmp_path / "a")
    assert "archive damaged" in message


def test_a_damaged_member_of_a_zip_is_refused(downloads, tmp_path):
    data = bytearray((downloads / "Imagenet32_train.zip").read_bytes())
    data[5000:5040] = bytes(40)
    (tmp_path / "Imagenet32_train.zip").write_bytes(data)
    message = refused(dataset("imagenet32", tmp_path, "--out", tmp_path / "out/a"), tmp_path / "out" / "a")
    assert "Imagenet32_train.zip is damaged" in message


@pytest.mark.parametrize("name", ["cinic10", "imagenet32"])
def test_missing_images_are_noticed_by_their_number(name, downloads, tmp_path, monkeypatch):
    files = tuple(replace(file, md5=None) for file in DATASETS[name].files)
    few = replace(DATASETS[name], files=files, train=DATASETS[name].train // 1000)
    monkeypatch.setattr(kd3.studies.datasets, "DATASETS", {name: few})
    message = refused(dataset(name, downloads, "--out", tmp_path / "a"), tmp_path / "a")
    assert f"is not whole: {'20 of 90 train' if name == 'cinic10' else '120 of 1,281'} images" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cifar11", "."], "unknown data set 'cifar11'; did you mean 'cifar10'"),
        (["cifar10", "nowhere"], "nowhere does not exist; put cifar-10-python.tar.gz there, or add --download"),
        (["mnist", "."], "has no train-images-idx3-ubyte"),
        (["cifar10", "."], "is no python version of CIFAR-10: it has no batches.meta"),
        (["cinic10", "."], "is not CINIC-10 as its authors publish it: it has no train images"),
        (["tinyimagenet", "."], "is not TinyImageNet: it has no val/val_annotations.txt"),
        (["imagenet32", "."], "holds no file that could be an image"),
        (["cifar10", ".", "--limit", "9"], "limit is for a crawl"),
    ],
)
def test_what_is_no_such_data_set_is_one_sentence(words, message, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert message in refused(dataset(*words, "--out", tmp_path / "a", "--no-check"), tmp_path / "a")


def test_too_little_room_is_told_before_a_byte_is_written(downloads, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**12, 10**12 - 10**8, 10**8))
    message = refused(dataset("cifar10", tmp_path / "d", "--download", "--out", tmp_path / "a"), tmp_path / "a")
    assert "CIFAR-10 takes about 0.5 GB, and the disk of" in message
    assert message.endswith("has 0.1 GB free")
    assert not (tmp_path / "d").exists()


# Downloads, from a server of the tests.


@pytest.fixture
def published(downloads, monkeypatch):
    """CIFAR-100 as a server of this machine publishes it, tiny."""
    with web_server(downloads) as server:
        name = "cifar-100-python.tar.gz"
        md5 = hashlib.md5((downloads / name).read_bytes()).hexdigest()
        tiny = replace(
            DATASETS["cifar100"], files=(Published(f"{server.url}/{name}", md5),), train=40, test=20, classes=4
        )
        monkeypatch.setattr(kd3.studies.datasets, "DATASETS", {"cifar100": tiny})
        yield server, name, tiny, monkeypatch


def test_a_download_goes_on_where_it_was_and_is_checked(published, downloads, tmp_path):
    server, name, _, _ = published
    whole = (downloads / name).read_bytes()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / f"{name}.part").write_bytes(whole[:5000])
    done = dataset("cifar100", tmp_path / "d", "--download", "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "d" / name).read_bytes() == whole
    assert [path.name for path in (tmp_path / "d").iterdir()] == [name]
    asked = len(server.asked)
    assert dataset("cifar100", tmp_path / "d", "--download", "--out", tmp_path / "b").returncode == 0
    assert len(server.asked) == asked  # what is there is not fetched again


def test_a_download_that_is_another_file_is_removed(published, tmp_path):
    *_, tiny, monkeypatch = published
    other = replace(tiny, files=(replace(tiny.files[0], md5="0" * 32),))
    monkeypatch.setattr(kd3.studies.datasets, "DATASETS", {"cifar100": other})
    message = refused(dataset("cifar100", tmp_path / "d", "--download", "--out", tmp_path / "a"), tmp_path / "a")
    assert "is not the published file" in message
    assert not list((tmp_path / "d").iterdir())


def test_a_server_without_the_file_is_one_sentence(published, tmp_path):
    server, *_, tiny, monkeypatch = published
    gone = replace(tiny, files=(Published(f"{server.url}/gone.tar.gz"),))
    monkeypatch.setattr(kd3.studies.datasets, "DATASETS", {"cifar100": gone})
    message = refused(dataset("cifar100", tmp_path / "d", "--download", "--out", tmp_path / "a"), tmp_path / "a")
    assert "gone.tar.gz cannot be fetched: it does not exist; the same command goes on from what is there" in message
