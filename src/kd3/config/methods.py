"""The methods by name: options, a summary and the location of the code.

Free of torch, so that `--help` can list them at once. A new method is one entry here, a field of its
name in `DistillConfig`, and one file in `kd3.methods`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from kd3.config.settings import Settings


class KD3Options(Settings):
    """The parts of KD3 and their strengths."""

    selection: Literal["auto", "dynamic", "teacher-only", "typical", "none"] = Field(
        "auto",
        description="training images: 'auto' takes all, but drops images that look like nothing the teacher was "
        "trained on if a pool is full of them; 'none' takes all; 'dynamic' (paper) lets teacher and student choose "
        "before each round, 'teacher-only' lets the teacher choose, 'typical' takes those nearest to the lost data's "
        "statistics in the teacher's batch norms",
    )
    share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="for selection 'typical': share of each class to keep; the teacher predicts the class",
    )
    drop_surest: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="drop this share of the selected images, those of which the teacher is surest (paper: 0)",
    )
    classifier: Literal["shared", "own"] = Field(
        "shared",
        description="'shared' (paper) gives the student the teacher's frozen classifier, 'own' trains a new one",
    )
    alignment: Literal["weighted", "plain", "none"] = Field(
        "weighted",
        description="alignment of features: 'weighted' (paper) weights each image by the disagreement of student "
        "and teacher, 'plain' weights all alike, 'none' drops the term",
    )
    contrastive: Literal["mixdistribution", "none"] = Field(
        "none",
        description="'mixdistribution' (paper) contrasts each image with its MixDistribution view, 'none' does not",
    )
    threshold: float = Field(
        0.95, ge=0, le=1, description="tau: confidence that the commonest class must exceed (paper: 0.95)"
    )
    teacher_weight: Literal["paper", "smooth", "constant"] = Field(
        "smooth",
        description="schedule of alpha, the teacher's share in the score: 'paper' jumps to 0 at half of "
        "the training, 'smooth' is the same curve without the jump, 'constant' is 0.5",
    )
    scoring: Literal["fresh", "training"] = Field(
        "fresh",
        description="'fresh' (paper) runs the student over the whole pool before each selection; 'training' "
        "scores an image by the predictions of its last training step: quicker rounds, a slightly "
        "weaker student",
    )
    refreshed: float = Field(
        0.25,
        ge=0,
        le=1,
        description="with scoring 'training': part of the other images that is scanned again each time",
    )
    select_every: float = Field(
        2.0, gt=0, description="passes over the selected images between two selections (paper: 1)"
    )
    balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="rebalance rare classes: 0 = natural frequency (paper), 1 = all classes equal",
    )
    alignment_weight: float = Field(
        100.0, gt=0, description="weight of the feature alignment (paper: 1, with alignment_scale 'raw')"
    )
    alignment_scale: Literal["relative", "raw"] = Field(
        "relative",
        description="'relative' divides the alignment by the teacher's mean squared feature, 'raw' (paper) does not",
    )
    logit_weight: float = Field(0.2, ge=0, description="weight of the softened-logits term (paper: 0, it has none)")
    temperature: float = Field(4.0, gt=0, description="temperature of the softened-logits term")
    contrastive_weight: float = Field(
        0.1, gt=0, description="lambda_con: weight of the MixDistribution contrastive term (paper: 0.001)"
    )
    contrastive_fraction: float = Field(
        1.0, gt=0, le=1, description="part of each batch that gets a MixDistribution view (paper: 1)"
    )
    contrastive_temperature: float = Field(0.3, gt=0, description="temperature of the contrastive term (paper: 0.3)")
    embedding_size: int = Field(128, ge=2, description="length of the contrastive embedding (paper: 128)")
    embedding_bias: bool = Field(False, description="use a bias in the contrastive embedding (paper's preset: true)")
    beta_parameter: float = Field(
        0.1, gt=0, description="MixDistribution mixes with Beta(b, b); 0.1 mostly keeps or swaps (paper: 0.1)"
    )
    gamma_scale: float = Field(1.0, ge=0, description="MixDistribution: factor on the mixed contrast gamma (paper: 1)")
    beta_scale: float = Field(1.0, ge=0, description="MixDistribution: factor on the mixed mean beta (paper: 1)")
    mixed_statistics: Literal["apart", "counted"] = Field(
        "apart",
        description="role of the MixDistribution view in the student's batch-norm running statistics: 'apart' "
        "excludes it, 'counted' (paper's preset) includes it",
    )
    projector: Literal["auto", "simkd", "correction", "none"] = Field(
        "auto",
        description="projector between the student's features and the teacher's classifier: 'simkd' (paper) has "
        "three convolutions; 'correction' is the features themselves plus such a projector that "
        "starts at zero; 'none' (if the channels agree) leaves the student a plain network of its "
        "architecture; 'auto' takes simkd for a random start, else none, or correction for a narrower "
        "student",
    )
    projector_width: int | None = Field(
        None, ge=1, description="channels inside the projector (default: half of the teacher's, as in the paper)"
    )

    @model_validator(mode="after")
    def _selection_that_uses_them(self) -> KD3Options:
        if self.selection not in ("dynamic", "teacher-only"):
            for name in ("threshold", "teacher_weight", "scoring", "refreshed"):
                # The paper's schedule belongs to its preset, which may only have the selection switched off.
                if getattr(self, name) not in (type(self).model_fields[name].default, "paper"):
                    raise ValueError(f"{name} belongs to selection 'dynamic', and selection is '{self.selection}'")
        return self

    @model_validator(mode="after")
    def _classifier_that_learns(self) -> KD3Options:
        if self.logit_weight == 0 and self.classifier == "own":
            raise ValueError("classifier 'own' learns from the logit term alone; give logit_weight more than 0")
        if self.logit_weight == 0 and self.alignment == "none":
            raise ValueError("alignment 'none' leaves the logit term to learn from; give logit_weight more than 0")
        return self


class KDOptions(Settings):
    """Temperature distillation on the pool."""

    temperature: float = Field(4.0, gt=0, description="temperature of teacher's and student's softmax")
    share: float = Field(1.0, gt=0, le=1, description="train on a random part of the pool only, drawn once by --seed")


class DFNDOptions(Settings):
    """The images of which the teacher is surest, and a model of its mistakes on them."""

    share: float = Field(
        0.5, gt=0, le=1, description="share of the pool to train on: the images of which the teacher is surest"
    )
    temperature: float = Field(4.0, gt=0, description="temperature of teacher's and student's softmax (paper: 4)")
    noise_weight: float = Field(1.0, ge=0, description="weight of the noise-adapted cross-entropy (paper: 1)")
    teacher_accuracy: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="the teacher's accuracy, if known (default: its mean confidence on the kept images)",
    )


class SimKDOptions(Settings):
    """The teacher's classifier reused, features aligned, nothing else."""

    alignment_weight: float = Field(100.0, gt=0, description="weight of the feature alignment (paper: 1, 'raw')")
    alignment_scale: Literal["relative", "raw"] = Field(
        "relative",
        description="'relative' divides the alignment by the teacher's mean squared feature, 'raw' (paper) does not",
    )
    projector: Literal["auto", "simkd", "correction", "none"] = Field(
        "simkd",
        description="projector between the student's features and the teacher's classifier: 'simkd' (paper) has "
        "three convolutions; 'correction' is the features themselves plus such a projector that "
        "starts at zero; 'none' (if the channels agree) leaves the student a plain network of its "
        "architecture; 'auto' takes simkd for a random start, else none, or correction for a narrower "
        "student",
    )
    projector_width: int | None = Field(
        None, ge=1, description="channels inside the projector (default: half of the teacher's, as in the paper)"
    )


class LabelsOptions(Settings):
    """Cross-entropy on original labels, without options."""


@dataclass(frozen=True)
class MethodEntry:
    """A method of the command line."""

    summary: str
    source: str
    options: type[Settings]
    location: str  # "module:Class"


METHODS: dict[str, MethodEntry] = {
    "kd3": MethodEntry(
        "inherited weights, shared classifier, aligned features; --preset paper adds dynamic selection and "
        "MixDistribution contrast",
        "arXiv 2307.11469",
        KD3Options,
        "kd3.methods.kd3:KD3",
    ),
    "kd": MethodEntry(
        "temperature distillation on all images of the pool, or on a random part",
        "arXiv 1503.02531",
        KDOptions,
        "kd3.methods.baselines:KD",
    ),
    "dfnd": MethodEntry(
        "distillation on the images of which the teacher is surest, with a learned model of its mistakes",
        "Chen et al., CVPR 2021",
        DFNDOptions,
        "kd3.methods.baselines:DFND",
    ),
    "simkd": MethodEntry(
        "shared classifier, plain feature alignment, all images",
        "arXiv 2203.14001",
        SimKDOptions,
        "kd3.methods.baselines:SimKD",
    ),
    "labels": MethodEntry(
        "no distillation: cross-entropy on the folder names of a pool of labelled images, as an upper bound",
        "ordinary training",
        LabelsOptions,
        "kd3.methods.baselines:Labels",
    ),
}
