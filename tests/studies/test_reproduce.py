"""`kd3 reproduce`: tables of the paper, from files as their authors publish them to a page, tiny."""

import json
from collections import namedtuple
from dataclasses import replace

import pytest

import datasets_made as made
from in_process import here
from kd3.config.published import CRAWLS, DATASETS, TABLES, chosen, studies
from kd3.models.load_teacher import load_teacher
from kd3.models.zoo import ZOO
from kd3.runtime.errors import KD3Error
from kd3.studies.plan import plan, read_study

GIVEN = {"teacher": "t.yaml", "student": "kd3:resnet8", "pool": "-"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Every data set of the paper as `kd3 dataset` makes it of tiny archives."""
    folder = tmp_path_factory.mktemp("paper")
    downloads = made.downloads(folder / "downloads")
    for name in DATASETS:
        done = here(
            "dataset", name, downloads, "--out", folder / "data" / name, "--no-check", "--workers", "0", "--quiet"
        )
        assert done.returncode == 0, done.stderr
    return folder / "data"


def reproduce(table, data, out, *words):
    return here("reproduce", table, "--data", data, "--out", out, "--device", "cpu", "--precision", "32", *words)


def test_every_table_names_data_networks_and_studies_that_there_are():
    for table in TABLES.values():
        assert set(table.studies.values()) <= set(studies())
        for pair in table.pairs:
            assert pair.dataset in DATASETS
            assert {pair.teacher, pair.student} <= ZOO.keys()
            assert CRAWLS[DATASETS[pair.dataset].side] in DATASETS
        assert len({pair.name for pair in table.pairs}) == len(table.pairs)
    assert read_study("paper").epochs == 240
    assert read_study("paper-short").images == 200_000
    assert [pair.name for pair in chosen("table1", ["mnist"])] == ["mnist-lenet5-lenet5_half"]
    with pytest.raises(KD3Error, match="unknown pair of table1 'cifar11'; did you mean 'cifar10'"):
        chosen("table1", ["cifar11"])


@pytest.fixture(scope="module")
def digits(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("table1")
    words = ["--only", "mnist", "--images", "128", "--teacher-epochs", "60", "--seeds", "0", "--rows", ROWS, "--json"]
    done = reproduce("table1", data, out, *words)
    assert done.returncode == 0, done.stderr
    return out, words, json.loads(done.stdout)


ROWS = "KD;inherit, fit, recall"


def test_from_files_to_a_page_with_the_published_figures_beside(digits):
    out, _, said = digits
    outcome = said["mnist-lenet5-lenet5_half"]
    assert list(outcome["rows"]) == ROWS.split(";")
    assert all(0 <= measure["mean"] <= 100 for measure in outcome["rows"].values())
    page = (out / "table.md").read_text()
    assert "| published: DAFL | 98.2 |" in page
    assert "| KD | " in page
    assert (out / "mnist-lenet5-lenet5_half" / "runs" / "kd-seed0" / "student" / "model.safetensors").is_file()
    assert said == json.loads((out / "results.json").read_text())


def test_the_teacher_is_trained_on_the_original_labels_and_knows_the_data(digits):
    out, _, said = digits
    teacher = load_teacher(out / "teachers" / "mnist-lenet5" / "teacher.yaml")
    assert teacher.classes == [str(number) for number in range(10)]
    assert (teacher.normalise.channels, teacher.input_size) == (1, 32)
    assert 0.1 < teacher.normalise.mean[0] < 0.6
    assert said["mnist-lenet5-lenet5_half"]["teacher"] > 20  # after some thirty steps; chance is 10


def test_the_same_command_again_repeats_nothing(digits, data):
    out, words, said = digits
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")}
    assert len(stamps) == 3  # the teacher's, too
    again = reproduce("table1", data, out, *words)
    assert json.loads(again.stdout) == said
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_plan_tells_runs_images_hours_and_disk_and_writes_nothing(data, tmp_path):
    words = ["--only", "mnist", "--plan", "--rows", "KD3;bound: original labels"]
    done = reproduce("table1", data, tmp_path / "out", *words, "--budget", "paper", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    (pair,) = printed["pairs"]
    rows = {row["row"]: row for row in pair["rows"]}
    assert (rows["KD3"]["runs"], rows["KD3"]["images"]) == (3, 240 * 120)
    assert rows["bound: original labels"]["images"] == 240 * 40
    assert rows["KD3"]["hours"] > rows["bound: original labels"]["hours"] > 0
    assert pair["teacher_hours"] > 0
    assert printed["runs"] == 6
    assert set(printed["disk"]) == {"runs", "teachers' logits"}
    assert not (tmp_path / "out").exists()
    other = ["--crawl", data / "cifar10" / "pool"]
    plan_of = json.loads(
        reproduce("table1", data, tmp_path / "out", *words, *other, "--budget", "paper", "--json").stdout
    )
    assert {row["row"]: row["images"] for row in plan_of["pairs"][0]["rows"]}["KD3"] == 240 * 50
    text = reproduce("table1", tmp_path / "nowhere", tmp_path / "out", *words, "--seeds", "0").stdout
    assert "1 runs of       200,000 images" in text
    assert "crawl  not there yet; taken to have 600,000 images" in text
    assert "imagenet32 5.8" in text


@pytest.mark.parametrize("budget", ["ours", "paper"])
@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_every_study_takes_its_steps(table, budget, tmp_path, monkeypatch):
    """On the digits, whose networks are small; a plan measures a few steps of each row."""
    monkeypatch.setitem(TABLES, table, replace(TABLES[table], pairs=tuple(chosen("table1", ["mnist"]))))
    done = reproduce(table, tmp_path, tmp_path / "out", "--plan", "--budget", budget, "--seeds", "0", "--json")
    assert done.returncode == 0, done.stderr
    (pair,) = json.loads(done.stdout)["pairs"]
    found = read_study(TABLES[table].studies[budget])
    assert [row["row"] for row in pair["rows"]] == plan(found, GIVEN, ["crawl", "original"]).rows
    assert all(row["hours"] > 0 for row in pair["rows"])


# Errors in one sentence, before anything is written.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "cifar99"], "unknown pair of table1 'cifar99'"),
        (["--device", "cuda:7"], "device 'cuda:7'"),
        (["--rows", "KD4"], "unknown row 'KD4'"),
        (["--teachers", "nowhere"], "--teachers nowhere has no mnist-lenet5.yaml: the description of kd3:lenet5"),
        (["--data", "nowhere"], "holds no data set; make it by: kd3 dataset mnist FILES --out nowhere/mnist"),
    ],
)
def test_what_is_missing_or_unknown_is_one_sentence(words, message, data, tmp_path):
    done = reproduce("table1", data, tmp_path / "out", *words)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [["--plan"], []])
def test_too_little_disk_is_one_sentence(flags, data, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**12, 10**12 - 10**6, 10**6))
    done = reproduce("table1", data, tmp_path / "out", *flags)
    assert done.returncode == 2
    assert "Table 1: every data set takes about" in done.stderr
    assert "has 0.0 GB free" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["ours", "paper"])
@pytest.mark.parametrize("table", TABLES)
def test_every_study_runs_from_files_to_a_page(table, budget, data, tmp_path, monkeypatch):
    """All its rows, on the digits, whose networks are small: a step of the paper's batch each."""
    digits = chosen("table1", ["mnist"])
    monkeypatch.setitem(TABLES, table, replace(TABLES[table], pairs=tuple(digits)))
    words = ["--budget", budget, "--images", "1100", "--teacher-epochs", "30", "--seeds", "0", "--json"]
    done = reproduce(table, data, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["mnist-lenet5-lenet5_half"]["rows"]
    assert len(rows) == len(plan(read_study(TABLES[table].studies[budget]), GIVEN, ["crawl", "original"]).rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "cinic10", "tinyimagenet"])
def test_every_data_set_runs_from_files_to_a_page(name, data, tmp_path, monkeypatch):
    """One row, with smaller networks of the same families."""
    (pair,) = chosen("table1", [name])
    small = replace(pair, teacher="resnet14", student="resnet8")
    monkeypatch.setitem(TABLES, "table1", replace(TABLES["table1"], pairs=(small,)))
    words = ["--images", "128", "--teacher-epochs", "5", "--seeds", "0", "--rows", "KD", "--json"]
    done = reproduce("table1", data, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)[small.name]["rows"]) == ["KD"]
