"""Pictures of a selection: kept and refused images of each class, and all classes at a glance."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kd3 import console
from kd3.pool import ImagePool
from kd3.review import style
from kd3.review.file_names import file_names
from kd3.review.outcome import BELOW, CONFIDENT, REASONS, Outcome
from kd3.review.overview import Row, draw_overview
from kd3.review.sheet import Tile, draw_sheet, layout

GRIDS = "grids"
OVERVIEW = "overview.png"


def write_grids(folder: Path, outcome: Outcome, pool: ImagePool, *, images: int, classes: int) -> dict[int, str]:
    """Write `grids/CLASS-kept.png`, `grids/CLASS-refused.png` and `grids/overview.png`.

    Args:
        images: at most, on a grid; 0 draws only the overview.
        classes: at most; those with the most kept images.

    Returns:
        The file name for CLASS, for each class with grids.
    """
    place = folder / GRIDS
    place.mkdir()
    shown = outcome.most_kept(classes) if images else []
    named = file_names(outcome.classes)
    stems = {label: named[label] for label in shown}
    with console.progress("draw grids", 2 * len(shown), "grids") as bar:
        for label, positions in enumerate(outcome.of_classes() if shown else ()):
            if label not in stems:
                continue
            _write_class(place, stems[label], label, positions, outcome, pool, images)
            bar.advance(2)
    _write_overview(place / OVERVIEW, outcome, outcome.most_kept(classes))
    return stems


def spread(positions: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of some ranked positions, at even distances from the first to the last rank."""
    if len(positions) <= count:
        return positions
    chosen: np.ndarray = positions[np.linspace(0, len(positions) - 1, count).round().astype(np.int64)]
    return chosen


def _write_class(
    place: Path, stem: str, label: int, positions: np.ndarray, outcome: Outcome, pool: ImagePool, images: int
) -> None:
    is_kept = outcome.reason[positions] != BELOW
    kept, refused = positions[is_kept], positions[~is_kept]
    given = outcome.rescued.get(label, kept[:0])
    given = given[~np.isin(given, kept)]
    name, threshold = outcome.classes[label], f"threshold {outcome.thresholds[label]:.3f}"
    of = f"of {len(positions):,} predicted, {threshold}"
    for what, colour, chosen, facts in (
        ("kept", style.KEPT, np.concatenate([kept, given]), f"{len(kept):,} kept {of}"),
        ("refused", style.REFUSED, refused, f"{len(refused):,} refused {of}"),
    ):
        if what == "kept" and len(given):
            facts += f"; {len(given):,} rescued for it, predicted as others (at the end)"
        seen = spread(chosen, images)
        tiles = [_tile(image, at, label, outcome) for image, at in zip(pool.read(seen), seen.tolist(), strict=True)]
        lines = [facts, _about(len(seen), len(chosen), any(tile.marked for tile in tiles))]
        if what == "kept" and not len(kept) and len(given):
            lines[1] = "the teacher's likeliest first, each with the class that it is predicted as"
        here = layout(len(tiles), pool.image_size, at_most=images)
        draw_sheet(f"{name}: {what}", lines, tiles, place=here, colour=colour).save(place / f"{stem}-{what}.png")


def _tile(image: np.ndarray, at: int, label: int, outcome: Outcome) -> Tile:
    confidence, predicted = float(outcome.confidence[at]), int(outcome.label[at])
    if predicted != label:
        return Tile(image, f"{confidence:.2f} {outcome.classes[predicted]}", marked=True)
    return Tile(image, f"{confidence:.3f}", marked=outcome.reason[at] > CONFIDENT)


def _about(shown: int, of: int, has_marked: bool) -> str:
    if not of:
        return ""
    how_many = "all" if shown == of else f"{shown:,} of {of:,} at even ranks"
    marked = "; in orange what the fallback kept" if has_marked else ""
    return f"{how_many} by confidence, from the highest to the lowest{marked}"


def _write_overview(path: Path, outcome: Outcome, shown: list[int]) -> None:
    total = len(outcome.classes)
    rows = [
        Row(
            outcome.classes[label],
            int(outcome.predicted[label]),
            int(outcome.kept[label]),
            float(outcome.thresholds[label]),
            rescued=len(outcome.rescued.get(label, ())),
        )
        for label in shown
    ]
    kept = outcome.images - outcome.by_reason[REASONS[BELOW]]
    facts = f"{kept:,} of {outcome.images:,} images kept ({100 * kept / outcome.images:.0f} %)"
    which = f"{total:,} classes" if len(shown) == total else f"the {len(shown):,} of {total:,} classes with most kept"
    lines = [f"{facts}; {which}", "bar: images predicted as the class; the filled part is kept"]
    draw_overview("What the selection keeps", lines, rows).save(path)
