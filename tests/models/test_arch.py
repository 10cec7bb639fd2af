"""Architectures by name, by file and by package; each mistake gets a sentence."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from kd3.models.arch import ArchReference, build_arch, parse_arch
from kd3.runtime.errors import KD3Error

NET = """
from torch import nn

def build(num_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Linear(width, num_classes))
"""


@pytest.fixture(autouse=True)
def imports_left_as_they_were() -> Iterator[None]:
    modules, path = dict(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    for name in set(sys.modules) - set(modules):
        if name.startswith(("kd3_arch_", "blocks", "arch_package")):
            del sys.modules[name]


def write(folder: Path, text: str, name: str = "net.py") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("arch", "reference"),
    [
        ("kd3:resnet56", ArchReference("kd3", "resnet56")),
        ("resnet20", ArchReference("kd3", "resnet20")),
        ("net.py:build", ArchReference("file", "net.py", "build")),
        ("a b/../net.py:Net", ArchReference("file", "a b/../net.py", "Net")),
        (r"C:\nets\net.py:build", ArchReference("file", r"C:\nets\net.py", "build")),
        ("package.module:build", ArchReference("module", "package.module", "build")),
    ],
)
def test_grammar(arch: str, reference: ArchReference) -> None:
    assert parse_arch(arch) == reference


@pytest.mark.parametrize("arch", ["", "net.py", "net.py:", "kd3:", "nets/net:build", "a.py:b.c", ":", "12"])
def test_message_teaches_the_grammar(arch: str) -> None:
    with pytest.raises(
        KD3Error, match=r"kd3:NAME, timm:NAME, .*, path/to/net\.py:FUNCTION or package\.module:FUNCTION"
    ):
        parse_arch(arch)


@pytest.mark.parametrize("arch", ["mobilnet_v2", "kd3:mobilnet_v2"])
def test_unknown_name_names_the_nearest(arch: str) -> None:
    with pytest.raises(KD3Error, match="did you mean 'mobilenet_v2'"):
        build_arch(arch, num_classes=10)


def test_zoo_takes_arguments() -> None:
    network = build_arch("kd3:resnet8", num_classes=5, arch_args={"shortcut": "B"})
    assert "layer2.0.shortcut.0.weight" in network.state_dict()
    assert network(torch.zeros(1, 3, 16, 16)).shape == (1, 5)


def test_file_is_relative_to_the_description(tmp_path: Path) -> None:
    write(tmp_path, NET)
    network = build_arch("net.py:build", num_classes=5, arch_args={"width": 6}, relative_to=tmp_path)
    assert network(torch.zeros(1, 3, 2, 2)).shape == (1, 5)
    assert network.get_submodule("1").out_features == 6


def test_file_is_relative_to_the_working_directory_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "nets", NET)
    monkeypatch.chdir(tmp_path)
    assert build_arch("nets/net.py:build", num_classes=5)(torch.zeros(1, 3, 2, 2)).shape == (1, 5)


def test_module_class_is_a_builder_and_survives_pickling(tmp_path: Path) -> None:
    text = (
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, num_classes): super().__init__(2, num_classes)"
    )
    network = build_arch("net.py:Net", num_classes=3, relative_to=write(tmp_path, text))
    again = build_arch("net.py:Net", num_classes=3, relative_to=tmp_path)
    assert type(again) is type(network)
    assert pickle.loads(pickle.dumps(network)).out_features == 3


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    for width in (1, 2):
        write(tmp_path, f"from torch import nn\ndef build(): return nn.Linear({width}, 3)")
        assert build_arch("net.py:build", num_classes=3, relative_to=tmp_path).in_features == width


def test_builder_without_num_classes_is_called_without(tmp_path: Path) -> None:
    write(tmp_path, "from torch import nn\ndef build(width=2): return nn.Linear(width, 3)")
    assert build_arch("net.py:build", num_classes=9, relative_to=tmp_path).out_features == 3


def test_builder_with_keywords_gets_everything(tmp_path: Path) -> None:
    write(tmp_path, "from torch import nn\ndef build(**k): return nn.Linear(k['width'], k['num_classes'])")
    network = build_arch("net.py:build", num_classes=9, arch_args={"width": 4}, relative_to=tmp_path)
    assert (network.in_features, network.out_features) == (4, 9)


@pytest.mark.parametrize("lazily", [False, True])
def test_neighbours_of_the_file_are_its_own(tmp_path: Path, lazily: bool) -> None:
    head, body = ("", "    import blocks\n") if lazily else ("import blocks\n", "")
    text = f"{head}def build():\n{body}    return blocks.layer()"
    for width, folder in enumerate((tmp_path / "a", tmp_path / "b"), start=1):
        write(folder, text)
        write(folder, f"from torch import nn\ndef layer(): return nn.Linear({width}, 3)", "blocks.py")
    for width, folder in ((1, "a"), (2, "b"), (1, "a")):
        network = build_arch("net.py:build", num_classes=3, relative_to=tmp_path / folder)
        assert network.in_features == width


def test_package_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "arch_package", NET, "nets.py")
    write(tmp_path / "arch_package", "import no_such_library", "broken.py")
    write(tmp_path / "arch_package", "", "__init__.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(build_arch("arch_package.nets:build", num_classes=3), nn.Module)
    with pytest.raises(KD3Error, match=r"there is no module 'arch_package\.absent'"):
        build_arch("arch_package.absent:build", num_classes=3)
    with pytest.raises(KD3Error, match=r"failed: ModuleNotFoundError.*'no_such_library'.*broken.py, line 1"):
        build_arch("arch_package.broken:build", num_classes=3)
    with pytest.raises(KD3Error, match=r"unknown function 'biuld'.*did you mean 'build'"):
        build_arch("arch_package.nets:biuld", num_classes=3)
    with pytest.raises(KD3Error, match="there is no module 'no_such_package' in this Python"):
        build_arch("no_such_package.nets:build", num_classes=3)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (NET.replace("build", "make"), "unknown function 'build'"),
        ("from torch import nn", "has no 'build', and no function at all"),
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero (FILE, line 2)"),
        ("def build(:", "SyntaxError: invalid syntax (FILE, line 1)"),
        ("raise SystemExit('usage: train.py')", "SystemExit: usage: train.py (FILE, line 1)"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library' (FILE, line 1)"),
        (
            "from torch import nn\ndef build():\n    return nn.Conv2d(3, 5, 1, groups=2)",
            "in_channels must be divisible by groups (FILE, line 3)",
        ),
        ("def build(): return {'a': 1}", "returned a dict; a torch.nn.Module is expected"),
        ("build = 3", "'build' is a int, not a function or a class"),
        ("from torch import nn\nbuild = nn.Linear(2, 2)", "'build' is a network already"),
        ("def build(depth): pass", "needs 'depth'; give it under arch_args"),
    ],
)
def test_mistakes_in_the_file_are_told_with_their_line(tmp_path: Path, text: str, sentence: str) -> None:
    file = write(tmp_path, text) / "net.py"
    with pytest.raises(KD3Error) as refused:
        build_arch("net.py:build", num_classes=3, relative_to=tmp_path)
    assert sentence.replace("FILE", str(file)) in str(refused.value)


def test_cause_is_chained_and_a_failed_file_leaves_no_module(tmp_path: Path) -> None:
    write(tmp_path, "1 / 0")
    before = set(sys.modules)
    with pytest.raises(KD3Error) as refused:
        build_arch("net.py:build", num_classes=3, relative_to=tmp_path)
    assert isinstance(refused.value.__cause__, ZeroDivisionError)
    assert not [name for name in set(sys.modules) - before if name.startswith("kd3_arch_net")]


@pytest.mark.parametrize(
    ("arch_args", "sentence"),
    [
        ({"widht": 2}, "unknown argument 'widht' (arch_args of net.py:build); did you mean 'width'"),
        ({"num_classes": 3}, "take it out of arch_args"),
        ({"width": "x"}, "building the network failed: TypeError"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, arch_args: dict[str, object], sentence: str) -> None:
    write(tmp_path, NET)
    with pytest.raises(KD3Error) as refused:
        build_arch("net.py:build", num_classes=3, arch_args=arch_args, relative_to=tmp_path)
    assert sentence in str(refused.value)


def test_missing_file_and_folder_are_told_with_the_whole_path(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    for name in ("absent.py", "folder.py"):
        with pytest.raises(KD3Error, match=f"there is no file {tmp_path / name}"):
            build_arch(f"{name}:build", num_classes=3, relative_to=tmp_path)


@pytest.mark.parametrize("with_init", [True, False])
def test_a_package_that_lies_above_the_file_is_named_with_what_to_set(with_init, tmp_path, monkeypatch):
    folder = tmp_path / "project" / "blocks_above"
    folder.mkdir(parents=True)
    if with_init:
        (folder / "__init__.py").touch()
    (folder / "net.py").write_text("from torch import nn\nclass Small(nn.Linear): pass\n")
    (folder / "build.py").write_text(
        "from blocks_above.net import Small\ndef build(num_classes): return Small(2, num_classes)\n"
    )
    arch = f"{folder / 'build.py'}:build"
    with pytest.raises(KD3Error, match=f"it lies in {folder.parent}: set PYTHONPATH={folder.parent}$"):
        build_arch(arch, num_classes=3)
    monkeypatch.syspath_prepend(str(folder.parent))
    assert build_arch(arch, num_classes=3).out_features == 3


def test_a_package_beside_the_file_is_found_and_one_that_is_nowhere_is_reported(tmp_path):
    (tmp_path / "blocks_beside").mkdir()
    (tmp_path / "blocks_beside" / "net.py").write_text("from torch import nn\nclass Small(nn.Linear): pass\n")
    (tmp_path / "b.py").write_text(
        "from blocks_beside.net import Small\ndef build(num_classes): return Small(2, num_classes)\n"
    )
    assert build_arch("b.py:build", num_classes=4, relative_to=tmp_path).out_features == 4
    (tmp_path / "c.py").write_text("import nowhere_in_kd3.at_all\n")
    with pytest.raises(KD3Error, match="set PYTHONPATH to the folder that holds 'nowhere_in_kd3'"):
        build_arch("c.py:build", num_classes=4, relative_to=tmp_path)
