"""An interrupted ingest continues where it was, and needs no finished source."""

from pathlib import Path
from typing import Any

import pytest
from pool_containers import KINDS, files_of, npy_of, parquet_of, pictures, structs_of, web_server, written
from pool_pictures import folder_of, some_files, tar_of

import kd3
from kd3.config.pool_commands import IngestConfig
from kd3.pool import ingestion
from kd3.pool.ingest_state import IngestState, Place, RemainingRecords
from kd3.pool.ingestion import ingest_with
from kd3.sources.record import Unusable


def keys(records: Any) -> list[str]:
    return [record.key for record in records]


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    images = pictures(12)
    return [
        str(npy_of(tmp_path / "a.npy", images[:3])),
        str(folder_of(tmp_path / "b", {**some_files(2), "z.tar": tar_bytes(tmp_path)})),
        str(tar_of(tmp_path / "empty.tar", {})),
        str(parquet_of(tmp_path / "c.parquet", structs_of(files_of(images[3:])), rows=2)),
    ]


def tar_bytes(tmp_path: Path) -> bytes:
    return tar_of(tmp_path / "t.tar", some_files(2)).read_bytes()


def test_every_place_leads_to_the_rest(sources: list[str]) -> None:
    remaining = RemainingRecords(sources, Place())
    whole = keys(remaining)
    assert len(whole) == 16
    for done in range(len(whole) + 1):
        place = remaining.place(done)
        later = RemainingRecords(sources, place)
        assert keys(later) == whole[done:], place
        assert later.place(0) == place
        # And from there once more.
        again = RemainingRecords(sources, later.place((len(whole) - done) // 2))
        assert keys(again) == whole[done + (len(whole) - done) // 2 :]


def test_places_are_told_while_records_are_still_drawn(sources: list[str]) -> None:
    remaining = RemainingRecords(sources, Place())
    drawn = iter(remaining)
    for _ in range(5):
        next(drawn)
    assert [remaining.place(done) for done in (0, 2, 3, 4)] == [(0, 0), (0, 2), (1, 0), (2, 0)]


def test_archive_that_is_gone_is_not_passed_over_in_silence(sources: list[str]) -> None:
    Path(sources[3]).write_bytes(b"junk")
    (record,) = RemainingRecords(sources, Place(5, 4))
    assert isinstance(record.location, Unusable)
    assert record.location.reason == "archive damaged"


def interrupted(config: IngestConfig, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter(range(after))
    take = ingestion._take

    def until(outcome: object, state: object) -> None:
        if next(taken, None) is None:
            raise KeyboardInterrupt
        take(outcome, state)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ingestion, "_take", until)
        patch.setattr(ingestion, "COMMIT_FILES", 10)
        with pytest.raises(KeyboardInterrupt):
            ingest_with(config)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "," not in kind])
def test_interrupted_ingest_of_every_source_ends_with_the_same_pool(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(written(kind, tmp_path / "place", pictures(60)))
    config = IngestConfig(sources=[source], out=str(tmp_path / "pool"), image_size=32, workers=0)
    interrupted(config, 37, monkeypatch)
    resumed = ingest_with(config)
    whole = kd3.ingest(source, tmp_path / "whole", image_size=32, workers=0)
    assert resumed.content_hash == whole.content_hash
    assert resumed.manifest.counts == whole.manifest.counts
    assert resumed.index().equals(whole.index())


def test_sources_that_are_done_with_may_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web = tmp_path / "web"
    for number in range(3):
        folder_of(web, {f"{number}.tar": b""})
        tar_of(web / f"{number}.tar", {f"{n}.png": data for n, data in files_of(pictures(15, 16, number)).items()})
    with web_server(web) as server:
        source = f"{server.url}/{{0..2}}.tar"
        config = IngestConfig(sources=[source], out=str(tmp_path / "pool"), image_size=16, workers=0)
        interrupted(config, 38, monkeypatch)
        (web / "1.tar").unlink()
        server.asked.clear()
        assert len(ingest_with(config)) == 45
        assert "/1.tar" not in server.asked


def test_limit_holds_over_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(npy_of(tmp_path / "a.npy", pictures(60)))
    config = IngestConfig(sources=[source], out=str(tmp_path / "pool"), image_size=32, workers=0, limit=45)
    interrupted(config, 25, monkeypatch)
    assert len(ingest_with(config)) == 45


def test_pool_begun_by_an_earlier_version_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_of(tmp_path / "crawl", some_files(9))
    tar_of(source / "0.tar", some_files(40))
    config = IngestConfig(sources=[str(source)], out=str(tmp_path / "pool"), image_size=16, workers=0)
    interrupted(config, 33, monkeypatch)
    state = IngestState(tmp_path / "pool", 16)
    state.database.execute("DELETE FROM progress WHERE name = 'place'")
    state.database.execute("COMMIT")
    state.close()
    resumed = ingest_with(config)
    assert resumed.index().equals(kd3.ingest(source, tmp_path / "whole", image_size=16, workers=0).index())
