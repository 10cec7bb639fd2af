"""A simulated CUDA device: a CPU computes its tensors' values, and all calls are counted.

Import it before torch, in a separate process, with the library of `pretended_device.cpp` in PRETENDED_DEVICE. It fails
where a real device would (an operation between devices), and records the places where a host would wait.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

_libraries = Path(importlib.util.find_spec("torch").origin).parent / "lib"
for _name in (*sorted(path.name for path in _libraries.glob("libgomp*")), "libc10.so", "libtorch_cpu.so"):
    ctypes.CDLL(str(_libraries / _name), ctypes.RTLD_GLOBAL)
ctypes.CDLL(os.environ["PRETENDED_DEVICE"], ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten  # noqa: E402

DEVICE = torch.device("cuda", 0)
GENERATOR = torch.Generator
SEEDS = set()
FREE = {  # nothing is launched for these
    "detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "alias",
    "_reshape_alias", "_unsafe_view",
}  # fmt: skip
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "is_nonzero"}


class OnDevice(Tensor):
    """A tensor that claims to be on the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip

    def __init__(self, inner):
        self.inner = inner

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        self.inner = other.inner
        Tensor.data.__set__(self, other)

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            copied._is_param = getattr(self, "_is_param", False)
            memo[id(self)] = copied
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return WATCH.called(func, args, kwargs or {})


class Watch:
    """Record of the device's calls, by part of the program."""

    def __init__(self):
        self.operations, self.waits, self.kinds = Counter(), Counter(), Counter()
        self.part = "other"
        self.recording = None

    def clear(self):
        for counter in (self.operations, self.waits, self.kinds):
            counter.clear()

    def called(self, func, args, kwargs):
        name = func._schema.name.removeprefix("aten::")
        flat, structure = tree_flatten((args, kwargs))
        there = [value for value in flat if isinstance(value, OnDevice)]
        wanted = kwargs.get("device")
        to_device = wanted is not None and torch.device(wanted).type == "cuda"
        if not there and not to_device:
            return func(*args, **kwargs)
        here = [value for value in flat if isinstance(value, Tensor) and not isinstance(value, OnDevice)]
        copying, indexed = name in ("copy_", "_to_copy"), name in ("index", "index_put_", "_index_put_impl_")
        if indexed and [value for value in here if value.ndim > 0]:
            self._waited("an index of the CPU")  # which is copied
        elif not copying and (foreign := [v for v in here if v.ndim > 0 and v.device.type == "cpu"]):
            raise RuntimeError(f"{name} mixes cuda:0 and cpu, of shape {tuple(foreign[0].shape)}, at {_where()}")
        for value in flat:
            if isinstance(value, GENERATOR) and value.initial_seed() not in SEEDS:
                raise RuntimeError(f"{name} on cuda:0 draws from a generator of the CPU at {_where()}")
        boolean = name == "index" and any(value.dtype == torch.bool for value in there[1:])
        if name in WAITS or boolean:
            self._waited(name)
        if copying:
            self._copied(name, args, kwargs, there, to_device)
        if name not in FREE and not func.is_view:
            self.operations[self.part] += 1
            self.kinds[self.part, name] += 1
        leaves_device = name == "_to_copy" and wanted is not None and not to_device
        return self._run(func, flat, structure, leaves_device)

    def _waited(self, what):
        if self.recording is not None:
            raise RuntimeError(f"{what} while a graph is recorded, at {_where()}")
        self.waits[f"{what} at {_where()}"] += 1

    def _copied(self, name, args, kwargs, there, to_device):
        source, target = (args[1], args[0]) if name == "copy_" else (args[0], None)
        off = name == "copy_" and not isinstance(target, OnDevice)
        off = off or (name == "_to_copy" and kwargs.get("device") is not None and not to_device)
        on = not isinstance(source, OnDevice)
        if not off and not on:
            return
        ahead = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        locked = getattr(target if off else source, "is_locked", False)
        if not (ahead and locked) and not (on and source.ndim == 0):
            self._waited(f"a copy {'from' if off else 'to'} the device of {tuple(source.shape)}")

    def _run(self, func, flat, structure, leaves_device):
        inner = [value.inner if isinstance(value, OnDevice) else value for value in flat]
        inner = [torch.device("cpu") if isinstance(v, torch.device) and v.type == "cuda" else v for v in inner]
        args, kwargs = tree_unflatten(inner, structure)
        locked = kwargs.pop("pin_memory", None)
        kwargs.pop("non_blocking", None)
        known = {id(value.inner): value for value in flat if isinstance(value, OnDevice)}
        known |= {id(value): value for value in flat if isinstance(value, Tensor) and not isinstance(value, OnDevice)}
        if self.recording is not None and not func.is_view:
            result = self.recording.noted(func, args, kwargs)
        else:
            result = func(*args, **kwargs)

        def wrapped(value):
            if not isinstance(value, Tensor):
                return value
            if id(value) in known:
                return known[id(value)]
            if leaves_device or locked:
                value.is_locked = bool(locked)
                return value
            return OnDevice(value)

        return tree_map(wrapped, result)


WATCH = Watch()


class Everything(TorchDispatchMode):
    """Also intercepts functions that create tensors on the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("pin_memory") and (kwargs.get("device") is None or torch.device(kwargs["device"]).type == "cpu"):
            made = func(*args, **{**kwargs, "pin_memory": False})
            made.is_locked = True
            return made
        return WATCH.called(func, args, kwargs)


class DeviceGenerator(GENERATOR):
    """A CPU generator that claims to be on the device."""

    @property
    def device(self):
        return DEVICE

    def manual_seed(self, seed):
        SEEDS.add(seed)  # an operation is given another object for the same generator
        return super().manual_seed(seed)


class Recording:
    """Model of a CUDA graph: operations with their memory, without Python."""

    def __init__(self):
        self.calls = []

    def register_generator_state(self, generator):
        pass

    def noted(self, func, args, kwargs):
        """Record an operation without running it; allocate memory for its results."""
        flat, structure = tree_flatten((args, kwargs))
        returns = func._schema.returns
        if all(value.alias_info is not None and value.alias_info.is_write for value in returns):
            written = {name for value in returns for name in value.alias_info.before_set}
            named = [argument for argument in func._schema.arguments if argument.alias_info is not None]
            chosen = [args[i] for i, a in enumerate(func._schema.arguments[: len(args)]) if a in named
                      and a.alias_info.before_set & written]  # fmt: skip
            self.calls.append((func, args, kwargs, []))
            return None if not returns else (chosen[0] if len(returns) == 1 else tuple(chosen))
        # Run once on copies: the results have the layout that a replay's will have.
        copies = {id(value): value.clone() for value in flat if isinstance(value, Tensor)}
        back = {id(copies[id(value)]): value for value in flat if isinstance(value, Tensor)}
        copied = [copies.get(id(v), None if isinstance(v, GENERATOR) else v) for v in flat]
        there, named = tree_unflatten(copied, structure)
        made = []

        def real(value):
            if not isinstance(value, Tensor):
                return value
            if id(value) in back:
                return back[id(value)]
            made.append(value)
            return value

        result = tree_map(real, func(*there, **named))
        self.calls.append((func, args, kwargs, made))
        return result

    def replay(self):
        WATCH.operations[WATCH.part] += 1
        for func, args, kwargs, made in self.calls:
            result = func(*args, **kwargs)
            if made:
                known = {id(value) for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)}
                fresh = [v for v in tree_flatten(result)[0] if isinstance(v, Tensor) and id(v) not in known]
                for memory, value in zip(made, fresh, strict=True):
                    memory.copy_(value)


class _Event:
    def record(self, stream=None):
        pass

    def query(self):
        return True

    def synchronize(self):
        pass


class _Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass

    def wait_event(self, event):
        pass

    def synchronize(self):
        WATCH._waited("a stream is waited for")


class _Fabric:
    """Lightning Fabric asks a driver; of a step it does this: autocast, and backward."""

    def __init__(self, compute):
        self.compute, self.strategy, self.precision = compute, self, self

    def setup(self, module, optimizer):
        step = optimizer.step

        def forward(*arguments):
            WATCH.part = "forward"
            with self.compute.autocast():
                return module(*arguments)

        def stepped(*arguments):
            WATCH.part = "optimizer"
            return step(*arguments)

        optimizer.step = stepped
        return forward, optimizer

    def backward(self, loss):
        WATCH.part = "backward"
        loss.backward()

    def state_dict(self):
        return {}


def _where():
    calls = [call for call in traceback.extract_stack() if "/kd3/" in call.filename and "/tests/" not in call.filename]
    return " < ".join(f"{call.filename.split('/kd3/')[-1]}:{call.lineno}" for call in reversed(calls[-3:])) or "a test"


@contextmanager
def _recorded(recording, **options):
    WATCH.recording = recording
    try:
        yield
    finally:
        WATCH.recording = None


@contextmanager
def _nothing(*values, **options):
    yield


@contextmanager
def pretended_device(*, free_bytes=64 << 30):
    """Have one GPU for a while."""
    import kd3.runtime.compute

    def locked(values, *_):
        copied = values.clone()
        copied.is_locked = True
        return copied

    def generator(device="cpu"):
        return DeviceGenerator() if torch.device(device).type == "cuda" else GENERATOR(device)

    def made(values, *, device=None, **more):
        return tensor(values, **more) if device is None else tensor(values, **more).to(device)

    cuda, new, tensor = torch.cuda, {}, torch.tensor
    new[cuda] = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "mem_get_info": lambda device=None: (free_bytes, free_bytes),
        "get_device_name": lambda device=None: "pretended",
        "get_device_capability": lambda device=None: (9, 0), "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: None, "manual_seed_all": lambda seed: None, "Event": _Event,
        "Stream": _Stream, "current_stream": lambda device=None: _Stream(), "stream": _nothing,
        "_lazy_init": lambda: None, "is_bf16_supported": lambda *more: True, "CUDAGraph": Recording, "graph": _recorded,
    }  # fmt: skip
    new[Tensor] = {"pin_memory": locked, "record_stream": lambda values, stream: None}
    new[torch] = {"Generator": generator, "tensor": made}
    new[kd3.runtime.compute.Compute] = {"fabric": lambda compute: _Fabric(compute)}
    before = [(owner, name, getattr(owner, name)) for owner, names in new.items() for name in names]
    for owner, names in new.items():
        for name, value in names.items():
            setattr(owner, name, value)
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    WATCH.clear()
    try:
        with Everything():
            yield WATCH
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        for owner, name, value in reversed(before):
            setattr(owner, name, value)
