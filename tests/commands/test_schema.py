"""JSON schemas of the files that people write: accepted files fit them, refused ones do not."""

import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml

from kd3.commands.about import schema
from kd3.config.distill import DistillConfig, presets
from kd3.config.published import studies
from kd3.config.settings import build
from kd3.runtime.errors import KD3Error

README = Path(__file__).parents[2] / "README.md"
NEEDED = {"teacher": "t.yaml", "student": "kd3:resnet8", "pool": "p", "out": "o"}


def errors(file, values):
    found = schema(file)
    jsonschema.Draft202012Validator.check_schema(found)
    return [error.message for error in jsonschema.Draft202012Validator(found).iter_errors(values)]


def shipped(folder, name):
    return yaml.safe_load((resources.files("kd3") / folder / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", presets())
def test_presets_fit(name):
    assert errors("distill", shipped("presets", name)) == []


@pytest.mark.parametrize("name", studies())
def test_studies_fit(name):
    assert errors("study", shipped("studies", name)) == []


def test_the_teacher_of_the_readme_and_one_that_a_library_knows_fit():
    block = re.search(r"```yaml\n(arch: .*?)```", README.read_text(), re.S)[1]
    assert errors("teacher", yaml.safe_load(block)) == []
    assert errors("teacher", {"arch": "hf:./vit"}) == []
    assert errors("teacher", {"weights": "a.pt"}) != []


def test_every_default_fits():
    assert errors("distill", json.loads(DistillConfig(**NEEDED).model_dump_json())) == []


VALUES = [
    *({"train": {"images": count}} for count in ("200k", 5000, "1e6", "ten", 0)),
    *({"train": values} for values in ({"lr": -1}, {"lr": "fast"}, {"schedule": "cosine"}, {"schedule": "cosin"})),
    *(
        {"kd3": values}
        for values in (
            {"threshold": 1.5},
            {"selection": "dynamic", "threshold": 1},
            {"selection": "none"},
            {"flips": True},
        )
    ),
    *({"seed": -1}, {"seed": 1.5}, {"sead": 1}),
]


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_the_schema_refuses_what_kd3_refuses(values):
    try:
        build(DistillConfig, {**NEEDED, **values}, where="here")
        accepted = True
    except KD3Error:
        accepted = False
    assert (errors("distill", values) == []) is accepted


def test_the_command_prints_it_without_torch():
    code = "import sys; from kd3.cli import main; main(['schema', 'study']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert json.loads(done.stdout)["title"].startswith("A study")


def test_an_unknown_kind_is_refused():
    done = subprocess.run([sys.executable, "-m", "kd3", "schema", "pool"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "'distill', 'teacher' or 'study'" in done.stderr
