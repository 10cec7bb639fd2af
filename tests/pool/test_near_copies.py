"""Near copies: invariants of the hash, results of the index, and the decision."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.fft import dctn, idctn

from kd3.pool.near_copies import (
    LUMA,
    MOST_BITS,
    HashIndex,
    NearCopies,
    bits_between,
    copies_within,
    perceptual_hashes,
    thumbnails,
)


def photographs(count, side, seed=0):
    """Smooth random pictures, none like another: (count, 3, side, side) uint8."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 9, 9, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in small])


def hashed(pictures):
    return perceptual_hashes(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))


def of_side(image, side):
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


@pytest.mark.parametrize("side", [32, 64])
def test_the_hash_is_the_signs_of_the_low_cosines(side):
    pictures = photographs(5, side)
    for picture, value in zip(pictures, hashed(pictures), strict=True):
        grey = picture.astype(np.float64) @ LUMA
        grey = grey.reshape(32, side // 32, 32, side // 32).mean(axis=(1, 3))
        waves = dctn(grey, type=2)[:8, :8]
        # scipy's cosines are twice ours in each direction, in all places: signs about the median stay.
        waves = waves.ravel()[1:]
        bits = waves > np.sort(waves)[31]
        assert format(int(value), "064b") == "0" + "".join("01"[int(bit)] for bit in bits)


@pytest.mark.parametrize(
    "edit",
    [
        lambda image: image.resize((40, 40), Image.Resampling.BICUBIC),
        lambda image: ImageEnhance.Brightness(image).enhance(1.15),
        lambda image: ImageEnhance.Contrast(image).enhance(0.7),
        lambda image: image.convert("L").convert("RGB"),
        lambda image: image.crop((1, 1, 63, 63)),
    ],
    ids=["smaller", "brighter", "flatter", "grey", "cropped"],
)
def test_edited_copies_are_found_and_nothing_else(edit):
    pictures = [Image.fromarray(picture) for picture in photographs(40, 64)]
    known = np.stack([of_side(picture, 32) for picture in pictures])
    edited = np.stack([of_side(edit(picture), 32) for picture in pictures])
    near = NearCopies(lambda places: thumbnails(known[places]))
    near.add(perceptual_hashes(known))
    found = near.find(perceptual_hashes(edited), lambda places: thumbnails(edited[places]))
    assert {place: copy.place for place, copy in found.items()} == {place: place for place in range(40)}


def test_equal_hashes_are_not_enough():
    """Signs of frequencies may be the same by chance where few of them are strong; looks differ then."""
    rng = np.random.default_rng(1)
    signs = rng.choice([-1.0, 1.0], (8, 8))
    pictures = []
    for _ in range(6):
        waves = np.zeros((32, 32))
        waves[:8, :8] = signs * rng.lognormal(sigma=2, size=(8, 8))
        waves[0, 0] = 0
        grey = idctn(waves, type=2)
        pictures.append(np.broadcast_to(127 + 127 * grey / np.abs(grey).max(), (3, 32, 32)).round().astype(np.uint8))
    images = np.stack(pictures)
    hashes = perceptual_hashes(images)
    assert (bits_between(hashes, hashes[0]) <= MOST_BITS).sum() > 1
    assert copies_within(hashes, images) == {}


def test_a_mirrored_image_is_another():
    pictures = photographs(20, 32)
    images = np.ascontiguousarray(np.concatenate([pictures, pictures[:, :, ::-1]]).transpose(0, 3, 1, 2))
    assert copies_within(perceptual_hashes(images), images) == {}


def test_the_index_finds_what_a_comparison_of_all_finds(monkeypatch):
    monkeypatch.setattr("kd3.pool.near_copies.NEW", 500)
    monkeypatch.setattr("kd3.pool.near_copies.PAIRS", 700)  # candidates come in many pieces
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 1_800, dtype=np.uint64)
    for bits in range(1, 14):  # pairs at each distance, spread over all quarters
        for place in range(20):
            flips = rng.choice(63, bits, replace=False).astype(np.uint64)
            hashes[100 * bits + place] = hashes[place] ^ np.bitwise_or.reduce(np.uint64(1) << flips)
    index = HashIndex()
    for start in range(0, len(hashes), 130):
        index.add(hashes[start : start + 130])
    assert 0 < index._in_tables < len(index) == 1_800, "some in tables, some not"
    query, place, bits = index.near(hashes[:300])
    apart = bits_between(hashes[:300, None], hashes)
    expected_query, expected_place = np.nonzero(apart <= MOST_BITS)
    assert len(query) > 300 + 180
    np.testing.assert_array_equal(query, expected_query)
    np.testing.assert_array_equal(place, expected_place)
    np.testing.assert_array_equal(bits, apart[expected_query, expected_place])


def test_of_a_chain_of_copies_the_first_stays():
    picture = Image.fromarray(photographs(1, 64)[0])
    images = np.stack([of_side(ImageEnhance.Contrast(picture).enhance(c), 32) for c in (1.0, 0.9, 0.8)])
    found = copies_within(perceptual_hashes(images), images)
    assert {place: copy.place for place, copy in found.items()} == {1: 0, 2: 0}
    assert {p: c.place for p, c in copies_within(perceptual_hashes(images), images, gone={0}).items()} == {2: 1}
