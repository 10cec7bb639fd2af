"""An ONNX student in 8 bits, calibrated on web images: the best of four variants by agreement."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kd3.exports.comparison import agreement, in_batches
from kd3.exports.formats import run_onnx
from kd3.runtime.errors import KD3Error, in_brief

CALIBRATION_BATCH = 32


@dataclass(frozen=True)
class Variant:
    """A way to quantise a network to 8 bits."""

    per_channel: bool  # a scale for each output channel of a layer's weights, or one for all
    seven_bits: bool  # weights in seven bits: products of 8-bit ones overflow on processors without VNNI

    def __str__(self) -> str:
        scales = "per channel" if self.per_channel else "per tensor"
        return f"{scales}, weights in {7 if self.seven_bits else 8} bits"


VARIANTS = tuple(Variant(per_channel, seven_bits) for per_channel in (True, False) for seven_bits in (False, True))


@dataclass(frozen=True)
class Tried:
    """A variant, and its agreement with the float student, in percent."""

    variant: Variant
    to_choose: float  # on the half used for the choice
    to_report: float  # on the other half


def quantise(model: Path, out: Path, *, calibrating: Tensor, compared: Tensor, float_logits: Tensor) -> list[Tried]:
    """Write the best of the variants to `out`; return all that were tried, the best first.

    Images are model inputs, (N, 3, S, S). One half of `compared` chooses, the other is reported: the result of the best
    of four is biased on the half that chose it.

    Raises:
        KD3Error: onnxruntime's quantisation is missing or fails.
    """
    half = len(compared) // 2
    tried: list[tuple[Tried, Path]] = []
    for place, variant in enumerate(VARIANTS):
        path = out.with_name(f".{out.name}.{place}")
        write_variant(model, path, variant, calibrating)
        logits = in_batches(run_onnx(path, threads=1), compared)
        shares = [agreement(logits[part], float_logits[part]) for part in (slice(None, half), slice(half, None))]
        tried.append((Tried(variant, *shares), path))
    tried.sort(key=lambda one: -one[0].to_choose)
    tried[0][1].rename(out)
    for _, path in tried[1:]:
        path.unlink()
    return [one for one, _ in tried]


def write_variant(model: Path, path: Path, variant: Variant, calibrating: Tensor) -> None:
    """Write one variant of an ONNX file, calibrated on model inputs.

    Raises:
        KD3Error: onnxruntime's quantisation is missing or fails.
    """
    try:
        from onnxruntime import quantization
    except ImportError as problem:
        raise KD3Error(f"8 bits need {problem.name}, which is not installed: pip install 'kd3[export]'") from None
    quiet = logging.getLogger()
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # its hints concern preprocessing already done at export
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantization.quantize_static(
                str(model),
                str(path),
                _Reader(calibrating),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=variant.per_channel,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                reduce_range=variant.seven_bits,
            )
    except Exception as problem:  # onnx and onnxruntime raise many kinds
        raise KD3Error(f"this network cannot be put into 8 bits: {in_brief(problem)}") from problem
    finally:
        quiet.setLevel(level)


class _Reader:
    """Calibration images batch by batch, for onnxruntime."""

    def __init__(self, images: Tensor) -> None:
        self._batches: Iterator[Tensor] = (
            images[start : start + CALIBRATION_BATCH] for start in range(0, len(images), CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch.numpy()}
