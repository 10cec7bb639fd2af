"""Rows go to the database many at a time, with the same result as one by one."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd3.pool import ingest_state
from kd3.pool.decode import Decoded, pixel_digest
from kd3.pool.ingest_state import IngestState
from kd3.sources.record import InMemory, Record


def image(content: int) -> Decoded:
    pixels = np.full((3, 8, 8), content, dtype=np.uint8)
    return Decoded(pixels, hashlib.sha256(bytes([content])).digest(), pixel_digest(pixels), 8, 8, "PNG")


NAMES = ("duplicates", "items", "progress", "rejected")


def tables(folder: Path, files: list[tuple[str, int]], batch: int, commits: int) -> list[object]:
    """What the state holds after these files (key, content; 0 is rejected), with a restart at each commit."""
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_state, "BATCH", batch)
        state = IngestState(folder, 8, part_bytes=5 * 192)
        state.begin({})
        for number, (key, content) in enumerate(files, 1):
            record = Record("crawl", key, InMemory(b""))
            state.add(record, image(content)) if content else state.reject(record, "empty", "")
            if number % commits == 0:
                state.commit()
                state.close()
                state = IngestState(folder, 8)
        state.commit()
        held = [state.database.execute(f"SELECT * FROM {name}").fetchall() for name in NAMES]
        state.close()
    parts = b"".join(path.read_bytes() for path in sorted(folder.glob("images-*.bin")))
    return [*held, parts]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files=st.lists(st.tuples(st.sampled_from(["b", "a", "cc", "ab", "ba"]), st.integers(0, 4)), max_size=25))
def test_size_of_the_batches_does_not_show(
    files: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("states")
    one_by_one = tables(place / "one", files, batch=1, commits=1)
    assert tables(place / "some", files, batch=3, commits=7) == one_by_one
    assert tables(place / "many", files, batch=256, commits=10) == one_by_one


def test_of_identical_files_in_one_batch_the_first_is_kept_and_the_plainest_names_it(tmp_path: Path) -> None:
    files = [("copy.png", 1), ("a.png", 2), ("c.png", 1), ("b.png", 1)]
    duplicates, items, *_ = tables(tmp_path / "pool", files, batch=256, commits=256)
    assert [(row[0], row[2]) for row in items] == [(0, "b.png"), (1, "a.png")]  # type: ignore[attr-defined]
    assert [row[1:] for row in duplicates] == [("copy.png", 0), ("c.png", 0)]  # type: ignore[attr-defined]


def test_large_pixels_wait_in_small_batches(tmp_path: Path) -> None:
    state = IngestState(tmp_path, 1024)
    assert state._batch * 3 * 1024**2 <= ingest_state.BATCH_BYTES
    state.close()
