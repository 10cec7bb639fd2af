"""Ctrl-C and SIGTERM end a command at once, in any state of the network."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest


@contextmanager
def stalling(*, drips=False):
    """A server that accepts connections and never responds, or sends a byte now and then."""

    def drip(connection):
        with suppress(OSError):
            connection.recv(65536)
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
            while connection.send(b"x"):
                time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0), backlog=200) as server:
        held, asked = [], threading.Event()

        def take():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if drips:
                    threading.Thread(target=drip, args=(connection,), daemon=True).start()
                asked.set()

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        for connection in held:
            connection.close()


def _hear_interrupts():
    """Undo what a shell does to the commands that it starts in the background: they ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("what", "drips", "number", "status"),
    [
        ("images", False, signal.SIGTERM, 75),
        ("images", True, signal.SIGINT, 130),
        ("archive", False, signal.SIGINT, 130),
        ("archive", True, signal.SIGTERM, 75),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_command_that_waits_for_a_slow_server_ends_at_once(what, drips, number, status, tmp_path):
    with stalling(drips=drips) as (url, asked):
        source = f"{url}/a.tar"
        if what == "images":
            source = tmp_path / "l.txt"
            source.write_text("".join(f"{url}/{n}.png\n" for n in range(200)))
        flags = ["--out", tmp_path / "pool", "--image-size", "16", "--workers", "0", "--trust-entries", "true"]
        command = [sys.executable, "-m", "kd3", "ingest", *map(str, [source, *flags])]
        waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=_hear_interrupts)
        assert asked.wait(60)
        time.sleep(0.5)
        before = time.monotonic()
        waiting.send_signal(number)
        _, errors = waiting.communicate(timeout=30)
        took = time.monotonic() - before
    assert (waiting.returncode, errors) == (status, "kd3: interrupted\n")
    assert took < 2 + 2  # on a machine that is busy with other things


BLOCKED = """
import ctypes, sys
from kd3.runtime import interruption
with interruption.ended_by_signals():
    with interruption.unhurried() if sys.argv[1] == "unhurried" else interruption.ended_by_signals():
        print("now", flush=True)
        ctypes.CDLL(None).sleep(4)
print("over", flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="blocks the main thread within libc")
def test_a_library_that_hears_no_signal_is_not_waited_for_unless_it_may_take_its_time():
    # `sleep` of libc is woken by a signal; masked in this thread, the signal goes to another.
    for manner in ("hurried", "unhurried"):
        code = BLOCKED.replace("import ctypes, sys", "import ctypes, signal, sys, threading")
        code = code.replace('print("now"', 'signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); print("now"')
        waiting = subprocess.Popen(
            [sys.executable, "-c", code, manner], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert waiting.stdout.readline() == "now\n"
        time.sleep(0.5)  # from "now" to within libc
        before = time.monotonic()
        waiting.send_signal(signal.SIGTERM)
        waiting.communicate(timeout=30)
        took = time.monotonic() - before
        if manner == "hurried":
            assert waiting.returncode == 75
            assert took < 3
        else:
            assert took > 2.5
