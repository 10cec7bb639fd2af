"""The processes that train one student together: their start, and the detection of those that ended or are silent."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric.strategies.ddp import DDPStrategy

from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import EXIT_WRONG_INPUT, KD3Error, in_words
from kd3.runtime.interruption import WITH_PARENT, leave
from kd3.runtime.ranks import GO_ON, LONGEST_SILENCE, Ranks

BEAT = 1.0  # seconds
SILENCE = 20.0  # seconds without a beat, after which all processes end
ENDED = 3.0  # seconds without a beat, after a broken connection
ASKED = 6.0  # seconds to identify the missing process
ASLEEP = 5.0  # seconds between two beats of our own: this process itself was stopped


class Pulse:
    """A heartbeat to the other processes every second, which ends this process if one of theirs stops.

    A gloo or NCCL collective waits hours for a stopped process, in a library that handles no signals. So the heartbeat
    has its own threads and its own connection: a store held by the first rank.

    Args:
        rank: of this process.
        count: of processes.
        store: a connection to the store.
    """

    def __init__(self, rank: int, count: int, store: Any) -> None:
        self.rank, self.count, self._store = rank, count, store
        self._names = [f"process {other} of {count}" for other in range(count)]
        self._seen = [time.monotonic()] * count
        self._over = threading.Event()
        store.set(f"name {rank}", f"{socket.gethostname()}, process id {os.getpid()}")
        store.set(f"beat {rank}", "0")

    def start(self) -> None:
        """Begin, once every rank has its own."""
        for other in range(self.count):
            self._names[other] += f" ({self._store.get(f'name {other}').decode()})"
        self._seen = [time.monotonic()] * self.count
        for work in (self._beat, self._watch):
            threading.Thread(target=work, name="kd3-pulse", daemon=True).start()

    def stop(self) -> None:
        """End, before this process leaves the group."""
        self._over.set()

    def ended(self) -> str:
        """Return in words the missing processes after a broken connection."""
        asked = time.monotonic()
        while time.monotonic() - asked < ASKED:
            silent = self._silent(ENDED)
            if silent:
                return self._named(silent)
            time.sleep(BEAT / 4)
        return "another process of this run"

    def _silent(self, seconds: float) -> list[int]:
        now = time.monotonic()
        return [other for other in range(self.count) if other != self.rank and now - self._seen[other] > seconds]

    def _named(self, ranks: Sequence[int]) -> str:
        return " and ".join(self._names[other] for other in ranks)

    def _beat(self) -> None:
        before: dict[int, bytes] = {}
        number = 0
        while not self._over.wait(BEAT):
            number += 1
            try:
                self._store.set(f"beat {self.rank}", str(number))
                for other in range(self.count):
                    found = self._store.get(f"beat {other}")
                    if found != before.get(other):
                        before[other], self._seen[other] = found, time.monotonic()
            except (RuntimeError, OSError):
                # The first rank holds the store: without it the others are silent, too, but they are not the cause.
                self._blame_the_first()
                return

    def _blame_the_first(self) -> None:
        while not self._over.wait(BEAT):
            self._seen[1:] = [time.monotonic()] * (self.count - 1)

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.wait(BEAT):
            now = time.monotonic()
            if now - last > ASLEEP:
                self._seen = [now] * self.count
            last = now
            silent = self._silent(SILENCE)
            if self.rank and 0 in silent:
                silent = [0]  # all heartbeats pass through the first rank
            if silent:
                self._end(silent)

    def _end(self, silent: Sequence[int]) -> None:
        first = min(other for other in range(self.count) if other not in silent)
        if self.rank == first:
            console.fail(
                f"{self._named(silent)} has said nothing for {SILENCE:.0f} s: it was stopped, or cannot be reached; "
                f"{GO_ON}"
            )
        else:
            time.sleep(ENDED)  # the launcher ends all when one ends; leave time for the error message
        leave(EXIT_WRONG_INPUT)


def with_pulse(ranks: Ranks) -> Ranks:
    """Return the ranks, each with a pulse; collective."""
    if ranks.count == 1:
        return ranks
    store = _store(0) if ranks.is_first else None
    port = ranks.from_first(store.port if store else 0)
    pulse = Pulse(ranks.rank, ranks.count, store or _store(ranks.rank, port))
    ranks.from_each(None)  # all names are known from here on
    pulse.start()
    return replace(ranks, pulse=pulse)


def _store(rank: int, port: int = 0) -> Any:
    """Return a connection to the first rank's store; on that rank, the store itself, at a free port."""
    host, patience = os.environ.get("MASTER_ADDR", "127.0.0.1"), timedelta(seconds=SILENCE)
    module: Any = dist  # its type stubs lack the class
    return module.TCPStore(host, port, is_master=rank == 0, timeout=patience, wait_for_workers=False)


ANNOUNCE_SECONDS = 30.0


@contextmanager
def launched(compute: Compute, *, devices: int, nodes: int) -> Iterator[Compute]:
    """Yield the `Compute` with the ranks of all processes; close the connection at the end.

    Under `torchrun` the processes exist already, and `devices` and `nodes` may stay at 1. Otherwise the first process
    of each node starts the node's others by running this command again. Nodes find each other by SLURM, or by
    MASTER_ADDR, MASTER_PORT and NODE_RANK.

    Raises:
        KD3Error: there are too few devices, or the processes do not find each other.
    """
    check_launch(compute, devices=devices, nodes=nodes)
    devices, nodes = _sizes(devices, nodes)
    if devices * nodes == 1:
        yield compute
        return
    strategy: Any = DDPStrategy(
        process_group_backend="nccl" if compute.device.type == "cuda" else "gloo",
        timeout=LONGEST_SILENCE,
        broadcast_buffers=False,  # each use decides whose buffers count
    )
    warnings.filterwarnings("ignore", ".*broadcast_buffers. is deprecated")
    fabric = compute.new_fabric(devices=devices, nodes=nodes, strategy=strategy)
    try:
        with _announcing(devices, nodes), _ending_together():
            fabric.launch()
        ranks = with_pulse(Ranks.of_this_process())
    except (RuntimeError, ValueError) as problem:
        raise KD3Error(
            f"the {devices * nodes} processes did not come together: {in_words(problem).splitlines()[0]}"
        ) from None
    if not ranks.is_first:
        console.set_silent()
    try:
        yield replace(compute, device=fabric.device, ranks=ranks, launched=fabric)
    finally:
        ranks.leave()


def check_launch(compute: Compute, *, devices: int, nodes: int) -> None:
    """Make the checks of `launched` without starting a process.

    Raises:
        KD3Error: there are too few devices, or this program cannot be started again.
    """
    devices, nodes = _sizes(devices, nodes)
    if devices * nodes > 1:
        _check_devices(compute, devices)
        _check_script(devices)


@contextmanager
def _announcing(devices: int, nodes: int) -> Iterator[None]:
    """Report each wait, its place and its limit: at once for other machines, otherwise after a while."""
    over = threading.Event()
    where = f"{os.environ.get('MASTER_ADDR', '127.0.0.1')}:{os.environ.get('MASTER_PORT', 'a free port')}"
    if "SLURM_NTASKS" in os.environ:
        where = "the first of SLURM's nodes"
    what = f"{devices * nodes} processes on {nodes} machines to meet at {where}" if nodes > 1 else "the other processes"
    most = console.clock(LONGEST_SILENCE.total_seconds())
    started = time.monotonic()

    def announce() -> None:
        while not over.wait(ANNOUNCE_SECONDS):
            console.info(f"still waiting for {what}, for {console.clock(time.monotonic() - started)} of at most {most}")

    if nodes > 1 and os.environ.get("LOCAL_RANK", "0") == "0":
        console.info(f"waiting for {what}, for at most {most}; Ctrl-C ends it")
    threading.Thread(target=announce, name="kd3-waiting", daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def _ending_together() -> Iterator[None]:
    """End child processes when this one is gone: they might wait for others for hours."""
    os.environ[WITH_PARENT] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(WITH_PARENT, None)


def _sizes(devices: int, nodes: int) -> tuple[int, int]:
    """Return devices per node and nodes: torchrun's, if it started this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return devices, nodes
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    started = local, int(os.environ["WORLD_SIZE"]) // local
    if (devices, nodes) not in ((1, 1), started):
        raise KD3Error(
            f"torchrun has started {started[0]} processes on {started[1]} nodes, and --devices {devices} "
            f"--nodes {nodes} says otherwise; leave both out"
        )
    return started


def _check_script(devices: int) -> None:
    """Refuse programs that cannot be started again for the other processes: notebooks, or `python -c`."""
    started = any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "SLURM_PROCID"))
    if devices > 1 and not started and not Path(sys.argv[0]).is_file():
        raise KD3Error(
            f"devices={devices} starts this program {devices - 1} times more, and it has no file; run it from one"
        )


def _check_devices(compute: Compute, devices: int) -> None:
    if compute.device.type != "cuda":
        return
    if compute.device.index is not None and devices > 1:
        raise KD3Error(f"--devices {devices} takes the first GPUs; --device must be cuda or auto, not {compute.device}")
    if devices > torch.cuda.device_count():
        raise KD3Error(f"--devices {devices}: there are {torch.cuda.device_count()} GPUs here")
