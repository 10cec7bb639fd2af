"""Detection of ended or silent processes among those that train one student."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from kd3 import console
from kd3.errors import EXIT_WRONG_INPUT
from kd3.interruption import leave
from kd3.ranks import GO_ON, Ranks

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
