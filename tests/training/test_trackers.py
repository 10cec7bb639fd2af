"""Trackers of a run's curves: TensorBoard's files as it reads them, others by their interface; none stops a run."""

import struct
import sys
import types

import pytest

import kd3
from kd3.runtime.errors import KD3Error
from kd3.training.trackers import Trackers, check_installed, scalars

CLASSES = ["cat", "a/b"]
KEPT = {"kept": 3, "of": 4, "kept_per_class": [1, 2], "thresholds": [0.5, 0.25]}
LOSSES = {"loss": 2.0, "alignment": 1.5, "lr": 0.1, "images_per_second": 9.0}
LOOK = {"agreement": 50.0, "commonest": 0.5, "accuracy": 40.0}
EVENTS = [
    ("selection", {"step": 0, "images": 0, "seconds": 0.1, **KEPT}),
    ("train", {"step": 2, "images": 32, "seconds": 0.2, **LOSSES}),
    ("evaluation", {"step": 2, "images": 32, "seconds": 0.3, **LOOK}),
    ("warning", {"step": 2, "images": 32, "seconds": 0.3, "words": "mind"}),
]
EXPECTED = {
    (0, "selection/kept_percent"): 75.0,
    (0, "kept/cat"): 1.0,
    (0, "kept/a_b"): 2.0,
    (0, "threshold/cat"): 0.5,
    (0, "threshold/a_b"): 0.25,
    (32, "loss/loss"): 2.0,
    (32, "loss/alignment"): 1.5,
    (32, "training/learning_rate"): 0.1,
    (32, "training/images_per_second"): 9.0,
    (32, "agreement/held_out_web_images"): 50.0,
    (32, "accuracy/labelled_images"): 40.0,
}


def run(names, folder, events=EVENTS, images=0):
    trackers = Trackers(names, folder, {"seed": 0, "train": {"lr": 0.1}}, CLASSES, images=images)
    for event, values in events:
        trackers(event, values)
    trackers.close()


def curves(folder):
    """TensorBoard's view of a run: (step, tag) -> value; a later file hides older events from its beginning on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found = {}
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == SessionLog.START:
                found = {place: value for place, value in found.items() if place[0] < event.step}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found[event.step, value.tag] = pytest.approx(value.simple_value)
    return found


def test_every_curve_is_in_the_event_files(tmp_path):
    run(["tensorboard"], tmp_path)
    assert curves(tmp_path) == EXPECTED


def test_a_resumed_run_goes_on_with_the_same_curves(tmp_path):
    """Events after the checkpoint (at 32 images) are replaced, not repeated."""
    late = [
        ("train", {"step": 4, "images": images, "seconds": 0.4, "loss": loss})
        for images, loss in ((64, 9.0), (96, 8.0))
    ]
    run(["tensorboard"], tmp_path, [*EVENTS, *late])
    again = ("train", {"step": 4, "images": 64, "seconds": 0.4, "loss": 1.0})
    run(["tensorboard"], tmp_path, [again], images=32)
    assert curves(tmp_path) == {**EXPECTED, (64, "loss/loss"): 1.0}


def test_of_very_many_classes_there_are_no_curves():
    values = {"step": 0, "images": 0, "kept": 1, "of": 2, "kept_per_class": [1] * 101, "thresholds": [0.5] * 101}
    assert list(scalars("selection", values, [f"c{n}" for n in range(101)])) == ["selection/kept_percent"]


class Fake:
    """Stands for a tracker's library and notes how it is called."""

    def __init__(self, monkeypatch, name):
        self.calls = []
        self.module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, self.module)

    def function(self, name, result=None):
        def call(*given, **named):
            self.calls.append((name, given, named))
            return result

        return call


def test_wandb_gets_the_numbers_and_a_resumed_run_its_id(tmp_path, monkeypatch):
    fake = Fake(monkeypatch, "wandb")
    its_run = types.SimpleNamespace(
        id="abc", log=fake.function("log"), define_metric=fake.function("define"), finish=fake.function("finish")
    )
    fake.module.init = fake.function("init", its_run)
    run(["wandb"], tmp_path)
    run(["wandb"], tmp_path, [], images=32)
    begun = [named for name, _, named in fake.calls if name == "init"]
    assert [(one["id"], one["resume"]) for one in begun] == [(None, None), ("abc", "allow")]
    assert begun[0]["project"] == "kd3"
    assert begun[0]["config"]["train"] == {"lr": 0.1}
    logged = {
        (given[0]["images"], tag): value
        for name, given, _ in fake.calls
        if name == "log"
        for tag, value in given[0].items()
    }
    assert {place: value for place, value in logged.items() if place[1] != "images"} == EXPECTED
    assert [name for name, *_ in fake.calls].count("finish") == 2


def test_mlflow_gets_the_numbers_and_a_resumed_run_its_id(tmp_path, monkeypatch):
    fake = Fake(monkeypatch, "mlflow")
    begun = types.SimpleNamespace(info=types.SimpleNamespace(run_id="xyz"))
    for name in ("set_experiment", "log_params", "log_metrics", "end_run"):
        setattr(fake.module, name, fake.function(name))
    fake.module.start_run = fake.function("start_run", begun)
    run(["mlflow"], tmp_path)
    run(["mlflow"], tmp_path, [], images=32)
    assert [named for name, _, named in fake.calls if name == "start_run"] == [
        {"run_name": tmp_path.name},
        {"run_id": "xyz"},
    ]
    assert [given[0] for name, given, _ in fake.calls if name == "log_params"] == [{"seed": "0", "train.lr": "0.1"}]
    logged = {
        (named["step"], tag): v
        for name, given, named in fake.calls
        if name == "log_metrics"
        for tag, v in given[0].items()
    }
    assert logged == EXPECTED


@pytest.mark.parametrize("when", ["start", "log", "close"])
def test_a_tracker_that_fails_is_given_up_and_the_run_goes_on(tmp_path, monkeypatch, capsys, when):
    def fails(*given, **named):
        raise ConnectionError("server is down\nand more")

    fake = Fake(monkeypatch, "wandb")
    parts = {name: fails if name == when else fake.function(name) for name in ("log", "close")}
    its_run = types.SimpleNamespace(id="abc", log=parts["log"], define_metric=fake.function("d"), finish=parts["close"])
    fake.module.init = fails if when == "start" else fake.function("init", its_run)
    run(["tensorboard", "wandb"], tmp_path)
    assert curves(tmp_path) == EXPECTED
    warned = capsys.readouterr().err
    assert warned.splitlines() == [
        "warning: wandb is no longer told of this run, which continues: ConnectionError: server is down"
    ]


def test_a_missing_library_is_told_before_the_run(monkeypatch, tmp_path, teacher_file, pool_folder):
    monkeypatch.setattr("kd3.training.trackers.find_spec", lambda name: None)
    with pytest.raises(KD3Error, match=r"--track wandb needs wandb, which is .* pip install 'kd3\[wandb\]'"):
        check_installed(["wandb"])
    with pytest.raises(KD3Error, match="--track tensorboard needs"):
        kd3.distill(teacher_file, "kd3:resnet8", pool_folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()
