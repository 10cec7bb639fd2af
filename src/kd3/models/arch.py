"""A network built from one line of text, in bounded memory, and its origin, from which it can be built again."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kd3.models.checkpoint_file import importing_from, where_to_find
from kd3.models.head import evaluating
from kd3.models.libraries import SOURCES, timm, transformers
from kd3.models.zoo import ZOO
from kd3.runtime.errors import KD3Error, unknown_name

BESIDE = 256 << 20  # bytes for temporary tensors of the initialisation and for position tables
TIMES = 8  # the weights' bytes on disk: they may be float16 there, and are made and copied
TENSORS = 1_000_000  # of one network
MAKERS = {"empty", "empty_strided", "zeros", "ones", "full", "rand", "randn", "randint", "eye", "arange", "linspace"}
MAKERS |= {"new_empty", "new_zeros", "new_ones", "new_full"}


class _TooLarge(BaseException):
    """No subclass of Exception: libraries that build networks replace those by their own."""


class _Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts allocations before they happen."""

    def __init__(self, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left, self.tensors = size, TENSORS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in MAKERS:
            self.tensors -= 1
            shape = next((item for item in args if isinstance(item, (list, tuple))), None)
            numbers = [item for item in args if isinstance(item, int)]
            self.left -= 4 * (math.prod(shape) if shape is not None else max(numbers, default=0))
            if self.left < 0 or self.tensors < 0:
                raise _TooLarge
        return func(*args, **(kwargs or {}))


@contextmanager
def bounded_by(file_size: int, *, what: str) -> Iterator[None]:
    """Limit the tensors made within the context to the size justified by `file_size` bytes of weights.

    Raises:
        KD3Error: the network needs more than that, or more than the memory; the message begins with `what`.
    """
    try:
        with _Bounded(BESIDE + TIMES * file_size):
            yield
    except (_TooLarge, MemoryError, OverflowError):
        raise KD3Error(f"{what} describes a far larger network than its weights are of") from None


Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class ArchReference:
    """Parsed architecture: a named source and a name in it, or a place and a function there."""

    source: str  # a key of SOURCES, "file" or "module"
    target: str  # the name, the path, or the dotted module
    function: str = ""  # for "file" and "module"


def parse_arch(arch: str) -> ArchReference:
    """Parse an architecture's text.

    >>> parse_arch("resnet20")
    ArchReference(source='kd3', target='resnet20', function='')
    >>> parse_arch("nets/mine.py:build")
    ArchReference(source='file', target='nets/mine.py', function='build')

    Raises:
        KD3Error: it has none of the accepted forms, or the zoo has no such network; the message lists the choices.
    """
    prefix, _, name = arch.partition(":")
    if prefix in SOURCES and name:
        if prefix == "kd3" and name not in ZOO:
            raise unknown_name("network of the zoo", name, ZOO)
        return ArchReference(prefix, name)
    # From the right, as a path may hold a colon itself (C:\nets\mine.py:build).
    place, colon, function = arch.rpartition(":")
    if not colon and arch.isidentifier():
        if arch not in ZOO:
            raise unknown_name("architecture", arch, ZOO)
        return ArchReference("kd3", arch)
    if function.isidentifier() and place.endswith(".py"):
        return ArchReference("file", place, function)
    if function.isidentifier() and all(part.isidentifier() for part in place.split(".")):
        return ArchReference("module", place, function)
    forms = [f"{source}:{entry.what}" for source, entry in SOURCES.items()]
    forms += ["path/to/net.py:FUNCTION", "package.module:FUNCTION"]
    raise KD3Error(f"arch {arch!r} is not understood; write {', '.join(forms[:-1])} or {forms[-1]}")


def build_arch(
    arch: str,
    *,
    num_classes: int,
    arch_args: Mapping[str, Any] | None = None,
    relative_to: Path | None = None,
    input_size: int | None = None,
    channels: int = 3,
) -> nn.Module:
    """Return a new network with its initial weights.

    A function (or a module class) of the user's is called with `arch_args`, and with `num_classes`
    if it has such a parameter. Naming a file or a package runs the code in it.

    Args:
        arch: `kd3:resnet56` (or `resnet56`), `timm:NAME`, `torchvision:NAME`, `hf:NAME_OR_FOLDER`,
            `path/to/net.py:build`, `package.module:build`.
        num_classes: number of logits.
        arch_args: further arguments of the builder.
        relative_to: the folder that a file's path starts from; None: the working directory.
        input_size: side of the images; library networks with a fixed input size are built for it, and lazy layers
            (`nn.LazyLinear`) are initialised with it.
        channels: of the images: 3, or 1 for grey.

    Raises:
        KD3Error: no such network, file, module or function, or the user's own code failed.
    """
    network = _built(arch, num_classes, arch_args, relative_to, input_size, channels)
    if any(map(nn.parameter.is_lazy, chain(network.parameters(), network.buffers()))):
        _settle_lazy_layers(network, arch, input_size, channels)
    return network


def _built(
    arch: str,
    num_classes: int,
    arch_args: Mapping[str, Any] | None,
    relative_to: Path | None,
    input_size: int | None,
    channels: int,
) -> nn.Module:
    reference = parse_arch(arch)
    arguments = dict(arch_args or {})
    if "num_classes" in arguments:
        raise KD3Error(f"arch {arch!r}: num_classes is a setting of its own; take it out of arch_args")
    if reference.source in SOURCES:
        source = SOURCES[reference.source].load()
        if reference.source == "kd3" and reference.target in ZOO and ZOO[reference.target].is_for_any_channels:
            arguments.setdefault("channels", channels)
        folder = relative_to or Path()
        return source.build(reference.target, num_classes, arguments, input_size=input_size, folder=folder)
    if reference.source == "module":
        return _build_from(_import_package(reference.target, arch), reference.function, num_classes, arguments, arch)
    path = ((relative_to or Path()) / Path(reference.target).expanduser()).resolve()
    if not path.is_file():
        raise KD3Error(f"arch {arch!r}: there is no file {path}")
    with importing_from(path.parent):  # covers the call, too: a function may import at run time
        return _build_from(_import_file(path, arch), reference.function, num_classes, arguments, arch)


def _settle_lazy_layers(network: nn.Module, arch: str, input_size: int | None, channels: int) -> None:
    """Run a network once, so that its lazy layers get their shapes.

    Raises:
        KD3Error: it does not run on such an image, or the size is unknown.
    """
    if input_size is None:
        raise KD3Error(f"arch {arch!r} has lazy layers, which need to know the input size first")
    failures = []
    for depth in dict.fromkeys((channels, 3)):  # students of grey teachers may read three channels
        try:
            with evaluating(network), torch.no_grad():
                network(torch.zeros(2, depth, input_size, input_size))
            return
        except Exception as problem:
            failures.append(problem)
    raise _failed(arch, f"running it on an image of {input_size} x {input_size} pixels", failures[0], "") from failures[
        0
    ]


def _build_from(module: ModuleType, function: str, num_classes: int, arch_args: dict[str, Any], arch: str) -> nn.Module:
    builder = _function_of(module, function, arch)
    return _call(builder, num_classes, arch_args, arch, home=str(module.__file__))


def _import_package(name: str, arch: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise KD3Error(
                f"arch {arch!r}: there is no module {missing!r} in this Python ({sys.executable}); "
                "install it, or name a file: path/to/net.py:FUNCTION"
            ) from error
        raise _failed(arch, f"importing {name!r} failed", error, home="") from error


def _import_file(path: Path, arch: str) -> ModuleType:
    """Import a file under a name of its own; the same content at the same place is imported once."""
    content = path.read_bytes()
    digest = hashlib.sha256(str(path).encode() + b"\0" + content).hexdigest()[:12]
    name = f"kd3_arch_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:  # not for a path that ends in .py
        raise KD3Error(f"arch {arch!r}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(arch, f"running {path} failed", error, home=str(path)) from error
    return module


def _function_of(module: ModuleType, name: str, arch: str) -> Builder:
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if _is_builder(key, value, module)]
        if not known:
            raise KD3Error(f"arch {arch!r}: {module.__file__} has no {name!r}, and no function at all")
        raise unknown_name("function", name, known, where=str(module.__file__))
    builder = getattr(module, name)
    if isinstance(builder, nn.Module):
        raise KD3Error(f"arch {arch!r}: {name!r} is a network already; name the function or class that makes it")
    if not callable(builder):
        raise KD3Error(f"arch {arch!r}: {name!r} is a {type(builder).__name__}, not a function or a class")
    return builder  # type: ignore[no-any-return]  # what it returns is checked when it is called


def _is_builder(name: str, value: object, module: ModuleType) -> bool:
    at_home = getattr(value, "__module__", None) == module.__name__
    return at_home and not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value))


def _call(builder: Builder, num_classes: int, arch_args: dict[str, Any], arch: str, home: str) -> nn.Module:
    arguments = _arguments(builder, num_classes, arch_args, arch)
    try:
        network = builder(**arguments)
    except (Exception, SystemExit) as error:
        raise _failed(arch, "building the network failed", error, home) from error
    if not isinstance(network, nn.Module):
        raise KD3Error(f"arch {arch!r} returned a {type(network).__name__}; a torch.nn.Module is expected")
    return network


def _arguments(builder: Builder, num_classes: int, arch_args: dict[str, Any], arch: str) -> dict[str, Any]:
    """Return the arguments for a builder, checked against its signature."""
    parameters = _parameters(builder)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    # Without the parameter the network fixes its number of classes; the teacher's check counts them.
    classes = {"num_classes": num_classes} if takes_any or "num_classes" in named else {}
    allowed = named - {"num_classes"}
    for argument in arch_args:
        if takes_any or argument in allowed:
            continue
        if not allowed:
            raise KD3Error(f"arch {arch!r} takes no arguments; got {argument!r} in arch_args")
        raise unknown_name("argument", argument, allowed, where=f"arch_args of {arch}")
    required = {key for key in allowed if parameters[key].default is inspect.Parameter.empty}
    if missing := sorted(required - set(arch_args)):
        raise KD3Error(f"arch {arch!r} needs {', '.join(map(repr, missing))}; give it under arch_args")
    return {**arch_args, **classes}


def _parameters(builder: Builder) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(builder).parameters
    except (TypeError, ValueError):  # written in C, without a signature
        return {}


def _failed(arch: str, what: str, error: BaseException, home: str) -> KD3Error:
    """Return the sentence for an exception in the user's own code, with the line in file `home`."""
    sentence = f"arch {arch!r}: {what}: {type(error).__name__}"
    if isinstance(error, SyntaxError):
        return KD3Error(f"{sentence}: {error.msg} ({error.filename}, line {error.lineno})")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == home]
    # Otherwise the innermost line outside this file and Python's import machinery (<frozen ...>).
    other = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<")]
    seen = own or other
    place = f" ({seen[-1].filename}, line {seen[-1].lineno})" if seen else ""
    hint = ""
    if isinstance(error, ModuleNotFoundError) and error.name and home:
        hint = f"; {where_to_find(error.name, Path(home).parent)}"
    return KD3Error(f"{sentence}: {error}{place}{hint}")


@dataclass(frozen=True)
class Origin:
    """An architecture as a description names it."""

    arch: str
    arch_args: Mapping[str, Any]
    folder: Path  # that its relative paths start from

    def anywhere(self) -> tuple[str, dict[str, Any]]:
        """Return architecture and arguments that do not depend on the folder."""
        reference = parse_arch(self.arch)
        if reference.source == "file":
            path = (self.folder / Path(reference.target).expanduser()).resolve()
            return f"{path}:{reference.function}", dict(self.arch_args)
        by_timm = reference.source == "hf" and transformers.is_of_timm(reference.target, self.folder)
        saved = timm.saved_folder(reference.target, self.folder) if by_timm or reference.source == "timm" else None
        if saved is not None:
            return f"timm:{saved.architecture}", {**saved.model_args, **self.arch_args}
        return self.arch, dict(self.arch_args)
