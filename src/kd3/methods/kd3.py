"""KD3: distil from web images whose distribution differs from the lost data's.

Source: Distribution Shift Matters for Knowledge Distillation with Webly Collected Images (ICCV
2023, arXiv 2307.11469).

Each of its parts is a switch (`selection`, `classifier`, `alignment`, `contrastive`), so that every ablation is
a configuration. Differs from the released code:
the contrastive loss on the teacher's features through a second head is left out, since it cannot reach the student.

Ours, and off in the `paper` preset: the alignment relative to the teacher's feature energy, a term on the softened
logits, and running statistics of the unaltered images only, without the MixDistribution view. The contrastive term is
on in that preset and off by default: its gain did not justify the cost of its second view.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd3.config.methods import KD3Options
from kd3.losses import alignment_weights, feature_alignment, nt_xent, soft_target_divergence
from kd3.losses.mixdistribution import mix_distribution
from kd3.methods import (
    Batch,
    Method,
    Parts,
    Scan,
    StepResult,
    student_with_its_own_classifier,
    student_with_teachers_classifier,
    training_projector,
)
from kd3.models.batch_norms import remembering_norms, running_statistics_kept
from kd3.models.head import ModelOutput, global_avg_pool, hidden_matrices
from kd3.models.projector import Projector
from kd3.models.student import Student
from kd3.models.teacher import Teacher
from kd3.runtime.errors import KD3Error
from kd3.selection import (
    Predictions,
    Selection,
    blend_logits,
    predict,
    select_confident,
    select_everything,
    teacher_weight,
)
from kd3.selection.rules import class_balance, select_inliers, select_typical, self_cross_entropy, without_surest


class KD3(Method):
    """Dynamic selection, a shared classifier with weighted alignment, MixDistribution contrast."""

    options: KD3Options
    alpha: Tensor  # (), the teacher's weight at the latest selection

    def __init__(
        self, options: KD3Options, teacher: Teacher, student: Student, projector: Projector | None = None
    ) -> None:
        super().__init__(options, teacher, student)
        self.projector = projector  # for a student with its own classifier; it is not shipped
        # Kept in checkpoints: a run resumed within a round predicts as before.
        self.register_buffer("alpha", torch.ones((), dtype=torch.float64))
        self._entropy: tuple[Tensor, Tensor] | None = None
        self.embedding: nn.Linear | None = None
        if options.contrastive == "mixdistribution":
            assert student.head is not None
            self.embedding = nn.Linear(student.head.channels, options.embedding_size, bias=options.embedding_bias)

    @classmethod
    def build(cls, options: KD3Options, parts: Parts) -> KD3:
        """Return the method; its student has the teacher's classifier or its own, as the options say."""
        teacher = parts.teacher
        if options.selection == "typical" and not remembering_norms(teacher.module):
            raise KD3Error(
                f"teacher {teacher.name} has no batch norms that remember its training data, so that no image can be "
                f"told to be typical of them; use --kd3.selection dynamic or none"
            )
        if options.classifier == "shared":
            student = student_with_teachers_classifier(
                parts, projector=options.projector, projector_width=options.projector_width
            )
            return cls(options, teacher, student)
        student = student_with_its_own_classifier(parts)
        if student.head is None and (options.alignment != "none" or options.contrastive != "none"):
            raise KD3Error(
                f"the features of student {parts.backbone_name} cannot be found, and KD3's alignment and contrastive "
                f"terms need them; set both to none, or use --method kd"
            )
        if options.alignment == "none":
            return cls(options, teacher, student)
        projector = training_projector(teacher, student, parts.sample, width=options.projector_width)
        return cls(options, teacher, student, projector)

    @property
    def passes_per_selection(self) -> float:
        """Passes over the selected images before the next selection."""
        return self.options.select_every

    def hidden_matrices(self) -> list[Tensor]:
        """Return the weights that an optimizer for hidden matrices may move, without the contrastive embedding."""
        outer = [self.embedding] if self.embedding is not None else []
        return hidden_matrices(self, besides=[*self.student.output_layers(), *outer])

    def compares_images(self) -> str | None:
        """Return in words the loss terms that compare images; None: there are none."""
        options = self.options
        if options.contrastive != "none":
            return "the images are contrasted with each other; use --kd3.contrastive none"
        if options.alignment != "none" and options.alignment_scale == "relative":
            return "the features' mean energy divides the alignment; use --kd3.alignment-scale raw"
        return None

    # 1. Dynamic instance selection

    def select(self, scan: Scan, progress: float, *, at_least: int) -> Selection:
        """Return the images to train on; on request without the surest ones, or balanced by class."""
        options = self.options
        selection, predictions = self._selected(scan, progress, at_least=at_least)
        if options.drop_surest > 0:
            entropy, labels = self._self_entropy(scan)
            selection = without_surest(selection, entropy, labels, share=options.drop_surest, at_least=at_least)
        if options.balance == 0 or predictions is None:
            return selection
        weights = class_balance(predictions.label[selection.index], strength=options.balance)
        return replace(selection, weights=weights)

    def _selected(self, scan: Scan, progress: float, *, at_least: int) -> tuple[Selection, Predictions | None]:
        """Return the images of which teacher and student together are sure, or those that the options select."""
        options = self.options
        if options.selection == "none":
            return select_everything(scan.count), None
        if options.selection == "auto":
            return select_inliers(scan.outliers(), at_least=at_least), None
        if options.selection == "typical":
            predictions = scan.predictions(1.0)
            typical = select_typical(scan.typicality(), predictions, share=options.share, at_least=at_least)
            return typical, predictions
        alone = options.selection == "teacher-only"
        alpha = teacher_weight(progress, "teacher" if alone else options.teacher_weight)
        self.alpha.fill_(alpha)
        if options.scoring == "fresh":
            predictions = scan.predictions(alpha)
        else:
            predictions = scan.latest_predictions(alpha, refreshed=options.refreshed)
        selection = select_confident(
            predictions, threshold=options.threshold, at_least=at_least, teacher_logits=scan.teacher_logits
        )
        return selection, predictions

    def _self_entropy(self, scan: Scan) -> tuple[Tensor, Tensor]:
        """Return the teacher's uncertainty and class for each image: (N,) float32 and int32, computed once."""
        if self._entropy is None:
            parts = [(self_cross_entropy(z).float().cpu(), z.argmax(1).int().cpu()) for z in scan.teacher_logits()]
            self._entropy = torch.cat([entropy for entropy, _ in parts]), torch.cat([labels for _, labels in parts])
        return self._entropy

    def _predict(self, teacher_logits: Tensor, student_logits: Tensor) -> Predictions | None:
        if self.options.selection not in ("dynamic", "teacher-only") or self.options.scoring == "fresh":
            return None
        with torch.no_grad():
            return predict(blend_logits(teacher_logits.float(), student_logits.detach().float(), self.alpha))

    def forward(self, batch: Batch) -> StepResult:
        """Return the loss of a batch: alignment, softened logits and contrast, each weighted."""
        options, images = self.options, batch.images
        teacher = self._teacher_outputs(images) if batch.teacher is None else batch.teacher
        features, student = self._student_outputs(images)
        terms: dict[str, Tensor] = {}

        # 2. Shared classifier and weighted feature alignment
        if options.alignment != "none":
            weights = alignment_weights(student.logits, teacher.logits) if options.alignment == "weighted" else None
            projected = student.features if self.projector is None else self.projector(features)
            relative = options.alignment_scale == "relative"
            alignment = feature_alignment(
                projected, teacher.features, weights=weights, relative=relative, ranks=self.ranks
            )
            terms["alignment"] = options.alignment_weight * alignment
        if options.logit_weight > 0:
            divergence = soft_target_divergence(student.logits, teacher.logits, temperature=options.temperature)
            terms["soft_targets"] = options.logit_weight * divergence

        # 3. MixDistribution contrastive learning
        if self.embedding is not None:
            terms["contrastive"] = options.contrastive_weight * self._contrast(images, features, batch.generator)
        loss = torch.stack(list(terms.values())).sum()
        return StepResult(loss, terms, self._predict(teacher.logits, student.logits))

    def _teacher_outputs(self, images: Tensor) -> ModelOutput:
        if self.options.alignment != "none":
            return self.teacher.outputs(images)
        return ModelOutput(images[:, :0], self.teacher(images))  # any teacher has logits

    def _student_outputs(self, images: Tensor) -> tuple[Tensor, ModelOutput]:
        if self.student.head is not None:
            return self.student.outputs(images)
        return images[:, :0], ModelOutput(images[:, :0], self.student(images))

    def _contrast(self, images: Tensor, features: Tensor, generator: torch.Generator) -> Tensor:
        assert self.embedding is not None
        options = self.options
        part = max(2, round(options.contrastive_fraction * len(images)))
        mixed = mix_distribution(
            images[:part],
            beta_parameter=options.beta_parameter,
            gamma_scale=options.gamma_scale,
            beta_scale=options.beta_scale,
            generator=generator,
            ranks=self.ranks,
        )
        u = F.normalize(self.embedding(global_avg_pool(features[:part])).float(), dim=1)
        apart = options.mixed_statistics == "apart"
        with running_statistics_kept(self.student) if apart else nullcontext():
            mixed_features = self.student.features(mixed)
        u_mixed = F.normalize(self.embedding(global_avg_pool(mixed_features)).float(), dim=1)
        # Every rank sees the negatives of all.
        u, u_mixed = self.ranks.gather(u), self.ranks.gather(u_mixed)
        return nt_xent(u, u_mixed, temperature=options.contrastive_temperature)
