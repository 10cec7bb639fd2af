"""Checkpoints with more in them than a network's weights, under more names than one."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from test_checkpoint import Net, load, prefixed, refusal, save, trained
from torch import nn

from kd3.models.checkpoint import load_weights
from kd3.models.libraries.zoo import build_by_name
from kd3.runtime.errors import KD3Error

__all__ = ["trained"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        {"best": np.float32(1.5), "curve": np.arange(3.0), "kind": np.dtype("int8")},
        {"args": argparse.Namespace(lr=1, out=Path("x")), "began": datetime.now(timezone.utc)},
        {"names": {"a", "b"}, "step": Fraction(1, 3)},
    ],
)
def test_objects_beside_the_weights_are_left_unread(tmp_path, trained, beside, zipped) -> None:
    torch.save({"state_dict": trained, **beside}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    network = Net()
    assert re.search(
        r"loaded 8 tensors from w.pt \(under 'state_dict'; left unread: ", load(tmp_path / "w.pt", network)
    )
    assert all(torch.equal(tensor, trained[name]) for name, tensor in network.state_dict().items())


def test_what_is_left_unread_runs_nothing(tmp_path, trained) -> None:
    class Touching:
        def __reduce__(self):
            return (tempfile.mkdtemp, ("", "ran", str(tmp_path)))

    class Calling:
        def __reduce__(self):
            return (eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    for number, beside in enumerate((Touching(), Calling())):
        torch.save({"state_dict": trained, "x": beside}, tmp_path / f"{number}.pt")
        load(tmp_path / f"{number}.pt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.pt", "1.pt"]


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda s: {**prefixed(s, "classifier_net."), "crit.pos_weight": torch.ones(3)}, "'classifier_net.' removed"),
        (
            lambda s: {**prefixed(s, "a.b."), "test_metrics.total": torch.tensor(3)},
            "network: test_metrics.total",
        ),
        (
            lambda s: {**s, "loss_fn.weight": torch.ones(3), "normalise.std": torch.ones(3)},
            "loss_fn.weight, norm",
        ),
        (lambda s: {"module": s, "zero_stage": 2}, "under 'module'"),
        (
            lambda s: {k.replace(".", ".module._orig_mod.", 1): v for k, v in s.items()},
            "wrappers of inner parts",
        ),
    ],
)
def test_what_training_leaves_around_the_names(tmp_path, trained, wrap, message) -> None:
    network = Net()
    assert message in load(save(wrap(trained), tmp_path), network)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("extra", ["layer9.weight", "conv1_bn.running_mean", "aux_head.weight"])
def test_parts_that_the_network_lacks_are_never_left_aside(tmp_path, trained, extra) -> None:
    assert f"1 left over ({extra})" in refusal(save({**trained, extra: torch.zeros(4)}, tmp_path))


def test_two_networks_in_a_file_are_told_apart_by_their_prefix(tmp_path, trained) -> None:
    other = {name: value + 1 for name, value in trained.items()}
    path = save({**prefixed(trained, "online."), **prefixed(other, "target.")}, tmp_path)
    assert "holds 2 networks that fit, under 'online.' and 'target.'; say which is meant (prefix: online.)" in refusal(
        path
    )
    network = Net()
    load_weights(network, path, where="t", prefix="target.")
    assert torch.equal(network.conv1.weight, other["conv1.weight"])
    with pytest.raises(KD3Error, match=r"begin with 'targets\.' \(prefix\); they begin with online\., target\."):
        load_weights(network, path, where="t", prefix="targets.")


def test_the_average_is_taken_where_it_is_asked_for(tmp_path, trained) -> None:
    path = save({"model": trained, "model_ema": {name: value * 0 for name, value in trained.items()}}, tmp_path)
    network = Net()
    assert load_weights(network, path, where="t", key="model_ema") == (
        "loaded 8 tensors from weights.pt (under 'model_ema')"
    )
    assert not network.conv1.weight.any()
    with pytest.raises(KD3Error, match=r"under 'shadow' \(weights_key\), but a dictionary of 'model', 'model_ema'"):
        load_weights(network, path, where="t", key="shadow")


def sequenced(name: str) -> str:
    """Return a name of the zoo as a network has it whose convolutions lie in one sequence with their norms."""
    place = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
    name = re.sub(r"^(conv1|bn1)", lambda found: f"conv1.{place[found[1]]}", name)
    name = re.sub(r"^layer(\d)", lambda found: f"conv{int(found[1]) + 1}_x", name)
    return re.sub(
        r"(?<=_x)(\.\d+)\.((?:conv|bn)\d)\.", lambda found: f"{found[1]}.residual_function.{place[found[2]]}.", name
    )


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_names_of_another_public_collection(tmp_path, name) -> None:
    """Each convolution in one sequence with its norm and its ReLU, as in weiaicunzai/pytorch-cifar100."""
    network = build_by_name(name, num_classes=100)
    state = {sequenced(old).replace("linear", "fc"): value for old, value in network.state_dict().items()}
    assert "conv5_x.0.residual_function.3.weight" in state
    message = load(save(prefixed(state, "module."), tmp_path), build_by_name(name, num_classes=100))
    assert "names of weiaicunzai/pytorch-cifar100 taken for the zoo's; 'fc' taken for 'linear'" in message


def test_projections_for_padded_shortcuts_name_the_argument(tmp_path) -> None:
    state = {
        n.replace("shortcut", "downsample"): v
        for n, v in build_by_name("resnet14", num_classes=5, shortcut="B").state_dict().items()
    }
    path = save({"state_dict": state}, tmp_path)
    assert refusal(path, build_by_name("resnet14", num_classes=5)).endswith(
        "projections: write arch_args: {shortcut: B}"
    )
    load(path, build_by_name("resnet14", num_classes=5, shortcut="B"))


def test_a_trusted_network_is_found_by_the_file_beside_it(tmp_path, monkeypatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "small_kd3_net.py").write_text("from torch import nn\nclass Small(nn.Linear): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path / "there"))
    import small_kd3_net

    save(small_kd3_net.Small(2, 2), tmp_path / "there", "w.pt")
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "small_kd3_net")
    path, network = tmp_path / "there" / "w.pt", nn.Linear(2, 2)
    assert "of a pickled Small" in load_weights(network, path, where="t", trusted=True)
    sys.modules.pop("small_kd3_net", None)
    moved = path.rename(tmp_path / "w.pt")
    with pytest.raises(KD3Error, match="module 'small_kd3_net' is not found; put it beside the file, or set"):
        load_weights(network, moved, where="t", trusted=True)
