"""Networks without sound logits are refused, also in opaque files."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kd3
from kd3.config.records import Signature
from kd3.models.soundness import sound_logits
from kd3.models.student import own_head
from kd3.runtime.errors import KD3Error

ALWAYS = "says something else of the same image each time, as dropout does"
BESIDE = "judges an image by the others beside it, as batch norms do"


def net(*tail, norm=False):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        norms = [nn.BatchNorm2d(8)] if norm else []
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), *norms, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *tail, nn.Linear(8, 3)
        )


class Called(nn.Module):
    """A network, and user code around its outputs."""

    def __init__(self, change):
        super().__init__()
        self.network, self.change = net(), change

    def forward(self, x):
        return self.change(self.network(x))


def saved(network, kind, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "torchscript":
            torch.jit.save(torch.jit.trace(network, torch.randn(4, 3, 8, 8), check_trace=False), path)
        else:
            shapes = {"input": {0: torch.export.Dim("batch")}}
            torch.export.save(torch.export.export(network, (torch.randn(4, 3, 8, 8),), dynamic_shapes=shapes), path)
    path.with_name("t.yaml").write_text(
        f"arch: {kind}:{path.name}\nnum_classes: 3\nmean: [0, 0, 0]\nstd: [1, 1, 1]\ninput_size: 8\n"
    )
    return path.with_name("t.yaml")


@pytest.mark.parametrize("kind", ["torchscript", "torch-export"])
@pytest.mark.parametrize(("part", "message"), [("dropout", ALWAYS), ("norm", BESIDE)])
def test_a_program_that_was_saved_in_training_mode_is_refused(kind, part, message, tmp_path):
    network = net(nn.Dropout(0.2)) if part == "dropout" else net(norm=True)
    with pytest.raises(KD3Error, match=f"{kind}:t.pt2 {message}"):
        kd3.load_teacher(saved(network.train(), kind, tmp_path / "t.pt2"))
    if part == "norm":
        assert kd3.load_teacher(saved(network.eval(), kind, tmp_path / "t.pt2")).num_classes == 3


def test_a_script_that_knows_its_mode_is_put_into_evaluation():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(net(nn.Dropout(0.5), norm=True).train())
    assert kd3.Teacher(scripted, mean=[0] * 3, std=[1] * 3, input_size=8).num_classes == 3


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Called(lambda x: F.dropout(x, 0.2)), ALWAYS),
        (net(nn.BatchNorm1d(8, track_running_stats=False)), BESIDE),
        (Called(lambda x: x.softmax(1)), "puts out probabilities, which sum to 1 .*leave its last softmax out"),
        (Called(lambda x: x / 0), "puts out values that are not finite"),
        (Called(lambda x: x[:1]), "returns 1 rows of logits for 4 images"),
        (Called(lambda x: x[:, :, None]), r"a tensor of shape \(4, 3, 1\)"),
        (nn.Conv2d(1, 3, 3), "does not run on an image of 8 x 8 pixels: RuntimeError"),
    ],
)
def test_what_gives_no_sound_logits_is_refused_as_teacher_and_student(network, message):
    torch.manual_seed(1)  # two draws of a dropout of nine logits are the same once in thirty times
    with pytest.raises(KD3Error, match=f"teacher {type(network).__name__}:? .*{message}"):
        kd3.Teacher(network, mean=[0] * 3, std=[1] * 3, input_size=8)
    with pytest.raises(KD3Error, match=f"student x:? .*{message}"):
        own_head(network, Signature([0] * 3, [1] * 3, 8, ["a", "b", "c"]), name="x")


@pytest.mark.parametrize("change", [lambda x: x.log_softmax(1), lambda x: 1e-30 * x, lambda x: x + 1e3])
def test_what_is_unusual_but_sound_passes(change):
    assert sound_logits(Called(change), 8, what="it").shape == (4, 3)


def test_training_is_not_mistaken_for_unsound():
    network = net(nn.Dropout(0.5), norm=True).train()
    sound_logits(network, 8, what="it")
    assert network.training


def test_a_network_in_half_precision_is_a_teacher_in_float32():
    half = net().bfloat16()
    teacher = kd3.Teacher(half, mean=[0] * 3, std=[1] * 3, input_size=8)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
