"""A larger pool costs a run a few bytes an image: the pixels and the teacher's logits stay in their files."""

import subprocess
import sys
from pathlib import Path

import pytest

# With 50 classes the logits of 200,000 images would be 40 MB.
SCRIPT = """
import sys, threading, time, torch, kd3

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Linear(4, 50)
    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)

torch.set_num_threads(1)
torch.manual_seed(0)
teacher = kd3.Teacher(Net(), mean=[0.5] * 3, std=[0.25] * 3, input_size=8)
options = {"images": 2560, "precision": "32", "device": "cpu", "kd3": {"selection": "dynamic"}}
pool = kd3.ImagePool.open(sys.argv[1])
peak = [0]
threading.Thread(target=watch, daemon=True).start()
kd3.distill(teacher, Net(), pool, sys.argv[2], **options)
print(peak[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_image_more_costs_at_most_64_bytes_of_memory(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from benchmarks.synthetic import write_pool

    peaks = {}
    for images in (5_000, 205_000):
        pool = write_pool(tmp_path / f"pool{images}", images)
        seen = []
        for run in range(2):  # the same run's peak differs by a megabyte or two
            command = [sys.executable, "-c", SCRIPT, str(pool), str(tmp_path / f"run{images}-{run}")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=200)
            assert done.returncode == 0, done.stderr
            seen.append(int(done.stdout))
        peaks[images] = min(seen)
    assert (peaks[205_000] - peaks[5_000]) / 200_000 <= 64
