"""The benchmark of a cascade's promises: from models and images to its tables, and again from stored logits."""

import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


def run(monkeypatch, *words):
    from benchmarks.cascade_promises import main

    monkeypatch.setattr(sys, "argv", ["cascade_promises", *map(str, words)])
    return main()


def test_a_teacher_as_its_own_student_keeps_every_promise_alone(
    teacher_file, pool_folder, labelled, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("benchmarks.cascade_promises.DEPLOYED", 16)
    pair = f"twin={teacher_file},{teacher_file},{pool_folder}"
    words = ["--test", labelled, "--pair", pair, "--answers", tmp_path / "kept.npz"]
    assert run(monkeypatch, *words) == 0
    first = capsys.readouterr().out
    assert "| twin | 100.0%, 100.0% |" in first
    assert first.count("| twin |") == 5
    monkeypatch.setattr("benchmarks.cascade_promises.answers", None)  # stored logits are enough
    assert run(monkeypatch, *words) == 0
    assert capsys.readouterr().out == first


def test_a_cell_says_whether_a_promise_is_kept():
    from benchmarks.cascade_promises import Said, set_often, set_once

    generator = torch.Generator().manual_seed(0)

    def said(images, wrong):
        margin = torch.rand(images, generator=generator, dtype=torch.float64)
        return Said(margin, torch.rand(images, generator=generator) >= wrong * (1 - margin))

    easy, hard = said(3000, 0.3), said(3000, 0.9)
    assert set_once(easy, said(3000, 0.05), 95).endswith(", kept")
    assert set_once(easy, hard, 95).endswith(", **broken**")
    assert "no threshold: it needs at least 299 images" in set_once(said(200, 0.1), hard, 99)
    share = float(set_often(easy, 95, count=300, draws=60).rsplit(" in ", 1)[1].removesuffix("%"))
    assert share >= 88
