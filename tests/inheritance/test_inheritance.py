"""Inheritance of a teacher's weights by a student."""

import copy

import pytest
import torch
from torch import nn

import kd3
from kd3.inheritance.channels import ChannelSpaces, evenly, in_order, keeping, units
from kd3.inheritance.inherited import inherited, measured_importance
from kd3.inheritance.plan import inherit, plan_inheritance
from kd3.methods import Parts, projector_for, student_with_teachers_classifier
from kd3.models.libraries.zoo import build_by_name
from kd3.runtime.errors import KD3Error

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def network(name: str, seed: int = 0) -> nn.Module:
    """Return a network with weights and running statistics that distinguish its parts."""
    torch.manual_seed(seed)
    built = build_by_name(name, num_classes=4).eval()
    for norm in built.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.data.uniform_(0.5, 2)
    return built


def teacher_of(name: str) -> kd3.Teacher:
    return kd3.Teacher(network(name), mean=MEAN, std=STD, input_size=16)


@pytest.mark.parametrize(
    ("teacher", "student", "row", "blocks"),
    [
        ("resnet56", "resnet20", "layer2", [0, 4, 8]),
        ("resnet34", "resnet18", "layer3", [0, 5]),
        ("wrn_40_2", "wrn_16_2", "block2.layer", [0, 5]),
        ("resnet32x4", "resnet8x4", "layer1", [0]),
    ],
)
def test_a_shallower_student_takes_evenly_spaced_blocks_whole(teacher, student, row, blocks):
    source, own = network(teacher), network(student, seed=1)
    plan = plan_inheritance(own, source)
    assert plan.blocks[row] == blocks
    assert plan.share == 1
    assert {part.how for part in plan.parts} == {"whole"}
    inherit(own, source, plan)
    last = own.get_submodule(f"{row}.{len(blocks) - 1}")
    theirs = source.get_submodule(f"{row}.{blocks[-1]}")
    for name, tensor in last.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_rows_of_plain_layers_keep_a_convolution_and_its_norm_together():
    plan = plan_inheritance(network("vgg8"), network("vgg13"))
    sources = {part.layer: part.source for part in plan.parts}
    assert sources["block1.0"] == "block1.0"
    assert sources["block1.1"] == "block1.1"
    plan = plan_inheritance(network("vgg13"), network("vgg16"))
    sources = {part.layer: part.source for part in plan.parts}
    assert (sources["block3.3"], sources["block3.4"]) == ("block3.6", "block3.7")
    assert plan.share == 1


def test_a_network_of_the_same_kind_becomes_the_teacher_itself():
    source, own = network("wrn_16_1"), network("wrn_16_1", seed=1)
    inherit(own, source, plan_inheritance(own, source))
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(own(images), source(images))


@pytest.mark.parametrize(
    ("teacher", "student"), [("wrn_16_2", "wrn_16_1"), ("wrn_40_2", "wrn_16_1"), ("wrn_40_2", "wrn_40_1")]
)
def test_a_narrower_student_takes_the_same_channels_wherever_they_are_read_and_written(teacher, student):
    source, own = network(teacher), network(student, seed=1)
    plan = plan_inheritance(own, source)
    assert plan.share > 0.95
    assert plan.narrows
    kept = {layer: rows for layer, (rows, _) in plan.keep.items()}
    read = {layer: columns for layer, (_, columns) in plan.keep.items()}
    # The last stage's sum: written by every conv2 of it, normalised, read by the classifier.
    last = max(int(name.split(".")[2]) for name in kept if name.startswith("block3.layer"))
    assert torch.equal(kept[f"block3.layer.{last}.conv2"], kept["bn1"])
    assert torch.equal(kept["bn1"], read["fc"])
    inherit(own, source, plan)
    assert torch.equal(own.fc.weight, source.fc.weight[:, kept["bn1"]])
    assert torch.equal(own.bn1.running_mean, source.bn1.running_mean[kept["bn1"]])


def test_the_most_important_channels_are_kept():
    source, own = network("wrn_16_2"), network("wrn_16_1", seed=1)
    with torch.no_grad():
        for channel in (3, 60, 127):  # of the last stage: silent everywhere
            for block in source.block3.layer:
                block.conv2.weight[channel] = 0
                if block.convShortcut is not None:
                    block.convShortcut.weight[channel] = 0
            source.block3.layer[1].conv1.weight[:, channel] = 0
            source.block3.layer[1].bn1.weight[channel] = 0
            source.bn1.weight[channel] = 0
            source.fc.weight[:, channel] = 0
    kept, _ = plan_inheritance(own, source).keep["bn1"]
    assert not {3, 60, 127} & set(kept.tolist())


def test_channels_that_are_padded_or_concatenated_are_left_whole():
    spaces = ChannelSpaces(network("resnet20"))
    _, stem = spaces.layers["conv1"]
    assert not spaces.space(stem).free  # a shortcut pads them
    reads, writes = spaces.layers["layer1.0.conv1"]
    assert spaces.space(writes).free
    assert reads == stem


def test_another_family_starts_at_random(capfd):
    teacher, student = teacher_of("resnet20"), network("mobilenet_v2", seed=1)
    before = copy.deepcopy(student.state_dict())
    sample = torch.randn(4, 3, 16, 16)
    assert inherited(student, teacher, sample, blocks="even", name="kd3:mobilenet_v2") is None
    assert "kd3:mobilenet_v2 starts from random weights" in capfd.readouterr().err
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name])
    with pytest.raises(KD3Error, match=r"mobilenet_v2 cannot inherit from teacher .*use --init random"):
        inherited(student, teacher, sample, blocks="even", name="kd3:mobilenet_v2", must=True)


def test_a_teacher_inside_a_wrapper_is_found():
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.model = inner

        def forward(self, images):
            return self.model(images)

    plan = plan_inheritance(network("resnet8", seed=1), Wrapped(network("resnet20")))
    assert plan.share == 1
    assert next(part.source for part in plan.parts if part.layer == "layer1.0.conv1") == "model.layer1.0.conv1"


@pytest.mark.parametrize("rule", ["change", "recovery"])
def test_a_block_that_does_nothing_is_the_first_to_go(rule):
    teacher = teacher_of("resnet20")
    with torch.no_grad():
        silent = teacher.module.layer3[1]
        silent.bn2.weight.zero_()
        silent.bn2.bias.zero_()
    images = torch.randn(8, 3, 16, 16)
    important = measured_importance(teacher, images, rule)("layer3")
    assert important[1] == pytest.approx(0, abs=1e-6)
    assert important[0] > max(important[1:])  # it halves the size and cannot go
    own = network("resnet14", seed=1)
    plan = plan_inheritance(own, teacher.module, importance=measured_importance(teacher, images, rule))
    assert plan.blocks["layer3"] == [0, 2]


def test_recovery_forgives_a_block_that_a_linear_map_replaces():
    """A block may move its input far and still be easy to do without."""
    teacher = teacher_of("resnet20")
    with torch.no_grad():
        linear = teacher.module.layer3[1]
        linear.bn2.weight.zero_()
        linear.bn2.bias.fill_(30.0)  # x + 30: the ReLU behind it never cuts
    images = torch.randn(8, 3, 16, 16)
    assert measured_importance(teacher, images, "change")("layer3")[1] > 0.1
    assert measured_importance(teacher, images, "recovery")("layer3")[1] < 1e-4


def test_blocks_are_chosen_in_order_and_only_where_they_fit():
    anywhere = [[True] * 5] * 3
    assert in_order(evenly(3, 5), anywhere) == [0, 2, 4]
    assert in_order(evenly(1, 5), [[True] * 5]) == [0]
    assert in_order(keeping([1, 5, 1, 4, 3], 3), anywhere) == [1, 3, 4]
    only_last = [[False, False, False, False, True], [True] * 5, [True] * 5]
    chosen = in_order(evenly(3, 5), only_last)
    assert sorted(place for place in chosen if place is not None) == [place for place in chosen if place is not None]
    assert in_order(evenly(2, 1), [[False], [False]]) == [None, None]


def test_activations_belong_to_the_layer_before_them():
    row = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    assert [unit.children for unit in units(row)] == [("0", "1", "2"), ("3", "4")]


def test_without_a_projector_the_student_is_a_plain_network_with_the_teachers_classifier():
    teacher, backbone = teacher_of("resnet20"), network("resnet8", seed=1)
    sample = torch.randn(4, 3, 16, 16)
    assert projector_for(Parts(teacher, backbone, "a student", sample, inherited=True)) == "none"
    student = student_with_teachers_classifier(
        Parts(teacher, backbone, "resnet8", sample), projector="none", projector_width=None
    )
    assert student.projector is None
    assert student.classifier is None
    assert torch.equal(student.backbone.linear.weight, teacher.module.linear.weight)
    assert not any(parameter.requires_grad for parameter in student.backbone.linear.parameters())
    features, output = student.outputs(sample)
    assert torch.allclose(output.logits, teacher.classifier()(features.mean((2, 3))), atol=1e-5)


def test_a_correction_starts_as_the_features_themselves():
    teacher, backbone = teacher_of("resnet20"), network("resnet20", seed=0)
    sample = torch.randn(8, 3, 16, 16)
    student = student_with_teachers_classifier(
        Parts(teacher, backbone, "resnet20", sample), projector="correction", projector_width=None
    ).eval()
    assert torch.allclose(student(sample), teacher(sample), atol=1e-4)


def test_a_narrower_students_correction_starts_near_the_teachers_features():
    teacher, backbone = teacher_of("wrn_16_2"), network("wrn_16_1", seed=1)
    sample = torch.randn(16, 3, 16, 16)
    assert inherited(backbone, teacher, sample, blocks="even", name="wrn") is not None
    assert projector_for(Parts(teacher, backbone, "a student", sample, inherited=True)) == "correction"
    student = student_with_teachers_classifier(
        Parts(teacher, backbone, "wrn", sample), projector="correction", projector_width=None
    )
    wanted = teacher.outputs(sample).features
    student.train()
    with torch.no_grad():
        missed = (student.outputs(sample)[1].features - wanted).square().mean()
    assert missed < 0.5 * wanted.square().mean()


def test_without_a_projector_channels_must_agree():
    teacher, backbone = teacher_of("wrn_16_2"), network("wrn_16_1", seed=1)
    with pytest.raises(KD3Error, match="64 feature channels but the teacher's classifier takes 128"):
        student_with_teachers_classifier(
            Parts(teacher, backbone, "wrn", torch.randn(4, 3, 16, 16)), projector="none", projector_width=None
        )
