"""The teachers of the studies' tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def teacher_file(centred_teacher_file):
    """A teacher that sees several classes in the crawl: a study refuses a pool with only one predicted class."""
    return centred_teacher_file


@pytest.fixture(scope="session")
def blind_teacher_file(teacher_file, tmp_path_factory):
    """A teacher that predicts dog for every image."""
    folder = tmp_path_factory.mktemp("blind")
    weights = torch.load(teacher_file.parent / "weights.pt", weights_only=True)
    weights["linear.bias"] = torch.tensor([0.0, 1e4, 0.0])
    torch.save(weights, folder / "weights.pt")
    (folder / "teacher.yaml").write_text(teacher_file.read_text())
    return folder / "teacher.yaml"
