"""All data of the demo, written below one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kd3.demo.crawl import Crawl, write_crawl
from kd3.demo.digits import write_lost_data
from kd3.demo.extras import check_extras

CRAWLED_IMAGES = 6_000


@dataclass(frozen=True)
class DemoData:
    """Locations of the lost data and the crawl."""

    lost_train: Path  # the teacher's training data; nothing else may read it
    lost_test: Path  # unused until the end
    crawl: Crawl


def make_lost_data_and_crawl(folder: Path, *, seed: int, images: int = CRAWLED_IMAGES) -> DemoData:
    """Write `lost/`, `crawl/` and `crawl-truth.csv` below `folder`; same seed, same bytes.

    Raises:
        KD3Error: scikit-learn or matplotlib is not installed.
    """
    check_extras()
    train, test = write_lost_data(folder / "lost", seed=seed)
    return DemoData(lost_train=train, lost_test=test, crawl=write_crawl(folder, images=images, seed=seed))
