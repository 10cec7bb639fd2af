"""kd3 on a simulated GPU: nothing mixes devices, no step waits, and the operations of a step are counted.

The limits are the original counts with some margin. They hold for any batch size.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
STEPS = {  # device operations of a step, ResNet-8 to ResNet-8
    "kd3": 380,
    "kd3 sgd": 240,
    "kd3 paper": 490,
    "kd3 training": 390,
    "kd3 resized-crop": 450,
    "kd3 none": 365,
    "kd3 mixup": 385,
    "kd3 fixed views": 355,
    "kd": 310,
    "dfnd": 375,
    "simkd": 345,
    "labels": 265,
}
QUICK = ("kd3", "kd", "kd3 fixed views")
RUNS = (
    "run: {}",
    'run: {"teacher_statistics": "auto", "kd3": {"selection": "typical"}, "recall": 32}',
    'run: {"student": "shrink:0.6", "recall": "off"}',
)
RECORDED = {"kd3": 33, "kd3 sgd": 32, "kd3 paper": 100, "kd": 32, "simkd": 32, "labels": 34, "kd3 fixed views": 40}


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The library that makes torch believe in a device; skips if it cannot be compiled."""
    import shutil

    import torch
    from torch.utils.cpp_extension import include_paths

    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    if torch.version.cuda is not None:
        pytest.skip("this PyTorch has a CUDA of its own, which cannot be pretended beside it")
    out = tmp_path_factory.mktemp("device") / "pretended_device.so"
    done = subprocess.run(
        [
            *(compiler, "-std=c++20", "-O0", "-shared", "-fPIC", *(f"-I{path}" for path in include_paths())),
            *(HERE / "pretended_device.cpp", "-o", out, f"-L{Path(torch.__file__).parent / 'lib'}"),
            *("-lc10", "-ltorch_cpu"),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"this PyTorch's headers do not fit: {done.stderr.strip().splitlines()[0]}")
    return out


def tell(library, folder, cases):
    """Run cases in one process, and return each one's calls to the device."""
    environment = {**os.environ, "PRETENDED_DEVICE": str(library), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, HERE / "scenarios.py", folder, *cases], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {name: said for line in lines for name, said in line.items()}


@pytest.fixture(scope="session")
def told(library, tmp_path_factory):
    """Calls of the fast cases."""
    cases = [f"step: {name}" for name in STEPS if name in QUICK] + ["graph: kd3", "scan", "waits", "auto"]
    return tell(library, tmp_path_factory.mktemp("cases"), cases)


@pytest.fixture(scope="session")
def told_more(library, tmp_path_factory):
    """Calls of all other cases."""
    cases = [f"step: {name}" for name in STEPS if name not in QUICK]
    cases += [f"graph: {name}" for name in RECORDED if name != "kd3"]
    cases += ["pair: resnet34 resnet18", "pair: resnet34 resnet18 fold", *RUNS]
    return tell(library, tmp_path_factory.mktemp("cases"), cases)


def of(told, case):
    assert "failed" not in told[case], told[case]["trace"]
    return told[case]


def check_step(told, name):
    step = of(told, f"step: {name}")
    assert step["waits"] == {}
    assert sum(step["operations"].values()) <= STEPS[name], step["operations"]


def check_recorded(told, name):
    step = of(told, f"graph: {name}")
    assert step["recorded"]
    assert step["waits"] == {}
    assert sum(step["operations"].values()) <= RECORDED[name], step["operations"]
    assert step["losses"] == step["plain losses"]
    assert len(set(step["losses"])) == len(step["losses"])  # other views each time
    assert step["same"]


@pytest.mark.parametrize("name", QUICK)
def test_a_step_mixes_no_devices_waits_for_nothing_and_has_few_operations(told, name):
    check_step(told, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STEPS if name not in QUICK])
def test_so_does_a_step_of_every_method_and_augmentation(told_more, name):
    check_step(told_more, name)


def test_a_recorded_step_is_a_few_operations_and_the_same_student_bit_for_bit(told):
    check_recorded(told, "kd3")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECORDED if name != "kd3"])
def test_so_is_a_recorded_step_of_other_methods(told_more, name):
    check_recorded(told_more, name)


def test_a_scan_waits_at_its_end_and_not_for_its_batches(told):
    scan = of(told, "scan")
    assert sum(scan["waits"].values()) <= 3  # whether all logits were finite; confidences; classes
    assert scan["operations"]["scan"] <= 6 * 60


def test_a_run_of_three_times_the_steps_waits_once_more_every_twenty_steps(told):
    short, long = of(told, "waits")["40"], of(told, "waits")["120"]
    assert (short.pop("training/loop.py"), long.pop("training/loop.py")) == (40 // 20, 120 // 20)  # for its losses
    assert sum(long.values()) <= sum(short.values()), (short, long)


def test_auto_is_a_larger_batch_on_the_device_if_its_memory_suffices(told):
    assert of(told, "auto") == {"cuda": 256, "cpu": 128, "little memory": 128}


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNS)
def test_a_whole_run_ends_where_the_cpus_ends(told_more, case):
    run = of(told_more, case)
    assert run["difference"] < 0.05  # roundings grow; statistics of batch norms are large
    assert run["cuda"]["agreement"] == pytest.approx(run["cpu"]["agreement"], abs=6)
    assert run["evaluation"]["cuda"] == run["evaluation"]["cpu"]


@pytest.mark.slow
def test_a_step_of_the_networks_that_a_gpu_is_for_launches_five_times_less_once_recorded(told_more):
    plain, recorded = of(told_more, "pair: resnet34 resnet18"), RECORDED["kd3"]
    launched = sum(plain["operations"].values())
    assert launched <= 670  # 1,137 before
    assert plain["operations"]["optimizer"] <= 225  # 659 before
    assert launched >= 5 * recorded
    folded = of(told_more, "pair: resnet34 resnet18 fold")
    assert folded["operations"]["forward"] <= plain["operations"]["forward"] - 30
