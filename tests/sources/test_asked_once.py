"""An ingest asks once for what its sources are: folders are listed once, files are looked into once."""

from collections import Counter

import fsspec
import numpy as np
import pytest
from PIL import Image

import kd3
from kd3.pool import ingestion
from kd3.sources import batches, finding

FILES = 60
MEMORY = type(fsspec.filesystem("memory"))


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """A crawl of files without suffixes, whose contents tell what they are."""
    folder, draw = tmp_path_factory.mktemp("crawl"), np.random.default_rng(0)
    for number in range(FILES):
        pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}", format="png")
    return folder


@pytest.fixture
def far(crawl):
    """The same behind a URL."""
    system = fsspec.filesystem("memory")
    for path in crawl.iterdir():
        system.pipe_file(f"/asked/{path.name}.png", path.read_bytes())
    yield "memory://asked"
    system.rm("/asked", recursive=True)


@pytest.fixture
def asked(monkeypatch):
    """Count listings, requests and looks into files, in an ingest that lasts so long that its files are counted."""
    counts = Counter()

    def counted(owner, name, what):
        real = getattr(owner, name)

        def call(*arguments, **named):
            counts[what] += 1
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, call)

    counted(finding, "walk", "listed")
    counted(finding, "is_text", "looked into")
    counted(batches, "opened", "looked into")
    for name in ("find", "ls", "info"):
        counted(MEMORY, name, name)
    monkeypatch.setattr(ingestion, "PATIENCE", 0.0)
    return counts


def make(sources, out, **settings):
    return kd3.ingest(sources, out, image_size=16, workers=0, **{"quiet": True, **settings})


def test_a_folder_is_listed_once_and_each_file_looked_into_once(crawl, asked, tmp_path):
    assert len(make(crawl, tmp_path / "pool")) == FILES
    assert asked == {"listed": 1, "looked into": FILES}


def test_files_that_are_given_are_looked_into_once(crawl, asked, tmp_path):
    assert len(make(sorted(crawl.iterdir()), tmp_path / "pool")) == FILES
    assert asked == {"looked into": FILES}


def test_a_list_is_looked_into_once(crawl, asked, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(str(path) for path in sorted(crawl.iterdir())))
    assert len(make(tmp_path / "list.txt", tmp_path / "pool", trust_entries=True)) == FILES
    assert asked == {"looked into": 1 + FILES}


@pytest.mark.parametrize("settings", [{}, {"quiet": False}, {"shard": "1/3"}])
def test_a_folder_behind_a_url_is_listed_once(settings, far, asked, tmp_path):
    assert len(make(far, tmp_path / "pool", **settings)) == FILES // (3 if "shard" in settings else 1)
    assert (asked["find"], asked["glob"], asked["info"]) == (1, 0, 1)


def test_so_is_one_of_images_to_keep_out(far, crawl, asked, tmp_path):
    with pytest.raises(kd3.KD3Error):
        make(crawl, tmp_path / "pool", keep_out=[far])  # keeps out everything
    assert (asked["find"], asked["listed"]) == (1, 1)


def test_urls_with_stars_are_one_request_and_not_one_for_each(far, asked, tmp_path):
    assert len(make(f"{far}/*.png", tmp_path / "pool")) == FILES
    assert asked["ls"] == 1
    assert asked["info"] <= 2  # of the folder


def test_a_part_of_a_local_folder_is_listed_to_count_it_and_to_read_it(crawl, asked, tmp_path):
    assert len(make(crawl, tmp_path / "pool", shard="2/3")) == FILES // 3
    assert asked["listed"] == 2


def test_counting_beside_reading_lists_a_url_once_for_both(far, asked):
    found = finding.expand([far])
    assert len(list(finding.counts(found))) == len(list(finding.find(found))) == FILES
    assert (asked["find"], asked["info"]) == (1, 1)


def test_files_are_not_counted_for_progress_that_nobody_sees(crawl, tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(ingestion, "_count", lambda *more: counted.append(more))
    make(crawl, tmp_path / "quiet")
    assert not counted
    make(crawl, tmp_path / "shown", quiet=False)
    assert counted
