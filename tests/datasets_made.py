"""Tiny data sets in exactly the layouts in which their authors publish them."""

import gzip
import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from archives_made import tar_of, zip_of
from in_process import here

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
WNIDS = ["n01443537", "n01629819", "n01641577"]


def pictures(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """Images (N, side, side, 3), each of three colours in broad stripes."""
    draw = np.random.default_rng(seed)
    few = draw.integers(0, 256, (count, 4, 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(few.repeat(side // 4, 1).repeat(side, 2))


def planes(images: np.ndarray) -> np.ndarray:
    """Rows of a red, a green and a blue plane."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def encoded(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def mnist(folder: Path, train: int = 40, test: int = 20) -> Path:
    """`train-images-idx3-ubyte.gz` and its kin: digit n is a bar of n grey columns."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", train, 0), ("t10k", test, 1)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.random.default_rng(seed).integers(0, 40, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, : 2 + 2 * label] += 150
        head = struct.pack(">HBB3I", 0, 8, 3, *images.shape)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
        head = struct.pack(">HBBI", 0, 8, 1, count)
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels.tobytes()))
    return folder


def cifar10_files(each: int = 10, test: int = 20) -> dict[str, bytes]:
    """The members of cifar-10-python.tar.gz, in the archive's odd order."""
    files = {}
    for number in (4, 3, 2, 5, 1):
        name = f"cifar-10-batches-py/data_batch_{number}"
        files[name] = _cifar10_batch(f"training batch {number} of 5", each, seed=number)
    files["cifar-10-batches-py/readme.html"] = b'<meta HTTP-EQUIV="REFRESH" content="0">'
    files["cifar-10-batches-py/test_batch"] = _cifar10_batch("testing batch 1 of 1", test, seed=9)
    meta = {b"num_cases_per_batch": each, b"label_names": [name.encode() for name in CIFAR10], b"num_vis": 3072}
    files["cifar-10-batches-py/batches.meta"] = pickle.dumps(meta, 2)
    return files


def _cifar10_batch(label: str, count: int, seed: int) -> bytes:
    batch = {
        b"batch_label": label.encode(),
        b"labels": [number % 10 for number in range(count)],
        b"data": planes(pictures(count, seed=seed)),
        b"filenames": [b"x_s_%06d.png" % number for number in range(count)],
    }
    return pickle.dumps(batch, 2)


def cifar100_files(train: int = 40, test: int = 20, classes: int = 4) -> dict[str, bytes]:
    """The members of cifar-100-python.tar.gz, of fewer classes."""
    files = {"cifar-100-python/file.txt~": b""}
    names = [f"fine{number}".encode() for number in range(classes)]
    meta = {b"fine_label_names": names, b"coarse_label_names": [b"coarse"]}
    for name, count, seed in (("train", train, 0), ("test", test, 1)):
        batch = {
            b"filenames": [b"x.png"] * count,
            b"batch_label": name.encode(),
            b"fine_labels": [number % classes for number in range(count)],
            b"coarse_labels": [0] * count,
            b"data": planes(pictures(count, seed=seed)),
        }
        files[f"cifar-100-python/{name}"] = pickle.dumps(batch, 2)
    return {**files, "cifar-100-python/meta": pickle.dumps(meta, 2)}


def cinic10_files(each: int = 2) -> dict[str, bytes]:
    """The members of CINIC-10.tar.gz."""
    files = {"README.md": b"# CINIC-10", "imagenet-contributors.csv": b"a,b\n", "synsets-to-cifar-10-classes.txt": b"x"}
    images = iter(pictures(3 * each * len(CIFAR10), seed=5))
    for split in ("train", "valid", "test"):
        for name in CIFAR10:
            for number in range(each):
                files[f"./{split}/{name}/cifar10-{split}-{number}.png"] = encoded(next(images), "PNG")
    return files


def tinyimagenet_files(each: int = 12, val: int = 9) -> dict[str, bytes]:
    """The members of tiny-imagenet-200.zip, of fewer classes; the test images have no labels."""
    root = "tiny-imagenet-200"
    files = {f"{root}/wnids.txt": "\n".join(reversed(WNIDS)).encode(), f"{root}/words.txt": b"n01443537\tgoldfish\n"}
    images = iter(pictures(len(WNIDS) * each + val + 3, side=64, seed=6))
    lines = []
    for number in range(3):
        files[f"{root}/test/images/test_{number}.JPEG"] = encoded(next(images), "JPEG")
    for wnid in WNIDS:
        files[f"{root}/train/{wnid}/{wnid}_boxes.txt"] = b"x_0.JPEG\t0\t0\t63\t63\n"
        for number in range(each):
            files[f"{root}/train/{wnid}/images/{wnid}_{number}.JPEG"] = encoded(next(images), "JPEG")
    for number in range(val):
        files[f"{root}/val/images/val_{number}.JPEG"] = encoded(next(images), "JPEG")
        lines.append(f"val_{number}.JPEG\t{WNIDS[number % len(WNIDS)]}\t0\t32\t44\t62\n")
    return {**files, f"{root}/val/val_annotations.txt": "".join(lines).encode()}


def imagenet_files(side: int = 32, numbers: tuple[int, ...] = (1, 2), each: int = 60) -> dict[str, bytes]:
    """The members of Imagenet32_train.zip, or of one of the two zips of 64 pixels: batches of these numbers."""
    files = {}
    for number in numbers:
        images = planes(pictures(each, side, seed=100 + number))
        batch = {"data": images, "labels": [1 + n % 1000 for n in range(each)], "mean": images.mean(0)}
        files[f"train_data_batch_{number}"] = pickle.dumps(batch, 4)
    return files


def authors_pickle(path: Path, count: int = 100) -> Path:
    """The file that the paper's own code reads: a dictionary in a dictionary."""
    images = planes(pictures(count, seed=200))
    path.write_bytes(pickle.dumps({"train": {"data": images, "target": np.arange(count) % 1000}}, 4))
    return path


def downloads(folder: Path) -> Path:
    """All archives in one folder, under the names that they are published under."""
    mnist(folder)
    tar_of(folder / "cifar-10-python.tar.gz", cifar10_files(), "w:gz")
    tar_of(folder / "cifar-100-python.tar.gz", cifar100_files(), "w:gz")
    tar_of(folder / "CINIC-10.tar.gz", cinic10_files(), "w:gz")
    zip_of(folder / "tiny-imagenet-200.zip", tinyimagenet_files(), zipfile.ZIP_DEFLATED)
    zip_of(folder / "Imagenet32_train.zip", imagenet_files(), zipfile.ZIP_DEFLATED)
    for part in (1, 2):
        files = {f"Imagenet64/{name}": data for name, data in imagenet_files(64, (part,), each=40).items()}
        zip_of(folder / f"Imagenet64_train_part{part}.zip", files, zipfile.ZIP_DEFLATED)
    return folder


def dataset(*words):
    """Run `kd3 dataset WORDS`."""
    return here("dataset", *words, "--workers", "0", "--quiet")


def refused(done, out: Path) -> str:
    """Check that a command was refused and left nothing, and return its sentence."""
    assert done.returncode == 2, done.stdout
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())
