"""Two pictures: distance by layer, and coverage by class. Needs matplotlib, the extra `plots`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd3.domain_shift.batch_norms import BatchNormShift
from kd3.domain_shift.measure import Measurement
from kd3.storage.atomic import replacing
from kd3.text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = "the figures were left out, since matplotlib is not installed: pip install 'kd3[plots]'"
_INK, _FAINT, _POOL, _REFERENCE, _PALE, _RARE = "#1d2733", "#6b7785", "#0b7a6f", "#9aa5b1", "#cfe5e2", "#b4481e"
_MOST_NAMES = 40  # on an axis, before they run into one another
_DPI = 120


def available() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(folder: Path, found: Measurement) -> list[str]:
    """Write `layers.png` (if there are batch norms) and `classes.png`; return their names."""
    written = []
    if found.batch_norms is not None:
        _save(_layers(found.batch_norms, found.reference_batch_norms), folder / "layers.png")
        written.append("layers.png")
    _save(_classes(found), folder / "classes.png")
    return [*written, "classes.png"]


def _layers(pool: BatchNormShift, reference: BatchNormShift | None) -> Figure:
    names = [layer.layer for layer in pool.layers]
    few = len(names) <= _MOST_NAMES
    figure, axes = _page(max(7.0, min(0.24 * len(names), 14.0)), 4.4)
    places = range(len(names))
    values = [layer.distance for layer in pool.layers]
    axes.bar(places, values, width=0.78, color=_POOL, label=f"pool (mean {pool.mean:.3f})")
    if reference is not None:
        # Narrow bars in front: both heights stay visible.
        beside = [layer.distance for layer in reference.layers]
        axes.bar(places, beside, width=0.36, color=_REFERENCE, label=f"reference (mean {reference.mean:.3f})")
        axes.legend(frameon=False, labelcolor=_INK, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9)
    step = 1 if few else -(-len(names) // _MOST_NAMES)
    axes.set_xticks(list(places)[::step], names[::step], rotation=90, fontsize=7)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_ylabel("distance (variances of the layer)", color=_INK)
    axes.set_xlabel("batch norms, from the input to the classifier", color=_INK)
    figure.suptitle("How far is each layer from what it was trained on?", x=0.02, ha="left", color=_INK, weight="bold")
    return figure


def _classes(found: Measurement) -> Figure:
    ours = found.opinions
    order = sorted(range(len(ours.classes)), key=lambda label: -ours.predicted[label])
    named = len(order) <= _MOST_NAMES
    figure, axes = _page(8.0, max(2.6, 1.3 + 0.27 * len(order)) if named else 7.0)
    places = list(range(len(order)))
    rare = set(found.verdict.hardly_covered)
    colours = [_RARE if ours.classes[label] in rare else _POOL for label in order]
    thickness = 0.74 if named else 1.0
    axes.barh(places, [ours.predicted[label] for label in order], thickness, color=colours)
    axes.barh(places, [ours.confident[label] for label in order], thickness / 2, color=_PALE, label="of it confident")
    # Names for colours that single bars carry.
    axes.barh([0], [0], color=_POOL, label="predicted")
    if rare:
        axes.barh([0], [0], color=_RARE, label="hardly covered")
    axes.axvline(ours.images / len(order), color=_FAINT, linewidth=1, linestyle="--", label="if even")
    axes.set_ylim(len(order) - 0.4, -0.6)
    if named:
        names = [one_line(ours.classes[label]).replace("$", "\\$") for label in order]  # "$" begins formulas
        axes.set_yticks(places, [name if len(name) <= 24 else name[:23] + "…" for name in names])
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(order):,} classes", color=_INK)
    axes.set_xlabel("images", color=_INK)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False, labelcolor=_INK, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=9)
    figure.suptitle("Which classes does the crawl hold?", x=0.02, ha="left", color=_INK, weight="bold")
    return figure


def _page(width: float, height: float) -> tuple[Figure, Any]:
    """Return an empty figure of a size in inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, length=2)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
