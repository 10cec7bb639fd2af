"""Teachers from description files and live modules."""

import pytest
import torch
import yaml
from torch import nn

import kd3
from kd3.models.arch import build_arch
from kd3.runtime.errors import KD3Error

DESCRIPTION = {
    "arch": "kd3:resnet8",
    "weights": "w.pt",
    "num_classes": 3,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "input_size": 16,
}


@pytest.fixture
def described(tmp_path):
    torch.manual_seed(0)
    torch.save(build_arch("kd3:resnet8", num_classes=3).state_dict(), tmp_path / "w.pt")

    def write(**changes):
        values = {k: v for k, v in {**DESCRIPTION, **changes}.items() if v is not None}
        (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(values))
        return tmp_path / "teacher.yaml"

    return write


def test_a_description_loads_a_frozen_teacher(described):
    teacher = kd3.load_teacher(described(classes=["x", "y", "z"]))
    assert teacher.classes == ["x", "y", "z"]
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.train().module.training
    assert teacher.head.classifier == "linear"


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("[0, 1, no]", ["0", "1", "no"]),
        ("[1_0, 0x1F, 1e3]", ["1_0", "0x1F", "1e3"]),
        ("[2024-05-01, 12:30:00, ~]", ["2024-05-01", "12:30:00", "~"]),
        ("[on, Off, 'yes']", ["on", "Off", "yes"]),
        ("\n- 007\n- 010\n- null", ["007", "010", "null"]),
        ("[cafe\u0301, b, c]", ["caf\u00e9", "b", "c"]),
        ("&names [y, n, .5]", ["y", "n", ".5"]),
    ],
)
def test_class_names_are_the_text_that_is_written(described, written, names):
    path = described()
    path.write_text(path.read_text() + f"classes: {written}\n", encoding="utf-8")
    assert kd3.load_teacher(path).classes == names


def test_a_gap_in_the_class_names_and_names_that_look_the_same_are_refused(described):
    path = described()
    text = path.read_text()
    for names, message in (("\n- a\n-\n- c", "valid string"), ("[e\u0301, \u00e9, c]", "more than once")):
        path.write_text(text + f"classes: {names}\n", encoding="utf-8")
        with pytest.raises(KD3Error, match=message):
            kd3.load_teacher(path)


def test_class_names_say_how_many_classes_there_are(described):
    assert kd3.load_teacher(described(num_classes=None, classes=["x", "y", "z"])).num_classes == 3
    with pytest.raises(KD3Error, match="'num_classes' is missing"):
        kd3.load_teacher(described(num_classes=None))
    with pytest.raises(KD3Error, match="lists 2 names but num_classes is 3"):
        kd3.load_teacher(described(classes=["x", "y"]))


def test_only_names_are_text(described):
    path = described(arch_args={"width": 1})
    with pytest.raises(KD3Error, match=r"width"):  # the builder's own word for a number that it does not take
        kd3.load_teacher(path)
    path = described(trusted=True)
    path.write_text(path.read_text().replace("trusted: true", "trusted: yes"))
    assert kd3.load_teacher(path).num_classes == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "gone.pt"}, "gone.pt"),
        ({"weights": None}, "'weights' is missing"),
        ({"num_clases": 3}, "unknown setting 'num_clases' .*did you mean 'num_classes'"),
        ({"num_classes": "three"}, "num_classes .*valid integer"),
        ({"mean": [0.5, 0.5]}, "three values"),
        ({"mean": [0.5]}, "as many values, and have 1 and 3"),
        ({"std": [0.5, 0.0, 0.5]}, "greater than 0"),
        ({"mean": [125, 125, 125]}, "divide them by 255"),
        ({"classes": ["a"]}, "lists 1 names but num_classes is 3"),
        ({"num_classes": 7}, "7"),
        ({"arch": "kd3:resnet21"}, "unknown network of the zoo .resnet21'.*did you mean"),
        ({"arch": "kd3:resnet14"}, "resnet14|missing"),
    ],
)
def test_a_wrong_description_is_one_sentence(described, changes, message):
    with pytest.raises(KD3Error, match=message) as problem:
        kd3.load_teacher(described(**changes))
    assert "\n" not in str(problem.value)


def test_a_live_module_needs_no_wrapper_and_stays_untouched():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    module.train()
    teacher = kd3.Teacher(module, mean=[0.5] * 3, std=[0.2] * 3)
    teacher.fit_to(16)
    assert teacher.num_classes == 4
    assert teacher.classes == ["0", "1", "2", "3"]
    assert module.training
    assert all(p.requires_grad for p in module.parameters())


def test_a_module_that_does_not_run_is_refused():
    module = nn.Sequential(nn.Flatten(), nn.Linear(10, 4))
    with pytest.raises(KD3Error, match="does not run on an image of 16 x 16"):
        kd3.Teacher(module, mean=[0.5] * 3, std=[0.2] * 3, input_size=16)


def test_the_fingerprint_changes_with_weights_and_normalisation():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    one = kd3.Teacher(module, mean=[0.5] * 3, std=[0.2] * 3, input_size=8)
    other = kd3.Teacher(module, mean=[0.4] * 3, std=[0.2] * 3, input_size=8)
    assert one.fingerprint() != other.fingerprint()
    with torch.no_grad():
        module[1].bias[0] += 1
    changed = kd3.Teacher(module, mean=[0.5] * 3, std=[0.2] * 3, input_size=8)
    assert changed.fingerprint() != one.fingerprint()


def test_a_classifier_that_is_more_than_linear_is_not_shared():
    class Cosine(nn.Linear):
        def forward(self, x):
            return super().forward(nn.functional.normalize(x, dim=1))

    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Cosine(8, 4))
    teacher = kd3.Teacher(module, mean=[0.5] * 3, std=[0.2] * 3, input_size=16)
    with pytest.raises(KD3Error, match=r"more than a linear layer \(Cosine\).*--method kd"):
        teacher.classifier()


def test_the_shared_checkpoint_of_another_layout_loads_from_a_users_own_file(shared_data, tmp_path):
    (tmp_path / "net.py").write_text(USERS_OWN_FILE)
    values = {
        **DESCRIPTION,
        "arch": "net.py:make",
        "weights": str(shared_data / "teacher" / "resnet20-12fca82f.th"),
        "num_classes": 10,
        "input_size": 32,
    }
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(values))
    own = kd3.load_teacher(tmp_path / "t.yaml")
    (tmp_path / "z.yaml").write_text(yaml.safe_dump({**values, "arch": "kd3:resnet20"}))
    zoo = kd3.load_teacher(tmp_path / "z.yaml")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(own(images), zoo(images))
    assert own.head.features is not None


USERS_OWN_FILE = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.grow = cout - cin

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grow:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grow // 2, self.grow // 2))
        return F.relu(x + y)


class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        for s in (1, 2, 3):
            blocks = [
                Block(widths[s - (b == 0)], widths[s], 2 if s > 1 and b == 0 else 1) for b in range(n)
            ]
            setattr(self, f"layer{s}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.size(3)).view(x.size(0), -1))


def make():
    return Net(3)
"""


def test_weights_that_are_cast_once_say_the_same_bit_for_bit():
    from kd3.models.libraries.zoo import build_by_name
    from kd3.runtime.compute import Compute

    compute = Compute(torch.device("cpu"), "bf16")
    teacher = kd3.Teacher(build_by_name("resnet8", num_classes=4), mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    cast = teacher.cast_for(compute)
    kinds = {type(part).__name__: part.weight.dtype for part in cast.module.modules() if hasattr(part, "weight")}
    assert kinds == {"Conv2d": torch.bfloat16, "BatchNorm2d": torch.float32, "Linear": torch.bfloat16}
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    with compute.autocast():
        for one, other in zip(cast.outputs(images), teacher.outputs(images), strict=True):
            assert torch.equal(one, other)
    assert cast.fingerprint() == teacher.fingerprint()
    assert teacher.module.linear.weight.dtype == torch.float32
    assert teacher.cast_for(Compute(torch.device("cpu"), "32")) is teacher


def test_weights_that_something_else_reads_are_not_cast():
    from kd3.runtime.compute import Compute

    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = torch.nn.Conv2d(3, 6, 3), torch.nn.Linear(6, 4)

        def forward(self, images):
            scale = self.fc.weight.double().pow(8).sum() * 1e9  # of which bfloat16 leaves two digits
            return self.fc(self.body(images).mean((2, 3))) * scale.float()

    teacher = kd3.Teacher(Normed(), mean=[0.5] * 3, std=[0.25] * 3, input_size=8)
    assert teacher.cast_for(Compute(torch.device("cpu"), "bf16")) is teacher
