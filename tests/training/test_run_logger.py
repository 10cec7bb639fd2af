"""Checkpoints beside the training: by the clock, of one moment, and never ahead of the student that they name."""

import threading

import pytest
import torch
from torch import nn

import kd3
from kd3.config.training import TrainSettings
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.runtime.ranks import ALONE
from kd3.runtime.run_folder import RunFolder
from kd3.scoring.batches import Coming, fetched, sent
from kd3.training import budget, run_logger
from kd3.training.budget import VERSION, Progress, load_checkpoint
from kd3.training.run_logger import RunLogger
from kd3.training.step_graph import WARM_UP, StepGraph

CPU = torch.device("cpu")


@pytest.fixture
def kept(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.make()
    made = RunLogger(folder, ALONE, Progress(), budget=10, classes=["a", "b"], listeners=list)
    yield made
    made.close()


def test_a_checkpoint_is_of_the_moment_it_was_taken_at(kept, monkeypatch):
    may_write, real = threading.Event(), run_logger.write_checkpoint
    monkeypatch.setattr(run_logger, "write_checkpoint", lambda *values: may_write.wait(10) and real(*values))
    net, said = nn.Linear(2, 2), torch.zeros(3)
    before = net.weight.detach().clone()
    kept.checkpoint(net, {"optimizer": {"state": {}}, "scale": {}}, {"confidence": said})
    with torch.no_grad():
        net.weight.add_(1)
    said.add_(1)
    kept.at.step = 5
    may_write.set()
    kept.written()
    progress, method, _ = load_checkpoint(kept.folder.last)
    assert torch.equal(method["weight"], before)
    assert progress.step == 0
    assert float(progress.latest["confidence"].sum()) == 0


def test_the_best_student_is_written_with_the_checkpoint_that_knows_of_it(kept):
    kept.best(nn.Linear(2, 2))
    assert not kept.folder.best.exists()
    kept.checkpoint(nn.Linear(2, 2), {"optimizer": {}, "scale": {}}, {})
    kept.written()
    assert kept.folder.best.exists()


def test_what_goes_wrong_in_the_thread_is_reported(kept, monkeypatch):
    def full(*values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_logger, "write_checkpoint", full)
    kept.checkpoint(nn.Linear(2, 2), {"optimizer": {}, "scale": {}}, {})
    with pytest.raises(OSError, match="No space"):
        kept.written()


def test_checkpoints_are_written_by_the_clock_and_not_after_each_round(
    teacher_file, pool_folder, tmp_path, monkeypatch
):
    taken = []
    real = budget.checkpoint_of
    monkeypatch.setattr(
        run_logger, "checkpoint_of", lambda progress, **more: taken.append(progress.round) or real(progress, **more)
    )
    done = kd3.distill(
        teacher_file, "kd3:resnet8", pool_folder, tmp_path / "r", images=400, batch_size=8, holdout=12, precision="32",
        device="cpu", method="kd", quiet=True,
    )  # fmt: skip
    rounds = done.summary["rounds"]
    assert rounds > 2
    assert taken == [1, rounds]  # something to go on from early, and the end


def test_the_scale_of_float16_is_in_the_checkpoint(teacher_file, pool_folder):
    from kd3.training.learner import Learner

    class Method(nn.Module):
        ranks, teacher = ALONE, nn.Identity()

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def hidden_matrices(self):
            return []

        def moved_by_adam(self):
            return []

    def learner():
        made = Learner(Method(), TrainSettings(), seed=0, total_steps=9, compute=Compute(CPU, "32"))
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        made.fabric.strategy.precision = scaler
        scaler.scale(torch.ones(()))  # which sets it up
        return made, scaler

    first, scaler = learner()
    scaler.update(2.0)
    second, other = learner()
    assert other.get_scale() == 8.0
    second.load(first.state())
    assert other.get_scale() == 2.0


class Replayed:
    """A recorder for a function on tensors of the CPU: it remembers what the function was called on, and calls it."""

    def __init__(self, calls):
        self.calls = calls

    def aside(self):
        return torch.no_grad()

    recording = aside

    def replay(self):
        self.calls.append("replay")


def test_a_step_is_recorded_after_a_few_and_other_shapes_stay_outside():
    calls = []
    held = torch.zeros(2)

    def work(values, known):
        calls.append(len(values))
        held.copy_(values.sum(0))
        return held

    graph = StepGraph(work, lambda: Replayed(calls))
    for _ in range(WARM_UP):
        graph(torch.ones(4, 2), None)
    assert calls == [4] * WARM_UP
    assert not graph.is_recorded
    graph(torch.ones(4, 2), None)
    first = graph(torch.ones(4, 2), None)
    assert calls[WARM_UP:] == [4, "replay", "replay"]
    graph(torch.ones(3, 2), None)  # the last, odd batch
    assert calls[-1] == 3
    held.zero_()
    assert float(first.sum()) > 0  # the caller's own


def test_what_cannot_be_recorded_is_said_and_goes_on(capsys):
    class Refuses(Replayed):
        def recording(self):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graph = StepGraph(lambda values: values * 2, lambda: Refuses([]))
    for _ in range(WARM_UP + 2):
        assert float(graph(torch.ones(1))) == 2
    assert graph.is_off
    assert capsys.readouterr().err.count("cannot be recorded as a CUDA graph") == 1


def test_on_the_host_nothing_is_copied():
    values = torch.ones(3)
    assert sent(values, CPU) is values
    assert Coming(values).get() is values
    assert list(fetched([values])) == [values]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"version": VERSION}, "'optimizer' is missing"),
        ({"version": VERSION, "optimizer": {}, "progress": {}}, "'method' is missing"),
        ({"version": VERSION, "optimizer": {}, "method": {}, "progress": {"leap": 3}}, "leap"),
        ({"version": VERSION, "optimizer": {}, "method": {}, "progress": [3]}, "mapping"),
        ({"version": VERSION - 1}, "not written by this version"),
        ([VERSION], "not written by this version"),
    ],
)
def test_a_checkpoint_of_other_contents_is_refused_in_a_sentence(values, words, tmp_path):
    torch.save(values, tmp_path / "last.pt")
    with pytest.raises(KD3Error, match=words) as problem:
        load_checkpoint(tmp_path / "last.pt")
    assert "start anew in another --out" in str(problem.value)
