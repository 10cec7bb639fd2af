"""Matrices for Muon, by their module and its part in the method."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kd3
from kd3.config.methods import METHODS, DFNDOptions, KD3Options
from kd3.config.records import Signature
from kd3.config.training import TrainSettings
from kd3.methods import Parts, build_method
from kd3.models.arch import build_arch
from kd3.models.head import hidden_matrices
from kd3.models.student import own_head
from kd3.runtime.compute import Compute
from kd3.training.learner import Learner
from kd3.training.optimizer import is_matrix

CPU = Compute(torch.device("cpu"), "32")
EVERY_PART = KD3Options(contrastive="mixdistribution", logit_weight=1, classifier="own")


def names(module, parameters):
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in module.named_parameters() if id(parameter) in wanted}


def moved_as_matrices(learner):
    groups = [group for group in learner.optimizer.param_groups if group.get("matrices")]
    return names(learner.method, [parameter for group in groups for parameter in group["params"]])


def learner(name, options, *, classes=3, student="kd3:resnet8", **settings):
    torch.manual_seed(0)
    network = build_arch("kd3:resnet8", num_classes=classes)
    teacher = kd3.Teacher(network, mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    backbone = build_arch(student, num_classes=classes) if isinstance(student, str) else student
    sample = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    method = build_method(name, options, Parts(teacher, backbone, "a student", sample))
    return Learner(method, TrainSettings(**settings), seed=0, total_steps=400, compute=CPU)


@pytest.mark.parametrize("name", METHODS)
def test_of_each_method_the_convolutions_and_nothing_else(name):
    options = EVERY_PART if name == "kd3" else METHODS[name].options()
    made = learner(name, options)
    moved = moved_as_matrices(made)
    convolutions = {f"{path}.weight" for path, module in made.method.named_modules() if isinstance(module, nn.Conv2d)}
    assert len(convolutions) > 6
    assert moved == convolutions


def test_the_embedding_the_students_classifier_and_the_noise_matrix_take_other_steps():
    moved = moved_as_matrices(learner("kd3", EVERY_PART))
    assert not {"embedding.weight", "student.backbone.linear.weight"} & moved
    groups = learner("dfnd", DFNDOptions()).optimizer.param_groups
    assert [group["params"][0].shape for group in groups if "betas" in group] == [(3, 3)]


@pytest.mark.parametrize("arch", ["kd3:vgg8", "kd3:wrn_16_1", "kd3:mobilenet_v2", "kd3:shufflenet_v2", "kd3:resnet8x4"])
def test_of_the_zoo_everything_but_the_classifier_and_what_is_no_matrix(arch):
    network = build_arch(arch, num_classes=5)
    student = own_head(network, Signature([0.5] * 3, [0.5] * 3, 32, list("abcde")), name=arch)
    found = hidden_matrices(network, besides=student.output_layers())
    hidden = names(network, [parameter for parameter in found if is_matrix(parameter)])
    by_shape = names(network, [parameter for parameter in network.parameters() if is_matrix(parameter)])
    assert by_shape - hidden == {f"{student.head.classifier}.weight"}


class VisionTransformer(nn.Module):
    """A small one, with a class token and a table of positions."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.block(x)[:, 0])


def test_of_a_vision_transformer_the_projections_and_not_the_tables():
    moved = moved_as_matrices(learner("kd", METHODS["kd"].options(), student=VisionTransformer()))
    assert {name.removeprefix("student.backbone.") for name in moved} == {
        "patches.weight",
        "block.self_attn.in_proj_weight",
        "block.self_attn.out_proj.weight",
        "block.linear1.weight",
        "block.linear2.weight",
    }


def test_tables_of_relative_positions_and_tied_embeddings_are_left_out():
    class Windowed(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.mix, self.out = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6)
            self.out.weight = self.words.weight
            self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
            self.norm = nn.LayerNorm((4, 4))

    network = Windowed()
    assert names(network, hidden_matrices(network)) == {"mix.weight"}


def test_a_classifier_whose_head_cannot_be_shared_is_found_all_the_same():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build_arch("kd3:resnet8", num_classes=3)

        def forward(self, x):
            return 3 * self.inner(x)

    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.hidden = nn.Conv2d(3, 6, 3), nn.Linear(6, 6)
            self.one, self.other = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            x = torch.relu(self.hidden(self.conv(x).mean((2, 3))))
            return (self.one(x) + self.other(x.square())) / 2

    assert "student.backbone.inner.linear.weight" not in moved_as_matrices(
        learner("kd", METHODS["kd"].options(), student=Scaled())
    )
    moved = moved_as_matrices(learner("kd", METHODS["kd"].options(), student=TwoHeads()))
    assert moved == {"student.backbone.conv.weight", "student.backbone.hidden.weight"}


def confused(mistakes):
    """Classes that each row of the noise matrix effectively spreads its mistakes over."""
    own = torch.eye(len(mistakes), dtype=torch.bool)
    logs = F.log_softmax(mistakes.masked_fill(own, float("-inf")), dim=1).masked_fill(own, 0)
    return (-(logs.exp() * logs).masked_fill(own, 0).sum(1)).exp().mean()


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_the_noise_matrix_stays_smooth(optimizer):
    made = learner("dfnd", DFNDOptions(teacher_accuracy=0.8), classes=6, optimizer=optimizer, warmup_steps=0)
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before = made.method.mistakes.detach().clone()
    for number in range(60):
        made.step(number, images)
    assert not torch.equal(made.method.mistakes, before)
    assert (made.method.mistakes - before).abs().max() <= 60 * 1e-3 * 1.01
    assert confused(made.method.mistakes.detach()) > 4.9  # of 5


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_both_optimisers_go_on_from_a_checkpoint_bit_for_bit(optimizer):
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole, first, second = (learner("dfnd", DFNDOptions(teacher_accuracy=0.8), optimizer=optimizer) for _ in range(3))
    for number in range(6):
        whole.step(number, images)
    for number in range(3):
        first.step(number, images)
    second.method.load_state_dict(first.method.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    for number in range(3, 6):
        second.step(number, images)
    for one, other in zip(whole.method.state_dict().values(), second.method.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"] != 0.3


def test_weights_lie_in_memory_as_their_gradients_do():
    # Else several processes copy every gradient of a 1 x 1 convolution, and say so.
    made = learner("kd3", KD3Options(contrastive="mixdistribution"))
    made.step(0, torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8))
    moved = {name: p for name, p in made.method.named_parameters() if p.grad is not None}
    assert any(p.shape[2:] == (1, 1) for p in moved.values())
    assert [name for name, p in moved.items() if p.stride() != p.grad.stride()] == []
