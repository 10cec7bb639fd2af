"""Material of the measurements: the real crawl and teacher if available, otherwise synthetic ones."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

import kd3
from kd3.models.arch import build_arch
from kd3.models.head import find_head
from kd3.runtime.errors import KD3Error

SIZE = 32
CLASSES = 10


@dataclass(frozen=True)
class Material:
    """A crawl in shards and a teacher's description."""

    name: str
    shards: list[Path]
    teacher: Path


def find(data: Path | None, work: Path, *, images: int, teacher: str) -> Material:
    """Return the material at `data`, or at its usual place, or make it in `work` with about the given number of images.

    The teacher there is a ResNet-56; another one gets random weights.

    Raises:
        KD3Error: `data` was named and has no crawl or no teacher.
    """
    place = data or _usual_place()
    if place is None:
        return Material("made here", make_shards(work / "crawl", images), make_teacher(work, teacher))
    shards = sorted((place / "crawl").glob("*.tar"))
    weights = sorted((place / "teacher").glob("*cifar10*.pt"))
    if not shards or not weights:
        raise KD3Error(f"--data {place} needs crawl/*.tar and teacher/*cifar10*.pt (a ResNet-56 of 10 classes)")
    name = f"{len(shards)} real shards"
    if teacher != "resnet56":
        return Material(name, shards, make_teacher(work, teacher))
    description = {
        "arch": "kd3:resnet56",
        "weights": str(weights[0].absolute()),
        "num_classes": CLASSES,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "input_size": SIZE,
    }
    path = work / "teacher.yaml"
    path.write_text(yaml.safe_dump(description))
    return Material(name, shards, path)


def _usual_place() -> Path | None:
    root = Path(os.environ.get("KD3_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    return root if (root / "crawl").is_dir() and (root / "teacher").is_dir() else None


def make_teacher(work: Path, name: str) -> Path:
    """Write a teacher with random weights confident enough for a meaningful selection."""
    torch.manual_seed(0)
    network = build_arch(f"kd3:{name}", num_classes=CLASSES)
    images = torch.randn(64, 3, SIZE, SIZE)
    with torch.no_grad():
        for _ in range(20):
            network(images)  # statistics for its batch norms
        network.eval()
        logits = network(images)
        classifier = network.get_submodule(find_head(network, SIZE).classifier)
        assert isinstance(classifier, torch.nn.Linear)
        classifier.weight.mul_(4 / float(logits.std()))
        classifier.bias.sub_(network(images).mean(0))
    torch.save(network.state_dict(), work / "teacher.pt")
    values = {"arch": f"kd3:{name}", "weights": "teacher.pt", "num_classes": CLASSES, "input_size": SIZE}
    path = work / "teacher.yaml"
    path.write_text(yaml.safe_dump({**values, "mean": [0.5] * 3, "std": [0.25] * 3}))
    return path


def make_shards(folder: Path, count: int, *, width: int = 64, height: int = 64, per_shard: int = 1250) -> list[Path]:
    """Write JPEGs of smooth coloured noise into tar shards, each file with unique bytes, and return the shards."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    different = [_picture(draw, width, height) for _ in range(min(count, 500))]
    shards = []
    for number, start in enumerate(range(0, count, per_shard)):
        shards.append(folder / f"{number:05d}.tar")
        with tarfile.open(shards[-1], "w") as archive:
            for i in range(start, min(start + per_shard, count)):
                # Bytes after a JPEG's end are ignored by decoders but make the file unique.
                data = different[i % len(different)] + i.to_bytes(8, "little")
                member = tarfile.TarInfo(f"{i:07d}.jpg")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return shards


def multiplied(shards: list[Path], folder: Path, times: int) -> list[Path]:
    """Return the shards with further copies of them, in which each image file has unique bytes.

    Start-up is a third of an ingest of 30,000 small images; crawls are longer than that.
    """
    folder.mkdir(parents=True)
    copies = []
    for number in range(1, times):
        for shard in shards:
            copies.append(folder / f"{shard.stem}-{number}.tar")
            with tarfile.open(shard) as archive, tarfile.open(copies[-1], "w") as copy:
                for member in archive:
                    handle = archive.extractfile(member) if member.isfile() else None
                    if handle is not None:
                        data = handle.read() + bytes([number])  # behind a JPEG's end
                        member.size = len(data)
                        copy.addfile(member, io.BytesIO(data))
    return shards + copies


def _picture(draw: np.random.Generator, width: int, height: int) -> bytes:
    coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = draw.normal(0, 12, (height, width, 1))
    pixels = np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def enlarged(shards: list[Path], folder: Path, count: int, *, width: int = 500, height: int = 375) -> list[Path]:
    """Write photographs of 500 x 375 into shards, each a mosaic of the crawl's own images, and return them."""
    folder.mkdir(parents=True)
    tiles = []
    with tarfile.open(shards[0]) as archive:
        for member in archive:
            handle = archive.extractfile(member) if member.isfile() else None
            if handle is not None and member.name.endswith((".jpg", ".jpeg")):
                tiles.append(
                    Image.open(io.BytesIO(handle.read())).convert("RGB").resize((125, 125), Image.Resampling.BICUBIC)
                )
            if len(tiles) == 400:
                break
    draw = np.random.default_rng(0)
    shards = []
    for number in range(-(-count // 500)):
        shards.append(folder / f"{number:05d}.tar")
        with tarfile.open(shards[-1], "w") as archive:
            for i in range(number * 500, min((number + 1) * 500, count)):
                picture = Image.new("RGB", (width, height))
                for x in range(0, width, 125):
                    for y in range(0, height, 125):
                        picture.paste(tiles[draw.integers(len(tiles))], (x, y))
                file = io.BytesIO()
                picture.save(file, "JPEG", quality=90)
                member = tarfile.TarInfo(f"{i:06d}.jpg")
                member.size = file.tell()
                file.seek(0)
                archive.addfile(member, file)
    return shards


def make_pool(material: Material, work: Path) -> kd3.ImagePool:
    """Ingest the crawl at the teacher's size."""
    return kd3.ingest([str(shard) for shard in material.shards], work / "pool", image_size=SIZE)
