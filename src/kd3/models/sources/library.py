"""Common part of the model libraries: they may be missing or broken, and they access the network."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from torch import nn

from kd3.errors import KD3Error

NEAREST = 3  # names in a message


def library(name: str, *, extra: str, needs: str = "") -> Any:
    """Import a library late.

    Raises:
        KD3Error: it is not installed, or cannot be imported; the sentence gives the remedy.
    """
    try:
        return import_module(name)
    except ImportError as problem:
        if problem.name is not None and name.startswith(problem.name):
            raise KD3Error(f"{name} is not installed: pip install 'kd3[{extra}]'{needs}") from None
        raise _broken(name, problem, needs) from problem
    except Exception as problem:
        # A torchvision built for another torch raises RuntimeError for a missing operator.
        raise _broken(name, problem, needs) from problem


def _broken(name: str, problem: Exception, needs: str) -> KD3Error:
    said = f"{type(problem).__name__}: {first_line(problem)}"
    return KD3Error(f"{name} is installed but cannot be imported ({said}){needs}")


def first_line(problem: BaseException, *, at_most: int = 300) -> str:
    """Return the first line of an exception's message; library messages may be pages long."""
    said = str(problem).strip()
    return said.splitlines()[0][:at_most] if said else ""


@contextmanager
def hidden_if_broken(name: str) -> Iterator[None]:
    """Hide an installed but broken library from others that probe for it."""
    if name in sys.modules or importlib.util.find_spec(name) is None:
        yield
        return
    try:
        import_module(name)
    except Exception:
        for half_imported in [other for other in sys.modules if other.partition(".")[0] == name]:
            del sys.modules[half_imported]
        sys.modules[name] = None  # type: ignore[assignment]  # as Python itself marks what is not to be found
        try:
            yield
        finally:
            del sys.modules[name]
        return
    yield


def check_name(prefix: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that a library does not have, and name similar ones.

    Raises:
        KD3Error: the name is unknown.
    """
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=NEAREST, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise KD3Error(f"{prefix} has no network {name!r}{hint}")


def made(
    arch: str, build: Callable[..., nn.Module], arguments: Mapping[str, Any], *, sized: Mapping[str, Any]
) -> nn.Module:
    """Call a library's builder, with the input size if it takes one.

    `sized` is dropped if the network accepts any size and has no such argument.

    Raises:
        KD3Error: the library refuses the arguments; in its own words.
    """
    hints = {key: value for key, value in sized.items() if key not in arguments}
    attempts = [{**arguments, **hints}, dict(arguments)] if hints else [dict(arguments)]
    for attempt in attempts:
        try:
            return build(**attempt)
        except Exception as problem:
            failure = problem
            if attempt is attempts[0] and hints and any(key in str(problem) for key in hints):
                continue
            break
    raise KD3Error(f"{arch} cannot be built: {type(failure).__name__}: {first_line(failure)}") from failure


def refuse_class_count(arch: str, arch_args: Mapping[str, Any], argument: str) -> None:
    """Refuse another number of classes than a trained network has: its library would add an untrained classifier.

    Raises:
        KD3Error: the arguments hold one.
    """
    if argument in arch_args:
        raise KD3Error(f"{arch}: trained weights have the classes that they have; take {argument!r} out of arch_args")


@contextmanager
def fetching(arch: str) -> Iterator[None]:
    """Convert errors while fetching weights to a sentence."""
    try:
        yield
    except KD3Error:
        raise
    except Exception as problem:  # requests, urllib, huggingface_hub: each has its own errors
        raise KD3Error(
            f"the weights of {arch} cannot be had: {type(problem).__name__}: {first_line(problem)}; without a network, "
            f"bring the file and name it under weights"
        ) from problem
