"""Start the processes that train one student together, by Lightning Fabric, or join those of a cluster."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.strategies.ddp import DDPStrategy

from kd3 import console
from kd3.compute import Compute
from kd3.errors import KD3Error
from kd3.interruption import WITH_PARENT
from kd3.pulse import with_pulse
from kd3.ranks import LONGEST_SILENCE, Ranks

TELL_SECONDS = 30.0


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
        with _told(devices, nodes), _ending_together():
            fabric.launch()
        ranks = with_pulse(Ranks.of_this_process())
    except (RuntimeError, ValueError) as problem:
        raise KD3Error(
            f"the {devices * nodes} processes did not come together: {str(problem).splitlines()[0]}"
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
def _told(devices: int, nodes: int) -> Iterator[None]:
    """Report each wait, its place and its limit: at once for other machines, otherwise after a while."""
    over = threading.Event()
    where = f"{os.environ.get('MASTER_ADDR', '127.0.0.1')}:{os.environ.get('MASTER_PORT', 'a free port')}"
    if "SLURM_NTASKS" in os.environ:
        where = "the first of SLURM's nodes"
    what = f"{devices * nodes} processes on {nodes} machines to meet at {where}" if nodes > 1 else "the other processes"
    most = console.clock(LONGEST_SILENCE.total_seconds())
    started = time.monotonic()

    def tell() -> None:
        while not over.wait(TELL_SECONDS):
            console.say(f"still waiting for {what}, for {console.clock(time.monotonic() - started)} of at most {most}")

    if nodes > 1 and os.environ.get("LOCAL_RANK", "0") == "0":
        console.say(f"waiting for {what}, for at most {most}; Ctrl-C ends it")
    threading.Thread(target=tell, name="kd3-waiting", daemon=True).start()
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
