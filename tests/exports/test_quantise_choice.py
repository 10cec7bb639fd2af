"""Choice of the 8-bit variant: the one with the highest agreement on the choosing half of the images."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kd3.exports import quantise as module
from kd3.exports.quantise import VARIANTS, quantise, write_variant

CHOOSING = (60.0, 90.0, 20.0, 70.0)  # percent that each way says as the student does, on the half that chooses
REPORTED = (80.0, 40.0, 100.0, 10.0)  # and on the other
HALF = 10


def logits_with(choosing, reported):
    """Logits of two classes that agree with class 0 on so many percent of either half."""
    wrong = []
    for share in (choosing, reported):
        right = round(share / 100 * HALF)
        wrong += [0] * right + [1] * (HALF - right)
    return torch.nn.functional.one_hot(torch.tensor(wrong), 2).float()


@pytest.fixture
def ways(monkeypatch):
    """Instead of networks, files that hold a way's number; the constants above set each one's answers."""

    def write(model, path, variant, calibrating):
        path.write_text(str(VARIANTS.index(variant)))

    def run(path, threads):
        number = int(path.read_text())
        return lambda images: logits_with(CHOOSING[number], REPORTED[number])[images[:, 0, 0, 0].long()]

    monkeypatch.setattr(module, "write_variant", write)
    monkeypatch.setattr(module, "run_onnx", run)


@pytest.fixture
def tried(ways, tmp_path):
    images = torch.arange(2 * HALF).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).float()
    expected = logits_with(100, 100)
    return quantise(
        tmp_path / "m.onnx", tmp_path / "m8.onnx", calibrating=images, compared=images, float_logits=expected
    )


def test_the_way_that_agrees_most_on_the_choosing_half_is_the_file(tried, tmp_path):
    assert (tmp_path / "m8.onnx").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["m8.onnx"]


def test_the_ways_come_best_first_with_the_agreement_of_either_half(tried):
    assert [one.to_choose for one in tried] == sorted(CHOOSING, reverse=True)
    assert {one.variant: (one.to_choose, one.to_report) for one in tried} == dict(
        zip(VARIANTS, zip(CHOOSING, REPORTED, strict=True), strict=True)
    )


def test_each_way_has_the_scales_and_bits_that_it_names(tmp_path):
    draw = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(4, 3 if name == "a" else 4, 1, 1, generator=draw) for name in "abc"}
    path = ["images", "a_", "b_"]
    nodes = [
        helper.make_node("Conv", [at, name], [f"{name}_"], name=name) for at, name in zip(path, "abc", strict=True)
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("c_", TensorProto.FLOAT, ["batch", 4, 4, 4])],
        initializer=[numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    for variant in VARIANTS:
        write_variant(tmp_path / "m.onnx", tmp_path / "q.onnx", variant, torch.randn(4, 3, 4, 4))
        made = {one.name: one for one in onnx.load(tmp_path / "q.onnx").graph.initializer}
        scales = {name[0]: one for name, one in made.items() if name.endswith("_scale") and name[:-6] in weights}
        assert sorted(scales) == ["a", "b", "c"]
        largest = max(
            np.abs(numpy_helper.to_array(one)).max() for name, one in made.items() if name.endswith("_quantized")
        )
        assert largest == (64 if variant.seven_bits else 127), variant
        assert {tuple(one.dims) for one in scales.values()} == ({(4,)} if variant.per_channel else {()}), variant
