"""Memory that ran out, in one sentence."""

import pytest
import torch

from in_process import here
from kd3.runtime.compute import out_of_memory_as_error
from kd3.runtime.errors import KD3Error

OF_A_GPU = (
    "CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of 23.50 GiB of which 88.00 MiB is "
    "free. Including non-PyTorch memory, this process has 23.40 GiB memory in use."
)
OF_A_CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes. Error code 12"


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (torch.OutOfMemoryError(OF_A_GPU), "512.00 MiB more were asked for, where of 23.50 GiB 88.00 MiB are free"),
        (RuntimeError(OF_A_CPU), "8.00 GiB more were asked for"),
        (MemoryError(), "not enough for a scan; take less"),
    ],
)
def test_the_sentence_says_what_needed_how_much_and_what_helps(problem, said):
    with (
        pytest.raises(KD3Error, match="not enough for a scan") as caught,
        out_of_memory_as_error("a scan", less="take less"),
    ):
        raise problem
    assert said in str(caught.value)
    assert str(caught.value).endswith("; take less")
    assert "\n" not in str(caught.value)


def test_other_problems_pass():
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_as_error("a scan", less="take less"):
        raise RuntimeError("shapes differ")


def test_every_command_ends_in_a_sentence(monkeypatch):
    def runs_out(settings):
        raise torch.OutOfMemoryError(OF_A_GPU)

    monkeypatch.setattr("kd3.commands.about.list_methods", runs_out)
    done = here("methods")
    assert done.returncode == 2
    assert "512.00 MiB" in done.stderr
    assert "Traceback" not in done.stderr
