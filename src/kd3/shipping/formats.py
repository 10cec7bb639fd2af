"""Export formats of a student: writing each, and running it again for the comparison."""

from __future__ import annotations

import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd3.errors import KD3Error
from kd3.models.student_files import DESCRIPTION, WEIGHTS, load_student
from kd3.shipping.deployable import dynamic_batch
from kd3.shipping.opset import at_opset, wanted

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
    shutil.copytree(source.student_folder, path)
    assert (path / WEIGHTS).is_file()
    assert (path / DESCRIPTION).is_file()


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


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise KD3Error(f"writing ONNX needs {name}, which is not installed: pip install 'kd3[export]'") from None
