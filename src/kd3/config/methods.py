"""The methods by name: their options, one line on each, and where their code is.

Free of torch, so that `--help` can list them at once. A new method is one entry here, a field of its
name in `DistillConfig`, and one file in `kd3.methods`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from kd3.config.settings import Settings


class KD3Options(Settings):
    """The parts of KD3 and their strengths."""

    selection: Literal["dynamic", "none"] = Field(
        "dynamic", description="images to learn from: 'dynamic' selects before each round, 'none' takes all"
    )
    threshold: float = Field(
        0.95, ge=0, le=1, description="tau: confidence that the commonest class must exceed (paper: 0.95)"
    )
    teacher_weight: Literal["paper", "smooth", "constant", "teacher"] = Field(
        "smooth",
        description="schedule of alpha, the teacher's share in the score: 'paper' jumps to 0 at half of "
        "the training, 'smooth' is the same curve without the jump, 'constant' is 0.5, 'teacher' is 1",
    )
    scoring: Literal["fresh", "training"] = Field(
        "fresh",
        description="'fresh' (paper) runs the student over the whole pool before each selection; 'training' scores an "
        "image by what was predicted of it when it was last trained on: quicker rounds, a slightly weaker student",
    )
    refreshed: float = Field(
        0.25,
        ge=0,
        le=1,
        description="with scoring 'training': part of the images not trained on that is looked at anew each time",
    )
    select_every: float = Field(
        1.0, gt=0, description="select anew after this many passes over the selected images (paper: 1)"
    )
    alignment_weight: float = Field(
        20.0, ge=0, description="weight of the feature alignment (paper: 1, with alignment_scale 'raw')"
    )
    alignment_scale: Literal["relative", "raw"] = Field(
        "relative",
        description="'relative' divides the alignment by the teacher's mean squared feature, 'raw' (paper) does not",
    )
    weighted_alignment: bool = Field(
        True, description="weigh each image by how far student and teacher disagree (paper: true)"
    )
    logit_weight: float = Field(0.2, ge=0, description="weight of the softened-logits term (paper: 0, it has none)")
    temperature: float = Field(4.0, gt=0, description="temperature of the softened-logits term")
    contrastive_weight: float = Field(
        0.0, ge=0, description="lambda_con: weight of the MixDistribution contrastive term (paper: 0.001)"
    )
    contrastive_fraction: float = Field(
        1.0, gt=0, le=1, description="part of each batch that gets a MixDistribution view (paper: 1)"
    )
    contrastive_temperature: float = Field(0.3, gt=0, description="temperature of the contrastive term (paper: 0.3)")
    embedding_size: int = Field(128, ge=2, description="length of the contrastive embedding (paper: 128)")
    beta_parameter: float = Field(
        0.1, gt=0, description="MixDistribution mixes with Beta(b, b); 0.1 mostly keeps or swaps (paper: 0.1)"
    )
    projector_width: int | None = Field(
        None, ge=1, description="channels inside the projector (default: half of the teacher's, as the paper)"
    )


class KDOptions(Settings):
    """Temperature distillation on every image of the pool."""

    temperature: float = Field(4.0, gt=0, description="temperature of teacher's and student's softmax")


@dataclass(frozen=True)
class MethodEntry:
    """A method as the command line knows it."""

    summary: str
    options: type[Settings]
    location: str  # "module:Class"


METHODS: dict[str, MethodEntry] = {
    "kd3": MethodEntry(
        "dynamic selection, the teacher's classifier shared, weighted alignment; with --preset paper "
        "MixDistribution contrast (arXiv 2307.11469)",
        KD3Options,
        "kd3.methods.kd3:KD3",
    ),
    "kd": MethodEntry(
        "temperature distillation on all images of the pool (arXiv 1503.02531)",
        KDOptions,
        "kd3.methods.kd:KD",
    ),
}
