"""The student: one self-contained module, with either kind of classifier."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd3.config.records import Signature, are_numbers, class_name
from kd3.models.calling import calling_of, in_float32
from kd3.models.head import (
    Head,
    HeadNotFound,
    ModelOutput,
    as_logits,
    evaluating,
    find_head,
    global_avg_pool,
    output_layers,
    probe_images,
    run_with_features,
)
from kd3.models.preprocessing import Normalisation
from kd3.models.projector import Correction, Projector, build_projector
from kd3.models.soundness import sound_logits
from kd3.runtime.errors import KD3Error


class Student(nn.Module):
    """A classifier made of a backbone and either its own head or a projector and the teacher's.

    With the teacher's head: logits = classifier(global_avg_pool(projector(features))), and the backbone's
    own classifier is gone. `forward` takes normalised images and returns logits. `normalise` turns uint8
    images into normalised ones; `preparation` describes how pictures become uint8 images. `cascade` holds the results
    of `kd3 cascade` (None before): the `temperature`, and the `threshold` below which to ask the teacher.
    """

    def __init__(
        self,
        backbone: nn.Module,
        signature: Signature,
        *,
        head: Head | None = None,
        projector: Projector | Correction | None = None,
        classifier: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.backbone = in_float32(backbone)
        self.normalise = Normalisation(signature.mean, signature.std)
        self.preparation, self.classes = signature.preparation, [class_name(name) for name in signature.classes]
        self.cascade: Mapping[str, Any] | None = None
        self.head = head
        self.projector, self.classifier = projector, classifier
        if classifier is not None:
            assert head is not None
            backbone.set_submodule(head.classifier, nn.Identity())

    @property
    def input_size(self) -> int:
        """Side of the input, in pixels."""
        return self.preparation.size

    @property
    def is_nameless(self) -> bool:
        """Whether its classes have only numbers."""
        return are_numbers(self.classes)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def temperature(self) -> float:
        """Divisor of the logits that makes probabilities match the rate of agreement with the teacher; 1: none."""
        return 1.0 if self.cascade is None else float(self.cascade["temperature"])

    @property
    def threshold(self) -> float | None:
        """The margin of the largest logit over the second below which to ask the teacher; None: unknown."""
        return None if self.cascade is None else float(self.cascade["threshold"])

    def output_layers(self) -> list[nn.Module]:
        """Return the layers that make the logits."""
        if self.classifier is not None:
            return [self.classifier]
        paths = [self.head.classifier] if self.head else output_layers(self.backbone, self.input_size)
        return [self.backbone.get_submodule(path) for path in paths]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits. Shapes: (B, C, H, W), normalised floats, C = 1 of a grey teacher -> (B, K)."""
        if self.classifier is None:
            return as_logits(self.backbone(images))
        return self.outputs(images)[1].logits

    def features(self, images: Tensor) -> Tensor:
        """Return the backbone's own features. Shapes: (B, C, H, W) -> (B, C_s, h, w)."""
        return self._seen(images).features

    def outputs(self, images: Tensor) -> tuple[Tensor, ModelOutput]:
        """Return the backbone's features, and the projected features with the logits.

        Shapes: (B, C, H, W) -> (B, C_s, h, w), ((B, C_t, h, w), (B, K)). Without a projector both
        features are the backbone's.
        """
        seen = self._seen(images)
        if self.classifier is None:
            return seen.features, seen
        projected = self.projector(seen.features) if self.projector is not None else seen.features
        return seen.features, ModelOutput(projected, self.classifier(global_avg_pool(projected)))

    def _seen(self, images: Tensor) -> ModelOutput:
        if self.head is None:
            raise KD3Error("this student's features are not known; only its logits are")
        return run_with_features(self.backbone, self.head, images)


def own_head(network: nn.Module, signature: Signature, *, name: str) -> Student:
    """Return a student that keeps its own classifier.

    Raises:
        KD3Error: its number of logits is not the number of classes.
    """
    logits = sound_logits(
        network,
        signature.input_size,
        what=f"student {name}",
        channels=len(signature.mean),
        num_classes=len(signature.classes),
        output=calling_of(network).output,  # as settled before
    )
    if logits.shape[1] != len(signature.classes):
        raise KD3Error(
            f"student {name} has {logits.shape[1]} logits but the teacher knows {len(signature.classes)} classes"
        )
    try:
        head: Head | None = find_head(network, signature.input_size)
    except HeadNotFound:
        head = None
    return Student(network, signature, head=head)


def shared_head(
    network: nn.Module,
    signature: Signature,
    *,
    name: str,
    classifier: nn.Linear,
    projector: Literal["simkd", "correction", "none"] = "simkd",
    projector_width: int | None,
    final_relu: bool,
    teacher_map: Sequence[int] | None = None,
) -> Student:
    """Return a student with the teacher's classifier, on projected or its own features.

    With projector `none` the teacher's classifier takes the place of the student's own, frozen, and the student is a
    plain network of its architecture.

    A feature map larger than the teacher's, `teacher_map` (h, w), is pooled to that size before the projector.

    Source: KD3 (arXiv 2307.11469), shared classifier; SimKD (arXiv 2203.14001).

    Raises:
        KD3Error: the student's features cannot be found, or (without a projector) their channels differ from the
            teacher's.
    """
    sound_logits(
        network,
        signature.input_size,
        what=f"student {name}",
        channels=len(signature.mean),
        num_classes=len(signature.classes),
        output=calling_of(network).output,  # as settled before
    )
    try:
        head = find_head(network, signature.input_size)
    except HeadNotFound as problem:
        raise KD3Error(f"student {name} cannot take the teacher's classifier: {problem}; use --method kd") from None
    if projector == "none":
        if head.channels != classifier.in_features:
            raise KD3Error(
                f"student {name} has {head.channels} feature channels but the teacher's classifier takes "
                f"{classifier.in_features}; without a projector they must agree: use projector simkd or correction"
            )
        if _takes_over(network.get_submodule(head.classifier), classifier):
            return Student(network, signature, head=head)
    lifting = None
    if projector != "none":
        sizes = {"in_channels": head.channels, "out_channels": classifier.in_features, "width": projector_width}
        size = smaller_map(network, head, signature.input_size, teacher_map)
        lifting = build_projector(kind=projector, **sizes, final_relu=final_relu, size=size)
    return Student(
        network,
        signature,
        head=head,
        projector=lifting,
        classifier=copy.deepcopy(classifier).requires_grad_(False),
    )


@torch.no_grad()
def _takes_over(own: nn.Module, classifier: nn.Linear) -> bool:
    """Give a network's last layer the teacher's weights, frozen; return whether it can hold them."""
    if not isinstance(own, nn.Linear) or own.weight.shape != classifier.weight.shape:
        return False
    if own.bias is None and classifier.bias is not None:
        return False
    own.weight.copy_(classifier.weight)
    if own.bias is not None:
        own.bias.copy_(classifier.bias) if classifier.bias is not None else own.bias.zero_()
    own.requires_grad_(False)
    return True


def smaller_map(
    network: nn.Module, head: Head, input_size: int, teacher_map: Sequence[int] | None
) -> Sequence[int] | None:
    """Return the size (h, w) of the teacher's map if the network's own is larger; otherwise None."""
    if teacher_map is None:
        return None
    with evaluating(network), torch.no_grad():
        images = probe_images(network, input_size, images=2, seed=0)
        own = run_with_features(network, head, images).features.shape[2:]
    return teacher_map if any(mine > other for mine, other in zip(own, teacher_map, strict=True)) else None
