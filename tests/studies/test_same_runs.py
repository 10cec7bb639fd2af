"""Rows with the same run: it is made once and serves all of them."""

import json

from study_calls import call, command, write

from in_process import here
from kd3.studies.plan import Cell
from kd3.studies.runs import StudyFolder, made_for

KD = {"method": "kd"}


def cell(row, seed=0, pool="crawl", **settings):
    values = {"teacher": "t.yaml", "student": "kd3:resnet8", "method": "kd3", "seed": seed, **settings}
    return Cell(row, seed, pool, values)


def makers(tmp_path, cells, planned=None):
    found = made_for(StudyFolder(tmp_path), cells, cells if planned is None else planned)
    return {name: made.row for name, made in found.items()}


def begin(tmp_path, name, *, finished):
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    if finished:
        (folder / "summary.json").write_text("{}")


def test_a_setting_at_its_default_is_the_default(tmp_path):
    cells = [cell("default"), cell("beta 0.1", kd3={"beta_parameter": 0.1}), cell("beta 5", kd3={"beta_parameter": 5})]
    found = makers(tmp_path, cells)
    assert found == {"default-seed0": "default", "beta-0.1-seed0": "default", "beta-5-seed0": "beta 5"}


def test_another_seed_pool_teacher_or_labelled_set_is_another_run(tmp_path):
    others = [cell("seed", seed=1), cell("pool", pool="original"), cell("teacher", teacher="u.yaml"),
              cell("labelled", eval_data="a/test.zip"), cell("labelled elsewhere", eval_data="b/test.zip"),
              cell("checkpoints", train={"checkpoint_minutes": 1})]  # fmt: skip
    found = makers(tmp_path, [cell("first"), *others])
    assert sorted(found.values()) == sorted(["first", *(other.row for other in others)])


def test_the_run_that_is_furthest_answers(tmp_path):
    cells = [cell("a"), cell("b"), cell("c")]
    begin(tmp_path, "b-seed0", finished=False)
    assert set(makers(tmp_path, cells).values()) == {"b"}
    begin(tmp_path, "c-seed0", finished=True)
    assert set(makers(tmp_path, cells).values()) == {"c"}
    begin(tmp_path, "a-seed0", finished=True)
    assert makers(tmp_path, cells) == {"a-seed0": "a", "b-seed0": "a", "c-seed0": "c"}


def test_a_row_that_was_not_asked_for_is_not_run_but_answers_if_it_is_finished(tmp_path):
    cells = [cell("a"), cell("b")]
    begin(tmp_path, "a-seed0", finished=False)
    assert makers(tmp_path, cells, planned=cells[1:]) == {"a-seed0": "b", "b-seed0": "b"}
    (tmp_path / "runs" / "a-seed0" / "summary.json").write_text("{}")
    assert makers(tmp_path, cells, planned=cells[1:]) == {"a-seed0": "a", "b-seed0": "a"}


def test_a_study_makes_it_once_and_tells_it_of_every_row(teacher_file, pool_folder, tmp_path):
    dial = {"name": "temperature", "settings": KD, "vary": {"kd.temperature": [4, 8]}}
    rows = [dial, {"name": "plain", "settings": KD}]
    study = write(tmp_path, rows=rows)
    asked = command(teacher_file, pool_folder, study, tmp_path / "a")[3:]
    assert "3 runs (1 the same as others, which are made once)" in here(*asked, "--dry-run", "true").stdout
    done = call(teacher_file, pool_folder, study, tmp_path / "a", "--json")
    assert done.returncode == 0, done.stderr
    first, _, same = json.loads(done.stdout)["runs"]
    assert sorted(path.name for path in tmp_path.glob("a/runs/*")) == [
        "temperature-temperature-4-seed0",
        "temperature-temperature-8-seed0",
    ]
    assert (first["x"], same["x"], same["row"], same["series"]) == (4, None, "plain", "plain")
    assert {**same, "row": first["row"], "series": first["series"], "x": 4} == first
