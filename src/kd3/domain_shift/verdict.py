"""Verdict: the meaning of the figures for a distillation, in words. All rules are here."""

from __future__ import annotations

from dataclasses import dataclass

from kd3.domain_shift.batch_norms import BatchNormShift
from kd3.domain_shift.comparison import FeatureShift
from kd3.domain_shift.forecast import BUDGET, BY_DEFAULT, Forecast, forecast
from kd3.domain_shift.opinions import Kept, Opinions

# Share of a student's accuracy lost by the shift, from the calibrated curve. Below the first bound it is within the
# noise of seeds; beyond the second the curve's own error is as large as the remaining gain.
LITTLE_LOST, MUCH_LOST = 0.05, 0.2
# A class predicted for less than a tenth of an even share of the images.
HARDLY_COVERED = 0.1
# A distance below this multiple of that between two draws of one side may be chance.
LIKE_CHANCE = 1.5
_SHOWN = 8
_MEANINGS = {
    "near": "is near to what the teacher was trained on",
    "shifted": "is shifted from what the teacher was trained on",
    "far": "is far from what the teacher was trained on",
    "unknown": "cannot be compared with what the teacher was trained on, which has no batch norms to remember it by",
}


@dataclass(frozen=True)
class Verdict:
    """The verdict in a sentence, with reasons."""

    level: str  # "near", "shifted", "far", or "unknown" where the teacher has no batch norms
    sentence: str  # of the crawl, and what a student may reach
    reasons: list[str]
    hardly_covered: list[str]  # classes
    forecast: Forecast | None  # None where the level is unknown
    about_crawl: str  # the sentence without what a student may reach


def hardly_covered(opinions: Opinions) -> list[str]:
    """Return the classes predicted for less than a tenth of an even share of the images."""
    even = opinions.images / len(opinions.classes)
    pairs = zip(opinions.classes, opinions.predicted, strict=True)
    return [name for name, count in pairs if count < HARDLY_COVERED * even]


def judge(
    opinions: Opinions,
    kept: Kept,
    norms: BatchNormShift | None,
    features: FeatureShift | None = None,
    *,
    pool_images: int | None = None,
) -> Verdict:
    """Return the verdict of all figures.

    The level follows the expected loss (`forecast`): "near" below a twentieth of the student's accuracy, "far" from a
    fifth on or if the pool is farther than any tested one, otherwise "shifted". It depends only on the mean batch norm
    distance and the effective classes: the teacher's confidence had no predictive value. `pool_images` is the pool's
    size, if `opinions` are from a sample.
    """
    rare = hardly_covered(opinions)
    covered = f"{_named(rare)} hardly covered" if rare else "every class is covered"
    said = None
    if norms is not None:
        classes = len(opinions.classes)
        said = forecast(norms.mean, opinions.effective_classes, classes=classes, images=pool_images or opinions.images)
    level = _level(said)
    sentence = about_crawl = f"This pool {_MEANINGS[level]}; {covered}."
    if said is not None:
        sentence += f" {_expected(said)}"
    reasons = [_layers(norms), _balance(opinions), _kept(kept)]
    if features is not None:
        reasons.append(_features(features))
    return Verdict(level, sentence, reasons, rare, said, about_crawl)


def _level(said: Forecast | None) -> str:
    if said is None:
        return "unknown"
    if said.beyond or said.lost >= MUCH_LOST:
        return "far"
    return "near" if said.lost < LITTLE_LOST else "shifted"


def _expected(said: Forecast) -> str:
    if said.beyond:
        return (
            f"It is farther than any pool that was tried: expect no more than {_percent(said.high)} of the teacher's "
            f"accuracy of a student that starts at random and is not adapted; {BY_DEFAULT}."
        )
    return (
        f"A student of {BUDGET:,} training images that starts at random and is not adapted is expected to reach "
        f"{100 * said.low:.0f} to {_percent(said.high)} of the teacher's accuracy (three in four runs on pools left "
        f"out did); {BY_DEFAULT}."
    )


def _kept(kept: Kept) -> str:
    words = f"KD3's selection would keep {_percent(kept.share)} of the images at the start"
    if kept.rescued:
        words += f"; {_named(kept.rescued, verb=False)} would keep none by the thresholds alone"
    return words


def _balance(opinions: Opinions) -> str:
    classes = len(opinions.classes)
    return f"the teacher's predictions spread like {opinions.effective_classes:.1f} equal classes of {classes}"


def _layers(norms: BatchNormShift | None) -> str:
    if norms is None:
        return "the teacher has no batch norm with running statistics, so its layers tell nothing"
    return (
        f"the mean batch-norm distance is {norms.mean:.3f}, where original images gave 0.01 to 0.04: {norms.last:.3f} "
        f"in the last layers, largest at {norms.worst}"
    )


def _features(features: FeatureShift) -> str:
    frechet = features.distance("frechet").equal_size
    words = f"the Fréchet distance to the reference is {frechet.mean:.3g} at {frechet.images:,} images of either side"
    if frechet.same is None:
        return f"{words}; too few images to say what no shift would give"
    if frechet.mean <= LIKE_CHANCE * frechet.same:
        return f"{words}, hardly more than the {frechet.same:.3g} of two draws of one side: no shift can be told"
    return f"{words}, where two draws of one side give {frechet.same:.3g}"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 1 or percent == 0 else f"{percent:.2g} %"


def _named(names: list[str], *, verb: bool = True) -> str:
    """Return "class ship is", "classes ship and truck are", "classes a, b, ... (12 in all) are"."""
    if len(names) > _SHOWN:
        words = f"{', '.join(names[:_SHOWN])}, ... ({len(names)} in all)"
    else:
        words = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
    kind, be = ("classes", "are") if len(names) > 1 else ("class", "is")
    return f"{kind} {words} {be}" if verb else f"{kind} {words}"
