"""Forecast of a student's accuracy, by a test calibration and by kd3's own."""

import json
import math
from dataclasses import replace
from importlib import resources

import pytest

from kd3.evaluation.shift_verdict import FEW, Calibration, errors_on_pools_left_out, forecast, shipped

OURS = Calibration(
    zero=0.1, student=0.0, distance=2.0, classes=0.5, budget=1000.0, pool=10.0, spread=(0.5, 2.0), farthest=0.6,
    fewest=1 / 7, farthest_of_few=0.2,
)  # fmt: skip


def foretold(distance=0.1, effective=8.0, images=10**12, trained=10**12):
    return forecast(distance, effective, classes=8, images=images, trained=trained, calibration=OURS)


def test_original_images_in_abundance_cost_nothing():
    said = foretold()
    assert said.expected == pytest.approx(1)
    assert (said.lost, said.beyond) == (0, False)
    assert foretold(distance=0.0) == said


@pytest.mark.parametrize(
    ("change", "loss"),
    [
        ({"distance": 0.4}, 0.6),
        ({"effective": 4.0}, 0.5 * math.log(2)),
        ({"images": 100}, 0.1),
        ({"trained": 5000}, 0.2),
        ({"distance": 0.2, "effective": 4.0, "trained": 10_000}, 0.2 + 0.5 * math.log(2) + 0.1),
    ],
)
def test_each_part_costs_what_its_weight_says(change, loss):
    said = foretold(**change)
    assert -math.log(said.expected) == pytest.approx(loss, abs=1e-5)
    assert -math.log(said.low) == pytest.approx(2 * loss, abs=1e-5)
    assert -math.log(said.high) == pytest.approx(loss / 2, abs=1e-5)


def test_a_smaller_network_costs_something_without_any_shift():
    said = forecast(0.1, 8.0, classes=8, images=10**12, trained=10**12, calibration=replace(OURS, student=0.3))
    assert -math.log(said.expected) == pytest.approx(0.3, abs=1e-5)
    assert said.lost == 0


def test_only_distance_and_classes_are_the_shifts_fault():
    assert foretold(images=100, trained=5000).lost == 0
    assert foretold(distance=0.3).lost == pytest.approx(1 - math.exp(-0.4))


def test_what_is_farther_than_anything_tried_may_end_at_chance():
    assert foretold(distance=0.61).beyond
    assert foretold(effective=1.9).beyond
    assert foretold(distance=0.61).low <= 1 / 8
    assert not foretold(distance=0.6, effective=2.0).beyond


def test_few_images_may_be_less_far_than_many():
    assert foretold(distance=0.21, images=FEW - 1).beyond
    assert not foretold(distance=0.21, images=FEW).beyond
    assert not foretold(distance=0.2, images=FEW - 1).beyond


def test_the_shipped_calibration_orders_pools_and_keeps_ranges_sound():
    known = shipped()
    assert min(known.distance, known.budget, known.pool) > 0
    assert known.classes >= 0
    assert known.spread[0] < 1 < known.spread[1]
    said = [forecast(d, 9.0, classes=10, images=30_000) for d in (0.03, 0.1, 0.3)]
    assert [one.expected for one in said] == sorted((one.expected for one in said), reverse=True)
    assert all(0 < one.low < one.expected < one.high < 1 for one in said)


def test_the_shipped_calibration_tells_where_it_comes_from():
    about = json.loads((resources.files("kd3.evaluation") / "calibration.json").read_text())
    assert about["made_by"] == "python -m benchmarks.shift_calibration"
    pools = {point["content"] for point in about["points"]}
    assert len(pools) == errors_on_pools_left_out()["pools"] >= 12
    assert {point["pool"] for point in about["points"]} >= {"original", "crawl", "blur 0.05", "edge drawings"}
