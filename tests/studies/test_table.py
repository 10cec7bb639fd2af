"""From finished runs to a table."""

import csv
import io
import json
import statistics

import pytest

from kd3.studies.plan import StudyFile, plan
from kd3.studies.table import RunResult, as_csv, as_json, lines, markdown, over_seeds


def result(row, seed, accuracy, seconds=100.0, history=(), **more):
    values = {
        "method": "kd3",
        "series": row,
        "x": None,
        "pool": "crawl",
        "agreement": accuracy - 10,
        "accuracy_at_end": accuracy - 1,
    }
    values |= {"kept_last": 50.0, "images": 1000, "history": tuple(history), "changed": {}}
    values |= {"run": {}, "machine": "EPYC", **more}
    return RunResult(row=row, seed=seed, accuracy=accuracy, seconds=seconds, **values)


def test_means_and_sample_deviations():
    table = lines([result("a", s, v) for s, v in enumerate((70.0, 72.0, 77.0))], ["a", "b"])
    assert [line.row for line in table] == ["a"]
    found = table[0].measures["accuracy"]
    assert (found.mean, found.count) == (73, 3)
    assert found.deviation == pytest.approx(statistics.stdev([70, 72, 77]))
    assert str(found) == "73.00 ± 3.61"


def test_one_seed_has_no_deviation():
    assert str(over_seeds([70.0])) == "70.00"
    assert over_seeds([]) is None
    assert over_seeds([1.0, None]) is None


def test_equal_time_is_that_of_the_quickest_row():
    slow = result("slow", 0, 80.0, 200.0, [(50, 40.0), (99, 60.0), (101, 65.0), (200, 80.0)])
    quick = result("quick", 0, 70.0, 100.0, [(100, 70.0)])
    table = {line.row: line.measures for line in lines([slow, quick], ["slow", "quick"])}
    assert table["slow"]["accuracy at equal time"].mean == 60.0
    assert table["quick"]["accuracy at equal time"].mean == 70.0


def test_without_labelled_images_there_is_agreement_alone():
    bare = result("a", 0, 1.0, accuracy_at_end=None)
    bare = RunResult(**{**vars(bare), "accuracy": None}) if hasattr(bare, "__dict__") else bare
    table = lines([bare], ["a"])
    assert "accuracy" not in table[0].measures
    assert "agreement" in table[0].measures


def test_page_csv_and_json_say_the_same():
    study = StudyFile(title="A | study", rows=[{"name": "a | b"}], about="Why.")
    planned = plan(study, {"teacher": "t", "student": "s", "pool": "-"}, ["crawl"])
    results = [result("a | b", s, v, changed={"blur": v - 20}) for s, v in enumerate((70.0, 72.0))]
    table = lines(results, planned.rows)
    page = markdown(planned, table, about="About.", notes=["A note."])
    assert "| a \\| b | 2 | 71.00 ± 1.41 |" in page
    assert "accuracy, blur" in page
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert float(rows[0]["accuracy mean"]) == 71
    assert float(rows[0]["accuracy, blur mean"]) == 51
    stored = json.loads(json.dumps(as_json(table, results)))
    assert stored["table"][0]["measures"]["accuracy"]["mean"] == 71
    assert len(stored["runs"]) == 2


def test_records_from_before_muon_left_classifiers_alone_do_not_stand_for_runs_of_today():
    from kd3.config.distill import DistillConfig
    from kd3.studies.table import what_was_run

    def made(**settings):
        config = DistillConfig(teacher="t", student="s", pool="p", out="o", **settings)
        return what_was_run(config, teacher="t", pool="p").get("muon_moves")

    assert (
        made(method="kd") == made(method="dfnd") == made(method="kd3", kd3={"classifier": "own"}) == "hidden matrices"
    )
    assert made(method="kd3") is made(method="simkd") is made(method="kd", train={"optimizer": "sgd"}) is None
