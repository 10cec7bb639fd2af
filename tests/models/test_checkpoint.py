"""Checkpoints as people have them, and a sentence for each that does not fit."""

from __future__ import annotations

import argparse
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kd3.models.checkpoint import load_weights, weights_hash
from kd3.models.libraries.zoo import build_by_name
from kd3.runtime.errors import KD3Error


class Net(nn.Module):
    """conv1, bn1, fc: eight tensors, of which one is a counter."""

    def __init__(self, num_classes: int = 3, head: str = "fc") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        setattr(self, head, nn.Linear(4, num_classes))


@pytest.fixture
def trained() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return OrderedDict(
        (k, v + 1 if v.dtype == torch.long else torch.rand_like(v)) for k, v in Net().state_dict().items()
    )


def save(content: Any, tmp_path: Path, name: str = "weights.pt") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def load(path: Path, network: nn.Module | None = None) -> str:
    return load_weights(network or Net(), path, where="teacher.yaml")


def refusal(path: Path, network: nn.Module | None = None) -> str:
    """The sentence with which a file is refused; the network must be as before."""
    network = network or Net()
    before = weights_hash(network)
    with pytest.raises(KD3Error) as refused:
        load_weights(network, path, where="teacher.yaml")
    assert weights_hash(network) == before
    assert str(refused.value).startswith("teacher.yaml: ")
    return str(refused.value)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("suffix", ["pt", "pth", "th", "bin", "pth.tar", "safetensors"])
def test_bare_state_dict_in_every_format(tmp_path: Path, trained: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    save_file(trained, path) if suffix == "safetensors" else torch.save(trained, path)
    network = Net()
    assert load(path, network) == f"loaded 8 tensors from weights.{suffix}"
    assert all(torch.equal(tensor, trained[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda s: {"state_dict": s, "best_prec1": 93.4}, "under 'state_dict'"),
        (lambda s: {"model": s, "epoch": 3}, "under 'model'"),
        (lambda s: {"net": s}, "under 'net'"),
        (lambda s: {"model_state_dict": s, "optimizer": {"state": {}}}, "under 'model_state_dict'"),
        (lambda s: {"ema": s}, "under 'ema'"),
        (lambda s: {"state_dict_ema": s}, "under 'state_dict_ema'"),
        (lambda s: {"model_ema": s}, "under 'model_ema'"),
        (lambda s: {"model": {"state_dict": s}}, "under 'model'; under 'state_dict'"),
        (
            lambda s: {"ema": {k: v * 0 for k, v in s.items()}, "state_dict": s},
            "under 'state_dict'; its average under 'ema' left aside; weights_key: ema takes it",
        ),
        (lambda s: {"state_dict": prefixed(s, "module.")}, "under 'state_dict'; prefix 'module.' removed"),
        (
            lambda s: prefixed(s, "module._orig_mod."),
            "prefix 'module.' removed; prefix '_orig_mod.' removed",
        ),
        (lambda s: prefixed(s, "model."), "prefix 'model.' removed"),
        (
            lambda s: {k if k.startswith("fc") else f"backbone.{k}": v for k, v in s.items()},
            "prefix 'backbone.' removed",
        ),
        (lambda s: {"n_averaged": torch.tensor(5), **prefixed(s, "module.")}, "prefix 'module.' removed"),
        (
            lambda s: {f"module.{k.replace('fc', 'classifier')}": v for k, v in s.items()},
            "prefix 'module.' removed; 'classifier' taken for 'fc'",
        ),
    ],
)
def test_wrappers_and_prefixes(tmp_path: Path, trained: dict[str, Tensor], wrap: Any, message: str) -> None:
    network = Net()
    assert load(save(wrap(trained), tmp_path), network) == f"loaded 8 tensors from weights.pt ({message})"
    assert all(torch.equal(tensor, trained[name]) for name, tensor in network.state_dict().items())


def test_batch_counters_may_be_missing(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    del trained["bn1.num_batches_tracked"]
    assert load(save(trained, tmp_path)) == "loaded 7 tensors from weights.pt"


def test_prefix_that_belongs_to_the_network_stays(tmp_path: Path) -> None:
    network = nn.Module()
    network.model = nn.Linear(2, 2)
    assert load(save(network.state_dict(), tmp_path), network) == "loaded 2 tensors from weights.pt"


def test_other_words_for_shortcut_and_classifier(tmp_path: Path) -> None:
    network = build_by_name("resnet8", num_classes=10, shortcut="B")
    state = {
        name.replace("shortcut", "downsample").replace("linear", "fc"): tensor
        for name, tensor in network.state_dict().items()
    }
    message = load(save(state, tmp_path), build_by_name("resnet8", num_classes=10, shortcut="B"))
    assert message.endswith("('fc' taken for 'linear'; 'downsample' taken for 'shortcut')")


def test_words_are_not_exchanged_where_it_is_ambiguous(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    network = Net()
    network.linear = nn.Linear(4, 3)
    state = {name.replace("fc", "classifier"): tensor for name, tensor in trained.items()}
    assert "4 missing (fc.weight, fc.bias, linear.weight, ...)" in refusal(save(state, tmp_path), network)


@pytest.mark.parametrize(
    ("file", "arch", "tensors"),
    [
        ("resnet20-12fca82f.th", "resnet20", 97),
        ("resnet56-4bfd9763.th", "resnet56", 277),
        ("resnet56_cifar10jpeg.pt", "resnet56", 332),
    ],
)
def test_public_checkpoints_load(shared_data: Path, file: str, arch: str, tensors: int) -> None:
    message = load(shared_data / "teacher" / file, build_by_name(arch, num_classes=10))
    prefix = "; prefix 'module.' removed" if file.endswith(".th") else ""
    assert message == f"loaded {tensors} tensors from {file} (under 'state_dict'{prefix})"


def test_missing_and_left_over_are_counted_and_named(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    state = {name: tensor for name, tensor in trained.items() if not name.startswith("bn1")}
    state["extra.weight"] = torch.zeros(2)
    sentence = refusal(save(prefixed(state, "module."), tmp_path))
    assert "does not fit the architecture (4 tensors in the file, 8 in the network): " in sentence
    assert "4 missing (bn1.weight, bn1.bias, bn1.running_mean, ...)" in sentence
    assert sentence.endswith("1 left over (extra.weight)")


def test_weights_of_a_deeper_network_are_counted_whole(tmp_path: Path) -> None:
    deeper, network = build_by_name("resnet32", num_classes=3), build_by_name("resnet8", num_classes=3)
    sentence = refusal(save(deeper.state_dict(), tmp_path), network)
    sizes = f"({len(deeper.state_dict())} tensors in the file, {len(network.state_dict())} in the network)"
    assert f"does not fit the architecture {sizes}: " in sentence
    assert "missing" not in sentence
    assert "left over (layer1.1." in sentence


def test_another_shape_is_told_with_both(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    trained["conv1.weight"] = torch.zeros(4, 3, 5, 5)
    sentence = refusal(save(trained, tmp_path))
    assert "1 of another shape (conv1.weight is 4x3x5x5 in the file, 4x3x3x3 in the network)" in sentence


def test_another_class_count_is_told_as_such(tmp_path: Path) -> None:
    path = save(prefixed(Net(num_classes=100).state_dict(), "module."), tmp_path)
    sentence = refusal(path, Net(num_classes=10))
    assert f"{path} is for 100 classes, the description says 10" in sentence
    assert "only the classifier 'fc' differs" in sentence


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, trained: dict[str, Tensor], value: float) -> None:
    trained["bn1.running_var"][2] = value
    assert "not finite, first in 'bn1.running_var'" in refusal(save(trained, tmp_path))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "a whole pickled network (torch.nn.modules.container.Sequential)"),
        (Net(), f"Python objects beyond tensors ({__name__}.Net)"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_with_the_way_out(tmp_path: Path, content: Any, what: str, zipped: bool) -> None:
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    sentence = refusal(tmp_path / "w.pt")
    assert f"holds {what}" in sentence
    assert "torch.save(model.state_dict(), 'weights.pt'), or say trusted: true in the teacher's" in sentence


def test_a_trusted_pickle_may_hold_a_network_and_more(tmp_path: Path) -> None:
    trained = Net()
    for content in (trained, {"model": trained, "args": argparse.Namespace(lr=1)}):
        torch.save(content, tmp_path / "w.pt")
        fresh = Net()
        message = load_weights(fresh, tmp_path / "w.pt", where="teacher.yaml", trusted=True)
        assert "of a pickled Net" in message
        for name, value in trained.state_dict().items():
            assert torch.equal(fresh.state_dict()[name], value)


def test_torchscript_is_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(2, 2))), tmp_path / "w.pt")
    assert "is a TorchScript archive, not a checkpoint" in refusal(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello world, this is text", b"<html>404</html>", b"PK\3\4", b"\x80\2}q\0."])
def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    sentence = refusal(tmp_path / name)
    assert f"({len(content)} bytes) is not a checkpoint that can be read: cut short, or another kind" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.99])
def test_file_cut_short_is_refused(tmp_path: Path, kept: float, zipped: bool) -> None:
    path = tmp_path / "w.pt"
    torch.save(build_by_name("resnet8", num_classes=10).state_dict(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert "is not a checkpoint that can be read" in refusal(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([1, 2], "holds a list, no state dict"),
        (torch.zeros(3), "holds a Tensor, no state dict"),
        ({}, "holds an empty dictionary"),
        ({"epoch": 3, "weights": {}}, "holds a dictionary of 'epoch', 'weights', no state dict"),
        ({"state_dict": {}}, "holds a dictionary of 'state_dict'"),
    ],
)
def test_other_content_is_named(tmp_path: Path, content: Any, what: str) -> None:
    assert what in refusal(save(content, tmp_path))


def test_missing_file_and_folder_are_reported(tmp_path: Path) -> None:
    assert f"there is no weights file {tmp_path / 'absent.pt'}" in refusal(tmp_path / "absent.pt")
    assert f"{tmp_path} is a folder" in refusal(tmp_path)


def test_hash_depends_on_names_shapes_types_and_values_alone() -> None:
    torch.manual_seed(0)
    network = Net()
    first = weights_hash(network)
    assert weights_hash(network.to(memory_format=torch.channels_last)) == first
    assert len(first) == 64
    with torch.no_grad():
        network.fc.bias[0] += 1e-6
    assert weights_hash(network) != first
    assert weights_hash(network.bfloat16()) != first


def test_hash_depends_on_name_shape_and_type_where_the_bytes_are_equal() -> None:
    zeros = torch.zeros(4)
    hashes = set()
    for name, tensor in (("a", zeros), ("b", zeros), ("a", zeros.view(2, 2)), ("a", zeros.int())):
        module = nn.Module()
        module.register_buffer(name, tensor)
        hashes.add(weights_hash(module))
    assert len(hashes) == 4


@pytest.mark.parametrize("tensor", [torch.zeros(0, 3), torch.tensor([True, False]), torch.arange(6.0)[::2]])
def test_hash_takes_empty_boolean_and_strided_tensors(tensor: Tensor) -> None:
    module, copy = nn.Module(), nn.Module()
    module.register_buffer("values", tensor)
    copy.register_buffer("values", tensor.clone(memory_format=torch.contiguous_format))
    assert weights_hash(module) == weights_hash(copy) != weights_hash(nn.Module())
