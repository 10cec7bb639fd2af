"""A perfect classifier of plain colours, and such pictures: only the labels can go wrong."""

from pathlib import Path

import torch
from PIL import Image
from torch import nn

SIDE = 16
NETWORK = """\
from torch import nn


def build(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
"""


def colour(kind: int) -> tuple[int, int, int]:
    return (20 + 70 * (kind % 4), 20 + 70 * (kind // 4 % 4), 60 + 100 * (kind // 16))


def picture(kind: int) -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), colour(kind))


def network(kinds: list[int]) -> nn.Module:
    """Logit k is that of the colour `kinds[k]`: the nearest one has the largest."""
    colours = torch.tensor([colour(kind) for kind in kinds], dtype=torch.float32) / 255
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, len(kinds)))
    with torch.no_grad():
        module[2].weight.copy_(400 * colours)
        module[2].bias.copy_(-200 * (colours**2).sum(dim=1))
    return module


def teacher(folder: Path, kinds: list[int], classes: str | None = None, name: str = "teacher") -> Path:
    """Write its description, with the names as that YAML text has them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.py").write_text(NETWORK)
    torch.save(network(kinds).state_dict(), folder / f"{name}.pt")
    text = f"arch: net.py:build\nweights: {name}.pt\nnum_classes: {len(kinds)}\nmean: [0, 0, 0]\nstd: [1, 1, 1]\n"
    text += f"input_size: {SIDE}\n" + (f"classes: {classes}\n" if classes else "")
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{name}.yaml"


def pictures(folder: Path, names: dict[str, int], count: int = 4) -> Path:
    """Write a folder of pictures of each name's colour."""
    for name, kind in names.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(kind).save(folder / name / f"{number}.png")
    return folder
