"""Every command that reads images lets the user vouch for the lists and tables among them, in one way."""

import shutil
import typing

import pytest

import kd3
from in_process import here
from kd3.config.command_table import COMMANDS
from kd3.config.distill import resumed
from kd3.config.pool_commands import IngestConfig
from kd3.config.settings import READING, read_yaml

BUDGET = {"images": 320, "batch_size": 16, "holdout": 12, "device": "cpu", "precision": "32", "track": "none"}
OF_IMAGES = {"sources", "images", "data", "eval_data", "deployment", "reference", "keep_out"}

SLOW = {"plan", "study"}  # whose own tests look


def reads_images(settings):
    fields = {name: settings.model_fields[name].annotation for name in OF_IMAGES & settings.model_fields.keys()}
    return any(str in (kind, *typing.get_args(kind)) for kind in fields.values())


# `reproduce` reads what `kd3 dataset` has made, no lists.
READERS = {
    name: command.settings
    for name, command in COMMANDS.items()
    if name != "reproduce" and reads_images(command.settings)
}


@pytest.fixture(scope="module")
def trained(centred_teacher_file, pool_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    kd3.distill(centred_teacher_file, "kd3:resnet8", pool_folder, out, method="kd", **BUDGET)
    return out


@pytest.fixture(scope="module")
def lists(labelled, tmp_path_factory):
    """A list, with labels, that names every labelled picture where it lies: outside the list's folder."""
    folder = tmp_path_factory.mktemp("lists")
    rows = [f"{path},{path.parent.name}" for path in sorted(labelled.rglob("*.png"))]
    (folder / "own.csv").write_text("\n".join(["file,label", *rows]))
    return folder / "own.csv"


def calls(name, images, trained, teacher, pool, out):
    """Return the ways in which a command is given images."""
    run = out / "run"
    budget = [word for key, value in BUDGET.items() for word in (f"--{key.replace('_', '-')}", value)]
    new = ["distill", "--teacher", teacher, "--student", "kd3:resnet8", "--pool", pool, "--method", "kd", *budget]
    return {
        "ingest": [["ingest", images, "--out", out / "p", "--image-size", 16, "--workers", 0]],
        "distill": [[*new, "--dry-run", "--out", out / "a", f"--{by}", images] for by in ("eval-data", "deployment")]
        + [[*new, "--out", out / "b", "--keep-out", images]],
        "adapt": [["adapt", run, "--images", images], ["adapt", run, "--keep-out", images]],
        "cascade": [["cascade", run, "--deployment", images, "--agreement", 60, "--confidence", 60]],
        "evaluate": [["evaluate", trained, "--data", images, "--workers", 0]],
        "predict": [["predict", trained, images]],
        "report": [["report", trained, "--data", images, "--images", 0, "--no-latency", "--out", out / "r.html"]],
        "export": [["export", trained, "--images", images, "--format", "safetensors", "--out", out / "x"]],
        "shift": [["shift", "--teacher", teacher, "--pool", pool, "--reference", images]],
    }[name]


def test_all_that_read_images_are_told_alike():
    assert {"ingest", "evaluate", "study", "shift"} <= READERS.keys()
    for name, settings in READERS.items():
        for flag in READING:
            field = settings.model_fields[flag]
            assert (field.default, field.description) == (False, IngestConfig.model_fields[flag].description), name


@pytest.mark.parametrize("name", sorted(READERS.keys() - SLOW))
def test_a_list_of_the_users_own_is_read_where_he_says_so(
    name, lists, trained, centred_teacher_file, pool_folder, tmp_path
):
    for words in calls(name, lists, trained, centred_teacher_file, pool_folder, tmp_path):
        shutil.copytree(trained, tmp_path / "run", dirs_exist_ok=True)
        refused = here(*words)
        assert refused.returncode == 2, (words, refused.stdout)
        assert "--trust-entries" in refused.stderr
        read = here(*words, "--trust-entries")
        assert read.returncode == 0, (words, read.stderr)


def test_what_one_call_was_allowed_is_no_others(lists, trained):
    assert kd3.evaluate(trained, lists, trust_entries=True, quiet=True).images == 24
    for wrong in ({}, {"private_hosts": True}):
        with pytest.raises(kd3.KD3Error, match=r"16 not allowed \(--trust-entries"):
            kd3.evaluate(trained, lists, quiet=True, **wrong)
    with pytest.raises(kd3.KD3Error, match="trust_entries"):
        kd3.predict(trained, lists, trust_entries="perhaps")


def test_a_run_goes_on_with_what_its_lists_may_name(lists, trained, tmp_path):
    settings = read_yaml(trained / "config.yaml", what="configuration")
    assert {settings[name] for name in READING} == {False}
    shutil.copytree(trained, tmp_path / "run")
    assert resumed({"out": str(tmp_path / "run"), "private_hosts": True}, where="test").private_hosts
