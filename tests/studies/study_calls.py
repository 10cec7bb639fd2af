"""`kd3 study` on a tiny pool, called as users call it."""

import sys

import yaml

from in_process import here

ROWS = [
    {"name": "KD3", "settings": {"method": "kd3"}},
    {"name": "KD, half", "settings": {"method": "kd"}, "pool": {"share": 0.5}},
]
COMMON = {"train": {"batch_size": 16, "holdout": 12, "warmup_steps": 2}}


def write(folder, **values):
    path = folder / "mine.yaml"
    content = {"title": "Mine", "images": 64, "seeds": [0], "common": COMMON, "rows": ROWS, **values}
    path.write_text(yaml.safe_dump(content))
    return path


def command(teacher_file, pool_folder, study, out, *more):
    words = [sys.executable, "-m", "kd3", "study", str(study), "--out", str(out), "--teacher", str(teacher_file)]
    return [
        *words,
        "--student",
        "kd3:resnet8",
        "--pool",
        str(pool_folder),
        "--device",
        "cpu",
        "--precision",
        "32",
        *more,
    ]


def call(*arguments):
    return here(*command(*arguments)[3:])
