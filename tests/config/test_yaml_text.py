"""Untrusted YAML: bounded size, unique names."""

import time

import pytest

from in_process import here
from kd3.config.settings import read_yaml
from kd3.config.yaml_text import MOST_BYTES, MOST_VALUES, load_yaml
from kd3.runtime.errors import KD3Error

NEEDED = ("--teacher", "t.yaml", "--student", "kd3:resnet8", "--pool", "p", "--eval-data", "d")


def laughs(levels, width=10):
    lines = ["a0: &a0 [x, y]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (laughs(9), f"stands for more than {MOST_VALUES:,} values"),
        (laughs(9, 2).replace("a0: &a0 [x, y]", "a0: &a0 [" + "x, " * 2000 + "x]"), "stands for more than"),
        ("a: &a [*a]", r"holds itself \(line 1\)"),
        ("a: &a\n  b: *a", "holds itself"),
        ("arch: x\nmean: 1\narch: y", r"has 'arch' twice \(line 3\)"),
        ("train:\n  lr: 1\n  seed: 0\n  lr: 2\n", r"has 'lr' twice \(line 4\)"),
        ("- {x: 1, x: 1}", "has 'x' twice"),
        ("a: " + "[" * 150 + "]" * 150, "is nested deeper than"),
        ("a: " + "[" * 2_000_000, "is nested deeper than"),
        ("".join(f"{' ' * n}a:\n" for n in range(150)), "is nested deeper than"),
        ("a: 2026-99-99", "is not valid YAML"),
        ("? [a, b]\n: 1", "is not valid YAML"),
        ("a: [", r"is not valid YAML \(line 1\)"),
        ("a: !!python/object/apply:os.system [ls]", "is not valid YAML"),
        ("a: \x07", "is not valid YAML"),
    ],
)
def test_yaml_that_no_person_means_is_refused_at_once(text, words, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    before = time.monotonic()
    with pytest.raises(KD3Error, match=f"settings .*a.yaml {words}"):
        load_yaml(path, what="settings")
    assert time.monotonic() - before < 5


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    path = tmp_path / "a.yaml"
    with path.open("wb") as handle:
        handle.truncate(MOST_BYTES + 1)
    with pytest.raises(KD3Error, match="larger than 16 MiB"):
        load_yaml(path, what="settings")
    with pytest.raises(KD3Error, match="cannot be read"):
        load_yaml(tmp_path / "a\0b", what="settings")


def test_aliases_and_merges_that_people_write_are_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("base: &base {lr: 1, seed: 0}\none: {<<: *base, lr: 2}\nsame: [*base, *base]\n")
    values = read_yaml(path, what="settings")
    assert values["one"] == {"lr": 2, "seed": 0}
    assert values["same"] == [{"lr": 1, "seed": 0}] * 2
    path.write_text("classes: [" + ", ".join(f"c{n}" for n in range(21_841)) + "]")
    assert len(read_yaml(path, what="settings")["classes"]) == 21_841


@pytest.mark.parametrize("kind", ["teacher", "config", "study"])
def test_every_yaml_of_a_user_is_read_that_way(kind, tmp_path):
    path = tmp_path / "evil.yaml"
    for text, words in ((laughs(9), "stands for more than"), ("a: 1\na: 2\n", "has 'a' twice (line 2)")):
        path.write_text(text)
        done = {
            "teacher": lambda: here("inspect", "--teacher", path),
            "config": lambda: here("distill", "--config", path, "--out", tmp_path / "run"),
            "study": lambda: here("study", path, "--out", tmp_path / "study", *NEEDED),
        }[kind]()
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
