"""Baseline, "the common way": a plain implementation of the paper's recipe.

One image at a time through Pillow in a DataLoader, float32 in the default layout, both networks over
the whole pool before each epoch with a graph for the student, loss weights in a loop over the batch,
MixDistribution image by image on the host, and a second teacher pass for a contrastive loss that
cannot reach the student. The mathematics is the package's (tests compare the losses); only the implementation differs.

Source: KD3 (arXiv 2307.11469).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from kd3.models.head import Head, run_with_features
from kd3.models.student import Student
from kd3.pool import ImagePool


class Transformed(Dataset[Tensor]):
    """Pool images, each through random Pillow transforms on access: (3, S, S), normalised."""

    def __init__(self, images: ImagePool, mean: Sequence[float], std: Sequence[float]) -> None:
        self.images = images
        self.mean, self.std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Tensor:
        image = Image.fromarray(self.images[position].transpose(1, 2, 0))
        image = random_resized_crop(image)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
        return (pixels - self.mean) / self.std


def random_resized_crop(image: Image.Image) -> Image.Image:
    """Cut out 8% to 100% of the area, 3:4 to 4:3, and stretch it to the image's size; ten tries, then the whole."""
    width, height = image.size
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return image.resize(image.size, Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
    return image


def loader(dataset: Transformed, batch_size: int, *, workers: int = 1) -> DataLoader[Tensor]:
    """Return the usual loader: shuffled, worker processes."""
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, num_workers=workers, drop_last=True)


def mixed(images: Tensor, partner: Sequence[int], mixture: Sequence[float]) -> Tensor:
    """Return the MixDistribution view of a batch, made image by image."""
    views = []
    for i, image in enumerate(images):
        other = images[partner[i]]
        own_mean, own_std = image.mean((1, 2)), (image.var((1, 2), unbiased=False) + 1e-6).sqrt()
        mean, std = other.mean((1, 2)), (other.var((1, 2), unbiased=False) + 1e-6).sqrt()
        gamma = mixture[i] * own_std + (1 - mixture[i]) * std
        beta = mixture[i] * own_mean + (1 - mixture[i]) * mean
        normal = (image - own_mean.view(3, 1, 1)) / own_std.view(3, 1, 1)
        views.append(gamma.view(3, 1, 1) * normal + beta.view(3, 1, 1))
    return torch.stack(views)


def alignment(student: Tensor, teacher: Tensor, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the weighted alignment, the weights computed image by image. Shapes: (B, C, h, w) twice, (B, K) twice."""
    weights = []
    for i in range(len(student)):
        distance = torch.norm(student_logits[i] - teacher_logits[i]).item()
        weights.append(1 / (1 + math.exp(-distance)))
    squares = F.mse_loss(student, teacher, reduction="none").mean((1, 2, 3))
    return (torch.tensor(weights, device=squares.device) * squares).mean()


def contrast(embedding: Tensor, other: Tensor, temperature: float = 0.3) -> Tensor:
    """Return NT-Xent of two views' embeddings (B, D), over the 2B x 2B matrix."""
    vectors = torch.cat([F.normalize(embedding, dim=1), F.normalize(other, dim=1)])
    similarity = torch.exp(vectors @ vectors.T / temperature)
    batch = len(embedding)
    positive = torch.cat([similarity.diagonal(batch), similarity.diagonal(-batch)])
    negative = similarity.sum(1) - similarity.diagonal()
    return -torch.log(positive / negative).mean()


class Reference(nn.Module):
    """The recipe's step and its scoring pass.

    Args:
        teacher: the teacher's own network, frozen, with its head.
        student: a student with a projector and the teacher's classifier.
    """

    def __init__(self, teacher: nn.Module, head: Head, student: Student, *, embedding_size: int = 128) -> None:
        super().__init__()
        assert student.head is not None
        self.teacher, self.head, self.student = teacher.eval(), head, student
        self.embedding = nn.Linear(student.head.channels, embedding_size, bias=False)
        self.teacher_embedding = nn.Linear(head.channels, embedding_size, bias=False)
        trained = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=5e-4)

    def losses(self, images: Tensor, partner: Sequence[int], mixture: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
        """Return alignment, the student's contrast, and the teacher's, which trains no shipped part."""
        views = mixed(images, partner, mixture)
        with torch.no_grad():
            target = run_with_features(self.teacher, self.head, images)
            target_mixed = run_with_features(self.teacher, self.head, views)
        own, output = self.student.outputs(images)
        own_mixed = self.student.features(views)
        student = contrast(self.embedding(own.mean((2, 3))), self.embedding(own_mixed.mean((2, 3))))
        teacher = contrast(
            self.teacher_embedding(target.features.mean((2, 3))),
            self.teacher_embedding(target_mixed.features.mean((2, 3))),
        )
        return alignment(output.features, target.features, output.logits, target.logits), student, teacher

    def step(self, images: Tensor) -> float:
        """Learn from a batch, (B, 3, S, S), normalised."""
        partner = torch.randperm(len(images)).tolist()
        mixture = [float(np.random.beta(0.1, 0.1)) for _ in partner]
        aligned, student, teacher = self.losses(images, partner, mixture)
        loss = aligned + 0.001 * student + 0.001 * teacher
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    def score(self, images: Tensor, teacher_weight: float) -> Tensor:
        """Return the blended probabilities of a batch: both networks run, the student with a graph."""
        self.student.eval()
        with torch.no_grad():
            target = self.teacher(images)
        blended = teacher_weight * target + (1 - teacher_weight) * self.student(images)
        return torch.softmax(blended, dim=1).detach()
