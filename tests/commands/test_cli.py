"""The command line in processes of its own: the main job, and one clear sentence for each kind of bad input."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from in_process import here

SMALL = ["--images", "64", "--batch-size", "16", "--holdout", "12", "--precision", "32", "--device", "cpu"]


def kd3(*words, cwd=None):
    command = [sys.executable, "-W", "error", "-m", "kd3", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def refused(done, *parts):
    """The one sentence of a refused command."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("kd3: ")
    for part in parts:
        assert part in sentence
    return sentence


@pytest.fixture(scope="module")
def finished_run(teacher_file, pool_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    done = kd3(
        *("distill", "--teacher", teacher_file, "--student", "kd3:resnet8", "--pool", pool_folder, "--out", out, *SMALL)
    )
    assert done.returncode == 0, done.stderr
    return out, done


def test_the_main_job_in_three_commands(crawl, finished_run, teacher_file, labelled, tmp_path):
    ingested = kd3("ingest", crawl, "--out", tmp_path / "pool", "--image-size", 16)
    assert ingested.returncode == 0, ingested.stderr
    assert "kept        120" in ingested.stdout
    assert "not an image" in ingested.stdout
    out, distilled = finished_run
    assert "agreement" in distilled.stdout
    assert f"kd3 evaluate {out}" in distilled.stdout
    evaluated = kd3("evaluate", out, "--data", labelled, "--teacher", teacher_file)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "top-1" in evaluated.stdout
    assert "agreement with the teacher" in evaluated.stdout
    assert "ship" in evaluated.stdout
    assert "none is in the student's pool" in evaluated.stdout


def test_evaluate_warns_of_images_that_the_pool_holds(finished_run, crawl, labelled, tmp_path):
    shutil.copytree(labelled, tmp_path / "test")
    Image.open(crawl / "007.png").save(tmp_path / "test" / "cat" / "again.webp", quality=90)
    done = here("evaluate", finished_run[0], "--data", tmp_path / "test", "--json")
    assert "warning: 1 of the 25 labelled images are in the pool" in done.stderr
    assert "007.png is cat/again.webp" in done.stderr
    assert [pair["test_key"] for pair in json.loads(done.stdout)["leak"]["pairs"]] == ["cat/again.webp"]
    unasked = here("evaluate", finished_run[0], "--data", tmp_path / "test", "--json", "--leak-check", "false")
    assert (unasked.stderr, json.loads(unasked.stdout)["leak"]) == ("", None)


def test_json_stands_alone_on_standard_output(finished_run, teacher_file, labelled):
    done = kd3("evaluate", finished_run[0], "--data", labelled, "--teacher", teacher_file, "--json")
    figures = json.loads(done.stdout)
    assert figures["images"] == 24
    assert {"top1", "top5", "agreement", "calibration_error", "per_class"} <= figures.keys()
    assert set(figures["per_class"]) == {"cat", "dog", "ship"}
    assert 0 <= figures["agreement"] <= 100


def test_the_teacher_agrees_with_itself(teacher_file, labelled):
    done = here("evaluate", teacher_file, "--data", labelled, "--teacher", teacher_file, "--json")
    assert json.loads(done.stdout)["agreement"] == 100


def test_predict_names_classes_and_unusable_files(finished_run, crawl):
    done = here("predict", finished_run[0], crawl / "000.png", crawl / "page.jpg", "--top", 2)
    first, second = done.stdout.strip().splitlines()
    assert first.startswith(f"{crawl / '000.png'} ")
    assert first.count("%") == 2
    assert second.endswith("unusable: not an image")
    as_json = json.loads(here("predict", finished_run[0], crawl / "000.png", "--json").stdout)
    assert sum(c["probability"] for c in as_json["images"][0]["classes"]) == pytest.approx(1, abs=1e-4)


def test_inspect_tells_what_was_found(teacher_file):
    done = here("inspect", "--teacher", teacher_file)
    for words in ("74,835 parameters", "'linear'", "output of 'layer3'", "can be shared", "cat, dog, ship"):
        assert words in done.stdout


def test_help_comes_without_torch_and_at_once():
    code = (
        "import sys, kd3.cli\n"
        "try: kd3.cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'PIL', 'pyarrow', 'lightning_fabric'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for words in (["--help"], ["distill", "--help"], ["ingest", "--help"], ["distill", "--methd"], ["nonsense"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_help_takes_less_than_half_a_second():
    def seconds():
        start = time.perf_counter()
        kd3("--help")
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_help_teaches():
    done = kd3("distill", "--help", "all")
    for words in ("--kd3.threshold", "--lr", "--preset", "paper", "examples:", "(default: 64;", "methods:"):
        assert words in done.stdout


def test_help_of_distill_is_short_and_has_more_by_topic():
    short, training, method = (kd3("distill", "--help", *topic).stdout for topic in ([], ["training"], ["simkd"]))
    assert len(short.splitlines()) < 100
    assert all(
        word in short for word in ("--teacher", "--images N  ", "--preset", "--dry-run", "--help training", "examples:")
    )
    assert "--lr" in training
    assert "--simkd.projector" in method
    assert "--simkd.projector" not in short + training
    assert "--trust-entries" not in short
    assert "--trust-entries" in kd3("distill", "--help", "all").stdout
    assert "--lr" not in short + method
    wrong = kd3("distill", "--help", "trainin")
    assert wrong.returncode == 2
    assert "did you mean 'training'?" in wrong.stderr


def test_help_of_ingest_tells_of_every_kind_of_source():
    from kd3.sources.files import ARCHIVE_SUFFIXES, LIST_SUFFIXES

    text = kd3("ingest", "--help").stdout
    told = [suffix for suffix in ARCHIVE_SUFFIXES if not suffix.endswith((".gz", ".bz2", ".xz"))]
    for words in (*told, *LIST_SUFFIXES, "s3://", "kd3[s3]", "kd3[gcs]", "kd3[hf]", "CIFAR", "ImageNet", "img2dataset"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120


def write_yaml(path, values):
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def scene(tmp_path, teacher_file, pool_folder):
    """A folder with a teacher whose description can be spoilt, and the flags of a whole command."""

    class Scene:
        folder = tmp_path
        flags: dict[str, str | Path]

        def __init__(self):
            self.flags = {
                "--teacher": teacher_file,
                "--student": "kd3:resnet8",
                "--pool": pool_folder,
                "--out": tmp_path / "run",
            }

        def teacher(self, **changes):
            values = {**yaml.safe_load(teacher_file.read_text()), **changes}
            values["weights"] = str(changes.get("weights", teacher_file.parent / "weights.pt"))
            return write_yaml(tmp_path / "teacher.yaml", values)

        def distill(self, *more, **changes):
            flags = {**self.flags, **{f"--{name}": value for name, value in changes.items()}}
            words = [word for pair in flags.items() if pair[1] is not None for word in pair]
            return here("distill", *words, *SMALL, *more, cwd=tmp_path)

        def nothing_written(self):
            return not (tmp_path / "run").exists()

    return Scene()


def test_missing_files_are_named(scene):
    refused(scene.distill(teacher="nowhere.yaml"), "teacher description nowhere.yaml does not exist")
    refused(scene.distill(pool="nopool"), "pool nopool does not exist", "kd3 ingest")
    refused(scene.distill("--config", "no.yaml"), "configuration file no.yaml does not exist")
    refused(scene.distill("--eval-data", "nodata"), "nodata does not exist")
    assert scene.nothing_written()


def test_an_unknown_arch_gives_the_nearest_names(scene):
    refused(scene.distill(student="kd3:resnet9"), "resnet9", "did you mean", "'resnet8'")
    refused(scene.distill(student="nonsense"), "nonsense")
    refused(scene.distill(student="net.py:build"), "net.py")
    assert scene.nothing_written()


def test_weights_that_do_not_fit_and_class_counts_that_disagree(scene):
    refused(scene.distill(teacher=scene.teacher(arch="kd3:resnet14")), "weights.pt")
    refused(scene.distill(teacher=scene.teacher(num_classes=5, classes=None)), "3", "5")
    (scene.folder / "broken.pt").write_bytes(b"not a checkpoint")
    refused(scene.distill(teacher=scene.teacher(weights=scene.folder / "broken.pt")), "broken.pt")
    assert scene.nothing_written()


def test_pools_that_are_none_are_told_apart(scene):
    (scene.folder / "foreign").mkdir()
    (scene.folder / "foreign" / "x.txt").write_text("x")
    refused(scene.distill(pool="foreign"), "foreign is not a pool")
    refused(scene.distill(teacher=scene.teacher(input_size=32)), "--image-size 32")
    assert scene.nothing_written()


def test_unknown_and_mistyped_settings(scene):
    refused(scene.distill("--lrate", "1"), "unknown flag --lrate; did you mean --lr?")
    refused(scene.distill("--lr", "fast"), "--lr: ", "valid number; got 'fast'")
    refused(scene.distill("--method", "kd33"), "unknown method 'kd33'; did you mean 'kd3'")
    refused(scene.distill("--images", "many"), "--images: ", "'many'")
    config = write_yaml(scene.folder / "c.yaml", {"lr": 0.1})
    refused(scene.distill("--config", config), "unknown setting 'lr'", "c.yaml", "'train.lr'")
    config.write_text("train: [")
    refused(scene.distill("--config", config), "c.yaml is not valid YAML (line 1)")
    refused(here("distil"), "unknown command 'distil'; did you mean 'distill'")
    refused(here("distill"), "kd3: --teacher is missing")
    refused(here("ingest", "crawl", "--out", "p", "--image-size", "7"), "kd3: --image-size: should be greater than")
    refused(here("pool", "infos", "p"), "kd3: ACTION: should be 'info'")
    assert scene.nothing_written()


def test_an_output_folder_in_use_is_refused(scene, finished_run):
    refused(scene.distill(out=finished_run[0]), "holds a finished run; choose another --out")
    (scene.folder / "other").mkdir()
    (scene.folder / "other" / "notes.txt").write_text("mine")
    refused(scene.distill(out=scene.folder / "other"), "other is not empty and holds no kd3 run")
    assert [path.name for path in (scene.folder / "other").iterdir()] == ["notes.txt"]
    done = here("distill", "--resume", "--out", finished_run[0])
    assert done.returncode == 0
    assert "there is nothing to resume" in done.stderr
    refused(here("distill", "--resume", "--out", scene.folder / "none"), "holds no run to resume")


def test_evaluation_data_that_do_not_belong_to_the_model(finished_run, labelled, crawl, tmp_path):
    refused(here("evaluate", finished_run[0], "--data", crawl), "has no class folders")
    refused(here("evaluate", tmp_path, "--data", labelled), "holds neither a run, nor a student")
    refused(here("evaluate", "gone", "--data", labelled), "model gone does not exist")
    (tmp_path / "data" / "cow").mkdir(parents=True)
    (tmp_path / "data" / "cow" / "1.png").write_bytes((crawl / "000.png").read_bytes())
    refused(here("evaluate", finished_run[0], "--data", tmp_path / "data"), "'cow'", "'cat', 'dog', 'ship'")


def test_flags_win_over_the_file_and_the_file_over_the_preset(scene):
    config = write_yaml(scene.folder / "c.yaml", {"preset": "paper", "train": {"lr": 0.03, "momentum": 0.5}})
    done = scene.distill("--config", config, "--lr", "0.02")
    assert done.returncode == 0, done.stderr
    saved = yaml.safe_load((scene.folder / "run" / "config.yaml").read_text())
    assert (saved["train"]["lr"], saved["train"]["momentum"]) == (0.02, 0.5)
    assert saved["train"]["augmentation"] == "resized-crop"
    assert saved["kd3"]["alignment_scale"] == "raw"


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(scene):
    import signal

    flags = [word for pair in scene.flags.items() for word in map(str, pair)]
    command = [sys.executable, "-m", "kd3", "distill", *flags, *SMALL, "--images", "1M"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, stdout=subprocess.PIPE)
    metrics = scene.folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (metrics.is_file() and b'"train"' in metrics.read_bytes()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "continue with: kd3 distill --resume --out" in error
    assert "Traceback" not in error
    assert (scene.folder / "run" / "checkpoints" / "last.pt").is_file()
