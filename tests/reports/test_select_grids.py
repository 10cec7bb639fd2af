"""The pictures: the right images in the right order at the right places, under names that files can have."""

import numpy as np
import pytest
from coloured_pools import CLASSES, colour_teacher, colours, pool_of
from PIL import Image

import kd3
from kd3.reports.selection_pictures import (
    LONGEST,
    Row,
    Tile,
    draw_overview,
    draw_sheet,
    file_names,
    grid_shape,
    ranks_apart,
    shortened,
    width_of,
)

CPU = {"device": "cpu", "precision": "32"}


def tiles(picture, place, count):
    """The colour in the middle of each tile."""
    return [picture.getpixel(tuple(np.add(place.corner(number), place.side // 2))) for number in range(count)]


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    images = colours(500)
    out = tmp_path_factory.mktemp("grids") / "out"
    return images, kd3.select(colour_teacher(), pool_of(images), out, threshold=0.9, images_per_grid=20, **CPU)


@pytest.mark.parametrize("label", range(3))
@pytest.mark.parametrize("what", ["kept", "refused"])
def test_grids_show_the_class_from_the_surest_down(selected, label, what):
    import pyarrow.parquet as parquet

    images, found = selected
    table = parquet.read_table(found.folder / "selection.parquet").to_pylist()
    own = [row for row in table if row["label"] == label and row["kept"] == (what == "kept")]
    own.sort(key=lambda row: (-row["confidence"], row["position"]))
    seen = ranks_apart(np.array([row["position"] for row in own], dtype=np.int64), 20)
    assert len(seen)
    stem = ["red", "green_ish", "blue"][label]
    picture = Image.open(found.folder / "grids" / f"{stem}-{what}.png")
    place = grid_shape(len(seen), 16, at_most=20)
    assert picture.size == place.size
    assert place.side == 64
    assert tiles(picture, place, len(seen)) == [tuple(images[at, :, 0, 0].tolist()) for at in seen]
    assert found.report["classes"][label]["grids"][what] == f"grids/{stem}-{what}.png"


def test_rescued_images_stand_framed_in_the_grid_of_the_class_they_are_for(tmp_path):
    images, teacher = colours(600), colour_teacher(shift=(0.0, 0.0, -50.0))
    found = kd3.select(teacher, pool_of(images), tmp_path / "out", **CPU)
    picture = Image.open(found.folder / "grids" / "blue-kept.png")
    place = grid_shape(2, 16, at_most=64)
    wanted = [tuple(images[at, :, 0, 0].tolist()) for at in found.report["classes"][2]["rescued"]]
    assert tiles(picture, place, 2) == wanted
    left, top = place.corner(0)
    assert picture.getpixel((left - 2, top + 9)) == (0xC7, 0x77, 0x00)
    assert picture.getpixel((left + 3 * 72 + 32, top + 32)) == (255, 255, 255)


def test_of_many_classes_those_of_which_most_is_kept_are_drawn_and_it_is_said(tmp_path):
    found = kd3.select(colour_teacher(), pool_of(colours(200)), tmp_path / "out", grid_classes=1, **CPU)
    drawn = [entry for entry in found.report["classes"] if entry["grids"]]
    assert [entry["kept"] for entry in drawn] == [max(entry["kept"] for entry in found.report["classes"])]
    assert len(list((found.folder / "grids").iterdir())) == 3
    assert "of the 1 classes with most kept (more: --grid-classes)" in str(found)


def test_without_grids_there_is_the_overview(tmp_path):
    found = kd3.select(colour_teacher(), pool_of(colours(30)), tmp_path / "out", images_per_grid=0, **CPU)
    assert [path.name for path in (found.folder / "grids").iterdir()] == ["overview.png"]


def test_images_are_spread_from_first_to_last():
    ranked = np.arange(100)[::-1]
    chosen = ranks_apart(ranked, 12)
    assert (chosen[0], chosen[-1], len(set(chosen.tolist()))) == (99, 0, 12)
    assert set(np.diff(chosen).tolist()) <= {-9, -8, -10}
    assert ranks_apart(ranked, 100) is ranked
    assert ranks_apart(ranked, 1).tolist() == [99]


@pytest.mark.parametrize(("size", "side"), [(8, 64), (28, 56), (32, 64), (48, 48), (64, 64), (96, 96), (224, 128)])
def test_small_images_are_enlarged_by_a_whole_factor_and_large_ones_reduced(size, side):
    place = grid_shape(9, size, at_most=64)
    assert place.side == side
    assert (place.columns, place.rows) == (8, 2)
    image = np.zeros((3, size, size), dtype=np.uint8)
    image[0] = 255
    picture = draw_sheet("t", ["one", "two"], [Tile(image, "0.5")] * 9, place=place)
    assert picture.size == place.size
    assert tiles(picture, place, 9) == [(255, 0, 0)] * 9


def test_nothing_is_written_over_the_edge():
    place = grid_shape(0, 32, at_most=64)
    picture = draw_sheet("a very long class name " * 20, ["a long line " * 40], [], place=place)
    assert (np.asarray(picture)[:, -20:] == 255).all()
    row = Row("a very long class name " * 20, 10, 5, 0.5, rescued=123_456)
    overview = np.asarray(draw_overview("t", ["x"], [row, Row("", 0, 0, 0.0)]))
    for edge in (overview[:, -20:], overview[:, :20], overview[-8:]):
        assert (edge == 255).all()


def test_long_text_is_cut_with_dots():
    cut = shortened("word " * 50, 13, 100)
    assert cut.endswith("...")
    assert width_of(cut, 13) <= 100
    assert shortened("two\nlines", 13, 500) == "two lines"


def test_file_names_are_safe_and_differ():
    names = ["a b", "a_b", "A_B", "../../etc/passwd", "", ".", "é", "e\u0301", "海", "x" * 500, "x" * 501, "con:*?"]
    found = file_names(names)
    assert len({name.casefold() for name in found}) == len(names)
    for name in found:
        assert name
        assert not name.startswith(".")
        assert not set(name) & set('/\\:*?"<>| ')
        assert len(name.encode()) <= LONGEST + 8
    assert file_names(["cat", "dog"]) == ["cat", "dog"]
    assert file_names(["a", "a-2", "A"])[2] not in ("a", "a-2")
    assert CLASSES[1] == "green/ish"
