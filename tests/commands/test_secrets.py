"""Secrets in URLs that a user gives stay in the settings of the run, and are in nothing that people show or ship."""

import tarfile

import numpy as np
import pytest
from PIL import Image
from pool_containers import web_server

from in_process import here


@pytest.fixture
def site(tmp_path, labelled):
    """A server of labelled images and of others."""
    web = tmp_path / "web"
    (web / "loose").mkdir(parents=True)
    draw = np.random.default_rng(7)
    for number in range(20):
        small = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize((24, 24), Image.Resampling.BICUBIC).save(web / "loose" / f"{number}.png")
    for name, folder in (("test.tar", labelled), ("loose.tar", web / "loose")):
        with tarfile.open(web / name, "w") as archive:
            archive.add(folder, arcname=name[:-4])
    with web_server(web) as server:
        yield server.url


def test_what_a_run_leaves_and_prints_holds_no_secret_of_the_urls_that_it_was_given(
    site, teacher_file, pool_folder, tmp_path
):
    test, own = f"{site}/test.tar?jwt=hunter2", f"{site.replace('//', '//me:hunter3@')}/loose.tar"
    run, small = tmp_path / "run", ("--images", 64, "--batch-size", 16, "--holdout", 12, "--device", "cpu")
    sound = ("--teacher", teacher_file, "--pool", pool_folder)
    words = [
        ("distill", *sound, "--student", "kd3:resnet8", "--out", run, *small, "--eval-data", test, "--deployment", own),
        ("evaluate", run, "--data", test, "--teacher", teacher_file, "--out", tmp_path / "page.html", "--json"),
        ("report", run, "--data", test, "--out", tmp_path / "report.html"),
        ("export", run, "--out", tmp_path / "ship", "--images", own, "--check-images", 5, "--format", "safetensors"),
        ("adapt", run, "--images", own),
        ("predict", run, own),
        ("shift", *sound, "--device", "cpu", "--reference", own, "--out", tmp_path / "shift"),
        ("evaluate", run, "--data", own),
    ]
    for command in words:
        done = here(*command)
        assert done.returncode == (2 if command[:4] == ("evaluate", run, "--data", own) else 0), done.stderr
        assert "hunter" not in done.stdout + done.stderr, command[0]
    assert "hunter2" in (run / "config.yaml").read_text()  # by which the run goes on
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "web" not in path.parts]
    holders = [path for path in left if b"hunter" in path.read_bytes()]
    assert holders == [run / "config.yaml"]
