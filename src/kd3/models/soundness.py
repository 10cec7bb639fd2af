"""Requirements of any classifier: it returns logits that do not depend on the rest of the batch.

The checks run it as the commands do: in channels_last, in batches of one and more. This also detects files that were
saved with a frozen training mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kd3.models.calling import Calling, call_as, calling_of, picked
from kd3.models.head import HeadNotFound, as_logits, evaluating, find_head, probe_images
from kd3.runtime import console
from kd3.runtime.compute import full_float32, laid_out
from kd3.runtime.errors import KD3Error, in_brief

IMAGES = 4
SMALLER_BATCHES = (2, 1)
UNLIKE = 5.0  # scale of the image that replaces another
LOUD = 1e4  # scale of images whose logits leave [0, 1], unlike a sigmoid's values
SAME = 1e-3  # relative to the largest logit; dropout and batch statistics exceed it, rounding does not

Outputs = dict[int | str, Tensor]


@full_float32()
def sound_logits(
    network: nn.Module,
    input_size: int,
    *,
    what: str,
    channels: int = 3,
    num_classes: int | None = None,
    output: int | str | None = None,
    chosen_by: str = "output: {} in its description, or output={!r} of kd3.Teacher",
) -> Tensor:
    """Return the network's logits of a few random images, (4, K), in evaluation mode, after the checks.

    This also sets the network's calling convention (`models.calling`): contiguous maps if it cannot run in
    channels_last, grey images repeated if it reads three channels, and a single logit z as (0, z).

    Args:
        network: gets hooks, and contiguous weights if it cannot run in channels_last.
        input_size: side of the images, in pixels.
        what: begins the messages ("teacher kd3:resnet20").
        channels: of the images: 3, or 1 for grey.
        num_classes: identifies the logits among several outputs; None: unknown.
        output: the output with the logits, by place or name.
        chosen_by: the user's setting for it, as a format string.

    Raises:
        KD3Error: it does not run on images of this size, returns no logits, or its outputs are not finite, are
            probabilities, change between runs, or depend on the rest of the batch.
    """
    before = [(tensor, tensor.data) for tensor in (*network.parameters(), *network.buffers()) if not is_lazy(tensor)]
    laid_out(network, torch.contiguous_format)
    calling = _calling(network, input_size, channels, output, num_classes, what, chosen_by)
    call_as(network, calling)
    images = probe_images(network, input_size, images=IMAGES, seed=2)
    others = images.clone()
    others[-1] = UNLIKE * images[-1].flip(-1)
    logits = _run(network, images, what)
    if not bool(torch.isfinite(logits).all()):
        raise KD3Error(f"{what} puts out values that are not finite; are its weights whole?")
    _refuse_probabilities(network, images, logits, calling, what)
    # The second run replaces the last image.
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
    images = images.contiguous(memory_format=torch.channels_last)
    if not _runs_with_channels_last(network, images, logits):
        laid_out(network, torch.contiguous_format)
        call_as(network, replace(calling, contiguous=True))
    for count in SMALLER_BATCHES:
        _check_batch(network, images[:count], logits[:count], what)
    if not calling_of(network).contiguous:
        for tensor, values in before:
            tensor.data = values
    return logits


def _calling(
    network: nn.Module,
    input_size: int,
    channels: int,
    output: int | str | None,
    num_classes: int | None,
    what: str,
    chosen_by: str,
) -> Calling:
    """Return the network's calling convention."""
    plain = Calling(channels=channels)
    call_as(network, plain)
    images = probe_images(network, input_size, images=IMAGES, seed=2)
    try:
        returned = _returned(network, images)
    except Exception as problem:
        other = replace(plain, grey_thrice=True) if channels == 1 else Calling(channels=1)
        call_as(network, other)
        try:
            returned = _returned(network, probe_images(network, input_size, images=IMAGES, seed=2))
        except Exception:
            raise _does_not_run(problem, images, what) from problem
        if channels == 3:
            raise KD3Error(
                f"{_does_not_run(problem, images, what)}; it takes grey images: a teacher of these has one mean and "
                f"one std (mean: [0.1307], std: [0.3081]), and its student takes them, too"
            ) from problem
        plain = other
    if output is None:
        output = _output_with_logits(returned, num_classes, what, chosen_by)
    calling = replace(plain, output=output)
    try:
        logits = returned if output is None else picked(returned, output)
    except (LookupError, TypeError):
        raise KD3Error(f"{what} has no output {output!r}; it returns {_described(returned)}") from None
    single = isinstance(logits, Tensor) and logits.shape in ((len(images),), (len(images), 1))
    return replace(calling, one_logit=single and num_classes in (None, 2))


def _output_with_logits(returned: Any, num_classes: int | None, what: str, chosen_by: str) -> int | str | None:
    """Return the output with the logits, None if it is unambiguous; report a guess."""
    outputs = _outputs(returned)
    if len(outputs) < 2:
        return next(iter(outputs), None)
    fitting = {key: values for key, values in outputs.items() if num_classes in (None, *_classes(values))}
    widths = {values.shape[1:] for values in fitting.values()}
    if not fitting or (num_classes is None and len(widths) > 1):
        raise KD3Error(
            f"{what} returns {_described(returned)}, and it is not known which of them holds the logits; say it by "
            f"{_chosen(chosen_by, list(outputs)[-1])}"
        )
    first = next(iter(fitting))
    if len(fitting) > 1:
        console.warn(
            f"{what} returns {_described(returned)}; output {first} is taken for the logits; another is taken by "
            f"{_chosen(chosen_by, list(fitting)[-1])}"
        )
    return first


def _chosen(by: str, output: int | str) -> str:
    return by.format(output, output)


def _outputs(returned: Any) -> Outputs:
    """Return the candidate outputs; none for a single tensor, or if the network marks its logits."""
    if isinstance(returned, Mapping):
        if isinstance(returned.get("logits"), Tensor):
            return {}
        pairs: list[tuple[int | str, Any]] = list(returned.items())
    elif isinstance(getattr(returned, "logits", None), Tensor) or not isinstance(returned, (tuple, list)):
        return {}
    else:
        pairs = list(enumerate(returned))
    alike = [(key, values) for key, values in pairs if isinstance(values, Tensor) and values.is_floating_point()]
    return {key: values for key, values in alike if values.ndim in (1, 2) and len(values) == IMAGES}


def _classes(values: Tensor) -> tuple[int, ...]:
    """Return an output's possible numbers of classes: one value per image separates two classes."""
    width = values.shape[1] if values.ndim == 2 else 1
    return (width,) if width > 1 else (1, 2)


def _described(returned: Any) -> str:
    outputs = _outputs(returned)
    if not outputs:
        return f"one {type(returned).__name__}"
    each = [f"{key}: {values.shape[1] if values.ndim == 2 else 1} values" for key, values in outputs.items()]
    return f"{len(outputs)} outputs for each image ({', '.join(each)})"


def _returned(network: nn.Module, images: Tensor) -> Any:
    with evaluating(network), torch.no_grad():
        return network(images)


def _does_not_run(problem: Exception, images: Tensor, what: str) -> KD3Error:
    side = images.shape[-1]
    return KD3Error(f"{what} does not run on an image of {side} x {side} pixels: {in_brief(problem)}")


def _run(network: nn.Module, images: Tensor, what: str) -> Tensor:
    try:
        logits = as_logits(_returned(network, images))
    except HeadNotFound as problem:
        raise KD3Error(f"{what}: {problem}") from None
    except Exception as problem:
        raise _does_not_run(problem, images, what) from problem
    if len(logits) != len(images):
        raise KD3Error(f"{what} returns {len(logits)} rows of logits for {len(images)} images")
    return logits.float()


def _runs_with_channels_last(network: nn.Module, images: Tensor, expected: Tensor) -> bool:
    laid_out(network, torch.channels_last)
    try:
        found = [as_logits(_returned(network, images[:count])).float() for count in (IMAGES, *SMALLER_BATCHES)]
    except Exception:
        return False
    return all(len(one) > len(expected) or _same(one, expected[: len(one)]) for one in found)


def _check_batch(network: nn.Module, images: Tensor, expected: Tensor, what: str) -> None:
    """Refuse a network that fails in smaller batches, as `.squeeze()` does at one image."""
    few = "one image" if len(images) == 1 else f"{len(images)} images"
    try:
        returned = _returned(network, images)
        found = as_logits(returned)
    except Exception as problem:
        raise KD3Error(
            f"{what} runs on {IMAGES} images but not on a batch of {few}: {in_brief(problem)}; a .squeeze() without a "
            f"dimension drops that of the batch, too: write .flatten(1) instead"
        ) from problem
    if found.shape != expected.shape or not _same(found.float(), expected):
        raise KD3Error(f"{what} says something else of an image in a batch of {few} than in one of {IMAGES}")


def _same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= SAME * expected.abs().max())


def _refuse_probabilities(network: nn.Module, images: Tensor, logits: Tensor, calling: Calling, what: str) -> None:
    """Refuse outputs of softmax or sigmoid: their softmax would be nearly even."""
    ones = torch.ones(len(logits), device=logits.device)
    if not calling.one_logit and bool((logits >= 0).all()) and torch.allclose(logits.sum(1), ones, atol=1e-3):
        raise KD3Error(
            f"{what} puts out probabilities, which sum to 1 for each image; logits are expected: leave its last "
            f"softmax out"
        )
    loud = _run(network, LOUD * images, what)
    own = torch.cat([logits, loud])[:, 1 if calling.one_logit else 0 :]
    in_range = bool(((own >= 0) & (own <= 1)).all()) and bool((own != own[0]).any())
    if in_range and not _is_made_by_a_linear_layer(network, images.shape[-1]):
        raise KD3Error(
            f"{what} puts out values from 0 to 1 for every image, as a sigmoid does; logits are expected: leave its "
            f"last sigmoid out; classes that do not exclude each other (several labels an image) cannot be distilled"
        )


def _is_made_by_a_linear_layer(network: nn.Module, input_size: int) -> bool:
    """Return whether a linear layer makes the output: small values are then a coincidence, not a sigmoid's."""
    try:
        find_head(network, input_size)
    except HeadNotFound:
        return False
    return True
