"""Several processes that train one student: their parts of a batch, and their communication."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from kd3.runtime.errors import FailedElsewhereError, KD3Error

Value = TypeVar("Value")

BROKEN = ("gloo", "nccl", "connection", "peer", "socket", "store")  # substrings of errors that mean a lost peer
LONGEST_SILENCE = timedelta(hours=2)  # while one rank evaluates or writes and the others wait
GO_ON = "--resume goes on from the last checkpoint"
LAST_WORDS = 0.5  # seconds; a thread that only waits for Python's lock needs about none


@dataclass(frozen=True)
class Ranks:
    """One of `count` processes, `rank` of them from 0.

    All methods but `part`, `is_first` and `leave` are collective: every rank calls them, in the same order. They cost
    nothing with one process.
    """

    rank: int = 0
    count: int = 1
    control: Any = None  # process group on the CPU, so that decisions do not wait for a GPU
    pulse: Any = None  # `kd3.runtime.launch.Pulse`: detects lost processes

    @classmethod
    def of_this_process(cls) -> Ranks:
        """Return the ranks of the process group that is open, or this process alone."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return ALONE
        control = dist.new_group(backend="gloo", timeout=LONGEST_SILENCE)
        return cls(dist.get_rank(), dist.get_world_size(), control)

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def part(self, total: int) -> slice:
        """Return this rank's slice of a batch of `total`, in rank order; sizes differ by at most one."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def gather(self, part: Tensor) -> Tensor:
        """Return the concatenated parts of all ranks, which are of one size; gradients flow back to each part.

        Shapes: (n, ...) -> (n * count, ...).
        """
        return part if self.count == 1 else cast(Tensor, _Gather.apply(part, self))  # type: ignore[no-untyped-call]

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over ranks; gradients flow through."""
        return value if self.count == 1 else cast(Tensor, _Sum.apply(value)) / self.count  # type: ignore[no-untyped-call]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether any rank has set it."""
        if self.count == 1:
            return flags
        votes = torch.tensor([int(flag) for flag in flags])
        with self.connected():
            dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.control)
        return tuple(bool(flag) for flag in votes)

    def from_first(self, value: Value) -> Value:
        """Return the first rank's value."""
        return self.from_each(value)[0]

    def from_each(self, value: Value) -> list[Value]:
        """Return every rank's value."""
        values: list[Any] = [value] * self.count
        if self.count > 1:
            with self.connected():
                dist.all_gather_object(values, value, group=self.control)
        return values

    def leave(self) -> None:
        """Close the connection, and never free it.

        Freeing a gloo group waits, holding the GIL, for threads that may be waiting for the GIL (torch 2.13): the
        process would never end. These threads need the GIL to free the last tensors sent. If Python ends before that,
        the process aborts. Nothing signals that they are done, so they are given time.
        """
        if self.count == 1:
            return
        if self.pulse:
            self.pulse.stop()
        for group in (dist.group.WORLD, self.control):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
        dist.destroy_process_group()
        time.sleep(LAST_WORDS)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Convert the errors of a broken connection to KD3Error: the other side has ended.

        Raises:
            KD3Error: it has.
        """
        try:
            yield
        except (RuntimeError, OSError) as problem:
            broken = any(sign in str(problem).lower() for sign in BROKEN)
            if self.count == 1 or not broken:
                raise
            who = self.pulse.ended() if self.pulse else "another process of this run"
            raise KD3Error(f"{who} has ended, and so must this one; {GO_ON}") from problem

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """End all ranks if one fails; the first failing rank reports the error.

        Raises:
            KD3Error: the error of this rank, or FailedElsewhereError.
        """
        problem: KD3Error | None = None
        try:
            yield
        except KD3Error as raised:
            problem = raised
        if self.count == 1:
            if problem:
                raise problem
            return
        problems = self.from_each(None if problem is None else str(problem))
        if any(problems):
            teller = next(rank for rank, words in enumerate(problems) if words)
            if problem and teller == self.rank:
                raise problem
            raise FailedElsewhereError(str(problems[teller]))


ALONE = Ranks()


class _Sum(torch.autograd.Function):
    """All-reduce whose gradient is all-reduced, too: each rank's sum feeds each rank's loss."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().clone().contiguous()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone().contiguous()
        dist.all_reduce(total)
        return total


class _Gather(torch.autograd.Function):
    """All-gather; a part's gradient is the sum over all ranks."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(ranks.count)]
        dist.all_gather(parts, part.detach().contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone().contiguous()
        dist.all_reduce(total)
        return total[ctx.ranks.part(len(total))], None
