"""`--batch-size auto`: the default on a CPU; on a device a larger batch that keeps the accuracy, with its rates."""

import math
import signal

import pytest
import torch
import yaml

import kd3
from in_process import here
from kd3.commands import distill_memory, distill_parts
from kd3.commands.distill_memory import Footprint, training_of
from kd3.config import training
from kd3.config.distill import DistillConfig
from kd3.config.settings import build, read_yaml
from kd3.config.training import TrainSettings
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.studies.plan import Cell
from kd3.studies.runs import StudyFolder, check_finished
from kd3.training.learner import Learner

SMALL = {"images": 96, "holdout": 12, "precision": "32", "device": "cpu", "warmup_steps": 2, "recall": "off"}


@pytest.mark.parametrize(
    ("given", "inherited", "images", "larger"),
    [
        ({}, True, 30_000, [256]),
        ({"images": 25_600}, True, 30_000, [256]),
        ({"images": 25_599}, True, 30_000, []),  # fewer than 100 steps
        ({"images": 6_000}, True, 30_000, []),
        ({"epochs": 2}, True, 12_800, [256]),
        ({"epochs": 2}, True, 12_799, []),
        ({}, True, 255, []),  # more than the pool has
        ({}, False, 30_000, []),  # not known to be level
        ({"optimizer": "sgd"}, True, 30_000, []),
    ],
)
def test_larger_batches_are_those_known_to_be_level_that_leave_enough_steps(given, inherited, images, larger):
    assert TrainSettings(**given).larger_batches(inherited=inherited, images=images) == larger


def test_the_largest_batch_is_one_constant(monkeypatch):
    monkeypatch.setattr(training, "LARGEST_BATCH", 1024)
    sizes = [TrainSettings(images=images).larger_batches(inherited=True, images=30_000) for images in (200_000, 60_000)]
    assert sizes == [[256, 512, 1024], [256, 512]]


def test_rates_that_are_not_given_grow_with_the_root_of_the_batch():
    auto = TrainSettings(batch_size="auto")
    settled = auto.settled(inherited=True, batch=512)
    assert settled.batch == 512
    assert (settled.lr, settled.matrix_lr) == pytest.approx((0.1, 0.05))
    chosen = TrainSettings(batch_size="auto", matrix_lr=0.01).settled(inherited=True, batch=256)
    assert chosen.matrix_lr == 0.01
    assert chosen.lr == pytest.approx(0.05 * math.sqrt(2))


@pytest.mark.parametrize("inherited", [True, False])
@pytest.mark.parametrize("images", [6_000, 60_000])
def test_without_a_device_auto_is_the_default_to_the_last_bit(images, inherited):
    auto, default = (TrainSettings(images=images, **more) for more in ({"batch_size": "auto"}, {}))
    assert auto.settled(inherited=inherited) == default.settled(inherited=inherited)


@pytest.mark.parametrize(("memory", "processes", "batch"), [(300, 1, 256), (256, 1, 256), (255, 1, 128), (128, 2, 256)])
def test_a_batch_that_does_not_fit_into_the_memory_of_a_process_is_not_taken(memory, processes, batch, monkeypatch):
    monkeypatch.setattr(distill_memory, "footprint", lambda method, compute, size: Footprint(0, size, 0))
    settings, compute = TrainSettings(batch_size="auto"), Compute(torch.device("cuda"), "32")
    more = {"inherited": True, "normalised": True, "images": 30_000, "processes": processes, "memory": memory}
    assert training_of(settings, None, compute, **more).batch == batch
    given = TrainSettings(batch_size=64)
    assert training_of(given, None, compute, **more) == given.settled(inherited=True)


def test_on_a_cpu_there_is_no_memory_to_fill():
    assert distill_memory.memory_for_training(Compute(torch.device("cpu"), "32")) is None


@pytest.mark.parametrize("value", ["big", "1", "0", "-8", "1.5", "auto,64", "inf", "1k"])
def test_a_wrong_batch_size_is_one_sentence(value, tmp_path):
    names = ["--teacher", "t.yaml", "--student", "kd3:resnet8", "--pool", "pool", "--out", tmp_path / "run"]
    done = here("distill", *names, "--batch-size", value)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert "--batch-size" in sentence
    assert f"must be auto, or a number of images that is at least 2; got '{value}'" in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [1, True, 2.5, math.nan, math.inf, [64]])
def test_so_is_a_wrong_one_in_a_file_or_from_python(value):
    with pytest.raises(KD3Error, match="batch_size"):
        build(TrainSettings, {"batch_size": value}, where="here")


@pytest.mark.parametrize(("value", "read"), [("auto", "auto"), ("64", 64), (64.0, 64), (None, None)])
def test_sizes_that_are_read(value, read):
    assert TrainSettings(batch_size=value).batch_size == read


def run(teacher_file, pool_folder, out, **more):
    return kd3.distill(teacher_file, "kd3:resnet8", pool_folder, out, quiet=True, track="none", **{**SMALL, **more})


def weights(done):
    return torch.cat([value.flatten().double() for value in done.student.state_dict().values()])


def recorded(done):
    train = yaml.safe_load((done.folder / "config.yaml").read_text())["train"]
    return train["batch_size"], train["lr"], train["matrix_lr"]


def test_a_run_on_a_cpu_is_the_default_run_and_records_numbers(teacher_file, pool_folder, tmp_path):
    auto = run(teacher_file, pool_folder, tmp_path / "auto", batch_size="auto")
    default = run(teacher_file, pool_folder, tmp_path / "default")
    assert torch.equal(weights(auto), weights(default))
    assert recorded(auto) == (64, 0.05, 0.1)  # a short budget


@pytest.fixture
def on_device(monkeypatch):
    """Make a CPU choose as a device would, among small batches: 8 by default, at most 16."""
    monkeypatch.setattr(distill_parts, "memory_for_training", lambda compute: 1 << 40)
    for name, value in {"INHERITED_BATCH": 8, "LARGEST_BATCH": 16, "LEAST_STEPS": 6, "SHORT": 48}.items():
        monkeypatch.setattr(training, name, value)


def test_on_a_device_the_larger_batch_is_recorded_and_the_run_resumes_to_the_same_student(
    on_device, teacher_file, pool_folder, tmp_path, monkeypatch
):
    whole_step = Learner.step

    def step(self, number, *batch):
        result = whole_step(self, number, *batch)
        if number == 3:
            signal.raise_signal(signal.SIGINT)
        return result

    with monkeypatch.context() as stopping:
        stopping.setattr(Learner, "step", step)
        with pytest.raises(KeyboardInterrupt):
            run(teacher_file, pool_folder, tmp_path / "auto", batch_size="auto")
    monkeypatch.undo()  # continued where `auto` would be another number
    resumed = run(teacher_file, pool_folder, tmp_path / "auto", batch_size="auto", resume=True)
    size, lr, matrix_lr = recorded(resumed)
    assert size == 16
    assert (lr, matrix_lr) == pytest.approx((0.05 * math.sqrt(2), 0.025 * math.sqrt(2)))
    assert resumed.summary["steps"] == 6
    given = run(teacher_file, pool_folder, tmp_path / "given", batch_size=size, lr=lr, matrix_lr=matrix_lr)
    assert torch.equal(weights(resumed), weights(given))


def test_a_study_knows_its_finished_run_by_what_auto_became(on_device, teacher_file, pool_folder, tmp_path):
    study, cell = StudyFolder(tmp_path), Cell("a", 0, "crawl", {})
    done = run(teacher_file, pool_folder, study.run(cell), batch_size="auto")
    assert recorded(done)[0] == 16
    stored = read_yaml(done.folder / "config.yaml", what="settings")
    asked = {name: value for name, value in stored["train"].items() if name not in ("lr", "matrix_lr")}
    wanted = {**stored, "train": {**asked, "batch_size": "auto"}}
    assert check_finished(study, cell, wanted)
    with pytest.raises(KD3Error, match=r"train\.matrix_lr"):
        check_finished(study, cell, {**wanted, "train": {**wanted["train"], "matrix_lr": 0.2}})
    with pytest.raises(KD3Error, match=r"train\.batch_size"):
        check_finished(study, cell, {**wanted, "train": {**wanted["train"], "batch_size": 32}})


def test_a_dry_run_tells_the_batch(on_device, teacher_file, pool_folder, tmp_path):
    planned = run(teacher_file, pool_folder, tmp_path / "run", batch_size="auto", dry_run=True).to_dict()
    assert (planned["budget"]["steps"], planned["budget"]["batch_size"]) == (6, 16)
    assert build(DistillConfig, planned["settings"], where="dry run").train.batch_size == 16
    assert not (tmp_path / "run").exists()
