"""KD3: learn from web images whose distribution is not the lost data's.

Source: Distribution Shift Matters for Knowledge Distillation with Webly Collected Images (ICCV
2023, arXiv 2307.11469).

Differs from the released code: the contrastive loss on the teacher's features through a second
head is left out, since it cannot reach the student. Ours, and off in the `paper` preset: the
alignment relative to the teacher's feature energy, and a term on the softened logits. Off by
default, and on in that preset: the contrastive term, which did not pay for its second view.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd3.config.methods import KD3Options
from kd3.losses.contrastive import nt_xent
from kd3.losses.feature_alignment import alignment_weights, feature_alignment
from kd3.losses.soft_targets import soft_target_divergence
from kd3.methods.base import Method, Scan, StepResult
from kd3.mixdistribution import mix_distribution
from kd3.models.head import ModelOutput, pool
from kd3.models.student import Student, shared_head
from kd3.models.teacher import Teacher
from kd3.selection.blend import blend_logits, teacher_weight
from kd3.selection.predictions import Predictions, predict
from kd3.selection.select import Selection, select_confident, select_everything


class KD3(Method):
    """Dynamic selection, a shared classifier with weighted alignment, MixDistribution contrast."""

    alpha: Tensor  # (), the teacher's weight at the latest selection

    def __init__(self, options: KD3Options, teacher: Teacher, student: Student) -> None:
        super().__init__(teacher, student)
        self.options = options
        # Kept in checkpoints: a run that goes on inside a round predicts as it did before.
        self.register_buffer("alpha", torch.ones((), dtype=torch.float64))
        self.embedding: nn.Linear | None = None
        if options.contrastive_weight > 0:
            assert student.head is not None
            self.embedding = nn.Linear(student.head.channels, options.embedding_size, bias=False)

    @classmethod
    def build(
        cls, options: KD3Options, *, teacher: Teacher, backbone: nn.Module, backbone_name: str, sample: Tensor
    ) -> KD3:
        """Return the method for a teacher and a student's backbone."""
        # A ReLU at the projector's end suits features that never go negative, and only those.
        nonnegative = bool((teacher.outputs(sample).features >= 0).all())
        student = shared_head(
            backbone,
            teacher.signature(),
            name=backbone_name,
            classifier=teacher.classifier(),
            projector_width=options.projector_width,
            final_relu=nonnegative,
        )
        return cls(options, teacher, student)

    @property
    def passes_per_selection(self) -> float:
        """Passes over the selected images before the next selection."""
        return self.options.select_every

    # 1. Dynamic instance selection

    def select(self, scan: Scan, progress: float, *, at_least: int) -> Selection:
        """Return the images of which teacher and student together are sure, class by class."""
        options = self.options
        if options.selection == "none":
            return select_everything(scan.count)
        alpha = teacher_weight(progress, options.teacher_weight)
        self.alpha.fill_(alpha)
        if options.scoring == "fresh":
            predictions = scan.predictions(alpha)
        else:
            predictions = scan.latest_predictions(alpha, refreshed=options.refreshed)
        return select_confident(
            predictions, threshold=options.threshold, at_least=at_least, teacher_logits=scan.teacher_logits
        )

    def _predict(self, teacher_logits: Tensor, student_logits: Tensor) -> Predictions | None:
        if self.options.selection == "none" or self.options.scoring == "fresh":
            return None
        with torch.no_grad():
            return predict(blend_logits(teacher_logits.float(), student_logits.detach().float(), self.alpha))

    def forward(self, images: Tensor, generator: torch.Generator, teacher: ModelOutput | None = None) -> StepResult:
        """Return the loss of a batch: alignment, softened logits and contrast, each weighted."""
        options = self.options
        teacher = self.teacher.outputs(images) if teacher is None else teacher
        features, student = self.student.outputs(images)

        # 2. Shared classifier and weighted feature alignment
        weights = alignment_weights(student.logits, teacher.logits) if options.weighted_alignment else None
        relative = options.alignment_scale == "relative"
        alignment = feature_alignment(student.features, teacher.features, weights=weights, relative=relative)
        terms = {"alignment": options.alignment_weight * alignment}
        if options.logit_weight > 0:
            divergence = soft_target_divergence(student.logits, teacher.logits, temperature=options.temperature)
            terms["soft_targets"] = options.logit_weight * divergence

        # 3. MixDistribution contrastive learning
        if self.embedding is not None:
            contrast = self._contrast(images, features, generator)
            terms["contrastive"] = options.contrastive_weight * contrast
        loss = torch.stack(list(terms.values())).sum()
        return StepResult(loss, terms, self._predict(teacher.logits, student.logits))

    def _contrast(self, images: Tensor, features: Tensor, generator: torch.Generator) -> Tensor:
        assert self.embedding is not None
        part = max(2, round(self.options.contrastive_fraction * len(images)))
        mixed = mix_distribution(images[:part], beta_parameter=self.options.beta_parameter, generator=generator)
        u = F.normalize(self.embedding(pool(features[:part])).float(), dim=1)
        u_mixed = F.normalize(self.embedding(pool(self.student.features(mixed))).float(), dim=1)
        return nt_xent(u, u_mixed, temperature=self.options.contrastive_temperature)
