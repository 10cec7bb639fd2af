"""Recognition of image arrays, with unchanged pixels."""

import numpy as np
import pytest
from pool_containers import flat, npy_of, npz_of, pictures

from kd3.pool.decode import Decoded, DecodeSettings, decode
from kd3.sources.finding import records
from kd3.sources.record import InMemory, Layout, NoImages, Pixels, images_in

UINT8 = np.dtype("uint8")


@pytest.mark.parametrize(
    ("shape", "count", "layout"),
    [
        ((5, 20, 30, 3), 5, Layout(20, 30, 3)),
        ((5, 3, 20, 30), 5, Layout(20, 30, 3, planes=True)),
        ((5, 20, 30, 1), 5, Layout(20, 30, 1)),
        ((5, 1, 20, 30), 5, Layout(20, 30, 1, planes=True)),
        ((5, 20, 30, 4), 5, Layout(20, 30, 4)),
        ((5, 4, 20, 30), 5, Layout(20, 30, 4, planes=True)),
        ((5, 20, 30), 5, Layout(20, 30, 1)),
        ((3, 20, 30), 3, Layout(20, 30, 1)),  # three grey images, not the planes of one
        ((20, 30, 3), 1, Layout(20, 30, 3)),
        ((5, 3, 20, 3), 5, Layout(3, 20, 3)),  # channels last come first
    ],
)
def test_shapes_of_images(shape: tuple[int, ...], count: int, layout: Layout) -> None:
    assert images_in("", shape, UINT8) == (count, layout)


def test_rows_of_planes_are_images_where_they_are_called_data() -> None:
    assert images_in("data", (7, 3072), UINT8) == (7, Layout(32, 32, 3, planes=True))
    with pytest.raises(NoImages, match=r"its shape is \(7, 3072\)"):
        images_in("x", (7, 3072), UINT8)


@pytest.mark.parametrize("shape", [(), (7,), (20, 30), (2, 20, 30, 5), (1, 2, 20, 30, 3), (0, 20, 20, 3), (4, 0, 9, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(NoImages, match="its shape is"):
        images_in("", shape, UINT8)
    with pytest.raises(NoImages):
        images_in("data", (7, 3000), UINT8)


@pytest.mark.parametrize(
    ("kind", "advice"),
    [("float32", "* 255"), ("bool", "* 255"), ("uint16", "// 257"), ("int64", "// 257"), ("int8", "astype('uint8')")],
)
def test_other_values_are_refused_with_how_to_convert_them(kind: str, advice: str) -> None:
    with pytest.raises(NoImages, match=f"its values are {kind}, not uint8") as problem:
        images_in("", (2, 20, 20, 3), np.dtype(kind))
    assert advice in str(problem.value)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_pixels_come_through_unchanged(channels: int, planes: bool, compressed: bool, tmp_path) -> None:
    draw = np.random.default_rng(0).integers(0, 256, (4, 17, 23, channels), dtype=np.uint8)
    if channels == 4:
        draw[..., 3] = 255
    array = np.ascontiguousarray(draw.transpose(0, 3, 1, 2)) if planes else draw
    found = list(records([str(npz_of(tmp_path / "a.npz", compressed=compressed, x=array))]))
    assert {type(record.location) for record in found} == {InMemory if compressed else Pixels}
    for record, image in zip(found, draw, strict=True):
        result = decode(record.location.read(), DecodeSettings(17))
        assert isinstance(result, Decoded)
        expected = np.broadcast_to(image, (17, 23, 3)) if channels == 1 else image[..., :3]
        np.testing.assert_array_equal(result.pixels, expected[:, 3:20].transpose(2, 0, 1))
        assert (result.width, result.height) == (23, 17)


def test_equal_images_are_equal_files_whatever_the_array(tmp_path) -> None:
    images = pictures(3)
    places = [
        npy_of(tmp_path / "a.npy", images),
        npy_of(tmp_path / "b.npy", images.transpose(0, 3, 1, 2).copy()),
        npz_of(tmp_path / "c.npz", compressed=True, data=flat(images)),
    ]
    found = [[record.location.read() for record in records([str(place)])] for place in places]
    assert found[0] == found[1] == found[2] == [b"P6\n32 32\n255\n" + image.tobytes() for image in images]


def test_alpha_of_an_array_lies_over_white(tmp_path) -> None:
    array = np.full((1, 20, 20, 4), (0, 0, 0, 51), dtype=np.uint8)
    (record,) = records([str(npy_of(tmp_path / "a.npy", array))])
    result = decode(record.location.read(), DecodeSettings(16))
    assert isinstance(result, Decoded)
    assert result.pixels[:, 8, 8].tolist() == [204] * 3
