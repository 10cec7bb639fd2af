"""Pools made from pools: their images, their use as ordinary pools, and kills."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import kd3
from kd3.pool import ImagePool, derive_pool
from kd3.pool.changes import change_images
from kd3.runtime.errors import KD3Error


@pytest.fixture
def pool(pool_folder):
    return ImagePool.open(pool_folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("other")
    for number in range(80):
        Image.new("RGB", (20, 20), (number, 255, 0)).save(folder / f"{number:03d}.png")
    return kd3.ingest(folder, tmp_path_factory.mktemp("pools") / "other", image_size=16, workers=0)


def keys(pool):
    return [key for (key,) in pool.index_rows(("key",))]


def test_a_share_is_a_pool_of_that_many_images_in_order(pool, tmp_path):
    half = derive_pool(pool, tmp_path / "half", share=0.5)
    assert len(half) == 60
    assert half.verify() == []
    place = {key: number for number, key in enumerate(keys(pool))}
    positions = [place[key] for key in keys(half)]
    assert positions == sorted(positions)
    np.testing.assert_array_equal(half.read(slice(0, 60)), pool.read(np.array(positions)))


def test_smaller_shares_lie_within_larger_ones(pool, tmp_path):
    shares = [set(keys(derive_pool(pool, tmp_path / str(share), share=share))) for share in (0.001, 0.05, 0.2, 1.0)]
    assert [len(share) for share in shares] == [1, 6, 24, 120]
    assert shares[0] < shares[1] < shares[2] < shares[3]
    elsewhere = derive_pool(pool, tmp_path / "seed", share=0.2, seed=1)
    assert set(keys(elsewhere)) != shares[2]


def test_images_can_be_left_out(pool, tmp_path):
    rest = derive_pool(pool, tmp_path / "rest", without=np.arange(0, 120, 2))
    assert keys(rest) == keys(pool)[1::2]
    with pytest.raises(KD3Error, match="all 120 images are left out"):
        derive_pool(pool, tmp_path / "none", without=np.arange(120))
    with pytest.raises(KD3Error, match="position 120 cannot be left out"):
        derive_pool(pool, tmp_path / "none", without=np.array([120]))
    assert not (tmp_path / "none").exists()


def test_a_change_is_applied_to_every_image(pool, tmp_path):
    noisy = derive_pool(pool, tmp_path / "noisy", change="noise", strength=0.1, seed=3)
    expected = change_images("noise", 0.1, pool.read(slice(0, 120)), np.arange(120), 3)
    np.testing.assert_array_equal(noisy.read(slice(0, 120)), expected)
    assert noisy.verify() == []
    assert noisy.content_hash != pool.content_hash
    same = derive_pool(pool, tmp_path / "same", change="noise", strength=0.0)
    assert same.content_hash == pool.content_hash


def test_another_pools_images_take_the_places_of_a_part(pool, other, tmp_path):
    mixed = derive_pool(pool, tmp_path / "mixed", mixed_with=other, mixed_share=0.25)
    assert len(mixed) == 120
    assert mixed.verify() == []
    foreign = (mixed.read(slice(0, 120))[:, 1] == 255).all(axis=(1, 2)) & (mixed.read(slice(0, 120))[:, 2] == 0).all(
        axis=(1, 2)
    )
    assert foreign.sum() == 30
    sources = {source for (source,) in mixed.index_rows(("source",))}
    assert len(sources) == 2
    with pytest.raises(KD3Error, match="needs 120 images, but the pool to mix with has 80"):
        derive_pool(pool, tmp_path / "all", mixed_with=other, mixed_share=1)


def test_the_second_call_returns_it_and_another_request_is_refused(pool, tmp_path):
    first = derive_pool(pool, tmp_path / "half", share=0.5)
    stamp = (tmp_path / "half" / "manifest.json").stat().st_mtime_ns
    assert derive_pool(pool, tmp_path / "half", share=0.5).content_hash == first.content_hash
    assert (tmp_path / "half" / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(KD3Error, match="share"):
        derive_pool(pool, tmp_path / "half", share=0.4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"share": 0}, "share"),
        ({"share": 1.5}, "share"),
        ({"change": "blurr", "strength": 0.1}, "did you mean 'blur'"),
        ({"change": "jpeg", "strength": 2}, "may be 0 to 1"),
        ({"strength": 0.5}, "needs the name of a change"),
        ({"mixed_share": 0.5}, "needs a pool to mix with"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_settings_leave_nothing_behind(settings, words, pool, tmp_path):
    with pytest.raises(KD3Error, match=words):
        derive_pool(pool, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_pools_of_two_sizes_cannot_be_mixed_and_foreign_folders_stay(pool, crawl, tmp_path):
    large = kd3.ingest(crawl, tmp_path / "large", image_size=20, workers=0)
    with pytest.raises(KD3Error, match="20 pixels, which cannot be mixed with the 16"):
        derive_pool(pool, tmp_path / "out", mixed_with=large, mixed_share=0.5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(KD3Error, match="mine"):
        derive_pool(pool, tmp_path / "mine", share=0.5)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


SLOW = """
import sys, time
import kd3.pool.derive as derive
plain = derive._pixels
def slow(*arguments):
    images = plain(*arguments)
    print("going", flush=True)
    time.sleep(60)
    return images
derive._pixels = slow
derive.derive_pool(sys.argv[1], sys.argv[2], share=0.5)
"""


def test_a_killed_derivation_is_no_pool_and_the_same_call_makes_it(pool, pool_folder, tmp_path):
    out = tmp_path / "half"
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(pool_folder), str(out)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"going\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with pytest.raises(KD3Error):
        ImagePool.open(out)
    time.sleep(0.1)
    assert derive_pool(pool, out, share=0.5).verify() == []


def test_labels_are_the_last_folders_of_the_keys(tmp_path):
    from PIL import Image

    for number, name in enumerate(["cat", "ship", "cat"]):
        (tmp_path / "data" / "train" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number, 9, 9)).save(tmp_path / "data" / "train" / name / f"{number}.png")
    pool = kd3.ingest(tmp_path / "data", tmp_path / "pool", image_size=16, workers=0)
    by_key = dict(zip(keys(pool), pool.labels(["ship", "cat"]).tolist(), strict=True))
    assert by_key == {"train/cat/0.png": 1, "train/cat/2.png": 1, "train/ship/1.png": 0}
    with pytest.raises(KD3Error, match=r"folders that are no classes of the model: 'ship'; its classes are 'cat'"):
        pool.labels(["cat"])
