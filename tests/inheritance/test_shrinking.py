"""Shrunken teachers as students: the removed parts, and rebuilding without the teacher."""

import json
import runpy

import pytest
import torch
from torch import nn

import kd3
from in_process import here
from kd3.config.shrink import Shrink, ShrinkPlan, parse_shrink
from kd3.inheritance.depth import droppable_blocks
from kd3.inheritance.shrinking import plan_shrinking, shrunk
from kd3.models.costs import multiply_adds
from kd3.models.libraries.zoo import build_by_name
from kd3.models.shrunk import shrink
from kd3.models.student_files import load_student
from kd3.runtime.errors import KD3Error

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
OWN_CODE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        return x + torch.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2)
        self.one, self.two, self.three, self.four = (Block(12) for _ in range(4))
        self.head = nn.Linear(12, num_classes)

    def forward(self, x):
        return self.head(self.four(self.three(self.two(self.one(self.stem(x))))).mean((2, 3)))
"""


def lively(network: nn.Module) -> nn.Module:
    """Give a network running statistics and scales that tell its channels apart."""
    torch.manual_seed(5)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.data.uniform_(0.5, 2)
    return network.eval()


def teacher_of(network: nn.Module | str, side: int = 16) -> kd3.Teacher:
    torch.manual_seed(4)
    network = build_by_name(network, num_classes=4) if isinstance(network, str) else network
    return kd3.Teacher(lively(network), mean=MEAN, std=STD, input_size=side)


def images(count: int = 4, side: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def planned(teacher: kd3.Teacher, asked: str, rule: str = "recovery") -> ShrinkPlan:
    return plan_shrinking(teacher, images(side=teacher.input_size), parse_shrink(asked), rule=rule)


def test_shares_and_kinds_are_read_as_people_write_them():
    assert parse_shrink("shrink:0.3") == Shrink(0.3)
    assert parse_shrink("shrink:depth:1") == Shrink(1.0, "depth")
    assert str(parse_shrink("shrink:width:0.25")) == "shrink:width:0.25"
    assert parse_shrink("net.py:shrink") is None


@pytest.mark.parametrize("asked", ["shrink:0", "shrink:1.2", "shrink:nan", "shrink:", "shrink", "shrink:deep:0.5"])
def test_what_is_no_share_is_refused_before_anything_is_read(asked, tmp_path):
    done = here("distill", "--teacher", "none.yaml", "--student", asked, "--pool", "none", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "shrink:depth:SHARE" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet14", ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]),
        ("wrn_16_2", ["block1.layer.1", "block2.layer.1", "block3.layer.1"]),
        # No block carries its input past its weights: a convolution with its norm and activation is one.
        ("vgg13", ["block0.3 to 4", "block1.3 to 4", "block2.3 to 4", "block3.3 to 4"]),
    ],
)
def test_blocks_of_one_shape_can_be_left_out(name, blocks):
    found = [str(block) for block in droppable_blocks(lively(build_by_name(name, num_classes=4)), images(2))]
    assert found[: len(blocks)] == blocks


@pytest.mark.parametrize("rule", ["change", "recovery"])
def test_the_block_that_does_nothing_goes_first(rule):
    network = build_by_name("resnet20", num_classes=4)
    teacher = teacher_of(network)
    with torch.no_grad():
        teacher.module.layer2[2].bn2.weight.zero_()
        teacher.module.layer2[2].bn2.bias.zero_()
    plan = planned(teacher, "shrink:depth:0.95", rule)
    assert plan.blocks == ["layer2.2"]
    assert torch.allclose(shrunk(teacher, plan).eval()(images()), teacher(images()), atol=1e-5)


def test_rows_become_shorter_together_and_none_is_left_empty():
    teacher = teacher_of("resnet32")
    left = dict.fromkeys(("layer1", "layer2", "layer3"), 5)
    for path in planned(teacher, "shrink:depth:0.45").blocks:
        left[path.partition(".")[0]] -= 1
    assert max(left.values()) - min(left.values()) <= 1
    with pytest.raises(KD3Error, match=r"leaving out blocks brings it to 0\.\d+; ask for more, or for shrink:0.05"):
        planned(teacher, "shrink:depth:0.05")


def test_evenly_spaced_blocks_stay_where_that_is_asked():
    plan = planned(teacher_of("resnet32"), "shrink:depth:0.6", "even")
    assert [path for path in plan.blocks if path.startswith("layer2")] == ["layer2.2", "layer2.3"]


@pytest.mark.parametrize("asked", ["shrink:0.5", "shrink:depth:0.7", "shrink:width:0.4"])
@pytest.mark.parametrize("name", ["resnet14", "wrn_16_2", "mobilenet_v2"])
def test_at_most_the_share_is_left_and_the_plan_alone_builds_it_again(name, asked):
    if "depth" not in asked:
        pytest.importorskip("torch_pruning")
    teacher = teacher_of(name)
    plan = planned(teacher, asked)
    network = shrunk(teacher, plan).eval()
    assert multiply_adds(network, images()) == plan.multiply_adds
    assert 0.5 * plan.share < plan.reached <= plan.share
    again = build_by_name(name, num_classes=4)
    shrink(again, ShrinkPlan.model_validate_json(plan.model_dump_json()))
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(images()), network(images()))


@pytest.mark.parametrize("name", ["resnet14", "wrn_16_2", "vgg8"])
def test_a_narrower_teacher_is_the_teacher_in_which_nothing_reads_the_channels_that_went(name):
    pytest.importorskip("torch_pruning")
    teacher = teacher_of(name)
    plan = planned(teacher, "shrink:width:0.7")
    deaf = teacher_of(name).module
    for path, axes in plan.tensors.items():
        if len(axes) > 1 and axes[1] is not None:
            weight = deaf.get_parameter(path)
            gone = [place for place in range(weight.shape[1]) if place not in plan.kept[axes[1]]]
            weight.data[:, gone] = 0
    assert torch.allclose(shrunk(teacher, plan).eval()(images()), deaf(images()), rtol=1e-3, atol=1e-4)


def test_channels_that_cannot_be_followed_are_said():
    pytest.importorskip("torch_pruning")
    with pytest.raises(KD3Error, match=r"cannot be shrunk to 0\.5.*Torch-Pruning cannot follow its channels"):
        planned(teacher_of("shufflenet_v2"), "shrink:width:0.5")


def test_silent_channels_go_first():
    pytest.importorskip("torch_pruning")
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    teacher = teacher_of(network)
    with torch.no_grad():
        for channel in (1, 6):
            teacher.module[0].weight[channel] = 0
            teacher.module[4].weight[:, channel] = 0
    plan = planned(teacher, "shrink:width:0.76")
    assert plan.kept == [[0, 2, 3, 4, 5, 7]]


def test_nothing_to_leave_out_is_said():
    teacher = teacher_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4)), side=8)
    with pytest.raises(KD3Error, match="it has no block that can be left out"):
        planned(teacher, "shrink:depth:0.5")
    pytest.importorskip("torch_pruning")
    with pytest.raises(KD3Error, match="no channels of it can be left out; it has no block"):
        planned(teacher, "shrink:0.5")


def test_channels_without_torch_pruning_are_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    with pytest.raises(KD3Error, match=r"pip install 'kd3\[shrink\]'.*shrink:depth:SHARE"):
        planned(teacher_of("resnet14"), "shrink:width:0.5")


def test_a_program_that_was_saved_whole_cannot_be_shrunk():
    with pytest.warns(DeprecationWarning, match="jit.trace"):
        traced = torch.jit.trace(lively(build_by_name("resnet14", num_classes=4)), images())
    with pytest.raises(KD3Error, match="saved whole"):
        planned(kd3.Teacher(traced, mean=MEAN, std=STD, input_size=16), "shrink:0.5")


# In runs


def described(folder, arch: str, network: nn.Module, **more) -> str:
    import yaml

    torch.save(lively(network).state_dict(), folder / "weights.pt")
    values = {"arch": arch, "weights": "weights.pt", "num_classes": 3, "mean": list(MEAN), "std": list(STD)}
    (folder / "teacher.yaml").write_text(yaml.safe_dump({**values, "input_size": 16, **more}))
    return str(folder / "teacher.yaml")


def own_teacher(folder) -> str:
    from kd3.models.arch import build_arch

    (folder / "net.py").write_text(OWN_CODE)
    return described(folder, "net.py:Net", build_arch("net.py:Net", num_classes=3, relative_to=folder))


def distilled(teacher, student, pool, out, **more):
    return kd3.distill(teacher, student, pool, out, images=64, batch_size=32, recall="off", quiet=True, **more)


def test_a_shrunk_run_is_resumed_by_its_own_plan(tmp_path, pool_folder, monkeypatch):
    teacher = described(tmp_path, "kd3:resnet14", build_by_name("resnet14", num_classes=3))
    steps = []
    from kd3.training.learner import Learner

    taken = Learner.step

    def interrupted(self, *arguments, **keywords):
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return taken(self, *arguments, **keywords)

    monkeypatch.setattr(Learner, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distilled(teacher, "shrink:depth:0.7", pool_folder, tmp_path / "run", method="kd")
    monkeypatch.setattr(Learner, "step", taken)
    plan = json.loads((tmp_path / "run" / "origin.json").read_text())["shrunk"]
    monkeypatch.setattr("kd3.commands.distill_parts.plan_shrinking", None)  # it is not made a second time
    run = distilled(teacher, "shrink:depth:0.7", pool_folder, tmp_path / "run", method="kd", resume=True)
    about = json.loads((tmp_path / "run" / "student" / "config.json").read_text())
    assert about["shrunk"] == plan
    assert (about["arch"], about["version"]) == ("kd3:resnet14", 2)
    assert run.summary["inherited"] == 1
    # Loaded without the teacher, whose weights are gone.
    (tmp_path / "weights.pt").unlink()
    assert load_student(tmp_path / "run")(images()).shape == (4, 3)


def test_a_plan_that_does_not_fit_is_refused(tmp_path, pool_folder):
    teacher = described(tmp_path, "kd3:resnet14", build_by_name("resnet14", num_classes=3))
    distilled(teacher, "shrink:depth:0.7", pool_folder, tmp_path / "run")
    file = tmp_path / "run" / "student" / "config.json"
    about = json.loads(file.read_text())

    def with_plan(**changes) -> None:
        file.write_text(json.dumps({**about, "shrunk": {**about["shrunk"], **changes}}))

    weight = "layer1.0.conv1.weight"
    for changes, message in [
        ({"blocks": ["layer9.0"]}, "'layer9.0' is not as the plan has it"),
        ({"blocks": []}, "does not fit the student that config.json describes"),
        ({"kept": [[0, 99]], "tensors": {weight: [0, None, None, None]}}, "is not as the plan has it"),
        ({"kept": [[0]], "tensors": {weight: [0]}}, "is not as the plan has it"),
        ({"sizes": {"layer1.0.conv1": {"out_channels": 10**9}}}, "is not as the plan has it"),
        ({"sizes": {"layer1.0.conv1": {"training": 1}}}, "is not as the plan has it"),
        ({"share": 7}, "share"),
    ]:
        with_plan(**changes)
        with pytest.raises(KD3Error, match=message):
            load_student(tmp_path / "run")


def test_a_shrunk_network_of_ones_own_is_code_and_needs_consent(tmp_path, pool_folder):
    teacher = own_teacher(tmp_path)
    run = distilled(teacher, "shrink:depth:0.6", pool_folder, tmp_path / "run")
    assert run.summary["student_code"]
    with pytest.raises(KD3Error, match="--trust-code"):
        load_student(tmp_path / "run")
    (tmp_path / "net.py").unlink()  # the run folder has its own
    student = load_student(tmp_path / "run", trust_code=True)
    assert type(student.backbone.two).__name__ == "PassedOn" or type(student.backbone.three).__name__ == "PassedOn"


def test_a_live_teacher_is_asked_for_when_its_shrunk_student_is_loaded(tmp_path, pool_folder):
    teacher = teacher_of(build_by_name("resnet14", num_classes=3))
    run = distilled(teacher, "shrink:depth:0.7", pool_folder, tmp_path / "run")
    assert run.student(images()).shape == (4, 3)
    with pytest.raises(KD3Error, match="live module"):
        load_student(tmp_path / "run")
    again = load_student(tmp_path / "run", module=build_by_name("resnet14", num_classes=3))
    assert torch.allclose(again(images()), run.student(images()), atol=1e-5)


WIDE_END = """
from torch import nn


def build(num_classes):
    def stage(inputs, outputs):
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *stage(3, 4), *stage(4, 48), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, num_classes)
    )
"""


def test_a_narrow_student_keeps_the_teachers_features_and_so_needs_no_projector(tmp_path, pool_folder):
    pytest.importorskip("torch_pruning")
    teacher = described(tmp_path, "kd3:wrn_16_1", build_by_name("wrn_16_1", num_classes=3))
    for asked in ("shrink:width:0.4", "shrink:depth:0.7"):
        student = distilled(teacher, asked, pool_folder, tmp_path / asked.replace(":", "-")).student
        assert student.head.channels == 64
        assert student.projector is None


def test_features_become_narrower_where_nothing_else_can_behind_a_correction(tmp_path, pool_folder):
    pytest.importorskip("torch_pruning")
    (tmp_path / "wide.py").write_text(WIDE_END)
    teacher = described(tmp_path, "wide.py:build", runpy.run_path(str(tmp_path / "wide.py"))["build"](3))
    student = distilled(teacher, "shrink:width:0.1", pool_folder, tmp_path / "narrow").student
    assert student.head.channels < 48 == student.classifier.in_features
    assert student.projector.description()["kind"] == "correction"


@pytest.mark.parametrize(
    ("flag", "words"), [({"init": "random"}, "leave init random out"), ({"student_args": {"a": 1}}, "student_args")]
)
def test_what_contradicts_a_shrunk_teacher_is_refused(flag, words, tmp_path):
    with pytest.raises(KD3Error, match=words):
        distilled("none.yaml", "shrink:0.5", "none", tmp_path / "run", **flag)


def test_inspect_shows_the_plan(tmp_path, pool_folder):
    teacher = described(tmp_path, "kd3:resnet14", build_by_name("resnet14", num_classes=3))
    done = here("inspect", "--teacher", teacher, "--student", "shrink:depth:0.7", "--pool", pool_folder)
    assert done.returncode == 0
    assert "without layer" in done.stdout
    assert "measured on noise" not in done.stdout
    done = here("inspect", "--teacher", teacher, "--student", "shrink:2")
    assert (done.returncode, done.stdout) == (2, "")
