"""A process of several that is stopped or gone is named, and those that wait for it end."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

RANK = """
import os, sys, time
from kd3.runtime import launch as pulse
from kd3.runtime.ranks import Ranks
import torch.distributed as dist

pulse.SILENCE, pulse.BEAT, pulse.ENDED = 3.0, 0.2, 1.0
rank = int(sys.argv[1])
dist.init_process_group("gloo", rank=rank, world_size=3)
ranks = pulse.with_pulse(Ranks.of_this_process())
print(f"rank {rank} is {os.getpid()}", flush=True)
what = sys.argv[2]
if what == "busy":  # within one long step of Python, and one of a library
    until = time.monotonic() + 6
    while rank == 1 and time.monotonic() < until:
        pass
    time.sleep(0 if rank == 1 else 6)
    ranks.from_each(1)
    ranks.leave()
else:
    with ranks.connected():
        while True:
            ranks.from_each(rank)
            time.sleep(0.05)
"""


@pytest.fixture
def three(tmp_path):
    processes = []

    def start(what):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        for rank in range(3):
            command = [sys.executable, "-c", RANK, str(rank), what]
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
            processes.append(subprocess.Popen(command, **streams))
        for process in processes:
            assert "is" in process.stdout.readline()
        time.sleep(1)
        return processes

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="stops a process by a signal")
@pytest.mark.parametrize("which", [0, 2])
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_who_is_gone_is_named_and_the_others_end(three, which, how):
    processes = three("wait")
    before = time.monotonic()
    processes[which].send_signal(signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
    others = [process for rank, process in enumerate(processes) if rank != which]
    said = [process.communicate(timeout=60)[1] for process in others]
    assert time.monotonic() - before < 30
    name = f"process {which} of 3 ({socket.gethostname()}, process id {processes[which].pid})"
    words = "has said nothing for 3 s" if how == "stopped" else "has ended"
    assert any(f"{name} {words}" in errors for errors in said), said
    assert all(process.returncode for process in others)
    assert not any(f"process {rank} of 3 (" in errors for errors in said for rank in range(3) if rank != which)


@pytest.mark.slow
def test_who_is_only_busy_is_let_be(three):
    for process in three("busy"):
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_waiting_for_other_machines_is_told_and_ends_on_a_signal(number, status, teacher_file, pool_folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    flags = ["--teacher", teacher_file, "--student", "kd3:resnet8", "--pool", pool_folder, "--out", tmp_path / "run"]
    command = [sys.executable, "-m", "kd3", "distill", *map(str, flags), "--nodes", "2", "--device", "cpu"]
    waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    said = waiting.stderr.readline()
    assert f"waiting for 2 processes on 2 machines to meet at 127.0.0.1:{port}, for at most 2 h" in said
    time.sleep(2)
    before = time.monotonic()
    waiting.send_signal(number)
    _, errors = waiting.communicate(timeout=30)
    assert time.monotonic() - before < 2 + 3  # on a machine that is busy with other things
    assert (waiting.returncode, errors) == (status, "kd3: interrupted\n")
    assert not (tmp_path / "run").exists()
