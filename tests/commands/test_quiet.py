"""`quiet=True` in Python: no messages, and the previous state afterwards."""

import pytest

import kd3
from kd3.runtime import console

FEW = {
    "images": 32,
    "batch_size": 16,
    "holdout": 12,
    "precision": "32",
    "device": "cpu",
    "method": "kd",
    "track": "none",
}


def test_quiet_silences_news_for_the_call_only(teacher_file, pool_folder, tmp_path, capsys):
    kd3.distill(teacher_file, "kd3:resnet8", pool_folder, tmp_path / "a", **FEW, quiet=True)
    assert "distil" not in capsys.readouterr().err
    assert not console.is_quiet()
    kd3.distill(teacher_file, "kd3:resnet8", pool_folder, tmp_path / "b", **FEW)
    assert "distil" in capsys.readouterr().err


def test_news_come_back_after_an_error(tmp_path):
    with pytest.raises(kd3.KD3Error, match="nowhere"):
        kd3.ingest(tmp_path / "nowhere", tmp_path / "pool", image_size=16, quiet=True)
    assert not console.is_quiet()


def test_quiet_is_yes_or_no(tmp_path):
    with pytest.raises(kd3.KD3Error, match=r"quiet \(kd3.shift\): must be True or False; got 'yes'"):
        kd3.shift("t.yaml", tmp_path, quiet="yes")


@pytest.mark.parametrize("name", sorted(set(kd3.__all__) & {"distill", "evaluate", "export", "ingest", "predict"}))
def test_every_function_that_works_takes_it(name):
    with pytest.raises(kd3.KD3Error, match="quiet"):
        getattr(kd3, name)(quiet=0)
