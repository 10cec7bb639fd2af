"""The compiled teacher has the teacher's outputs. Compilation is slow, so one test covers everything."""

import pytest
import torch

import kd3
from kd3.config.methods import KD3Options
from kd3.config.training import TrainSettings
from kd3.methods import Parts, build_method
from kd3.models.arch import build_arch
from kd3.runtime.compute import resolve
from kd3.training.learner import Learner


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_a_compiled_teacher_has_the_features_and_logits_of_the_plain_one(teacher_file):
    teacher = kd3.load_teacher(teacher_file)
    compiled = teacher.folded().compiled()
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected, found = teacher.outputs(images), compiled.outputs(images)
    torch.testing.assert_close(found.features, expected.features, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(compiled(images), expected.logits, rtol=1e-3, atol=1e-4)
    assert compiled.fingerprint() == teacher.fingerprint()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_steps_with_a_compiled_teacher_are_the_same_steps(teacher_file):
    compute = resolve("cpu", "32")
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    losses = []
    for compile_teacher in (False, True):
        teacher = kd3.load_teacher(teacher_file)
        torch.manual_seed(0)
        backbone = build_arch("kd3:resnet8", num_classes=3)
        sample = teacher.normalise(images)
        method = build_method("kd3", KD3Options(), Parts(teacher, backbone, "resnet8", sample))
        settings = TrainSettings(warmup_steps=0, lr=0.01, compile_teacher=compile_teacher)
        learner = Learner(method, settings, seed=0, total_steps=10, compute=compute)
        losses.append([float(learner.step(number, images).loss) for number in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_teacher_that_cannot_be_compiled_is_told_in_a_sentence(teacher_file, monkeypatch):
    def refused(module, **_):
        def run(images):
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found\nmore")

        return run

    monkeypatch.setattr(torch, "compile", refused)
    compiled = kd3.load_teacher(teacher_file).compiled()
    with pytest.raises(kd3.KD3Error, match=r"no working C\+\+ compiler found; run without --compile-teacher"):
        compiled(torch.zeros(2, 3, 16, 16))
