"""What any classifier must do: give logits, the same ones for the same image, whatever lies beside it in the batch.

Found by running it, which also sees into files whose training mode was frozen when they were saved.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd3.errors import KD3Error
from kd3.models.head import HeadNotFound, as_logits, evaluating, probe_images

IMAGES = 4
UNLIKE = 5.0  # how many times as large the image is that takes another's place
SAME = 1e-3  # relative to the largest logit; dropout and batch statistics change more, other rounding less


def sound_logits(network: nn.Module, input_size: int, *, what: str) -> Tensor:
    """Return the network's logits of a few random images, (4, K), in evaluation mode, once they are found sound.

    Raises:
        KD3Error: it does not run on images of this size, returns no logits, or such as are not finite, are
            probabilities, change from run to run, or depend on the other images of the batch; told of `what`.
    """
    images = probe_images(network, input_size, images=IMAGES, seed=2)
    others = images.clone()
    others[-1] = UNLIKE * images[-1].flip(-1)
    logits = _run(network, images, what)
    if not bool(torch.isfinite(logits).all()):
        raise KD3Error(f"{what} puts out values that are not finite; are its weights whole?")
    if _are_probabilities(logits):
        raise KD3Error(
            f"{what} puts out probabilities, which sum to 1 for each image; logits are expected: leave its last "
            f"softmax out"
        )
    # The last image is another one in the second run.
    if not _same(_run(network, others, what)[:-1], logits[:-1]):
        if _same(_run(network, images, what)[:-1], logits[:-1]):
            raise KD3Error(
                f"{what} judges an image by the others beside it, as batch norms do in training mode; call .eval() "
                f"before it is saved or traced, and keep running statistics"
            )
        raise KD3Error(
            f"{what} says something else of the same image each time, as dropout does in training mode; call .eval() "
            f"before it is saved or traced, and give functional dropout its training flag"
        )
    return logits


def _run(network: nn.Module, images: Tensor, what: str) -> Tensor:
    try:
        with evaluating(network), torch.no_grad():
            logits = as_logits(network(images))
    except HeadNotFound as problem:
        raise KD3Error(f"{what}: {problem}") from None
    except Exception as problem:
        first = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
        side = images.shape[-1]
        raise KD3Error(
            f"{what} does not run on an image of {side} x {side} pixels: {type(problem).__name__}: {first}"
        ) from problem
    if len(logits) != len(images):
        raise KD3Error(f"{what} returns {len(logits)} rows of logits for {len(images)} images")
    return logits.float()


def _same(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= SAME * expected.abs().max())


def _are_probabilities(logits: Tensor) -> bool:
    ones = torch.ones(len(logits), device=logits.device)
    return logits.shape[1] > 1 and bool((logits >= 0).all()) and torch.allclose(logits.sum(1), ones, atol=1e-3)
