"""The benchmarks: the common way computes the package's losses, the pages are right, bad input is one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kd3
from kd3.config.methods import KD3Options
from kd3.losses.mixdistribution import mix_statistics
from kd3.methods import Batch, Parts, build_method
from kd3.models.arch import build_arch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def benchmarks(*words):
    command = [sys.executable, "-m", "benchmarks", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture
def method(teacher_file):
    teacher = kd3.load_teacher(teacher_file)
    torch.manual_seed(0)
    options = KD3Options(
        alignment_weight=1,
        alignment_scale="raw",
        logit_weight=0,
        contrastive="mixdistribution",
        contrastive_weight=0.001,
        scoring="fresh",
    )
    images = torch.randn(8, 3, 16, 16)
    backbone = build_arch("kd3:resnet8", num_classes=3)
    return build_method("kd3", options, Parts(teacher, backbone, "resnet8", images))


def test_the_common_way_has_the_losses_of_the_package(method, monkeypatch):
    from benchmarks import reference
    from kd3.methods import kd3 as package

    torch.manual_seed(1)
    images = torch.randn(8, 3, 16, 16)
    partner, mixture = torch.randperm(8), torch.rand(8)
    common = reference.Reference(
        method.teacher.module, method.teacher.shared_head(), method.student, embedding_size=128
    )
    common.embedding = method.embedding
    monkeypatch.setattr(package, "mix_distribution", lambda batch, **_: mix_statistics(batch, partner, mixture))
    method.eval()
    with torch.no_grad():
        terms = method(Batch(images, torch.Generator())).terms
        aligned, contrast, _ = common.losses(images, partner.tolist(), mixture.tolist())
    assert float(terms["alignment"]) == pytest.approx(float(aligned), rel=1e-5)
    assert float(terms["contrastive"]) == pytest.approx(0.001 * float(contrast), rel=1e-5)


def test_the_common_way_learns_and_scores(method):
    from benchmarks import reference

    torch.manual_seed(1)
    common = reference.Reference(method.teacher.module, method.teacher.shared_head(), method.student)
    images = torch.randn(8, 3, 16, 16)
    losses = [common.step(images) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert common.score(images, 0.5).sum(1).tolist() == pytest.approx([1.0] * 8)


def test_a_run_writes_a_dated_page_and_its_numbers(tmp_path):
    done = benchmarks("--quick", "--only", "startup", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    page, values = (next(tmp_path.glob(f"*{suffix}")) for suffix in (".md", ".json"))
    assert done.stdout.strip() == page.read_text().strip()
    assert "| torch imported by kd3 --help | 0 | at most 0 | yes |" in done.stdout
    results = json.loads(values.read_text())
    assert results["machine"]["torch"] == torch.__version__
    assert results["results"]["startup"]["kd3 --help"]["torch"] is False
    assert page.stem == results["machine"]["date"].replace(":", "")[:17]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "steps"], "unknown group 'steps' in --only; allowed: startup, step"),
        (["--device", "tpu"], "unknown device 'tpu'; allowed: auto, cpu"),
        (["--data", "nowhere"], "--data nowhere is not a folder"),
        (["--only", "startup", "--out", "/proc/results"], "cannot be written to"),
    ],
)
def test_bad_input_is_one_sentence(words, message, tmp_path):
    done = benchmarks(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in done.stderr.strip().splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_device_is_one_sentence(tmp_path):
    done = benchmarks("--device", "cuda", "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr == "benchmarks: device 'cuda' was asked for, but PyTorch sees no CUDA GPU here\n"
    assert list(tmp_path.iterdir()) == []


def test_the_page(tmp_path):
    from benchmarks.report import markdown

    machine = {
        "date": "2026-01-02T03:04:05+00:00", "processor": "P", "cores": 2, "memory_gib": 8.0, "compute": "CPU, float32",
        "torch_threads": 2, "torch": "2", "python": "3", "pillow": "11", "kd3": "0", "commit": "abc",
        "command": "python -m benchmarks ",
    }  # fmt: skip
    rate = {"slowest": 1.0, "fastest": 9.0}
    results = {
        "scoring": {
            "reference": {"median": 10.0, **rate, "turns": [10.0, 1.0, 20.0]},
            "kd3, later (student)": {"median": 110.0, **rate, "turns": [110.0, 20.0, 180.0]},
        },
        "memory": {"bytes_per_image": 31.5, "peaks": {"1,000": {"anonymous_mb": 1.25}}},
    }
    assert markdown(machine, "made here", results) == (
        "# Benchmarks, 2026-01-02\n\n"
        "P, 2 cores, 8.0 GiB; CPU, float32, 2 threads; torch 2, Python 3, Pillow 11, kd3 0 (abc); made here. "
        "Command: `python -m benchmarks`. Rates are medians of turns taken side by side.\n\n"
        "| figure | measured | target | met |\n|---|---|---|---|\n"
        "| later scoring, kd3 / reference | 11 | at least 12 | **no** |\n"
        "| anonymous memory an image more | 31.5 bytes | at most 64 bytes | yes |\n\n"
        "## scoring\n\n| | median | slowest | fastest | turns |\n|---|---|---|---|---|\n"
        "| reference | 10 | 1 | 9 | 3 |\n| kd3, later (student) | 110 | 1 | 9 | 3 |\n\n"
        "## memory\n\n| | anonymous mb |\n|---|---|\n| 1,000 | 1.25 |\n"
    )


def test_sides_take_turns(monkeypatch):
    from benchmarks import alternate

    calls = []
    rates = alternate.alternate(
        {"one": (lambda: calls.append("one"), 4), "two": (lambda: calls.append("two"), 4)}, rounds=3, seconds=0
    )
    assert calls == ["one", "two"] * 4  # the first pair warms up
    assert len(rates["one"].rounds) == 3
    assert rates["one"].median > 0


def test_a_synthetic_pool_is_a_pool(tmp_path):
    from benchmarks.synthetic import write_pool

    pool = kd3.ImagePool.open(write_pool(tmp_path / "pool", 300))
    assert len(pool) == 300
    assert pool[299].shape == (3, 8, 8)


def test_made_shards_are_ingested_whole_and_a_made_teacher_loads(tmp_path):
    from benchmarks import material

    shards = material.make_shards(tmp_path / "crawl", 30)
    pool = kd3.ingest([str(shard) for shard in shards], tmp_path / "pool", image_size=32, workers=0)
    assert len(pool) == 30
    assert kd3.load_teacher(material.make_teacher(tmp_path, "resnet20")).num_classes == 10


@pytest.mark.slow
def test_every_group_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert set(results["results"]) == {
        "startup", "step", "scoring", "epoch", "evaluation", "ingest", "memory", "scaling",
    }  # fmt: skip
