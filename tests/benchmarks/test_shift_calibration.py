"""A calibration finds a curve that runs were made from, and foretells pools that it has not seen."""

import json
import math
from pathlib import Path

import pytest

from kd3.runtime.errors import KD3Error

TEACHER = "t"
DISTANCES = [0.03, 0.05, 0.08, 0.12, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45]
CLASSES = [9.5, 5.0, 8.0, 3.0, 6.0, 9.0, 2.0, 7.0, 4.0, 8.5]
LARGE, SMALL = 20_000, 4_000


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


def one_run(place, *, seed=0, options=None, off=0.0, init="inherit"):
    trained = 50_000 if place % 2 else 100_000
    trained_on = 0.9 * (SMALL if place % 3 else LARGE) if place % 3 else LARGE - 1000
    loss = 3 * (DISTANCES[place] - 0.02) + 0.2 * math.log(10 / CLASSES[place]) + 5000 / trained + 40 / trained_on
    return {
        "row": "r", "method": "kd3", "pool": f"pool{place}", "seed": seed, "images": trained,
        "accuracy": 80 * math.exp(-loss) + off,
        "run": {
            "teacher": TEACHER, "pool": f"content{place}", "init": init, "options": options or {"a": 1},
            "train": {"images": 9},
        },
    }  # fmt: skip


def files(tmp_path, runs):
    places = range(len(DISTANCES))
    pairs = zip(DISTANCES, CLASSES, strict=True)
    distances = {f"pool{n}": {"batch_norms_mean": d, "effective_classes": c} for n, (d, c) in enumerate(pairs)}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"runs": runs, "distances": distances}))
    measured = {
        "teachers": {TEACHER: {"accuracy": 80.0}},
        "classes": 10,
        "distances": [],
        "images": {f"content{n}": SMALL for n in places if n % 3},
        "images_of_others": LARGE,
    }
    return [path], measured


def test_the_curve_that_runs_were_made_from_is_found_and_foretells_left_out_pools(tmp_path):
    from benchmarks.shift_calibration import calibrated, points

    found = points(*files(tmp_path, [one_run(place) for place in range(len(DISTANCES))]))
    curve, tested = calibrated(found, 0.02)
    assert (curve.distance, curve.classes, curve.budget, curve.pool) == pytest.approx((3, 0.2, 5000, 40), rel=1e-4)
    assert (curve.farthest, curve.fewest) == (0.45, pytest.approx(1 / 9))
    assert all(said == pytest.approx(point.accuracy, abs=1e-4) for point, said in tested)


def test_seeds_are_averaged_and_rows_with_other_settings_left_out(tmp_path):
    from benchmarks.shift_calibration import points

    runs = [one_run(place) for place in range(len(DISTANCES))]
    others = [one_run(4, seed=2, options={"a": 2}, off=-30), one_run(4, seed=3, init="random", off=-30)]
    extra = [one_run(4, seed=1, off=8.0), *others]
    plain = {point.pool: point for point in points(*files(tmp_path, runs))}
    more = {point.pool: point for point in points(*files(tmp_path, [*extra, *runs]))}
    assert more["pool4"].seeds == 2
    assert more["pool4"].accuracy == pytest.approx(plain["pool4"].accuracy + 0.05)


def test_too_few_pools_are_refused(tmp_path):
    from benchmarks.shift_calibration import points

    with pytest.raises(KD3Error, match="too few for a curve"):
        points(*files(tmp_path, [one_run(0), one_run(1)]))
