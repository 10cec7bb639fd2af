"""Images for counting statistics: given ones, or crawl images changed until the teacher sees the lost statistics."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kd3.config.records import Preparation
from kd3.config.settings import LEAST_RECALLED
from kd3.models.batch_norms import remembering_norms
from kd3.models.head import hooked
from kd3.models.preprocessing import Normalisation
from kd3.models.teacher import Teacher
from kd3.pool import Decoded, DecodeSettings, ImagePool, decode_records, list_records
from kd3.pool.checks import watched
from kd3.pool.decode import Rejected
from kd3.pool.image_pool import at_size
from kd3.pool.leaks import KnownImages, read_known
from kd3.pool.near_copies import perceptual_hashes, thumbnails
from kd3.pool.pool_files import NAME as MANIFEST
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import replacing
from kd3.scoring.batches import seed_for
from kd3.sources.files import shown
from kd3.sources.record import counted

COUNTED = "count batch-norm statistics on"


@dataclass(frozen=True)
class ChosenImages:
    """Images in memory, and their origin."""

    images: Tensor  # uint8 (N, 3, S, S)
    keys: list[str]  # empty for a pool in memory
    positions: list[int] | None  # in the pool; None if from no pool
    where: str  # the pool or the source
    kept_out: int = 0  # images excluded by --keep-out


def known_images(sources: Sequence[str], preparation: Preparation, *, workers: int | None) -> list[KnownImages]:
    """Return the images of `--keep-out`, from any source, with the student's preparation.

    Raises:
        KD3Error: a source holds none, or cannot be read.
    """
    size, fit = preparation.size, preparation.fit
    return [read_known(source, image_size=size, fit=fit, workers=workers) for source in sources]


def of_pool(
    pool: ImagePool,
    among: np.ndarray,
    *,
    count: int,
    seed: int,
    known: Sequence[KnownImages] = (),
    use: str = COUNTED,
) -> ChosenImages:
    """Return `count` images of a pool, drawn by seed from these positions; all if there are fewer.

    Raises:
        KD3Error: fewer than 16 are left.
    """
    order = np.random.default_rng(seed_for(seed, "recall")).permutation(among)
    positions: list[int] = []
    parts: list[np.ndarray] = []
    left_out = 0
    while len(order) and len(positions) < count:
        here, order = order[: count - len(positions)], order[count - len(positions) :]
        images = pool.read(here)
        fresh = _unknown(images, known)
        left_out += int((~fresh).sum())
        positions += here[fresh].tolist()
        parts.append(images[fresh])
    where = str(pool.path or "in memory")
    _check_enough(len(positions), f"the pool {where}", left_out, use=use)
    keys = [] if pool.path is None else _keys(pool, positions)
    return ChosenImages(torch.from_numpy(np.concatenate(parts)), keys, positions, where, left_out)


def read_images(
    source: str,
    preparation: Preparation,
    *,
    limit: int,
    seed: int,
    known: Sequence[KnownImages] = (),
    workers: int | None = None,
    use: str = COUNTED,
) -> ChosenImages:
    """Return at most `limit` images of a pool or any source of `kd3 ingest`, drawn by seed; no label is read.

    `use` is their purpose, for messages.

    Raises:
        KD3Error: it is missing, a pool of smaller images, or holds fewer than 16 usable images.
    """
    if (Path(source) / MANIFEST).is_file():
        pool = at_size(ImagePool.open(source), preparation.size, who="the student", where=source)
        if pool.preparation.fit != preparation.fit:
            console.warn(
                f"the pool {source} was made by --fit {pool.preparation.fit}, but the student gets pictures by "
                f"{preparation.fit}: these differ from those that it will see"
            )
        with watched(pool):
            return of_pool(pool, np.arange(len(pool)), count=limit, seed=seed, known=known, use=use)
    records, where = list(list_records([source])), shown(source)
    order = np.random.default_rng(seed_for(seed, "recall")).permutation(len(records))
    rejected: Counter[str] = Counter()
    keys: list[str] = []
    pixels: list[np.ndarray] = []
    left_out = 0
    settings = DecodeSettings.to_see(preparation)
    outcomes = decode_records((records[place] for place in order), settings, workers=workers)
    with console.progress("read images", min(limit, len(records)), "images") as bar, closing(outcomes):
        for outcome in outcomes:
            result = outcome.result
            if isinstance(result, Rejected):
                rejected[result.reason] += 1
            elif _is_known(result, known):
                left_out += 1
            else:
                keys.append(outcome.record.key)
                pixels.append(result.pixels)
                bar.advance()
            if len(pixels) == limit:
                break
    _check_enough(len(pixels), where, left_out, rejected, use=use)
    by_name = sorted(range(len(keys)), key=keys.__getitem__)
    images = torch.from_numpy(np.stack([pixels[place] for place in by_name]))
    return ChosenImages(images, [keys[place] for place in by_name], None, where, left_out)


def _unknown(images: np.ndarray, known: Sequence[KnownImages]) -> np.ndarray:
    """Return a mask of the images (n, 3, N, N) unlike all known ones: (n,) bool."""
    fresh = np.ones(len(images), dtype=bool)
    hashes = perceptual_hashes(images) if known else np.empty(0)
    for one in known:
        fresh[list(one.near(hashes, lambda places: thumbnails(images[places])))] = False
    return fresh


def _is_known(image: Decoded, known: Sequence[KnownImages]) -> bool:
    if any(one.same_file(image.sha256) for one in known):
        return True
    return bool(known) and not bool(_unknown(image.pixels[None], known)[0])


def _check_enough(
    count: int, where: str, left_out: int, rejected: Counter[str] | None = None, *, use: str = COUNTED
) -> None:
    if count >= LEAST_RECALLED:
        return
    reasons = counted({**(rejected or {}), "like a test image": left_out})
    words = f" (left out: {reasons})" if reasons else ""
    raise KD3Error(
        f"{where} has {count} usable image{'' if count == 1 else 's'}{words}; at least {LEAST_RECALLED} are needed to "
        f"{use}"
    )


def _keys(pool: ImagePool, positions: Sequence[int]) -> list[str]:
    wanted = set(positions)
    keys = {place: str(key) for place, (key,) in enumerate(pool.index_rows(("key",))) if place in wanted}
    return [keys[position] for position in positions]


MOST = 16
LARGEST = 96  # pixels; larger images are scaled down
GAP = 2


@dataclass(frozen=True)
class Pairs:
    """A few images before and after, both uint8 (n, 3, S, S)."""

    before: np.ndarray
    after: np.ndarray

    @classmethod
    def of(cls, images: Tensor, recalled: Tensor, normalise: Normalisation) -> Pairs:
        """Return evenly spaced pairs of uint8 images and recalled normalised ones."""
        shown = torch.linspace(0, len(images) - 1, min(MOST, len(images))).round().long()
        mean = torch.tensor(normalise.mean).view(1, -1, 1, 1)
        std = torch.tensor(normalise.std).view(1, -1, 1, 1)
        pixels = ((recalled[shown].float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return cls(images[shown].cpu().numpy(), pixels.expand(-1, 3, -1, -1).numpy())

    def write(self, path: Path) -> None:
        """Write the picture: crawl images above, recalled ones below (PNG)."""
        side = min(LARGEST, self.before.shape[-1])
        count = len(self.before)
        sheet = Image.new("RGB", (count * (side + GAP) - GAP, 2 * side + GAP), "white")
        for row, images in enumerate((self.before, self.after)):
            for column, image in enumerate(images):
                tile = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
                if tile.width != side:
                    tile = tile.resize((side, side), Image.Resampling.LANCZOS)
                sheet.paste(tile, (column * (side + GAP), row * (side + GAP)))
        with replacing(path) as temporary:
            sheet.save(temporary, "PNG", optimize=True)


STEPS = 50
RATE = 0.1  # of Adam, on normalised pixels; it falls to 0 on a cosine
BATCH_PIXELS = 128 * 32 * 32  # of one batch, which bounds the memory
SMALLEST_BATCH = 16  # images of any size: fewer have no usable statistics
VARIANCE_FLOOR = 1e-3  # of a layer's mean variance; below it a channel counts as constant


@dataclass(frozen=True)
class Recalled:
    """Images, and the distance of the teacher's statistics on them from its running ones."""

    images: Tensor  # (N, 3, S, S) float32, normalised, on the CPU
    before: float  # the objective of the crawl images, at least 0; 0: the statistics are the same
    after: float  # of the recalled ones

    @classmethod
    def of(cls, parts: Sequence[Recalled]) -> Recalled:
        """Join parts, weighted by their images."""
        images = torch.cat([part.images for part in parts])
        before, after = (
            sum(len(part.images) * value for part, value in zip(parts, values, strict=True)) / len(images)
            for values in ([part.before for part in parts], [part.after for part in parts])
        )
        return cls(images, before, after)


def recall_images(
    teacher: Teacher, images: Tensor, compute: Compute, *, steps: int = STEPS, rate: float = RATE
) -> Recalled:
    """Change crawl images until every batch norm of the teacher sees its running statistics of the lost data.

    The objective, over the batch norms l of the teacher in evaluation mode, with mean m and variance v of
    the images for each channel of what enters l and (mu, s) the running statistics of l:

        mean over l of [ mean((m - mu)^2 / s) + 1/4 mean((log v - log s)^2) ]

    Adam on normalised pixels, in float32, without any other term or randomness. Batches of bounded size are matched
    separately, so memory does not grow with the number of images.

    Args:
        teacher: the user's own, with its own statistics and its batch norms not folded.
        images: uint8 (N, 3, S, S), N >= 2.
        steps: of gradient descent, at least 1.
        rate: first learning rate.

    Raises:
        KD3Error: the teacher keeps no batch-norm statistics, its pixels have no gradient, or the objective
            is not finite.

    Source: the statistics term of DeepInversion (arXiv 1912.08795, equation 4), here from real images.
    """
    if not remembering_norms(teacher.module):
        raise KD3Error(f"teacher {teacher.name} keeps no batch-norm statistics, so it has nothing to recall from")
    # Means over positions are faster on contiguous maps than in channels_last, which the teacher may be in.
    network = copy.deepcopy(teacher.module).to(compute.device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    parts = in_batches(images)
    moved, before, after = [], 0.0, 0.0
    with console.progress("recall", len(images) * steps, "image steps") as bar:
        for part in parts:
            normalised = teacher.normalise(part.to(teacher.normalise.scale.device))
            pixels = normalised.to(compute.device).detach().clone()
            first, last = _moved(network, pixels, steps, rate, bar, name=teacher.name)
            moved.append(pixels.detach().cpu().contiguous())
            before, after = before + first * len(part), after + last * len(part)
    return Recalled(torch.cat(moved), before / len(images), after / len(images))


def in_batches(images: Tensor) -> list[Tensor]:
    """Return images (N, 3, S, S) in nearly equal batches, whose size follows from the images' own."""
    most = max(SMALLEST_BATCH, BATCH_PIXELS // (images.shape[-1] * images.shape[-2]))
    return list(images.tensor_split(math.ceil(len(images) / most)))


def _moved(
    network: nn.Module, pixels: Tensor, steps: int, rate: float, bar: console.Progress, *, name: str
) -> tuple[float, float]:
    """Optimise one batch in place; return the objective before and after."""
    pixels.requires_grad_(True)
    optimizer = torch.optim.Adam([pixels], lr=rate)
    first = math.nan
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        value = statistics_gap(network, pixels)
        if not value.requires_grad:
            raise KD3Error(f"teacher {name} passes no gradient to its pixels, so no image can be recalled from it")
        (pixels.grad,) = torch.autograd.grad(value, [pixels])
        seen = _finite(value, name)
        first = seen if step == 0 else first
        optimizer.step()
        bar.advance(len(pixels), f"distance {seen:.3f}")
    with torch.no_grad():
        return first, _finite(statistics_gap(network, pixels), name)


def statistics_gap(network: nn.Module, images: Tensor) -> Tensor:
    """Return the objective of `recall_images` for one batch of normalised images (B, 3, H, W): a scalar, at least 0."""
    gaps: list[Tensor] = []

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        gaps.append(_gap(inputs[0].float(), norm.running_mean, norm.running_var, norm.eps))  # type: ignore[arg-type]

    with hooked(norm.register_forward_pre_hook(note) for norm in remembering_norms(network).values()):
        network(images)
    return torch.stack(gaps).mean()


def _gap(seen: Tensor, remembered_mean: Tensor, remembered_variance: Tensor, eps: float) -> Tensor:
    # Two plain means: torch.var_mean is several times slower on a CPU.
    places = seen.unsqueeze(-1).flatten(2)
    mean = places.mean(2).mean(0)
    variance = (places.square().mean(2).mean(0) - mean.square()).clamp(min=0)
    floor = eps + VARIANCE_FLOOR * remembered_variance.mean()
    expected = remembered_variance + floor
    means = ((mean - remembered_mean).square() / expected).mean()
    return means + 0.25 * ((variance + floor).log() - expected.log()).square().mean()


def _finite(value: Tensor, name: str) -> float:
    found = float(value.detach())
    if not math.isfinite(found):
        raise KD3Error(
            f"what the batch norms of teacher {name} see of these images is not finite, so no image can be recalled"
        )
    return found
