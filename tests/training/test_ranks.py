"""Two processes match one: parts of their work, whole runs, and termination."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import kd3
from kd3.losses import feature_alignment, nt_xent
from kd3.losses.mixdistribution import mix_distribution
from kd3.models.batch_norms import SyncedBatchNorm, running_statistics_kept, sync_batch_norms
from kd3.runtime.errors import FailedElsewhereError, KD3Error
from kd3.runtime.ranks import ALONE, Ranks
from kd3.runtime.run_folder import read_metrics
from kd3.scoring.views import augment, mixed_up

BATCH = 8


def whole_batch():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, 3, 4, 4, generator=draw, dtype=torch.float64)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 6)).double()


def learned(ranks):
    """One step of all parts that use the whole batch; gradients as DDP would average them."""
    module = network()
    if ranks.count > 1:
        sync_batch_norms(module, ranks, torch.device("cpu"))
        assert isinstance(module[1], SyncedBatchNorm)
    mine = ranks.part(BATCH)
    images = whole_batch()[mine]
    mixed = mix_distribution(images, generator=torch.Generator().manual_seed(2), beta_parameter=1.0, ranks=ranks)
    u, v = (nn.functional.normalize(module(view), dim=1) for view in (images, mixed))
    contrast = nt_xent(ranks.gather(u), ranks.gather(v), temperature=0.3)
    target = whole_batch()[mine] * torch.arange(1, BATCH + 1, dtype=torch.float64)[mine].view(-1, 1, 1, 1)
    features = module[0](images)
    aligned = feature_alignment(features[:, :3], target, relative=True, ranks=ranks)
    loss = contrast + aligned
    loss.backward()
    with running_statistics_kept(module), torch.no_grad():
        apart = module(mixed)
    state = {name: parameter.grad for name, parameter in module.named_parameters()}
    if ranks.count > 1:
        for gradient in state.values():
            dist.all_reduce(gradient)
            gradient /= ranks.count
    state |= {name: buffer.clone() for name, buffer in module.named_buffers()}
    raw = (whole_batch()[mine] * 40 + 128).clamp(0, 255).to(torch.uint8)
    for kind in ("crop", "resized-crop", "none"):
        views = augment(raw, kind, flip=True, generator=torch.Generator().manual_seed(3), ranks=ranks)
        state[kind] = ranks.gather(views)
    state["mixed"] = ranks.gather(mixed)
    state["mixed up"] = ranks.gather(mixed_up(images, generator=torch.Generator().manual_seed(4), ranks=ranks))
    state["apart"] = ranks.gather(apart)
    state["loss"] = ranks.mean(loss.detach())
    module.eval()
    state["evaluation"] = ranks.gather(module(images).detach())
    return state


def one_of_two(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    ranks = Ranks.of_this_process()
    state = learned(ranks)
    said = [ranks.any(rank == 1, False), ranks.from_first(f"from {rank}"), ranks.from_each(rank)]
    for failing in (0, 1):
        try:
            with ranks.failing_together():
                if rank == failing:
                    raise KD3Error(f"rank {rank} is at a loss")
        except KD3Error as problem:
            said.append((type(problem).__name__, str(problem)))
    torch.save((state, said), f"{folder}/{rank}.pt")
    ranks.leave()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(one_of_two, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_gradients_statistics_views_and_losses_are_those_of_the_whole_batch(two):
    alone = learned(ALONE)
    for state, _ in two:
        for name, expected in alone.items():
            torch.testing.assert_close(state[name], expected, rtol=1e-9, atol=1e-11, msg=name)


def test_what_ranks_tell_each_other(two):
    for rank, (_, said) in enumerate(two):
        assert said[:3] == [(True, False), "from 0", [0, 1]]
        assert len(said) == 3 + len(two)
        for failing, (kind, words) in enumerate(said[3:]):
            assert kind == (KD3Error if rank == failing else FailedElsewhereError).__name__
            assert words == f"rank {failing} is at a loss"


def test_alone_nothing_is_asked():
    value = torch.ones(2)
    assert ALONE.gather(value) is value
    assert ALONE.mean(value) is value
    assert ALONE.any(True, False) == (True, False)
    assert ALONE.from_each(3) == [3]
    assert ALONE.part(7) == slice(0, 7)
    with pytest.raises(KD3Error, match="at a loss"), ALONE.failing_together():
        raise KD3Error("at a loss")


def test_parts_make_up_the_batch():
    for count in (1, 2, 3, 5):
        parts = [list(range(13))[Ranks(rank, count).part(13)] for rank in range(count)]
        assert [place for part in parts for place in part] == list(range(13))


def test_a_batch_norm_of_another_kind_is_not_replaced():
    class WithActivation(nn.BatchNorm2d):
        pass

    with pytest.raises(KD3Error, match=r"WithActivation, which cannot be synced .* --batch-norm local"):
        sync_batch_norms(nn.Sequential(WithActivation(3)), ALONE, torch.device("cpu"))


# Whole runs


@pytest.fixture(scope="module")
def large_pool(tmp_path_factory):
    """A pool that is large enough for its scoring to be shared."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("large")
    draw = np.random.default_rng(0)
    (folder / "crawl").mkdir()
    for number in range(700):
        colours = draw.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((16, 16)).save(folder / "crawl" / f"{number:03d}.png")
    kd3.ingest(folder / "crawl", folder / "pool", image_size=16, workers=0)
    return folder / "pool"


def words(teacher_file, pool, out, *more):
    flags = ["--teacher", teacher_file, "--student", "kd3:resnet8", "--pool", pool, "--out", out, "--batch-size", 32]
    flags += ["--images", 960, "--precision", 32, "--device", "cpu", "--holdout", 20, "--track", "none", *more]
    return [str(flag) for flag in flags]


def start(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kd3", "distill", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def history(run, *names):
    return [[event[name] for name in names] for event in read_metrics(Path(run) / "metrics.jsonl", "train")]


# So small that roundings do not grow into other selections; what one step learns is compared in float64 above.
GENTLE = ["--optimizer", "sgd", "--lr", "1e-7"]
CONTRAST = ["--kd3.contrastive", "mixdistribution", "--kd3.contrastive-fraction", 1, "--kd3.contrastive-weight", 50]


def test_two_processes_learn_what_one_learns(teacher_file, large_pool, tmp_path):
    # Counted: kept apart, one image of 335 lies so near its class's threshold that the last digit decides.
    more = [*GENTLE, *CONTRAST, "--kd3.selection", "dynamic", "--kd3.scoring", "training"]
    more += ["--kd3.mixed-statistics", "counted"]
    # From a random start: a student that inherits this teacher whole has gradients of the size of their roundings.
    more += ["--init", "random", "--teacher-statistics", "lost", "--recall", "off"]
    shutil.copytree(large_pool, tmp_path / "pool")
    second = start(*words(teacher_file, tmp_path / "pool", tmp_path / "two", *more, "--devices", 2))
    first = start(*words(teacher_file, large_pool, tmp_path / "one", *more))
    for process in (first, second):
        out, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        assert out.count("agreement") == 1, "one process talks"
        assert "deprecated" not in errors
        assert "reducer" not in errors
    names = ("step", "loss", "alignment", "soft_targets", "contrastive")
    one, two = (history(tmp_path / name, *names) for name in ("one", "two"))
    assert len(one) > 1
    np.testing.assert_allclose(two, one, rtol=1e-6)
    for round_ in ("00001", "00002"):
        kept = [np.load(tmp_path / name / "selections" / f"{round_}.npy").tolist() for name in ("one", "two")]
        assert kept[0] == kept[1]
    students = [kd3.load_student(tmp_path / name).state_dict() for name in ("one", "two")]
    for name, value in students[0].items():
        scale = float(value.double().abs().max()) + 1e-6
        difference = (value.double() - students[1][name].double()).abs().max()
        assert float(difference) / scale < 1e-3, name  # biases are what they have learned
    (shared,), (alone,) = (sorted(pool.glob("teacher_logits/*.npy")) for pool in (tmp_path / "pool", large_pool))
    assert shared.name == alone.name
    np.testing.assert_allclose(np.load(shared), np.load(alone), rtol=1e-5, atol=1e-5)


def stopped(process, run, number):
    """Send a signal once the run has told of more steps; return status and messages."""
    metrics = run / "metrics.jsonl"

    def told():
        return metrics.read_text().count('"train"') if metrics.is_file() else 0

    before, deadline = told(), time.monotonic() + 100
    while time.monotonic() < deadline and told() <= before:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    return process.returncode, errors


def test_all_stop_together_and_fewer_go_on(teacher_file, large_pool, tmp_path):
    run = tmp_path / "run"
    long = words(teacher_file, large_pool, run, "--images", 64_000, "--devices", 2)
    status, errors = stopped(start(*long), run, signal.SIGTERM)
    assert status == 75, errors
    assert "interrupted after" in errors
    assert errors.count("continue with: kd3 distill --resume") == 1
    assert "Traceback" not in errors
    status, errors = stopped(start("--resume", "--out", str(run), "--devices", "1"), run, signal.SIGINT)
    assert status == 130, errors
    assert "was begun on 2 x CPU, float32 and continues on CPU, float32" in errors


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for the child in /proc")
def test_all_end_when_one_is_killed(teacher_file, large_pool, tmp_path):
    run = tmp_path / "run"
    first = start(*words(teacher_file, large_pool, run, "--images", 64_000, "--devices", 2, "--checkpoint-steps", 5))
    deadline = time.monotonic() + 100
    while not (run / "checkpoints" / "last.pt").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (child,) = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    _, errors = first.communicate(timeout=60)
    assert first.returncode in (2, -signal.SIGKILL), errors  # the launcher may be quicker than the broken connection
    if first.returncode == 2:
        assert "has ended, and so must this one" in errors
        assert "Traceback" not in errors
    status, errors = stopped(start("--resume", "--out", str(run)), run, signal.SIGTERM)
    assert status == 75, errors


@pytest.mark.parametrize(
    ("more", "words_"),
    [
        (["--batch-size", "33", "--devices", "2"], "--batch-size 33 cannot be divided among 2 processes alike"),
        pytest.param(["--pool", "nowhere", "--devices", "2"], "nowhere", marks=pytest.mark.slow),
    ],
)
def test_what_is_wrong_is_told_once(more, words_, teacher_file, large_pool, tmp_path):
    process = start(*words(teacher_file, large_pool, tmp_path / "run", *more))
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2, errors
    assert errors.count("kd3: ") == 1
    assert words_ in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_under_torchrun_the_processes_are_there_already(teacher_file, large_pool, tmp_path):
    arguments = words(teacher_file, large_pool, tmp_path / "run", *GENTLE, "--images", 128, "--batch-norm", "local")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "kd3"]
    done = subprocess.run(
        [*torchrun, "distill", *arguments], capture_output=True, text=True, timeout=200, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "origin.json").read_text())["compute"] == "2 x CPU, float32"


def test_what_has_no_file_cannot_be_started_again(teacher_file, pool_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [""])
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(KD3Error, match="starts this program 1 times more, and it has no file"):
        kd3.distill(teacher_file, "kd3:resnet8", pool_folder, tmp_path / "r", devices=2, device="cpu")
    assert not (tmp_path / "r").exists()
