"""The commands of the command line: settings, code and the words of `--help`. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from kd3.config.commands import (
    DemoConfig,
    DistillConfig,
    EvaluateConfig,
    IngestConfig,
    InspectConfig,
    PredictConfig,
)
from kd3.config.methods import METHODS
from kd3.config.settings import Settings


@dataclass(frozen=True)
class Command:
    """One command: `location` is the "module:function" that takes its settings and returns a result."""

    settings: type[Settings]
    location: str
    positional: tuple[str, ...]
    usage: str
    examples: str
    json: bool = False  # offers --json

    @property
    def summary(self) -> str:
        """One line on what it does."""
        return (self.settings.__doc__ or "").splitlines()[0].rstrip(".")


COMMANDS: dict[str, Command] = {
    "ingest": Command(
        IngestConfig,
        "kd3.commands.ingest:run",
        ("sources",),
        "kd3 ingest SOURCE... --out POOL --image-size N [options]",
        """\
examples:
  kd3 ingest crawl/ --out pool --image-size 32
  kd3 ingest 'shards/{00000..00023}.tar' more.zip --out pool --image-size 224

Every regular file is tried, whatever its name says; sidecars (.json, .txt, .csv, .parquet, ...) and
hidden files are skipped. What cannot be used is counted by reason and listed in POOL/rejected.csv.
Run the same command again to continue after an interruption.""",
        json=True,
    ),
    "distill": Command(
        DistillConfig,
        "kd3.commands.distill:run",
        (),
        "kd3 distill --teacher TEACHER --student ARCH --pool POOL --out RUN [options]",
        """\
examples:
  kd3 distill --teacher teacher.yaml --student kd3:resnet20 --pool pool --out runs/a
  kd3 distill --teacher teacher.yaml --student net.py:build --pool pool --out runs/b --images 1M
  kd3 distill --config run.yaml --seed 1 --out runs/c
  kd3 distill --resume --out runs/a

The file of --config holds the same names as the flags: those of the training under 'train:', those
of a method under its name. Flags win over the file, the file over --preset.

methods:
"""
        + "\n".join(f"  {name:<6} {entry.summary}" for name, entry in METHODS.items()),
        json=True,
    ),
    "evaluate": Command(
        EvaluateConfig,
        "kd3.commands.evaluate:run",
        ("model",),
        "kd3 evaluate MODEL --data DATA [--teacher TEACHER] [options]",
        """\
examples:
  kd3 evaluate runs/a --data test/ --teacher teacher.yaml
  kd3 evaluate teacher.yaml --data test.zip --json""",
        json=True,
    ),
    "predict": Command(
        PredictConfig,
        "kd3.commands.predict:run",
        ("model", "images"),
        "kd3 predict MODEL IMAGE... [options]",
        """\
example:
  kd3 predict runs/a cat.jpg photos/ --top 5""",
        json=True,
    ),
    "inspect": Command(
        InspectConfig,
        "kd3.commands.inspect:run",
        (),
        "kd3 inspect --teacher TEACHER [options]",
        """\
example:
  kd3 inspect --teacher teacher.yaml

teacher.yaml:
  arch: kd3:resnet56          # or path/to/net.py:build, or package.module:build
  weights: resnet56.pt        # relative to this file; .pt .pth .th .safetensors
  num_classes: 10
  mean: [0.485, 0.456, 0.406] # of RGB in [0, 1]
  std: [0.229, 0.224, 0.225]
  input_size: 32
  classes: [airplane, automobile, ...]   # optional""",
        json=True,
    ),
    "demo": Command(
        DemoConfig,
        "kd3.commands.demo:run",
        (),
        "kd3 demo [--out DIR] [options]",
        """\
example:
  kd3 demo --out demo

Needs the extra: pip install 'kd3[demo]'""",
    ),
}
