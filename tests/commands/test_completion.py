"""A real bash completes commands, flags, choices and files."""

import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    code = "import sys; from kd3.cli import main; main(['completion', 'bash']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    path = tmp_path_factory.mktemp("completion") / "kd3.bash"
    path.write_text(done.stdout)
    return path


def completed(script, words, cwd=None):
    """Completions of bash for the last word."""
    listed = " ".join(f"'{word}'" for word in words)
    code = (
        f"source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; COMP_LINE='{' '.join(words)}'; "
        "COMP_POINT=${#COMP_LINE}; "
        'function=$(complete -p kd3); function=${function##*-F }; ${function%% *}; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return [word.strip() for word in done.stdout.split()]


def test_commands(script):
    assert completed(script, ["kd3", "di"]) == ["distill"]
    assert {"ingest", "export", "study"} <= set(completed(script, ["kd3", ""]))


def test_flags_and_choices(script):
    assert "--teacher" in completed(script, ["kd3", "distill", "--te"])
    assert completed(script, ["kd3", "distill", "--optimizer", ""]) == ["muon", "sgd"]
    assert completed(script, ["kd3", "distill", "--method", "sim"]) == ["simkd"]
    assert set(completed(script, ["kd3", "schema", ""])) >= {"distill", "teacher", "study"}


def test_files(script, tmp_path):
    (tmp_path / "teacher.yaml").write_text("")
    assert completed(script, ["kd3", "distill", "--teacher", "teach"], cwd=tmp_path) == ["teacher.yaml"]


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_a_script(shell):
    done = subprocess.run([sys.executable, "-m", "kd3", "completion", shell], capture_output=True, text=True)
    assert done.returncode == 0
    assert "distill" in done.stdout
