"""Choice of a file's ONNX opset: an old one runs in more places."""

from __future__ import annotations

from typing import Any

from kd3.errors import KD3Error

EXPORTED = 18  # written by PyTorch's exporter without a conversion
PREFERRED = 17  # with IR 8: readable by onnxruntime from 1.12
HELD = "kd3.held"  # a domain that the converter skips
PADS_WITH_AXES = 4  # inputs; a Pad with fewer is that of opset 13


def wanted(opset: int | None) -> int:
    """Return the version to ask the exporter for."""
    return EXPORTED if opset is None or opset < EXPORTED else opset


def at_opset(model: Any, opset: int | None) -> Any:
    """Return an ONNX model at an opset, with the oldest IR that has it; None: 17 if possible, otherwise unchanged.

    Raises:
        KD3Error: the network has an operator that this opset lacks.
    """
    import onnx

    if opset == _opset(model):
        return _with_oldest_ir(model)
    try:
        return _with_oldest_ir(_converted(model, opset or PREFERRED))
    except Exception as problem:  # of the converter and the checker, in C++ and Python
        if opset is None:
            return _with_oldest_ir(model)
        newest = onnx.defs.onnx_opset_version()
        first = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
        raise KD3Error(
            f"--opset {opset}: this network cannot be written so ({first.rpartition(': ')[2]}); leave it out, or take "
            f"one between {PREFERRED} and {newest}"
        ) from problem


def _converted(model: Any, opset: int) -> Any:
    import onnx
    from onnx import version_converter

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    held = [node for node in changed.graph.node if node.op_type == "Pad" and len(node.input) < PADS_WITH_AXES]
    for node in held if opset < EXPORTED else ():
        node.domain = HELD  # it cannot be converted back from 18, and need not
    changed.opset_import.append(onnx.helper.make_opsetid(HELD, 1))
    changed = version_converter.convert_version(changed, opset)
    for node in changed.graph.node:
        if node.domain == HELD:
            node.domain = ""
        if opset < EXPORTED and node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
            kept = [one for one in node.attribute if one.name != "noop_with_empty_axes"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return changed


def _with_oldest_ir(model: Any) -> Any:
    import onnx

    own = [one for one in model.opset_import if one.domain != HELD]
    del model.opset_import[:]
    model.opset_import.extend(own)
    for node in model.graph.node:
        node.ClearField("metadata_props")  # the exporter's metadata, from a later IR
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    onnx.checker.check_model(model)
    return model


def _opset(model: Any) -> int:
    return next(int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx"))


def versions(path: str) -> tuple[int, int]:
    """Return an ONNX file's IR version and opset."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    return int(model.ir_version), _opset(model)
