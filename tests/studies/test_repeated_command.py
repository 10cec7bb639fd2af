"""The command that a study prints is the one that repeats it."""

import shlex

from kd3.commands.study import _command, given_settings
from kd3.config.commands import StudyConfig
from kd3.config.flags import build_parser, nested
from kd3.config.settings import build


def read_back(command):
    words = shlex.split(command)
    assert words[0] == "kd3"
    given = vars(build_parser().parse_args(words[1:]))
    values = {name: value for name, value in given.items() if name not in ("command", "json", "quiet")}
    return build(StudyConfig, nested(values), where="test")


def study(**values):
    place = {"study": "my studies/it's mine.yaml", "out": "out of it", "teacher": "t.yaml", "student": "net.py:build"}
    return build(StudyConfig, {**place, "pool": "a pool", **values}, where="test")


def test_spaces_quotes_and_lists_survive():
    config = study(
        other=["a b/pool", "photo=other pools/photo"],
        rows=["KD3, blur", "KD; half"[:2]],
        known=["x y.json"],
        seeds=[3, 4],
        images=5000,
        jobs=2,
        precision="32",
        eval_data="$HOME/test",
    )
    assert read_back(_command(config)) == config


def test_defaults_and_a_dry_run_are_left_out():
    assert _command(study(dry_run=True)) == (
        "kd3 study 'my studies/it'\"'\"'s mine.yaml' --out 'out of it' --teacher t.yaml --student net.py:build "
        "--pool 'a pool'"
    )


def test_places_of_this_machine_become_relative(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "pool").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    command = _command(study(pool=str(tmp_path / "pool"), other=[f"photo={tmp_path / 'pool'}"]))
    assert str(tmp_path) not in command
    assert "--pool ../pool --other photo=../pool" in command


def test_what_lists_may_name_and_urls_reach_every_run():
    config = study(eval_data="https://h/t.zip", teacher="timm:resnet18", private_hosts=True)
    given = given_settings(config)
    assert (given["eval_data"], given["teacher"]) == ("https://h/t.zip", "timm:resnet18")
    assert given["private_hosts"] is True
    assert "trust_entries" not in given
    assert read_back(_command(config)) == config
    assert _command(config).endswith("--private-hosts")


def test_paths_reach_every_run_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = given_settings(study(eval_data="test", teacher="t.yaml"))
    assert (given["eval_data"], given["teacher"]) == (str(tmp_path / "test"), str(tmp_path / "t.yaml"))
