"""Correlation of pools' distances with students' accuracy."""

import json
from dataclasses import asdict, replace

import pytest

import kd3
from kd3.runtime.compute import resolve
from kd3.studies.known_runs import KnownRuns
from kd3.studies.pools import PoolDistance, correlations, page, pool_distances
from kd3.studies.table import RunResult


def result(pool, accuracy, method="kd3", seed=0):
    return RunResult(
        row=pool, method=method, series=pool, x=None, pool=pool, seed=seed, agreement=50.0, accuracy=accuracy,
        accuracy_at_end=accuracy, kept_last=None, images=10, seconds=1.0, history=(), changed={}, run={},
        machine="EPYC",
    )  # fmt: skip


def distance(value):
    return PoolDistance(value, 1.0, 1 - value, value**2, 5.0)


POOLS = {name: distance(value) for name, value in zip("abcd", (0.1, 0.2, 0.3, 0.4), strict=True)}


def test_a_distance_that_grows_as_accuracy_falls_is_minus_one():
    results = [result(name, 90 - 10 * number, seed=s) for number, name in enumerate("abcd") for s in (0, 1)]
    found = {c.measure: c for c in correlations(results, POOLS)}
    assert found["batch_norms_last"].rho == pytest.approx(-1)
    assert found["confident_share"].rho == pytest.approx(1)
    assert found["kept_share"].pools == 4
    assert "batch_norms_mean" not in found  # the same for all: it says nothing
    shown = "\n".join(page(POOLS, list(found.values())))
    assert "| kd3 | batch norms last | -1.00 |" in shown


def test_methods_are_told_apart_and_few_pools_say_nothing():
    results = [result(name, 50 + number) for number, name in enumerate("abcd")]
    results += [result(name, 40, method="kd") for name in "abc"]
    assert {c.method for c in correlations(results, POOLS)} == {"kd3"}
    assert correlations(results[:3], POOLS) == []


def test_each_pool_is_measured_once(teacher_file, pool_folder, tmp_path, monkeypatch):
    pools, compute = {"crawl": kd3.ImagePool.open(pool_folder)}, resolve("cpu", "32")
    teacher = kd3.load_teacher(teacher_file)
    first = pool_distances(tmp_path / "d", pools, teacher, compute)
    monkeypatch.setattr("kd3.studies.pools.measure", lambda *_, **__: pytest.fail("measured again"))
    assert pool_distances(tmp_path / "d", pools, teacher, compute) == first
    assert 0 <= first["crawl"].confident_share <= 1
    assert first["crawl"].batch_norms_last > 0


def test_what_was_measured_elsewhere_is_taken_over(tmp_path):
    of_pool = replace(result("b", 80), run={"teacher": "t", "pool": "hash of b"})
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"runs": [asdict(of_pool)], "distances": {"b": asdict(POOLS["b"])}}))
    records = KnownRuns([str(file)])
    assert records.distance("t", "hash of b") == POOLS["b"]
    assert records.distance("another teacher", "hash of b") is None
    assert records.distance("t", "hash of a pool that changed") is None


def test_a_recorded_pool_is_not_measured(teacher_file, pool_folder, tmp_path, monkeypatch):
    pool = kd3.ImagePool.open(pool_folder)
    monkeypatch.setattr("kd3.studies.pools.measure", lambda *_, **__: pytest.fail("measured"))
    recorded = {pool.content_hash: POOLS["c"]}.get
    found = pool_distances(tmp_path, {"x": pool}, kd3.load_teacher(teacher_file), resolve("cpu", "32"), recorded)
    assert found == {"x": POOLS["c"]}
