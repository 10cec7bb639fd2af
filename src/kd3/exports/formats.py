"""Export formats of a student: writing each, and running it again for the comparison."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kd3.models.fold import fold, foldable
from kd3.models.student import Student
from kd3.models.student_files import copy_student, load_student
from kd3.runtime.errors import KD3Error

Preprocessing = Literal["inside", "outside"]


class Deployable(nn.Module):
    """Images to logits, ready to be traced; float32, on the CPU, in evaluation mode.

    With the preprocessing inside it takes decoded images, uint8 RGB (B, 3, S, S); otherwise floats normalised with the
    student's mean and std. Returns logits (B, K).
    """

    def __init__(self, student: Student, *, preprocessing: Preprocessing) -> None:
        super().__init__()
        student = student.cpu().float().eval()
        self.student = fold(student, foldable(student, student.input_size))
        self.normalise = student.normalise if preprocessing == "inside" else None

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (B, 3, S, S) -> (B, K)."""
        logits: Tensor = self.student(images if self.normalise is None else self.normalise(images))
        return logits

    def example(self, images: Tensor) -> Tensor:
        """Convert uint8 images to this module's input."""
        if self.normalise is not None:
            return images
        prepared: Tensor = self.student.normalise(images)  # type: ignore[operator]  # a Student, folded
        return prepared


def dynamic_batch() -> dict[str, dict[int, torch.export.Dim]]:
    """Return an exporter's specification of a dynamic batch size."""
    return {"images": {0: torch.export.Dim("batch", min=1)}}


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


Runner = Callable[[Tensor], Tensor]  # module inputs (B, 3, S, S) -> logits (B, K)


@dataclass(frozen=True)
class Source:
    """Input of an export."""

    module: nn.Module  # a `Deployable`, or any network from images to logits
    student_folder: Path
    metadata: Mapping[str, str]
    example: Tensor  # two module inputs
    opset: int | None = None  # of ONNX; None: the oldest common one with all needed operators


@dataclass(frozen=True)
class Format:
    """One format: its file or folder, writer and runner."""

    name: str
    write: Callable[[Source, Path], None]
    run: Callable[[Path, int], Runner]  # (path, threads)
    reader: str  # its runtime, for the card


def write_onnx(source: Source, path: Path) -> None:
    """Write an ONNX file with the metadata in it."""
    onnx = _library("onnx")
    _library("onnxscript")
    with _silent():
        program = torch.onnx.export(
            source.module,
            (source.example,),
            None,
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=dynamic_batch(),
            external_data=False,
            verbose=False,
            opset_version=wanted(source.opset),
        )
    assert program is not None
    model = at_opset(program.model_proto, source.opset)
    onnx.helper.set_model_props(model, dict(source.metadata))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def run_onnx(path: Path, threads: int) -> Runner:
    """Return an ONNX file as a function, run by onnxruntime on the CPU."""
    runtime = _library("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        logits: np.ndarray = session.run(None, {"images": images.numpy()})[0]
        return torch.from_numpy(logits)

    return run


def write_torch_export(source: Source, path: Path) -> None:
    """Write a program of torch.export, with the metadata beside it."""
    with _silent():
        program = torch.export.export(source.module, (source.example,), dynamic_shapes=dynamic_batch())
        _write(path, lambda file: torch.export.save(program, file, extra_files=dict(source.metadata)))


def run_torch_export(path: Path, threads: int) -> Runner:
    """Return a program of torch.export as a function."""
    with _silent():
        return _without_gradients(torch.export.load(path).module())


def write_torchscript(source: Source, path: Path) -> None:
    """Write a TorchScript file, with the metadata beside it."""
    with _silent():
        # Our own comparison follows, on images; tracing's own runs the same input again.
        scripted = torch.jit.trace(source.module, source.example, check_trace=False)  # type: ignore[no-untyped-call]
        _write(path, lambda file: torch.jit.save(scripted, file, _extra_files=dict(source.metadata)))


def run_torchscript(path: Path, threads: int) -> Runner:
    """Return a TorchScript file as a function."""
    with _silent():
        return _without_gradients(torch.jit.load(str(path)))  # type: ignore[no-untyped-call]


def write_safetensors(source: Source, path: Path) -> None:
    """Copy the student's folder, which `kd3.load_student` reads."""
    path.mkdir()
    copy_student(source.student_folder, path)


FORMATS = {
    "onnx": Format("student.onnx", write_onnx, run_onnx, "onnxruntime"),
    "torch-export": Format("student.pt2", write_torch_export, run_torch_export, "torch.export.load"),
    "torchscript": Format("student.ts", write_torchscript, run_torchscript, "torch.jit.load"),
}
FOLDER = "student"  # of safetensors, with normalised floats as input and no traced module


def run_safetensors(folder: Path, module: torch.nn.Module | None, *, trust_code: bool = False) -> Runner:
    """Return a student folder as a function of normalised images."""
    return _without_gradients(load_student(folder, module=module, trust_code=trust_code))


def _write(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Write a file of torch, whose own writer would abort the process on a full disk."""
    file = io.BytesIO()
    save(file)
    path.write_bytes(file.getbuffer())


def _without_gradients(module: Callable[[Tensor], Tensor]) -> Runner:
    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return run


@contextmanager
def _silent() -> Iterator[None]:
    # The exporters warn of deprecations and internals that no user can act on.
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def check_onnx_packages() -> None:
    """Refuse to begin where writing, quantising or running ONNX would fail for a missing package.

    Raises:
        KD3Error: it names the package and the command that installs it.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _library(name)


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise KD3Error(f"writing ONNX needs {name}, which is not installed: pip install 'kd3[export]'") from None
