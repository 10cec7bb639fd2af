"""`kd3 predict`: images in, classes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kd3.commands.arguments import MODEL, as_setting, if_live
from kd3.config.commands import PredictConfig
from kd3.config.records import nameless
from kd3.config.settings import build
from kd3.evaluation.cascade import margins
from kd3.models.student import Student
from kd3.models.student_files import load_classifier
from kd3.models.teacher import Teacher
from kd3.pool import Decoded, DecodeSettings, decode_records, list_records
from kd3.runtime import console
from kd3.runtime.compute import resolve
from kd3.runtime.errors import KD3Error
from kd3.runtime.text import one_line
from kd3.sources.files import archive_kind, base_name, is_list, shown
from kd3.sources.trust import with_permissions


@dataclass(frozen=True)
class Predictions:
    """The likeliest classes of each image, in order."""

    images: list[tuple[str, list[tuple[str, float]]]]  # name, [(class, probability in [0, 1])]
    unusable: list[tuple[str, str, str]]  # name, reason, detail
    escalate: list[bool] | None = None  # for each image, whether to ask the teacher; None: no thresholds

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        images: list[dict[str, Any]] = [
            {"image": name, "classes": [{"class": c, "probability": p} for c, p in best]} for name, best in self.images
        ]
        for image, asked in zip(images, self.escalate or [], strict=False):
            image["escalate"] = asked
        return {
            "images": images,
            "unusable": [{"image": name, "reason": reason, "detail": detail} for name, reason, detail in self.unusable],
        }

    def __str__(self) -> str:
        images = [(one_line(name), best) for name, best in self.images]
        unusable = [(one_line(name), one_line(_why(*why))) for name, *why in self.unusable]
        width = max((len(name) for name, _ in [*images, *unusable]), default=0)
        asked = self.escalate or [False] * len(images)
        lines = [
            f"{name:<{width}}  "
            + "  ".join(f"{one_line(label)} {100 * p:.1f}%" for label, p in best)
            + "  escalate: ask the teacher" * escalated
            for (name, best), escalated in zip(images, asked, strict=True)
        ]
        lines += [f"{name:<{width}}  unusable: {why}" for name, why in unusable]
        return "\n".join(lines)


@console.quietable
def predict(
    model: str | Path | Teacher | Student, images: str | Path | Sequence[str | Path], **settings: Any
) -> Predictions:
    """Classify image files, or all images in folders and archives.

    After `kd3 cascade`, the student's temperature scales the probabilities, and `escalate` marks images for the
    teacher.

    `settings` are `quiet=True` and those of `kd3 predict --help`: top, trust_code, trust_entries, private_hosts,
    device.

    Raises:
        KD3Error: the model or an image path is missing, or no image can be used.
    """
    given = images if isinstance(images, (list, tuple)) else [images]
    values = {
        "model": as_setting(model, what="kd3.predict: model", allowed=MODEL, live=(Teacher, Student)),
        "images": [as_setting(image, what="kd3.predict: images", allowed="paths") for image in given],
    }
    config = build(PredictConfig, {**values, **settings}, where="kd3.predict")
    return run(config, if_live(model, Teacher) or if_live(model, Student))


@with_permissions
def run(config: PredictConfig, classifier: Teacher | Student | None = None) -> Predictions:
    """Classify with the model that the settings name, or a live one."""
    compute = resolve(config.device, "32")
    classifier = classifier or load_classifier(config.model, trust_code=config.trust_code)
    compute.place(classifier).eval()
    settings = DecodeSettings.to_see(classifier.preparation)
    if classifier.is_nameless:
        console.info(nameless(classifier.classes))
    found: list[tuple[str, list[tuple[str, float]]]] = []
    unusable: list[tuple[str, str, str]] = []
    temperature, threshold = 1.0, None
    if isinstance(classifier, Student):
        temperature, threshold = classifier.temperature, classifier.threshold
    escalate: list[bool] = []
    records = list_records(config.images)
    for outcome in decode_records(records, settings):
        name = _shown(outcome.record.source, outcome.record.key)
        if not isinstance(outcome.result, Decoded):
            unusable.append((name, outcome.result.reason, outcome.result.detail))
            continue
        pixels = torch.from_numpy(outcome.result.pixels)[None].to(compute.device)
        with torch.inference_mode():
            logits = classifier(classifier.normalise(pixels))
        if not bool(torch.isfinite(logits).all()):
            unusable.append((name, "no class", "the network's logits of it are not finite"))
            continue
        if threshold is not None:
            escalate.append(float(margins(logits)) < threshold)
        # By logits: their probabilities may be equal.
        best = logits[0].topk(min(config.top, logits.shape[1])).indices
        probabilities = (logits.double() / temperature).softmax(dim=1)[0, best]
        pairs = zip(best.tolist(), probabilities.tolist(), strict=True)
        found.append((name, [(classifier.classes[label], p) for label, p in pairs]))
    if not found and not unusable:
        raise KD3Error(f"there is no image in {', '.join(map(shown, config.images))}")
    if not found:
        raise KD3Error(f"no image can be used: {unusable[0][0]}: {_why(*unusable[0][1:])}")
    return Predictions(found, unusable, None if threshold is None else escalate)


def _shown(source: str, key: str) -> str:
    """Return an image's path as given: a file's own, an archive's with the member, or a list's entry."""
    if is_list(source):
        return key
    return source if base_name(source) == key and archive_kind(source) is None else f"{source.rstrip('/')}/{key}"


def _why(reason: str, detail: str) -> str:
    return f"{reason} ({detail})" if detail else reason
