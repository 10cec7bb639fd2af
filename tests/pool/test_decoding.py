"""Decoding in processes: in order, in bounded memory, and a file that crashes its worker affects no other."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pool_pictures import encoded, folder_of, noise, some_files

from kd3.pool import Decoded, DecodeSettings, Rejected, decode_records, list_records
from kd3.pool.decoding import CHUNK, CHUNK_BYTES, CHUNKS_AHEAD, FEW_CHUNKS, _chunks
from kd3.runtime.errors import KD3Error
from kd3.sources.record import InMemory, Record

SETTINGS = DecodeSettings(16)
PICTURE = encoded(noise(0))


@dataclass(frozen=True)
class Deadly:
    """Contents that end the process that reads them, as a decoder with a bug does."""

    def read(self) -> bytes:
        os._exit(9)


@dataclass(frozen=True)
class Endless:
    """Contents at which a decoder does not come to an end."""

    def read(self) -> bytes:
        time.sleep(1000)
        return b""


@dataclass(frozen=True)
class Greedy:
    """Contents that need more memory than available."""

    def read(self) -> bytes:
        return bytes(1 << 42)


def memory(count: int) -> list[Record]:
    return [Record("memory", str(n), InMemory(PICTURE)) for n in range(count)]


def test_outcomes_come_in_order_whatever_the_workers(tmp_path: Path) -> None:
    folder_of(tmp_path, some_files(300) | {"1/zz.jpg": b"junk"})
    results = []
    for workers in (0, 1, 2):
        outcomes = list(decode_records(list_records([str(tmp_path)]), SETTINGS, workers=workers))
        results.append(
            [(o.record.key, o.result.digest if isinstance(o.result, Decoded) else o.result.reason) for o in outcomes]
        )
    assert len(results[0]) == 301
    assert results[0] == results[1] == results[2]


def test_file_that_kills_its_decoder_is_rejected_alone() -> None:
    records = memory(400)
    for place in (10, 300):
        records[place] = Record("memory", str(place), Deadly())
    outcomes = list(decode_records(records, SETTINGS, workers=2))
    assert [o.record.key for o in outcomes] == [str(n) for n in range(400)]
    crashed = [int(o.record.key) for o in outcomes if isinstance(o.result, Rejected)]
    assert crashed == [10, 300]
    assert all(o.result.reason == "decoder crashed" for o in outcomes if isinstance(o.result, Rejected))


def test_file_that_never_ends_is_given_up_alone() -> None:
    records = memory(400)
    for place in (10, 300):
        records[place] = Record("memory", str(place), Endless())
    outcomes = list(decode_records(records, DecodeSettings(16, max_seconds=0.3), workers=2))
    assert [o.record.key for o in outcomes] == [str(n) for n in range(400)]
    given_up = {int(o.record.key): o.result for o in outcomes if isinstance(o.result, Rejected)}
    assert sorted(given_up) == [10, 300]
    assert {(result.reason, result.detail) for result in given_up.values()} == {("took too long", "more than 0.3 s")}


def cannot_start(parent: int, max_pixels: int) -> None:
    """Stand for the first step of a process of another kd3 than its parent's."""
    raise TypeError("one more argument is wanted")


def test_processes_that_cannot_start_are_told_and_no_file_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd3.pool.decoding.prepare_worker", cannot_start)
    with pytest.raises(KD3Error, match="no process that decodes images can start"):
        list(decode_records(memory(400), SETTINGS, workers=2))


def test_few_files_are_decoded_in_processes_where_an_earlier_attempt_ended() -> None:
    records = [*memory(3), Record("memory", "3", Deadly())]
    outcomes = list(decode_records(records, SETTINGS, workers=1, wary=True))
    assert [isinstance(o.result, Decoded) for o in outcomes] == [True, True, True, False]


def test_file_that_wants_more_memory_than_its_pixels_need_is_rejected() -> None:
    records = [*memory(2), Record("memory", "2", Greedy()), *memory(1)]
    outcomes = list(decode_records(records, SETTINGS, workers=1, wary=True))
    assert [isinstance(o.result, Decoded) for o in outcomes] == [True, True, False, True]
    assert isinstance(outcomes[2].result, Rejected)
    assert "MemoryError" in outcomes[2].result.detail


def test_listing_is_drawn_only_as_far_as_the_workers_need() -> None:
    drawn = 0

    def endless() -> Iterator[Record]:
        nonlocal drawn
        while True:
            drawn += 1
            yield Record("memory", str(drawn), InMemory(PICTURE))

    outcomes = decode_records(endless(), SETTINGS, workers=1)
    for _ in range(1000):
        next(outcomes)
    outcomes.close()
    assert drawn <= 1000 + CHUNK * (CHUNKS_AHEAD + 1)


def test_chunks_are_bounded_in_bytes() -> None:
    big = [Record("memory", str(n), InMemory(bytes(CHUNK_BYTES // 2))) for n in range(5)]
    assert [len(chunk) for chunk in _chunks(iter(big))] == [2, 2, 1]


@pytest.mark.parametrize(("image_size", "chunk"), [(16, CHUNK), (1024, CHUNK_BYTES // (3 * 1024**2))])
def test_chunks_of_large_images_are_bounded_in_pixels(image_size: int, chunk: int) -> None:
    drawn: list[Record] = []
    records = (drawn.append(record) or record for record in memory(CHUNK * (FEW_CHUNKS + 1)))  # type: ignore[func-returns-value]
    next(decode_records(records, DecodeSettings(image_size), workers=0))
    assert FEW_CHUNKS * chunk <= len(drawn) <= (FEW_CHUNKS + 1) * chunk


@dataclass(frozen=True)
class AtHome:
    """A picture for one process, and no picture for any other."""

    process: int

    def read(self) -> bytes:
        return PICTURE if os.getpid() == self.process else b""


def test_few_files_start_no_processes() -> None:
    records = [Record("memory", str(n), AtHome(os.getpid())) for n in range(CHUNK * (FEW_CHUNKS - 1))]
    assert all(isinstance(outcome.result, Decoded) for outcome in decode_records(records, SETTINGS))


def test_file_that_vanished_is_unreadable(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": PICTURE})
    records = list(list_records([str(tmp_path)]))
    (tmp_path / "a.png").unlink()
    (outcome,) = decode_records(records, SETTINGS)
    assert isinstance(outcome.result, Rejected)
    assert outcome.result.reason == "unreadable"


def test_scripts_need_no_main_guard(tmp_path: Path) -> None:
    folder_of(tmp_path / "crawl", some_files(300))
    script = tmp_path / "script.py"
    script.write_text(
        "import kd3\nprint('once')\n"
        f"pool = kd3.ingest({str(tmp_path / 'crawl')!r}, {str(tmp_path / 'pool')!r}, image_size=16, workers=2)\n"
        "print(len(pool))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout.split()) == (0, ["once", "300"]), done.stderr


def test_decoding_imports_neither_torch_nor_settings() -> None:
    code = "import sys, kd3.pool.decoding; print([m for m in ('torch', 'pydantic', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"
