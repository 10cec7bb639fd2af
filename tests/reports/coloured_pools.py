"""Pools of plain colours and a teacher that knows three of them, so that every score is known."""

import numpy as np
import torch
from torch import nn

from kd3.models.student import Student
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool

CLASSES = ["red", "green/ish", "blue"]
SIZE = 16


class Colours(nn.Module):
    """Mean red, green and blue, each a class."""

    def __init__(self, scale=1.0, shift=(0.0, 0.0, 0.0)):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(3, 3)
        with torch.no_grad():
            self.linear.weight.copy_(scale * torch.eye(3))
            self.linear.bias.copy_(torch.tensor(shift))

    def forward(self, images):
        return self.linear(self.pool(images).flatten(1))


def colour_teacher(scale=6.0, shift=(0.0, 0.0, 0.0), classes=CLASSES):
    return Teacher(Colours(scale, shift), mean=[0, 0, 0], std=[1, 1, 1], input_size=SIZE, classes=classes)


def colour_student(scale=3.0, shift=(0.0, 1.0, 0.0), classes=CLASSES, size=SIZE):
    from kd3.config.records import Signature

    return Student(Colours(scale, shift), Signature([0, 0, 0], [1, 1, 1], size, classes)).eval()


def colours(count, seed=0, size=SIZE):
    """Images (n, 3, S, S), each of one colour of its own."""
    plain = np.random.default_rng(seed).permutation(256**2)[:count]
    values = np.stack([plain % 256, plain // 256, (plain * 7) % 256], axis=1).astype(np.uint8)
    return np.broadcast_to(values[:, :, None, None], (count, 3, size, size)).copy()


def logits(network, images):
    with torch.no_grad():
        return network(network.normalise(torch.from_numpy(images)))


def pool_of(images):
    return ImagePool.from_array(images)
