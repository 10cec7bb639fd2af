"""Live objects where the Python interface expects paths, and the other way round: a sentence names the expected
kind.
"""

import ast
import json
import shlex

import pytest
import torch
from torch import nn

import kd3
from kd3.commands.distill import Run
from kd3.config.commands import AdaptConfig, CascadeConfig
from kd3.config.distill import DistillConfig
from kd3.config.records import Signature
from kd3.config.settings import build
from kd3.models.arch import build_arch
from kd3.models.student import own_head
from kd3.runtime.errors import KD3Error
from kd3.runtime.run_summary import describe

WRAP = r"a live network is given as kd3\.Teacher\(module, mean=\[\.\.\.\], std=\[\.\.\.\], input_size=\.\.\.\)"


@pytest.fixture(scope="module")
def network():
    return build_arch("kd3:resnet8", num_classes=3)


@pytest.fixture(scope="module")
def student(network):
    return own_head(
        build_arch("kd3:resnet8", num_classes=3), Signature([0] * 3, [1] * 3, 16, ["a", "b", "c"]), name="s"
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda network, pool, out: kd3.distill(network, "kd3:resnet8", pool, out),
        lambda network, pool, out: kd3.shift(network, pool),
        lambda network, pool, out: kd3.select(network, pool, out),
        lambda network, pool, out: kd3.evaluate(network, "test"),
        lambda network, pool, out: kd3.predict(network, ["a.png"]),
        lambda network, pool, out: kd3.adapt(out, teacher=network),
        lambda network, pool, out: kd3.cascade(out, teacher=network),
    ],
)
def test_a_bare_network_is_no_teacher(call, network, pool_folder, tmp_path):
    with pytest.raises(KD3Error, match=f"is a live ResNetCifar, where .* is expected; {WRAP}"):
        call(network, pool_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nor_is_it_described_by_itself(network):
    with pytest.raises(KD3Error, match=r"a live ResNetCifar is no description of a teacher; give kd3\.Teacher"):
        kd3.load_teacher(network)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda student, run: kd3.export(student, "out"), "kd3.export: run is a live Student, where a run folder or"),
        (lambda student, run: kd3.export(run, "out"), r"is a live Run, where .*; give its folder \(somewhere\)"),
        (lambda student, run: kd3.report(run), r"kd3.report: runs is a live Run, .*; give its folder \(somewhere\)"),
        (lambda student, run: kd3.report([student]), "kd3.report: runs is a live Student"),
        (lambda student, run: kd3.evaluate(student, torch.zeros(2)), "kd3.evaluate: data is a live Tensor"),
        (lambda student, run: kd3.distill("t.yaml", 7, "pool", "out"), "kd3.distill: student is a live int"),
        (lambda student, run: kd3.adapt(run), r"kd3.adapt: run is a live Run, .*; give its folder \(somewhere\)"),
        (lambda student, run: kd3.adapt("run", images=torch.zeros(2)), "kd3.adapt: images is a live Tensor"),
        (lambda student, run: kd3.cascade("run", pool=student), "kd3.cascade: pool is a live Student, .* ImagePool"),
        (lambda student, run: kd3.study("cost", run), r"kd3.study: out is a live Run, where a folder is expected"),
        (lambda student, run: kd3.shift("t.yaml", nn.Identity()), "kd3.shift: pool is a live Identity, .* ImagePool"),
    ],
)
def test_other_objects_are_named_and_what_is_expected(call, what, student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KD3Error, match=what) as problem:
        call(student, Run(tmp_path.relative_to(tmp_path) / "somewhere", {}))
    assert len(str(problem.value)) < 400


@pytest.mark.parametrize("model", [AdaptConfig, CascadeConfig, DistillConfig])
def test_one_source_of_images_to_keep_out_needs_no_list(model):
    needed = {name: "-" for name, field in model.model_fields.items() if field.is_required()}
    assert build(model, {**needed, "keep_out": "test.zip"}, where="here").keep_out == ["test.zip"]


SUMMARY = {
    "student": "live:Net",
    "teacher": "t.yaml",
    "method": "kd",
    "seed": 0,
    "images": 10,
    "seconds": 1,
    "images_per_second": 10,
    "compute": "CPU",
    "rounds": 1,
    "agreement": 50.0,
    "best_step": 1,
    "steps": 1,
    "agreement_at_end": 50.0,
}


@pytest.mark.parametrize("name", ["its 'best' run", 'of "today"', "for $HOME"])
def test_the_next_command_runs_in_a_shell_whatever_the_folder_is_called(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "metrics.jsonl").touch()
    (line,) = (
        line for line in describe(folder, {**SUMMARY, "student": "kd3:resnet8"}).splitlines() if "python" in line
    )
    _, _, code = shlex.split(line)
    assert ast.literal_eval(ast.parse(code).body[1].value.args[0]) == str(folder)


def test_a_run_of_a_live_student_says_how_to_go_on(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    said = describe(tmp_path, SUMMARY)
    assert f'kd3.load_student("{tmp_path}", module=...)' in said
    assert f'kd3.export("{tmp_path}", "OUT", module=...)' in said
    assert "kd3 evaluate" not in said  # a command cannot name the module
    assert "module is the network that was given, or one like it" in said
    assert "module=" not in describe(tmp_path, {**SUMMARY, "student": "kd3:resnet8"})


def test_a_run_of_one_round_has_one_selection(tmp_path):
    def said(rounds):
        lines = [{"event": "selection", "kept": kept, "of": 40, "kept_per_class": None} for kept in rounds]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return describe(tmp_path, {**SUMMARY, "rounds": len(rounds)}).splitlines()

    assert said([10])[1].endswith(", 1 round")
    assert "  selected     10 images (25%) of the pool" in said([10])
    assert said([10, 30])[1].endswith(", 2 rounds")
    assert said([10, 30])[2] == (
        "  selected     10 images (25%) of the pool in the first round, 30 images (75%) in the last"
    )
