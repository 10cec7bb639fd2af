"""Pools of a study: given ones, and others derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from kd3 import console
from kd3.compute import Compute
from kd3.errors import KD3Error
from kd3.experiments.plan import PoolRecipe
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool, derive_pool
from kd3.training.pool_batches import PoolBatches
from kd3.training.teacher_logits import teacher_logits


def make_pools(
    folder: Path, recipes: Mapping[str, PoolRecipe], given: Mapping[str, ImagePool], teacher: Teacher, compute: Compute
) -> dict[str, ImagePool]:
    """Return all pools by name; missing ones are made under `folder`.

    Raises:
        KD3Error: a pool cannot be made, or was made by another recipe.
    """
    pools = dict(given)

    def find(name: str) -> ImagePool:
        if name not in pools:
            pools[name] = made(folder / name, recipes[name])
        return pools[name]

    def made(out: Path, recipe: PoolRecipe) -> ImagePool:
        source = find(recipe.source)
        without = _without(source, recipe, teacher, compute)
        if not out.exists():
            console.say(f"making pool {out.name}")
        return derive_pool(
            source,
            out,
            share=recipe.share,
            change=recipe.change,
            strength=recipe.strength,
            without=without,
            mixed_with=find(recipe.mixed_with) if recipe.mixed_with else None,
            mixed_share=recipe.mixed_share,
        )

    return {name: find(name) for name in [*given, *recipes]}


def _without(source: ImagePool, recipe: PoolRecipe, teacher: Teacher, compute: Compute) -> np.ndarray | None:
    """Return the images predicted as one of the excluded classes."""
    left_out = recipe.without_classes
    if not left_out:
        return None
    names = teacher.classes
    if isinstance(left_out, int):
        if left_out >= len(names):
            raise KD3Error(f"a pool of the study leaves out {left_out} of {len(names)} classes; at least one must stay")
        left_out = names[:left_out]
    for name in left_out:
        if name not in names:
            raise KD3Error(f"a pool of the study leaves out class {name!r}; the teacher's are: {', '.join(names)}")
    compute.place(teacher)
    logits = teacher_logits(teacher, PoolBatches(source, compute), compute)
    chosen = torch.tensor([names.index(name) for name in left_out])
    predicted = torch.cat(
        [torch.from_numpy(np.array(part)).argmax(1) for part in np.array_split(logits, _parts(logits))]
    )
    return torch.isin(predicted, chosen).nonzero().flatten().numpy()


def _parts(logits: np.ndarray) -> int:
    return max(1, len(logits) // 65_536)


def check_given(given: Mapping[str, ImagePool], teacher: Teacher) -> None:
    """Refuse pools that do not fit the teacher or one another, before the first run.

    Raises:
        KD3Error: images of another size than the teacher's.
    """
    for name, pool in given.items():
        if teacher.input_size is not None and pool.image_size != teacher.input_size:
            raise KD3Error(
                f"the {name} pool {pool.path} has images of {pool.image_size} pixels but the teacher takes "
                f"{teacher.input_size}; ingest with --image-size {teacher.input_size}"
            )
