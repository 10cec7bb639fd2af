"""Tests of the documentation: command lines, blocks of Python, examples, quoted messages."""

import re
import runpy
import shlex
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml

import kd3
from kd3.cli import _distill_settings, main
from kd3.config.command_table import COMMANDS
from kd3.config.flags import build_parser, nested
from kd3.config.settings import build
from kd3.models.descriptions import read_description
from kd3.studies.plan import read_study

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page, language=None):
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for name, text in found if language is None or name == language]


def command_lines(page):
    """The complete kd3 command lines in a page's blocks, with shell variables filled in."""
    if page.name == "peers.md":  # whose commands stand in a table
        yield from re.findall(r"`(kd3 [a-z]+ [^`]*)`", page.read_text(encoding="utf-8"))
    for text in blocks(page):
        if "usage: kd3" in text:
            continue
        for line in text.replace("\\\n", " ").splitlines():
            called = re.search(r"(?:^|[\s;(])(kd3 (?!COMMAND)[a-z]+ .*)", line)
            if called and not line.lstrip().startswith(("#", "import")):
                yield re.sub(r"\$\{?seed\}?", "0", called.group(1)).replace("$method", "kd3")


COMMAND_LINES = [(page, line) for page in PAGES for line in command_lines(page)]


def test_there_are_commands_to_check():
    assert len(COMMAND_LINES) > 45
    used = {line.split()[1] for _, line in COMMAND_LINES}
    assert used >= {"ingest", "distill", "evaluate", "report", "export", "study"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_command_on_a_page_has_flags_that_exist_and_values_that_are_allowed(page):
    for line in command_lines(page):
        words = shlex.split(line, comments=True)
        words = words[1 : next((place for place, word in enumerate(words) if word in (";", "|", "&&", ">")), None)]
        given = vars(build_parser().parse_args([word.rstrip(";") for word in words]))
        name = given.pop("command")
        given.pop("quiet")
        given.pop("json", None)
        if name == "distill":
            if not given["config"] and not given["resume"]:
                _distill_settings(given)
        else:
            build(COMMANDS[name].settings, nested(given), where=line)


@pytest.fixture(scope="module")
def place(crawl, labelled, centred_teacher_file, tmp_path_factory):
    """A folder with the inputs of the examples: crawl/, test/, teacher.yaml; a tiny network, 120 pictures."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(crawl, folder / "crawl")
    shutil.copytree(labelled, folder / "test")
    description = yaml.safe_load(centred_teacher_file.read_text())
    weights = str(centred_teacher_file.parent / "weights.pt")
    (folder / "teacher.yaml").write_text(yaml.safe_dump({**description, "weights": weights, "input_size": 32}))
    return folder


# Pages of results need their own pools and days. tests/training/test_ranks.py and tests/runtime start several processes
# and clusters, tests/evaluation reads layouts of labels, tests/studies runs the paper's commands.
NOT_WHOLE = ("peers", "scale", "labels", "table1", "inherit-fit-recall", "random-start", "shift", "paper")
RUN_WHOLE = [page for page in PAGES if list(command_lines(page)) and page.stem not in NOT_WHOLE]
SMALL = {
    "distill": ["--images", "640", "--student", "kd3:resnet8"],
    "study": ["--images", "320", "--student", "kd3:resnet8", "--rows", "KD3"],
    "inspect": [],
    "export": ["--check-images", "50", "--min-agreement", "0"],
    "cascade": ["--deployment", "camera", "--agreement", "5", "--confidence", "60"],
}
SAID_SMALLER = {"--image-size 224": "--image-size 32", "crawl/00000.tar crawl/00001.tar --limit 2000": "crawl/"}


def small_command(line):
    for said, smaller in SAID_SMALLER.items():
        line = line.replace(said, smaller)
    words = shlex.split(line, comments=True)[1:]
    end = next((place for place, word in enumerate(words) if word.endswith(";") or word in ("|", "&&")), None)
    words = words[:end]
    return [*words, *SMALL.get(words[0], [])]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_WHOLE, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_command_of_a_page_runs(page, place, tmp_path, monkeypatch, capsys):
    """One after the other, on a tiny crawl and with a small budget; the prerequisites of a page are made first."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    for part in ("crawl", "test"):
        shutil.copytree(place / part, part)
    shutil.copytree("crawl", "camera")
    pictures = sorted(Path("crawl").glob("*.png"))
    for shard in range(24):
        with tarfile.open(f"crawl/{shard:05d}.tar", "w") as archive:
            for picture in pictures[shard::24]:
                archive.add(picture, picture.name)
    shutil.copy("crawl/00000.tar", "crawl/0.tar")
    shutil.copy(place / "teacher.yaml", ".")
    for tests in ("more_tests", "original_test"):
        shutil.make_archive(tests, "zip", "test")
    lines = [line for line in command_lines(page) if "--resume" not in line]
    used = {line.split()[1] for line in lines}
    ingests = [line for line in lines if line.startswith("kd3 ingest")]
    before = ingests or ["kd3 ingest crawl/ --out pool --image-size 32"]
    if used & {"report", "export", "evaluate", "predict", "cascade"} and "distill" not in used:
        before += [f"kd3 distill --teacher teacher.yaml --pool pool --out runs/{run} --student x" for run in "ab"]
    for line in [*before, *(line for line in lines if line not in ingests)]:
        assert main(small_command(line)) == 0, (line, capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs(example, place, monkeypatch, capsys):
    if example.stem == "ship":
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(place)
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_every_block_of_python_runs(place, monkeypatch, capsys):
    """Only self-contained ones, with a small budget in place of a real one."""
    shown = {text for page in PAGES for text in blocks(page, "python") if "kd3.ingest(" in text}
    assert shown
    for number, text in enumerate(sorted(shown)):
        folder = place / f"block{number}"
        folder.mkdir()
        for name in ("crawl", "test"):
            (folder / name).symlink_to(place / name)
        shutil.copy(place / "teacher.yaml", folder)
        monkeypatch.chdir(folder)
        exec(compile(text.replace('"200k"', '"320"').replace("resnet20", "resnet8"), "documentation", "exec"), {})
    assert "top-1" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_blocks_of_python_use_names_that_exist(page):
    for text in blocks(page, "python"):
        compile(text, str(page), "exec")
        for name in re.findall(r"\bkd3\.(\w+)\(", text):
            assert hasattr(kd3, name), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_that_are_shown_are_accepted(page, tmp_path):
    """Teachers' descriptions and studies, by their readers."""
    for text in blocks(page, "yaml"):
        path = tmp_path / "shown.yaml"
        path.write_text(text)
        read_study(str(path)) if "rows:" in text else read_description(path)


def test_messages_that_are_explained_are_messages_of_the_code():
    """The page quotes them in comments; in the code a message may be cut over lines and hold values."""
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"<!-- message: (.*?) -->", page)
    assert len(quoted) > 12
    code = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "src" / "kd3").rglob("*.py"))
    whole = re.sub(r'"\s*\n\s*f?"', "", code)
    for message in quoted:
        assert message in whole, message


def test_each_promise_of_the_security_page_has_a_test_that_is_there():
    page = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 20
    for path, test in named:
        assert f"def {test}(" in (REPOSITORY / path).read_text(encoding="utf-8"), test
    promises = [line for line in page.partition("| promise | test |")[2].splitlines()[2:] if line.startswith("|")]
    assert len(promises) > 10
    assert all("::test_" in line for line in promises)


def test_examples_are_short():
    assert len(EXAMPLES) >= 6
    for example in EXAMPLES:
        assert len(example.read_text().splitlines()) <= 15
