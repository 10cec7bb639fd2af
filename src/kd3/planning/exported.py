"""Latency of networks as ONNX files, in float32 and in 8 bits, before anything is trained."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from kd3 import console
from kd3.errors import KD3Error
from kd3.models.fold import fold, foldable
from kd3.planning.costs import BATCH, BATCH_OF_LARGE, SMALL_SIDE
from kd3.shipping.compare import milliseconds
from kd3.shipping.formats import Source, run_onnx, write_onnx
from kd3.shipping.quantise import VARIANTS, write_variant


@dataclass(frozen=True)
class Exported:
    """One network, run by onnxruntime on one thread of this machine's CPU."""

    float32: dict[int, float]  # milliseconds by the number of images
    int8: dict[int, float]
    bytes: int  # of the file in 8 bits


def exported(networks: Mapping[str, nn.Module], images: Tensor) -> tuple[dict[str, Exported], list[str]]:
    """Export each network, time all files in turns, and return a sentence for each failure.

    In 8 bits, all layers are quantised per channel. `kd3 export --int8` chooses among four ways by agreement, which
    needs a trained student; weights do not change the time.

    Shapes: images (B, C, H, W), network inputs, for calibration.

    Raises:
        KD3Error: the packages of `kd3[export]` are missing.
    """
    most = BATCH if images.shape[-1] <= SMALL_SIDE else BATCH_OF_LARGE
    images = images.cpu().repeat(-(-most // len(images)), 1, 1, 1)[:most]
    found: dict[str, Exported] = {}
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        files: dict[tuple[str, str], Path] = {}
        with console.progress("export", len(networks), "networks") as bar:
            for place, (name, network) in enumerate(networks.items()):
                floats, bits = Path(folder, f"{place}.onnx"), Path(folder, f"{place}-int8.onnx")
                try:
                    _write(network, floats, bits, images)
                except Exception as problem:  # torch's exporter raises many kinds
                    if isinstance(problem, KD3Error) and "not installed" in str(problem):
                        raise
                    first = (str(problem).splitlines() or [""])[0]
                    problems.append(f"{name} cannot be exported: {first or type(problem).__name__}")
                else:
                    files[name, "float32"], files[name, "int8"] = floats, bits
                bar.advance(1)
        runners = {f"{name}\0{kind}": run_onnx(path, threads=1) for (name, kind), path in files.items()}
        times = milliseconds(runners, images)
        for name, kind in files:
            if kind == "int8":
                size = files[name, kind].stat().st_size
                found[name] = Exported(times[f"{name}\0float32"], times[f"{name}\0int8"], size)
    return found, problems


def _write(network: nn.Module, floats: Path, bits: Path, images: Tensor) -> None:
    network = copy.deepcopy(network).cpu().float().eval()
    network = fold(network, foldable(network, images.shape[-1]))
    write_onnx(Source(network, floats.parent, {}, images[:2]), floats)
    write_variant(floats, bits, VARIANTS[1], images)
