"""Loading an untrusted folder runs none of its code without consent."""

import json
import pickle

import pytest
import torch
import yaml

import kd3
from kd3.cli import main
from kd3.config.records import Signature
from kd3.models.arch import bounded_by, build_arch
from kd3.models.load_teacher import load_teacher
from kd3.models.student import own_head
from kd3.models.student_files import load_classifier, load_student, save_student
from kd3.runtime.errors import KD3Error

EXPECTS = Signature((0.5,) * 3, (0.25,) * 3, 16, ["cat", "dog", "ship"])
NET = (
    "from pathlib import Path\n"
    "from torch import nn\n"
    "Path({mark!r}).write_text('it ran')\n"
    "def build(num_classes):\n"
    "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
    "                         nn.Linear(4, num_classes))\n"
)


@pytest.fixture
def mark(tmp_path):
    """A file that exists once untrusted code ran."""
    return tmp_path / "it-ran"


@pytest.fixture
def student(tmp_path):
    """A sound student's folder, of the zoo."""
    made = own_head(
        build_arch("kd3:resnet8", num_classes=3),
        Signature((0.5,) * 3, (0.25,) * 3, 16, ["cat", "dog", "ship"]),
        name="s",
    )
    save_student(made, tmp_path / "student", arch="kd3:resnet8", arch_args={}, about={})
    return tmp_path / "student"


@pytest.fixture
def coded(tmp_path, mark):
    """A sound student's folder, of a file of code in it."""
    (tmp_path / "net.py").write_text(NET.format(mark=str(mark)))
    arch = f"{tmp_path / 'net.py'}:build"
    made = own_head(build_arch(arch, num_classes=3), EXPECTS, name="net")
    save_student(made, tmp_path / "coded", arch=arch, arch_args={}, about={})
    mark.unlink()
    return tmp_path / "coded"


def changed(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("arch", "arch_args"),
    [
        ("os:mkdir", {"path": "MARK"}),
        ("os:popen", {"cmd": "touch MARK"}),
        ("subprocess:check_output", {"args": ["touch", "MARK"]}),
        ("builtins:open", {"file": "MARK", "mode": "w"}),
        ("kd3.cli:main", {"arguments": ["demo", "--out", "MARK"]}),
        ("timm:resnet10t", {"checkpoint_path": "MARK"}),
        ("timm:resnet10t", {"model_name": "hf-hub:somebody/else"}),
        ("timm:resnet10t", {"pretrained": True}),
        ("torchvision:resnet18", {"weights": "DEFAULT"}),
        ("hf:somebody/else", {}),
        ("hf:..", {}),
        ("torchscript:net.ts", {}),
    ],
)
def test_a_students_settings_call_nothing_and_fetch_nothing(arch, arch_args, student, mark):
    named = json.loads(json.dumps(arch_args).replace("MARK", str(mark)))
    changed(student, arch=arch, arch_args=named)
    with pytest.raises(KD3Error, match="--trust-code"):
        load_student(student)
    assert not mark.exists()


def test_a_file_of_code_runs_by_consent_alone(coded, mark):
    with pytest.raises(KD3Error, match=r"'net.py:build'.*--trust-code \(in Python: trust_code=True\)"):
        load_student(coded)
    assert not mark.exists()
    assert load_student(coded, trust_code=True).num_classes == 3
    assert mark.exists()


@pytest.mark.parametrize("place", ["../net.py", "sub/net.py", "{whole}/net.py", "linked.py", "./../coded/../net.py"])
def test_code_that_lies_outside_the_folder_is_refused_with_consent_too(place, coded, tmp_path, mark):
    (coded / "linked.py").symlink_to(tmp_path / "net.py")
    (coded / "sub").mkdir()
    (coded / "sub" / "net.py").write_text((coded / "net.py").read_text())
    changed(coded, arch=f"{place.format(whole=tmp_path)}:build")
    for trust_code in (False, True):
        with pytest.raises(KD3Error, match=r"linked.py is a link" if place == "linked.py" else "outside its folder"):
            load_student(coded, trust_code=trust_code)
    assert not mark.exists()


COMMANDS = {
    "evaluate": ["evaluate", "STUDENT", "--data", "LABELLED", "--workers", "0"],
    "predict": ["predict", "STUDENT", "LABELLED"],
    "export": [
        "export",
        "STUDENT",
        "--out",
        "OUT",
        "--format",
        "safetensors",
        "--images",
        "none",
        "--check-images",
        "4",
    ],
    "select": ["select", "--teacher", "TEACHER", "--student", "STUDENT", "--pool", "POOL", "--out", "OUT"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_loads_a_student_asks_for_consent(
    command, coded, mark, labelled, teacher_file, pool_folder, tmp_path, capsys
):
    places = {"STUDENT": coded, "LABELLED": labelled, "TEACHER": teacher_file, "POOL": pool_folder}
    arguments = [str({**places, "OUT": tmp_path / "out"}.get(word, word)) for word in COMMANDS[command]]
    assert main(arguments) == 2
    assert "add --trust-code" in capsys.readouterr().err
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--trust-code"]) == 0, capsys.readouterr().err
    assert mark.exists()


def test_whoever_distils_into_code_is_told_of_the_flag_and_needs_none(
    teacher_file, pool_folder, tmp_path, mark, capsys, monkeypatch
):
    (tmp_path / "net.py").write_text(NET.format(mark=str(mark)))
    monkeypatch.chdir(tmp_path)
    small = ["--images", "32", "--batch-size", "16", "--holdout", "12", "--device", "cpu", "--track", "none"]
    small += ["--method", "kd", "--precision", "32"]
    command = ["distill", "--teacher", str(teacher_file), "--student", "net.py:build", "--pool", str(pool_folder)]
    assert main([*command, "--out", "run", *small]) == 0
    printed = capsys.readouterr().out
    assert "--trust-code" in printed
    assert 'load_student("run", trust_code=True)' in printed
    assert main(["distill", "--resume", "--out", "run"]) == 0
    assert main(["report", "run", "--images", "0", "--latency", "false"]) == 0
    assert "names code" in (tmp_path / "run" / "report.html").read_text()
    assert main(["report", "run", "--images", "0", "--latency", "false", "--trust-code"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "names code" not in page
    assert "trust_code=True" in page


@pytest.fixture
def described(tmp_path, mark):
    """A folder with a teacher's description that names code."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "net.py").write_text(NET.format(mark=str(mark)))
    (tmp_path / "same.py").write_text(NET.format(mark=str(mark)))  # a file is run once, and never again
    network = build_arch(f"{tmp_path / 'same.py'}:build", num_classes=3)
    torch.save(network.state_dict(), folder / "w.pt")
    mark.unlink()
    about = {"arch": "net.py:build", "weights": "w.pt", "num_classes": 3, "input_size": 16}
    about |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "teacher.yaml").write_text(yaml.safe_dump(about))
    return folder


def test_a_description_named_as_a_file_is_its_users_word_and_a_folder_is_not(described, mark):
    for load in (load_teacher, load_classifier):
        with pytest.raises(KD3Error, match=r"names code.*name the description itself \(.*teacher.yaml\)"):
            load(described)
    assert not mark.exists()
    assert load_teacher(described / "teacher.yaml").num_classes == 3
    assert mark.exists()
    assert load_teacher(described, trust_code=True).num_classes == 3


def test_a_pickle_that_a_folder_calls_trusted_is_not(described, mark, teacher_file):
    class Touches:
        def __reduce__(self):
            return mark.write_text, ("it ran",)

    (described / "w.pt").write_bytes(pickle.dumps(Touches()))
    about = {**yaml.safe_load(teacher_file.read_text()), "weights": "w.pt", "trusted": True}
    (described / "teacher.yaml").write_text(yaml.safe_dump(about))
    with pytest.raises(KD3Error, match="trusted: true"):
        load_teacher(described)
    assert not mark.exists()


def test_a_report_follows_no_code_of_the_teacher_that_a_run_names(
    described, mark, teacher_file, pool_folder, tmp_path, capsys
):
    small = {"images": 32, "batch_size": 16, "holdout": 12, "device": "cpu", "precision": "32", "track": "none"}
    run = kd3.distill(teacher_file, "kd3:resnet8", pool_folder, tmp_path / "run", **small)
    about = json.loads((run.folder / "summary.json").read_text())
    (run.folder / "summary.json").write_text(json.dumps({**about, "teacher": str(described / "teacher.yaml")}))
    kd3.report(run.folder, images=0, latency=False)
    assert not mark.exists()
    assert "names code" in (run.folder / "report.html").read_text()


def linear_layers(*sides):
    return [torch.nn.Linear(side, side) for side in sides]


@pytest.mark.parametrize(
    "build",
    [lambda: linear_layers(1 << 14), lambda: linear_layers(*[1 << 10] * 1000), lambda: torch.zeros(1 << 40)],
)
def test_a_network_is_built_in_no_more_memory_than_its_weights_account_for(build):
    with bounded_by(1 << 20, what="config"):
        linear_layers(512, 512)
    with pytest.raises(KD3Error, match="config describes a far larger network"), bounded_by(1 << 20, what="config"):
        build()
