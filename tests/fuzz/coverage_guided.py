"""Fuzzing that follows the coverage of kd3's own readers, by atheris: `python tests/fuzz/coverage_guided.py TARGET`.

Arguments after TARGET are libFuzzer's: -max_total_time=60, a folder to keep the corpus in. An input that makes a target
raise an undocumented error is written to crash-HASH.
"""

import io
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "pool"))

with atheris.instrument_imports(include=["kd3"]):
    import fuzz_targets

    from kd3.pool.decode import DecodeSettings, decode
    from kd3.runtime.errors import KD3Error
    from kd3.sources.batches import batch_kind
    from kd3.sources.files import archive_kind
    from kd3.sources.finding import ARCHIVES, list_records
    from kd3.sources.record import Unreadable
    from kd3.sources.safe_pickle import Damaged, UnsafePickle, read_pickle

SCRATCH = Path(tempfile.mkdtemp(prefix="kd3-fuzz-"))
SETTINGS = DecodeSettings(16, max_pixels=1 << 20)
LIMIT = 1 << 28  # bytes that an archive may unpack to
BOUNDS = ["-rss_limit_mb=3072", "-timeout=20"]  # of an input: more is a finding


def decoding(data: bytes) -> None:
    decode(data, SETTINGS)


def pickle(data: bytes) -> None:
    with suppress(Damaged, UnsafePickle):
        read_pickle(io.BytesIO(data))


def _source(suffix: str):  # type: ignore[no-untyped-def]
    def target(data: bytes) -> None:
        path = SCRATCH / f"source{suffix}"
        path.write_bytes(data)
        kind = archive_kind(str(path)) or batch_kind(str(path))
        # In this process, whose coverage is followed.
        found = ARCHIVES[kind].members(str(path), "fuzz", "", limit=LIMIT) if kind else list_records([str(path)])
        try:
            for number, record in enumerate(found):
                with suppress(OSError, Unreadable):
                    decode(record.location.read(), SETTINGS)
                if number > 200:
                    break
        except KD3Error:
            pass

    return target


def _settings(kind: str):  # type: ignore[no-untyped-def]
    def target(data: bytes) -> None:
        path = SCRATCH / "file.yaml"
        path.write_bytes(data)
        fuzz_targets.CONFIGURATIONS[kind](path)

    return target


def checkpoint(data: bytes) -> None:
    path = SCRATCH / "weights.pt"
    path.write_bytes(data)
    fuzz_targets.checkpoint(path)


def student(data: bytes) -> None:
    (SCRATCH / "config.json").write_bytes(data)
    fuzz_targets.opened_student(SCRATCH)


TARGETS = {
    "decode": decoding,
    "pickle": pickle,
    "tar": _source(".tar"),
    "npy": _source(".npy"),
    "npz": _source(".npz"),
    "zip": _source(".zip"),
    "list": _source(".txt"),
    "batch": _source(".bin"),
    "teacher": _settings("teacher"),
    "study": _settings("study"),
    "distill": _settings("distill"),
    "checkpoint": checkpoint,
    "student": student,
    "parquet": _source(".parquet"),
    "arrow": _source(".arrow"),
}


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: coverage_guided.py TARGET [libFuzzer's arguments]; TARGET is one of: {', '.join(TARGETS)}")
    atheris.Setup([sys.argv[0], *BOUNDS, *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
