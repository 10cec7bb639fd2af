"""Correlating distances with accuracies over several studies."""

import json
from pathlib import Path

import pytest

from kd3.runtime.errors import KD3Error

ACCURACY = {"near": 80.0, "middle": 60.0, "far": 40.0, "farther": 20.0}
DISTANCE = {"near": 0.1, "middle": 0.2, "far": 0.3, "farther": 0.4}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


def foretold(files):
    from benchmarks.distance_and_accuracy import foretold

    return foretold(files)


def one_run(pool, accuracy, *, seed=0, share=1.0):
    return {
        "row": pool, "method": "kd3", "series": pool, "x": None, "pool": pool, "seed": seed, "agreement": 50.0,
        "accuracy": accuracy, "accuracy_at_end": accuracy, "kept_last": 100.0, "images": 100, "seconds": 1.0,
        "history": [], "changed": {}, "run": {"pool": f"content of {pool}", "train": {"share": share}}, "machine": "m",
    }  # fmt: skip


def study(path, runs, pools):
    distance = {
        name: {
            "batch_norms_last": DISTANCE[name],
            "batch_norms_mean": -DISTANCE[name],
            "confident_share": 0.5,
            "kept_share": 0.5,
            "effective_classes": 5.0,
        }
        for name in pools
    }
    path.write_text(json.dumps({"runs": runs, "distances": distance}))
    return path


def rho(found, measure):
    return {one.measure: one.rho for one in found}[measure]


def test_pools_of_several_studies_are_ranked_together(tmp_path):
    files = [
        study(tmp_path / f"{place}.json", [one_run(name, ACCURACY[name]) for name in names], names)
        for place, names in enumerate((("near", "far"), ("middle", "farther")))
    ]
    from benchmarks.distance_and_accuracy import table

    found = foretold(files)
    assert rho(found, "batch_norms_last") == pytest.approx(-1)
    assert rho(found, "batch_norms_mean") == pytest.approx(1)
    assert {one.pools for one in found} == {4}
    assert "| kd3 | 4 | -1.00" in table(found)


def test_a_pool_in_two_studies_is_one_point_and_its_seeds_are_averaged(tmp_path):
    whole = study(tmp_path / "a.json", [one_run(name, ACCURACY[name]) for name in ACCURACY], list(ACCURACY))
    again = study(tmp_path / "b.json", [one_run("near", 10.0, seed=1)], ["near"])
    found = foretold([whole, again])
    assert {one.pools for one in found} == {4}
    assert rho(found, "batch_norms_last") == pytest.approx(-0.8)  # near falls to 45, under middle


def test_a_random_part_of_a_pool_is_a_point_of_its_own_as_far_as_the_pool(tmp_path):
    runs = [*(one_run(name, ACCURACY[name]) for name in ACCURACY), one_run("near", 10.0, share=0.01)]
    found = foretold([study(tmp_path / "a.json", runs, list(ACCURACY))])
    assert {one.pools for one in found} == {5}
    assert rho(found, "batch_norms_last") > -0.5


def test_studies_that_measured_no_pool_are_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"runs": [one_run("near", 1.0)], "distances": None}))
    with pytest.raises(KD3Error, match="none of these studies measured its pools"):
        foretold([path])
