"""Characters drawn in the fonts that matplotlib ships."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from kd3.demo.pictures import DIGITS, LETTERS, Placement, draw_glyph, find_typefaces, place_glyph, wobble

STRAIGHT = Placement(height=0.5, turn=0, shear=0, stretch=1, shift=(0, 0))
DIGIT_FONTS = find_typefaces().fonts_of["0"]


def centre(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask > 127)
    return float(columns.mean()), float(rows.mean())


def test_there_are_many_fonts_and_all_have_all_digits_and_letters() -> None:
    assert len(DIGIT_FONTS) >= 15
    assert all(find_typefaces().fonts_of[character] == DIGIT_FONTS for character in DIGITS + LETTERS)


@pytest.mark.parametrize("font", DIGIT_FONTS, ids=lambda path: path.stem)
def test_a_font_draws_ten_different_digits(font: Path) -> None:
    assert len({draw_glyph(digit, font).tobytes() for digit in DIGITS}) == 10


def test_a_placed_glyph_has_the_height_and_the_place_asked_for() -> None:
    zero = draw_glyph("0", DIGIT_FONTS[0])
    middle = np.asarray(place_glyph(zero, (80, 80), STRAIGHT))
    assert (middle.max(axis=1) > 127).sum() == pytest.approx(40, abs=2)
    assert centre(middle) == pytest.approx((39.5, 39.5), abs=1)
    moved = Placement(height=0.5, turn=0, shear=0, stretch=1, shift=(0.2, -0.1))
    assert centre(np.asarray(place_glyph(zero, (80, 80), moved))) == pytest.approx((55.5, 31.5), abs=1)


def test_a_quarter_turn_lays_a_glyph_on_its_side() -> None:
    one = draw_glyph("1", DIGIT_FONTS[0])
    lying = Placement(height=0.5, turn=90, shear=0, stretch=1, shift=(0, 0))
    upright = np.asarray(place_glyph(one, (80, 80), STRAIGHT)).max(axis=0)
    turned = np.asarray(place_glyph(one, (80, 80), lying)).max(axis=1)
    assert (turned > 127).sum() == pytest.approx((upright > 127).sum(), abs=1)


def test_a_wobble_of_no_strength_changes_nothing() -> None:
    mask = place_glyph(draw_glyph("5", DIGIT_FONTS[0]), (60, 60), STRAIGHT)
    assert np.array_equal(wobble(mask, random.Random(0), strength=0), mask)
