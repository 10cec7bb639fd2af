"""Baselines and the upper bound: temperature distillation, DFND, SimKD, and training on original labels.

Temperature distillation on every image of the pool, or on a random part of it: the plain baseline. Source: Hinton et
al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531), section 2. The random part is the "random" row in
the tables of KD3 (arXiv 2307.11469).

DFND: distil on the images with the surest teacher predictions, with a model of the teacher's mistakes. Source: Chen et
al., Learning Student Networks in the Wild (CVPR 2021), and its public code for the constants. It selects the n images
with the smallest cross-entropy between the teacher's logits and their own argmax, and distils on them with a
temperature. It adds the cross-entropy to that argmax of the student's probabilities times a transition matrix Q. The
diagonal of Q is the teacher's accuracy; the rest is learned by an Adam of its own at a constant 1e-3. Differs: an
unknown teacher accuracy is estimated without labels, by the mean confidence on the selected images.

SimKD: the student learns the teacher's features and uses the teacher's classifier. Source: Chen et al., Knowledge
Distillation with the Reused Teacher Classifier (arXiv 2203.14001), equation 2: the mean square between projected and
teacher features, no other term. By default (ours) the mean square is a share of the teacher's feature energy; the raw
one learns too slowly for short budgets: `alignment_scale: raw` with weight 1 is the paper's.

Training on original labels, if they exist: the upper bound for distillation on other data. This is no distillation:
the teacher provides only the normalisation and the class names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd3.config.methods import DFNDOptions, KDOptions, SimKDOptions
from kd3.losses import adapted_cross_entropy, feature_alignment, soft_target_divergence, transition_matrix
from kd3.methods import Batch, Method, Parts, Scan, StepResult, student_with_teachers_classifier
from kd3.models.student import Student
from kd3.models.teacher import Teacher
from kd3.selection import Selection, select_everything, select_random
from kd3.selection.rules import select_surest


class KD(Method):
    """L = T^2 * KL(softmax(z_T / T) || softmax(z_S / T)), the student's own classifier, no labels."""

    options: KDOptions

    def __init__(self, options: KDOptions, teacher: Teacher, student: Student) -> None:
        super().__init__(options, teacher, student)
        # Drawn with the initial weights, so the run's seed decides it; a resumed run draws it again.
        self._seed = int(torch.randint(2**31, ())) if options.share < 1 else 0

    def select(self, scan: Scan, progress: float, *, at_least: int) -> Selection:
        """Return all images, or the same random part each time."""
        if self.options.share == 1:
            return select_everything(scan.count)
        wanted = max(at_least, round(self.options.share * scan.count))
        return select_random(scan.count, wanted, seed=self._seed)

    def forward(self, batch: Batch) -> StepResult:
        """Return the loss of a batch."""
        target = self.teacher(batch.images) if batch.teacher is None else batch.teacher.logits
        loss = soft_target_divergence(self.student(batch.images), target, temperature=self.options.temperature)
        return StepResult(loss, {"soft_targets": loss})


HIGHEST_ACCURACY = 0.999  # an estimate of 1 leaves the matrix nothing to learn


class DFND(Method):
    """L = T^2 KL(softmax(z_T / T) || softmax(z_S / T)) + w CE(softmax(z_S) Q, argmax z_T)."""

    options: DFNDOptions
    assumed_accuracy: Tensor  # (), float64, the diagonal of Q

    def __init__(self, options: DFNDOptions, teacher: Teacher, student: Student) -> None:
        super().__init__(options, teacher, student)
        self.mistakes = nn.Parameter(torch.zeros(teacher.num_classes, teacher.num_classes))
        known = options.teacher_accuracy
        self.register_buffer("assumed_accuracy", torch.tensor(known or 1 / teacher.num_classes, dtype=torch.float64))
        self._selected: Selection | None = None

    def moved_by_adam(self) -> list[Tensor]:
        """Return Q: an optimizer for hidden matrices would reduce each row to one or two classes within a few steps."""
        return [self.mistakes]

    def select(self, scan: Scan, progress: float, *, at_least: int) -> Selection:
        """Return the images with the smallest teacher cross-entropy, the same each time."""
        if self._selected is None:
            wanted = max(at_least, round(self.options.share * scan.count))
            self._selected, confidence = select_surest(scan.teacher_logits(), wanted)
            if self.options.teacher_accuracy is None:
                self.assumed_accuracy.fill_(min(confidence, HIGHEST_ACCURACY))
        return self._selected

    def forward(self, batch: Batch) -> StepResult:
        """Return the loss of a batch."""
        options = self.options
        target = self.teacher(batch.images) if batch.teacher is None else batch.teacher.logits
        logits = self.student(batch.images)
        terms = {"soft_targets": soft_target_divergence(logits, target, temperature=options.temperature)}
        if options.noise_weight > 0:
            transition = transition_matrix(self.mistakes, self.assumed_accuracy)
            adapted = adapted_cross_entropy(logits, target.argmax(dim=1), transition)
            terms["noisy_labels"] = options.noise_weight * adapted
        return StepResult(torch.stack(list(terms.values())).sum(), terms)


class SimKD(Method):
    """L = mean over B, C, h, w of (r(F_S(x)) - F_T(x))^2, on all images."""

    options: SimKDOptions

    @classmethod
    def build(cls, options: SimKDOptions, parts: Parts) -> SimKD:
        """Return the method; its student has the teacher's classifier."""
        student = student_with_teachers_classifier(
            parts, projector=options.projector, projector_width=options.projector_width
        )
        return cls(options, parts.teacher, student)

    def compares_images(self) -> str | None:
        """Return in words the loss terms that compare images; None: there are none."""
        if self.options.alignment_scale == "relative":
            return "the features' mean energy divides the alignment; use --simkd.alignment-scale raw"
        return None

    def select(self, scan: Scan, progress: float, *, at_least: int) -> Selection:
        """Return all images."""
        return select_everything(scan.count)

    def forward(self, batch: Batch) -> StepResult:
        """Return the loss of a batch."""
        target = self.teacher.outputs(batch.images) if batch.teacher is None else batch.teacher
        _, student = self.student.outputs(batch.images)
        relative = self.options.alignment_scale == "relative"
        alignment = feature_alignment(student.features, target.features, relative=relative, ranks=self.ranks)
        loss = self.options.alignment_weight * alignment
        return StepResult(loss, {"alignment": loss})


class Labels(Method):
    """L = CE(z_S, y), y the image's folder."""

    needs_labels = True

    def select(self, scan: Scan, progress: float, *, at_least: int) -> Selection:
        """Return all images."""
        return select_everything(scan.count)

    def forward(self, batch: Batch) -> StepResult:
        """Return the loss of a batch."""
        assert batch.labels is not None
        loss = F.cross_entropy(self.student(batch.images).float(), batch.labels)
        return StepResult(loss, {"labels": loss})
