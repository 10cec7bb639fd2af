"""A measurement of shift in words, for the terminal and for a file, and in two pictures."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd3.evaluation.shift_distances import FeatureDistance, FeatureShift
from kd3.evaluation.shift_measure import Measurement
from kd3.evaluation.shift_statistics import CONFIDENT, BatchNormShift
from kd3.runtime.files import replacing
from kd3.runtime.text import aligned, escaped, one_line, table
from kd3.sources.record import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NAMES = {"frechet": "Fréchet", "sliced_wasserstein": "sliced Wasserstein", "mmd": "MMD (squared)"}
NOTE = (
    "A Fréchet distance grows as images get fewer, whatever the shift: read it at equal n, beside what two draws of "
    "one side give. Intervals are of chance alone (95%, images drawn again)."
)
_CLASSES_SHOWN = 20
Rows = list[list[str]]


def text(found: Measurement, title: str) -> str:
    """Return the results for a terminal."""
    head = [title, found.verdict.sentence, *(f"  - {reason}" for reason in found.verdict.reasons)]
    parts = [*map(one_line, head), ""]
    parts += [_plain(_figures(found)), "", _plain(_classes(found, _CLASSES_SHOWN))]
    if found.features is not None:
        parts += ["", one_line(_heading(found.features)), _plain(_distances(found.features)), NOTE]
    return "\n".join(parts)


def markdown(found: Measurement, title: str, pictures: Sequence[str]) -> str:
    """Return the results as a page; `pictures` are file names beside it."""
    reasons = "\n".join(f"- {escaped(reason)}" for reason in found.verdict.reasons)
    parts = [f"# {escaped(title)}", escaped(found.verdict.sentence), reasons]
    parts += [_table(_figures(found)), "## Classes", _table(_classes(found, None))]
    if found.features is not None:
        parts += [
            "## Beside the reference",
            escaped(_heading(found.features)),
            _table(_distances(found.features)),
            NOTE,
        ]
    if found.batch_norms is not None:
        rows = [[x.layer, str(x.channels), f"{x.distance:.4f}", f"{x.mean_part:.4f}"] for x in found.batch_norms.layers]
        parts += ["## Batch norms", _table([["layer", "channels", "distance", "part of the means"], *rows])]
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def _figures(found: Measurement) -> Rows:
    ours, other = found.opinions, found.reference_opinions
    norms, other_norms = found.batch_norms, found.reference_batch_norms
    rows = [["", "pool"], ["images", f"{ours.images:,}"]]
    rows += [
        ["kept by the selection", _percent(found.kept.share)],
        [f"confidence above {CONFIDENT}", _percent(ours.confident_share)],
        ["confidence, mean", f"{ours.mean_confidence:.3f}"],
        ["confidence, median", f"{ours.confidence_quantiles['0.5']:.3f}"],
        ["entropy, nats", f"{ours.mean_entropy:.3f}"],
        ["effective classes", f"{ours.effective_classes:.1f} of {len(ours.classes)}"],
        ["batch-norm distance, mean", f"{norms.mean:.3f}" if norms else "no batch norms"],
        ["batch-norm distance, last", f"{norms.last:.3f}" if norms else "no batch norms"],
    ]
    if other is not None:
        beside = ["reference", f"{other.images:,}", "", _percent(other.confident_share), f"{other.mean_confidence:.3f}"]
        beside += [f"{other.confidence_quantiles['0.5']:.3f}", f"{other.mean_entropy:.3f}"]
        beside += [f"{other.effective_classes:.1f} of {len(other.classes)}"]
        beside += [f"{x:.3f}" for x in (other_norms.mean, other_norms.last)] if other_norms else ["", ""]
        rows = [[*row, more] for row, more in zip(rows, beside, strict=True)]
    return rows


def _classes(found: Measurement, most: int | None) -> Rows:
    """Return a row for each class; only the least covered ones if there are many."""
    ours = found.opinions
    order = list(range(len(ours.classes)))
    if most is not None and len(order) > most:
        order = sorted(order, key=lambda label: ours.predicted[label])[:most]
    rows = [["class", "predicted", "confident", "kept", ""]]
    for label in order:
        name = ours.classes[label]
        counts = [f"{count[label]:,}" for count in (ours.predicted, ours.confident, found.kept.per_class)]
        rows.append([name, *counts, "hardly covered" if name in found.verdict.hardly_covered else ""])
    if found.features is not None and found.features.per_class:
        rows[0] += ["reference", "mean distance", "Fréchet, diagonal"]
        for row, label in zip(rows[1:], order, strict=True):
            shift = found.features.per_class[label]
            row += [f"{shift.reference_images:,}", _number(shift.mean_distance), _number(shift.frechet_diagonal)]
    if not any(row[4] for row in rows):
        rows = [row[:4] + row[5:] for row in rows]
    return rows


def _heading(features: FeatureShift) -> str:
    skipped = counted(features.skipped)
    left_out = f"; left out: {skipped}" if skipped else ""
    return (
        f"{features.pool_images:,} pool images and {features.reference_images:,} of {features.reference}, "
        f"by {features.features}{left_out}"
    )


def _distances(features: FeatureShift) -> Rows:
    equal = features.distances[0].equal_size
    heads = ["distance", "all images", "95% interval", f"at n = {equal.images:,}", f"{equal.draws} draws", "no shift"]
    return [heads, *(_distance(one) for one in features.distances)]


def _distance(one: FeatureDistance) -> list[str]:
    whole, equal = one.all_images, one.equal_size
    return [
        NAMES[one.name],
        _number(whole.value),
        f"{_number(whole.low)} to {_number(whole.high)}",
        _number(equal.mean),
        f"{_number(equal.low)} to {_number(equal.high)}",
        _number(equal.same),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _plain(rows: Rows) -> str:
    return "\n".join(aligned([[one_line(cell) for cell in row] for row in rows]))


def _table(rows: Rows) -> str:
    return table([[escaped(cell) for cell in row] for row in rows], numbers=True)


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
    _save(_class_figure(found), folder / "classes.png")
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
    figure.suptitle("How far is each layer from its training data?", x=0.02, ha="left", color=_INK, weight="bold")
    return figure


def _class_figure(found: Measurement) -> Figure:
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
