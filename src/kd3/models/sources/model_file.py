"""What networks in files of their own have in common: they are trained, and stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd3.errors import KD3Error


def no_student(kind: str, name: str) -> KD3Error:
    """Return the refusal of a file as a student."""
    return KD3Error(f"{kind}:{name} is a finished network and cannot be a student; it can be a teacher")


def read(
    kind: str, name: str, arch_args: Mapping[str, Any], folder: Path, load: Callable[[str], nn.Module]
) -> nn.Module:
    """Return the network in a file.

    Raises:
        KD3Error: there is no such file, or it is of another kind.
    """
    path = (folder / Path(name).expanduser()).resolve()
    if arch_args:
        raise KD3Error(f"{kind}:{name} takes no arch_args: the file holds a finished network")
    if not path.is_file():
        raise KD3Error(f"{kind}:{name}: there is no file {path}")
    try:
        network = load(str(path))
    except Exception as problem:  # of zip, of pickle, of torch's own readers
        first = str(problem).strip().splitlines()[0][:200] if str(problem).strip() else ""
        raise KD3Error(f"{path} cannot be read as {kind}: {type(problem).__name__}: {first}") from problem
    return network


def check_settled(network: nn.Module, kind: str, size: int) -> None:
    """Refuse a network that was saved as it behaves in training: batch norms or dropout that cannot be switched off.

    Raises:
        KD3Error: an image's logits change from run to run, or with the images beside it.
    """
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        try:
            together, again = network(images), network(images)
        except Exception:  # it takes one number of images, or another size: told elsewhere
            return
        if not isinstance(together, Tensor) or together.ndim != 2:
            return
        beside = network(torch.cat([images[:1], 3 * images[1:]]))[:1]
    tolerance = 1e-2 * float(together.abs().max()) + 1e-6
    for other, words in ((again, "from one run to the next"), (beside, "with the images beside it")):
        if float((other - together[: len(other)]).abs().max()) > tolerance:
            raise KD3Error(
                f"the {kind} file holds a network in training mode: what it says of an image changes {words}; save it "
                f"after .eval()"
            )
