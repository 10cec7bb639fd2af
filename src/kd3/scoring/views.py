"""Views of images: augmentation of batches on the device, or a few views with the teacher's features on disk."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kd3.config.training import TrainSettings
from kd3.models.head import ModelOutput, global_avg_pool
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.pool.pool_files import FEATURES
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.runtime.ranks import ALONE, Ranks
from kd3.scoring.batches import Coming, generator_for, sent
from kd3.scoring.teacher_cache import drawn_to_compare, matches, name_for, reserve

TRIES = 10  # to find a fitting crop, as in torchvision
Augmentation = Literal["crop", "resized-crop", "none"]


def augment(
    images: Tensor,
    kind: Augmentation,
    *,
    flip: bool,
    generator: torch.Generator,
    size: int | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Return a random view of each image, half of them mirrored if `flip`.

    Shapes: (B, 3, S, S) uint8 -> the same, for "resized-crop" (B, 3, size, size), in channels_last. All randomness
    comes from `generator`, on the images' device, the same on all `ranks`, whose parts make up the batch.
    """
    if kind == "crop":
        return shift(images, flip=flip, generator=generator, ranks=ranks)
    if kind == "resized-crop":
        return resized_crop(images, flip=flip, generator=generator, size=size, ranks=ranks)
    mirrored = _coin(len(images), images.device, generator, ranks) if flip else None
    views = images if mirrored is None else torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return views.contiguous(memory_format=torch.channels_last)


def shift(images: Tensor, *, flip: bool = True, generator: torch.Generator, ranks: Ranks = ALONE) -> Tensor:
    """Shift each image by up to an eighth of its side, reflected at the border.

    For 32 pixels this is the usual crop after a padding of 4, with reflection.
    """
    batch, _, height, width = images.shape
    down = _offset(batch, height, images.device, generator, ranks)
    across = _offset(batch, width, images.device, generator, ranks)
    mirrored = _coin(batch, images.device, generator, ranks) if flip else None
    return shifted(images, down, across, mirrored)


def shifted(images: Tensor, down: Tensor, across: Tensor, mirrored: Tensor | None) -> Tensor:
    """Return each image moved by its own offsets, reflected at the border, and mirrored where requested.

    Shapes: (B, 3, H, W) uint8; down, across (B,), in pixels; mirrored (B,) bool -> (B, 3, H, W), in channels_last.
    """
    batch, _, height, width = images.shape
    rows, columns = _places(height, down), _places(width, across)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index = torch.arange(batch, device=images.device)[:, None, None]
    # Indices around a slice put the channels last: (B, H, W, 3), the layout that convolutions want.
    return images[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def mixed_up(images: Tensor, *, generator: torch.Generator, ranks: Ranks = ALONE) -> Tensor:
    """Mix each image with another of the batch, by a share drawn uniformly from [0, 1].

    Shapes: (B, 3, S, S), normalised floats -> the same. Partners are those of the batch that the parts of all `ranks`
    make up.

    Source: function matching (arXiv 2106.05237): teacher and student see the same mixtures.
    """
    total = len(images) * ranks.count
    mine = ranks.part(total)
    partner = torch.randperm(total, generator=generator, device=images.device)[mine]
    share = torch.rand(total, generator=generator, device=images.device)[mine].view(-1, 1, 1, 1)
    return torch.lerp(images, ranks.gather(images)[partner], share.to(images.dtype)).contiguous(
        memory_format=torch.channels_last
    )


def _coin(batch: int, device: torch.device, generator: torch.Generator, ranks: Ranks) -> Tensor:
    total = batch * ranks.count
    return torch.rand(total, generator=generator, device=device)[ranks.part(total)] < 0.5


def _offset(batch: int, side: int, device: torch.device, generator: torch.Generator, ranks: Ranks) -> Tensor:
    reach, total = side // 8, batch * ranks.count
    return torch.randint(-reach, reach + 1, (total, 1), generator=generator, device=device)[ranks.part(total), 0]


def _places(side: int, offset: Tensor) -> Tensor:
    place = (torch.arange(side, device=offset.device) + offset[:, None]).abs()
    return torch.where(place >= side, 2 * (side - 1) - place, place)


def resized_crop(
    images: Tensor,
    *,
    flip: bool = True,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    size: int | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Crop a random part of each image, of `scale` times its area, and resize it to `size` (None: the images' own).

    As torchvision's RandomResizedCrop: area and aspect are drawn up to ten times until the crop fits; otherwise the
    whole image is taken. Bilinear, with antialiasing when shrinking.

    Shapes: (B, 3, S, S) uint8 -> (B, 3, size, size) uint8, in channels_last.
    """
    total, side = len(images) * ranks.count, images.shape[-1]
    boxes = crop_boxes(total, side, scale=scale, ratio=ratio, generator=generator)[ranks.part(total)]
    mirrored = _coin(len(images), images.device, generator, ranks) if flip else None
    return resampled(images, boxes, size or side, mirrored)


def crop_boxes(
    count: int, side: int, *, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Draw crops of square images, as torchvision's RandomResizedCrop does: top, left, height and width in pixels.

    Shapes: -> (count, 4) int64, on the generator's device.
    """
    uniform = torch.rand(2 * TRIES + 2, count, generator=generator, device=generator.device)
    area = side * side * (scale[0] + (scale[1] - scale[0]) * uniform[:TRIES])
    aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * uniform[TRIES : 2 * TRIES])
    sizes = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()]).round().long()  # (2, TRIES, count)
    fits = ((sizes > 0) & (sizes <= side)).all(0)
    first = fits.int().argmax(0)[None, None].expand(2, 1, count)
    chosen = torch.where(fits.any(0), sizes.gather(1, first)[:, 0], side)
    start = (uniform[2 * TRIES :] * (side - chosen + 1)).long().minimum(side - chosen)
    return torch.stack([start[0], start[1], chosen[0], chosen[1]], dim=1)


def resampled(images: Tensor, boxes: Tensor | None, size: int, mirrored: Tensor | None = None) -> Tensor:
    """Return a crop of each image (None: the whole), resized, and mirrored where requested.

    Bilinear, with antialiasing when shrinking, as in Pillow and torch's `antialias`.

    Shapes: (B, 3, S, S) uint8; boxes (B, 4): top, left, height, width; mirrored (B,) bool -> (B, 3, size, size) uint8,
    in channels_last.
    """
    if boxes is None:
        boxes = torch.tensor([[0, 0, images.shape[-2], images.shape[-1]]], device=images.device).expand(len(images), 4)
    rows = _weights(boxes[:, 0], boxes[:, 2], images.shape[-2], size)
    columns = _weights(boxes[:, 1], boxes[:, 3], images.shape[-1], size)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    views = rows[:, None] @ images.float() @ columns.mT[:, None]
    return views.round().clamp(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def _weights(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Return the weights of `side` input pixels in `size` output pixels: triangles, (B, size, side), rows sum to 1."""
    step = (length / size)[:, None, None]
    pixel = torch.arange(side, device=start.device) - start[:, None, None]  # counted from the part's first
    centre = (torch.arange(size, device=start.device)[:, None] + 0.5) * step
    weights = (1 - (pixel + 0.5 - centre).abs() / step.clamp_min(1)).clamp_min(0)
    weights = weights * ((pixel >= 0) & (pixel < length[:, None, None]))
    return weights / weights.sum(dim=2, keepdim=True)


VERSION = 1
SEARCHED_ROWS = 1 << 16  # rows searched for a stored one to compare
COMING = 8  # batches of new features on their way from an accelerator, at most
CPU = torch.device("cpu")


class FixedViews:
    """The set of views: the same for every run on a pool, so that runs share the teacher's features.

    A view is a shift by up to an eighth of the side, and a mirror or none, as `shift` draws.

    Args:
        images: number of images in the pool N.
        views: number of views of each V.
        side: of the images, in pixels.
        device: of the images.
    """

    def __init__(self, images: int, views: int, *, side: int, flip: bool, device: torch.device = CPU) -> None:
        self.views, self.flip = views, flip
        generator = generator_for(CPU, 0, "fixed views", images, views)
        reach = side // 8
        # Drawn as small integers: an image costs three bytes of memory per view.
        offsets = torch.randint(-reach, reach + 1, (images, views, 2), generator=generator, dtype=torch.int8)
        mirrored = torch.randint(0, 2, (images, views), generator=generator, dtype=torch.int8)
        self._offsets, self._mirrored = offsets.to(device).flatten(0, 1), mirrored.to(device).flatten()

    def choose(self, positions: Tensor, generator: torch.Generator, ranks: Ranks = ALONE) -> Tensor:
        """Choose a view of each image, as a row: position * V + view. Shapes: (B,) -> (B,) int64.

        The generator is the same on all `ranks`, whose parts make up the batch.
        """
        total = len(positions) * ranks.count
        views = torch.randint(0, self.views, (total,), generator=generator)
        return positions * self.views + views[ranks.part(total)]

    def of(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return the chosen views, in channels_last.

        Shapes: images (B, 3, S, S) uint8, rows (B,) on the CPU -> (B, 3, S, S).
        """
        rows = sent(rows, images.device)
        offsets = self._offsets[rows].long()
        mirrored = self._mirrored[rows].bool() if self.flip else None
        return shifted(images, offsets[:, 0], offsets[:, 1], mirrored)


class TeacherFeatures:
    """The teacher's features of fixed views, computed on first use and stored beside the pool.

    The file's name depends on the teacher, the pool's content, the views and the precision. Some stored features are
    compared with the teacher's present output, others each time. Concurrent runs may share the file: they write the
    same values.

    Raises:
        OSError: it cannot be made, or the disk is full.
    """

    def __init__(self, teacher: Teacher, images: ImagePool, views: FixedViews, compute: Compute) -> None:
        assert images.path is not None
        self.teacher, self.compute, self.views = teacher, compute, views
        self.classifier = compute.place(teacher.classifier())
        self.shape = _shape(teacher, images, compute)
        kind = _kind(compute)
        rows, values = len(images) * views.views, self.shape.numel()
        path = self._path(images)
        path.parent.mkdir(exist_ok=True)
        _make(path, rows * values * kind.itemsize)
        _make(path.with_suffix(".known"), rows)
        self._features = torch.from_file(str(path), shared=True, size=rows * values, dtype=kind).view(rows, values)
        self._known = torch.from_file(str(path.with_suffix(".known")), shared=True, size=rows, dtype=torch.uint8)
        if not self._still_true(images):
            console.warn(f"{path} does not match this teacher's features; they are computed again")
            self._known.zero_()
        self._coming: deque[tuple[Tensor, Coming]] = deque()  # on their way from an accelerator: rows and features

    def outputs(self, rows: Tensor, images: Tensor) -> ModelOutput:
        """Return the teacher's outputs for normalised views (B, 3, S, S): features (B, C, h, w), logits (B, K)."""
        self._keep_arrived()
        missing = (self._known[rows] == 0).nonzero().flatten()
        with torch.no_grad(), self.compute.autocast():
            kept = sent(self._features[rows], images.device)
            if len(missing):
                places = sent(missing, images.device)
                computed = self.teacher.outputs(images[places]).features.reshape(len(missing), -1).to(kept.dtype)
                kept = kept.index_copy(0, places, computed)
                self._coming.append((rows[missing], Coming(computed)))
                self._keep_arrived()
            features = kept.view(len(rows), *self.shape).contiguous(memory_format=torch.channels_last)
            return ModelOutput(features, self.classifier(global_avg_pool(features)))

    def _keep_arrived(self) -> None:
        """Write the arrived features; wait for the rest only if much is on its way."""
        while self._coming and (self._coming[0][1].is_here or len(self._coming) > COMING):
            rows, features = self._coming.popleft()
            self._features[rows] = features.get()
            self._known[rows] = 1

    def _outputs(self, images: Tensor) -> ModelOutput:
        return _outputs(self.teacher, images, self.compute)

    def _path(self, images: ImagePool) -> Path:
        more = (str(self.teacher.head), self.views.views, self.views.flip, images.image_size)
        name = name_for(VERSION, self.teacher, images, self.compute, *more)
        assert images.path is not None
        return Path(images.path) / FEATURES / f"{name}.features"

    def _still_true(self, images: ImagePool) -> bool:
        sample = torch.linspace(0, len(self._known) - 1, min(len(self._known), SEARCHED_ROWS)).long()
        known = sample[self._known[sample] > 0]
        if len(known) == 0:
            return True
        rows = known[torch.from_numpy(drawn_to_compare(len(known)))]
        raw = torch.from_numpy(images.read((rows // self.views.views).numpy())).to(self.compute.device)
        now = self._outputs(self.views.of(raw, rows)).features.float().cpu()
        kept = self._features[rows].float().view(now.shape)
        return matches(kept.numpy(), now.numpy())


def _outputs(teacher: Teacher, images: Tensor, compute: Compute) -> ModelOutput:
    with torch.no_grad(), compute.autocast():
        return teacher.outputs(teacher.normalise(images.to(compute.device)))


def _shape(teacher: Teacher, images: ImagePool, compute: Compute) -> torch.Size:
    return _outputs(teacher, torch.from_numpy(images.read(np.arange(2))), compute).features.shape[1:]


def _kind(compute: Compute) -> torch.dtype:
    return torch.float32 if compute.precision == "32" else torch.bfloat16


def bytes_of_features(settings: TrainSettings, teacher: Teacher, images: ImagePool, compute: Compute) -> int:
    """Return the disk space of the teacher's features of the fixed views."""
    values = _shape(teacher, images, compute).numel()
    return len(images) * settings.fixed_views * (values * _kind(compute).itemsize + 1)


def _make(path: Path, size: int) -> None:
    """Make a file of zeros with its space reserved; one of another size is replaced."""
    if path.is_file() and not path.is_symlink() and path.stat().st_size == size:
        return  # a link in somebody else's pool may lead anywhere
    path.unlink(missing_ok=True)
    try:
        with path.open("xb") as handle:
            reserve(handle, size)
    except FileExistsError:
        pass  # another run has just replaced it
    except OSError:
        path.unlink(missing_ok=True)
        raise


def check_fixed_views(settings: TrainSettings, images: ImagePool) -> None:
    """Refuse fixed views if there is no folder for their features.

    Raises:
        KD3Error: the pool is in memory.
    """
    if settings.fixed_views and images.path is None:
        raise KD3Error("fixed_views keeps the teacher's features beside the pool, and a pool in memory has no place")


def fixed_views(
    settings: TrainSettings, teacher: Teacher, images: ImagePool, compute: Compute
) -> tuple[FixedViews, TeacherFeatures | None] | None:
    """Return the requested views, and the store of the teacher's features of them.

    None if an image gets a new view each time. With a full disk the views stay, and the teacher runs on each.

    Raises:
        KD3Error: the pool is in memory, or the teacher's features are unknown.
    """
    if not settings.fixed_views:
        return None
    check_fixed_views(settings, images)
    assert images.path is not None
    teacher.shared_head()
    views = FixedViews(
        len(images), settings.fixed_views, side=images.image_size, flip=settings.flip, device=compute.device
    )
    try:
        return views, TeacherFeatures(teacher, images, views, compute)
    except OSError as problem:
        console.warn(
            f"the teacher's features cannot be kept in {Path(images.path) / FEATURES}: {problem.strerror or problem}; "
            f"the teacher runs at every step"
        )
        return views, None
