"""The benchmark beside other projects, without those projects: its settings, its lines, its table."""

import importlib
import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

PEERS = ("torchdistill", "torchdistill.common.main_util", "torchdistill.core.distillation", "lightly_train")
TORCHVISION = ("torchvision", "torchvision.transforms", "torchvision.datasets")


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return importlib.import_module("benchmarks.peers.__main__")


@pytest.fixture
def script(peers, monkeypatch):
    """A function that imports a peer's script; the peer itself is a stand-in."""
    for name in (*PEERS, *TORCHVISION):
        monkeypatch.setitem(sys.modules, name, MagicMock())

    def imported(name):
        monkeypatch.delitem(sys.modules, f"benchmarks.peers.{name}", raising=False)
        return importlib.import_module(f"benchmarks.peers.{name}")

    return imported


@pytest.mark.parametrize("name", ["with_torchdistill", "with_lightly_train"])
def test_each_script_takes_its_folders_as_arguments(script, name):
    words = ["--teacher", "a.pt", "--crawl", "files", "--images", "256", "--seed", "3", "--out", "out"]
    found = script(name).parser().parse_args(words)
    assert (found.teacher, found.crawl, found.out) == (Path("a.pt"), Path("files"), Path("out"))
    assert (found.images, found.seed) == (256, 3)
    with pytest.raises(SystemExit):
        script(name).parser().parse_args(["--images", "256"])


def test_a_wrapped_network_pools_what_its_classifier_reads(script):
    module = script("with_lightly_train")
    network = module.ResNetCifar(num_classes=10, depth=8).eval()
    wrapped, images = module.Wrapped(network), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        pooled = wrapped.forward_pool(wrapped.forward_features(images))["pooled_features"]
        assert pooled.shape == (2, wrapped.feature_dim(), 1, 1)
        torch.testing.assert_close(network.linear(pooled.flatten(1)), network(images))


def test_only_code_counts_as_a_line_to_write(peers, monkeypatch, tmp_path):
    text = (
        '"""Text.\n\nMore text.\n"""\n\nimport x\n\n\ndef f():\n    """Short."""\n    # reason\n    return 1  # why\n'
    )
    (tmp_path / "script.py").write_text(text)
    monkeypatch.setitem(peers.SCRIPTS, "torchdistill", tmp_path / "script.py")
    assert peers.lines_to_write("torchdistill") == 3
    assert peers.lines_to_write("kd3") == peers.lines_to_write("kd3 --method kd") < 12


def entry(row, seed, images, cpu, accuracy):
    figures = {"seconds": 2 * cpu, "cpu": cpu, "peak": 400 + seed, "network": "off", "accuracy": accuracy}
    return {"row": row, "seed": seed, "images": images, **figures}


def test_the_rate_leaves_out_the_start_up(peers):
    runs = [entry("kd3", 0, 100, 15, 20.0), entry("kd3", 0, 1100, 34, 50.0), entry("kd3", 1, 1100, 36, 52.0)]
    # (1100 - 100) images in 35 - 15 s
    assert peers.table(runs, 1100).splitlines()[2].startswith("| kd3 | 51.0 ± 1.4 | 50 | 35 | 401 |")


def test_rows_take_turns_and_a_finished_run_is_not_repeated(peers, monkeypatch, tmp_path, capsys):
    done = [entry("kd3", 0, 640, 9, 30.0), entry("kd3", 7, 6400, 60, 70.0)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in done))
    ran = []

    def pretended(row, seed, images, place):
        ran.append((row, seed, images))
        return entry(row, seed, images, images / 100, 40.0)

    monkeypatch.setattr(peers, "run", pretended)
    monkeypatch.setattr(peers, "prepare", lambda place: None)
    command = ["data", "--out", str(tmp_path), "--images", "6400", "--seeds", "0,7", "--rows", "kd3,torchdistill"]
    peers.main(command)
    last = [("kd3", 0, 6400), ("torchdistill", 0, 6400), ("torchdistill", 7, 6400)]
    assert ran == [("torchdistill", 0, 640), *last]
    ran.clear()
    peers.main(command)
    assert not ran
    assert "| torchdistill | 40.0" in capsys.readouterr().out


def test_an_unknown_row_is_refused_before_anything_is_made(peers, tmp_path):
    with pytest.raises(SystemExit, match="names mdistiller; there are"):
        peers.main(["data", "--out", str(tmp_path / "out"), "--rows", "kd3,mdistiller"])
    assert not (tmp_path / "out").exists()
