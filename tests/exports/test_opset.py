"""ONNX files use no newer operators than needed, with unchanged outputs."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from kd3.exports.formats import at_opset
from kd3.runtime.errors import KD3Error

IMAGES = np.random.default_rng(0).random((2, 3, 6, 6), dtype=np.float32)


def model(nodes, *, opset=18, constants=(), rank=4):
    """A graph from `x` to `y`, as the exporter writes it."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        initializer=[helper.make_tensor(name, TensorProto.INT64, [len(v)], v) for name, v in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def run(network):
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": IMAGES})[0]


NETWORKS = {
    "means": lambda: model(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0, noop_with_empty_axes=0)],
        constants=[("axes", [2, 3])],
        rank=2,
    ),
    "sums": lambda: model(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1, noop_with_empty_axes=0)],
        constants=[("axes", [1])],
    ),
    "pads": lambda: model(
        [helper.make_node("Pad", ["x", "pads"], ["y"], mode="reflect")], constants=[("pads", [0, 0, 1, 2, 0, 0, 1, 0])]
    ),
    "pads with a value": lambda: model(
        [
            helper.make_node("Cast", ["number"], ["value"], to=TensorProto.FLOAT),
            helper.make_node("Squeeze", ["value"], ["one"]),
            helper.make_node("Pad", ["x", "pads", "one"], ["y"]),
        ],
        constants=[("pads", [0, 0, 1, 2, 0, 0, 1, 0]), ("number", [3])],
    ),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_is_written_for_opset_17_and_ir_8_and_does_the_same(kind):
    network = NETWORKS[kind]()
    network.graph.node[0].metadata_props.add(key="note", value="of a later IR")
    found = at_opset(network, None)
    assert (found.ir_version, [(one.domain, one.version) for one in found.opset_import]) == (8, [("", 17)])
    assert not found.graph.node[0].metadata_props
    np.testing.assert_array_equal(run(found), run(NETWORKS[kind]()))


def test_what_needs_more_keeps_it_and_says_so_where_it_was_asked_for():
    network = model([helper.make_node("Mish", ["x"], ["y"])])  # of opset 18
    found = at_opset(network, None)
    assert found.opset_import[0].version == 18
    np.testing.assert_array_equal(run(found), run(network))
    with pytest.raises(KD3Error, match=r"--opset 17: this network cannot be written so \(.*\); leave it out"):
        at_opset(network, 17)


@pytest.mark.parametrize(("opset", "ir"), [(17, 8), (18, 8), (19, 9), (21, 10)])
def test_one_that_is_asked_for_is_taken_with_its_own_ir(opset, ir):
    found = at_opset(NETWORKS["means"](), opset)
    assert (found.ir_version, found.opset_import[0].version) == (ir, opset)
    assert onnx.checker.check_model(found) is None
