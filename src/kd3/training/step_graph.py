"""Training steps recorded once as a CUDA graph and then launched as one operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from kd3.runtime import console
from kd3.runtime.errors import in_brief

WARM_UP = 3  # ordinary steps before the recording, which create buffers and choose kernels


class Recorder(Protocol):
    """Interface: records operations of an accelerator, to repeat them on the same memory."""

    def aside(self) -> Any:
        """Return a context for the steps before the recording."""

    def recording(self) -> Any:
        """Return the context in which operations are recorded, not run."""

    def replay(self) -> None:
        """Run the recorded operations."""


class CudaRecorder:
    """Records a CUDA graph.

    Args:
        generator: of the recorded work; each replay draws from its current state.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run on a separate stream, as recordings do: autograd's state belongs to a stream."""
        now = torch.cuda.current_stream()
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            yield
        now.wait_stream(self._stream)

    def recording(self) -> Any:
        """Return the context in which operations are recorded, not run; reading threads may continue."""
        return torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local")

    def replay(self) -> None:
        """Run the recorded operations."""
        self._graph.replay()


class StepGraph:
    """Function that is called directly a few times, and then replayed from a recording.

    The function must do the same operations at each call, on its arguments and on memory at fixed addresses, without
    synchronisation. A recording is valid for arguments of one shape; others go to the function itself. A function that
    cannot be recorded is called directly, and a warning gives the reason.

    Args:
        work: tensors in nested tuples, or None -> the same.
        recorder: creates the recorder.
    """

    def __init__(self, work: Callable[..., Any], recorder: Callable[[], Recorder]) -> None:
        self._work, self._make = work, recorder
        self._recorder: Recorder | None = None
        self._calls = 0
        self._held: list[Any] = []  # the arguments of the recorded call, whose memory each replay reads
        self._shapes: Any = None
        self._result: tuple[list[Any], Any] | None = None
        self.is_off = False

    @property
    def is_recorded(self) -> bool:
        """Whether a call of the usual shape is a replay."""
        return self._result is not None

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns; the tensors are the caller's to keep."""
        values, _ = tree_flatten(arguments)
        shapes = [tuple(value.shape) if isinstance(value, Tensor) else value for value in values]
        if self._shapes is None:
            self._shapes = shapes
        if self.is_off or shapes != self._shapes:
            return self._work(*arguments)
        if self._recorder is None:
            self._recorder = self._make()
        if self._calls < WARM_UP:
            self._calls += 1
            with self._recorder.aside():
                return self._work(*arguments)
        if self._result is None and not self._record(arguments):
            return self._work(*arguments)
        for held, value in zip(self._held, values, strict=True):
            if isinstance(value, Tensor):
                held.copy_(value, non_blocking=True)
        self._recorder.replay()
        assert self._result is not None
        found, structure = self._result
        return tree_unflatten([_kept(value) for value in found], structure)

    def _record(self, arguments: Sequence[Any]) -> bool:
        assert self._recorder is not None
        values, structure = tree_flatten(tuple(arguments))
        # The layout stays channels_last.
        self._held = [value.clone() if isinstance(value, Tensor) else value for value in values]
        try:
            with self._recorder.recording():
                result = self._work(*tree_unflatten(self._held, structure))
        except RuntimeError as problem:
            console.warn(
                f"a step cannot be recorded as a CUDA graph ({in_brief(problem)}); its operations are launched "
                f"one by one"
            )
            self.is_off = True
            return False
        self._result = tree_flatten(result)
        return True


def _kept(value: Any) -> Any:
    """Return a copy of a recorded tensor, which the next replay overwrites."""
    return value.clone() if isinstance(value, Tensor) else value
