"""Commands of the command line: settings, code and texts of `--help`. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from kd3.config.commands import (
    AdaptConfig,
    CascadeConfig,
    ClassesConfig,
    CompletionConfig,
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    InspectConfig,
    MethodsConfig,
    PredictConfig,
    ReportConfig,
    SchemaConfig,
    StudyConfig,
)
from kd3.config.distill import DistillConfig
from kd3.config.methods import METHODS
from kd3.config.pool_commands import DatasetConfig, IngestConfig, PlanConfig, PoolConfig, SelectConfig, ShiftConfig
from kd3.config.published import DATASETS, TABLES, ReproduceConfig, studies
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
        """One-line description."""
        return (self.settings.__doc__ or "").splitlines()[0].rstrip(".")


COMMANDS: dict[str, Command] = {
    "ingest": Command(
        IngestConfig,
        "kd3.commands.pool:ingest_crawl",
        ("sources",),
        "kd3 ingest SOURCE... --out POOL --image-size N [options]",
        """\
examples:
  kd3 ingest crawl/ --out pool --image-size 32
  kd3 ingest 'shards/{00000..00023}.tar' more.zip --out pool --image-size 224
  kd3 ingest 'data/train-*.parquet' cifar-10-batches-py/ images.npy --out pool --image-size 32
  kd3 ingest paths.txt --out pool --image-size 224
  kd3 ingest 's3://bucket/crawl/{00000..00099}.tar' hf://datasets/USER/NAME/data/ --out pool --image-size 224

sources:
  FOLDER .tar .tgz .zip  every file is tried, whatever its suffix (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, ...);
                         hidden files and sidecars (.json .txt .csv .xml ...) are skipped
  .parquet .arrow        a column of bytes, or of {bytes, path}: img2dataset, Hugging Face datasets, save_to_disk
  .npy .npz              uint8 (N, H, W, 3), (N, 3, H, W) or (N, H, W); 1 or 4 channels also work
  data_batch_1 ...       CIFAR (python, binary) and ImageNet-16/32/64 batches; code in a pickle is never run
  ...-idx3-ubyte[.gz]    MNIST and its kin
  .txt .lst .csv .tsv    as a source itself: one path or URL per line, or in a column named path, file, url, ...;
                         relative paths start at the list's folder
  PROTOCOL://...         a file, an archive, a glob or a folder (on a web server with a slash at its end). https works
                         at once, others need pip install 'kd3[s3]', 'kd3[gcs]' or 'kd3[hf]'. Credentials come from
                         these libraries' usual places and are never written to the pool

Unusable files, damaged archives and dead links are counted by reason and listed in POOL/rejected.csv.
Run the same command again to continue after an interruption. More: docs/sources.md""",
        json=True,
    ),
    "pool": Command(
        PoolConfig,
        "kd3.commands.pool:run",
        ("action", "pools"),
        "kd3 pool {info,verify,merge,sample,filter} POOL... [--out POOL] [options]",
        """\
examples:
  kd3 pool info pool
  kd3 pool verify pool
  kd3 pool merge part1 part2 part3 --out pool
  kd3 pool sample pool --share 0.1 --out tenth
  kd3 pool filter pool --keep selection/kept.jsonl --out clean
  kd3 pool filter pool --drop unwanted.txt --out clean

For a crawl on N machines, each runs `kd3 ingest SOURCE... --out partI --shard I/N`. Merged in order, the parts give the
content hash of one ingest of the whole.""",
        json=True,
    ),
    "dataset": Command(
        DatasetConfig,
        "kd3.commands.pool:make_dataset",
        ("name", "files"),
        "kd3 dataset NAME FILES --out DIR [--download] [options]",
        """\
examples:
  kd3 dataset cifar10 downloads/cifar-10-python.tar.gz --out data/cifar10
  kd3 dataset mnist downloads/ --download --out data/mnist
  kd3 dataset imagenet32 downloads/ --limit 600k --out data/imagenet32

data sets:
"""
        + "\n".join(f"  {name:<13} {', '.join(file.name for file in entry.files)}" for name, entry in DATASETS.items())
        + """

FILES may be the archive, its folder, or what it was unpacked to. Checksums are compared where they are known; what is
damaged, half or another file leaves nothing behind. An interrupted download goes on where it was.
More: docs/paper.md""",
        json=True,
    ),
    "distill": Command(
        DistillConfig,
        "kd3.commands.distill:run",
        (),
        "kd3 distill --teacher TEACHER --student ARCH --pool POOL --out RUN [--images N] [options]",
        """\
examples:
  kd3 distill --teacher teacher.yaml --student kd3:resnet20 --pool pool --out runs/a
  kd3 distill --teacher teacher.yaml --student net.py:build --pool pool --out runs/b --images 1M
  kd3 distill --config run.yaml --seed 1 --out runs/c
  kd3 distill --config run.yaml --out runs/c --dry-run
  kd3 distill --resume --out runs/a

The --config file uses the names of the flags: training options under 'train:', options of a method
under its name. Flags override the file, and the file overrides --preset.

more options:
  kd3 distill --help training   budget, batch size, learning rates, schedule, augmentation, views, checkpoints
  kd3 distill --help METHOD     options of a method, such as --kd3.threshold; 'all' shows everything

methods:
"""
        + "\n".join(f"  {name:<6} {entry.summary} ({entry.source})" for name, entry in METHODS.items()),
        json=True,
    ),
    "adapt": Command(
        AdaptConfig,
        "kd3.commands.adapt:run",
        ("run",),
        "kd3 adapt RUN [--images IMAGES] [options]",
        """\
examples:
  kd3 adapt runs/a
  kd3 adapt runs/a --images camera/ --keep-out test/
  kd3 adapt runs/a --teacher teacher.yaml --pool pool --count 200

A trained student normalises by the statistics of the crawl. Without --images, kd3 changes a few images of the crawl
until the teacher sees in them the statistics that it remembers of the lost data, and counts the student's batch norms
on these. With --images it counts them on yours. No label is read. The student's divergence from the teacher decides
how much of the new statistics is taken; none is taken unless it falls.
RUN/student is then the adapted student, and RUN/student-as-trained the original, the start of every adaptation.""",
        json=True,
    ),
    "cascade": Command(
        CascadeConfig,
        "kd3.commands.cascade:run",
        ("run",),
        "kd3 cascade RUN [--agreement PERCENT] [--deployment IMAGES] [options]",
        """\
examples:
  kd3 cascade runs/a
  kd3 cascade runs/a --agreement 99 --deployment camera/ --keep-out test/

In a cascade the student answers if it is sure enough, and the teacher otherwise. No label is read: kd3 compares student
and teacher on images that the student did not train on. RUN/student/config.json gets the threshold and the student's
temperature. kd3 predict, kd3 export and the exported predict.py use both. The promise holds for images like those
compared: held-out images of a crawl promise nothing about images that look different; --deployment takes yours.
RUN/cascade.json has the curve, which kd3 report draws. After kd3 adapt, run kd3 cascade again.""",
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
    "classes": Command(
        ClassesConfig,
        "kd3.commands.classes:run",
        ("model",),
        "kd3 classes MODEL [--names NAMES]",
        """\
examples:
  kd3 classes runs/a
  kd3 classes runs/a --names teacher.yaml
  kd3 classes runs/a --names cat,dog,ship""",
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
    "report": Command(
        ReportConfig,
        "kd3.commands.report:run",
        ("runs",),
        "kd3 report RUN... [--out FILE.html] [options]",
        """\
examples:
  kd3 report runs/a
  kd3 report runs/a runs/b runs/c --out comparison.html
  kd3 report runs/a --images 0 --no-latency

For one run: verdict, cost, losses, selection, images kept, refused and disagreed on, distance of the pool, and how to
load and repeat the run. For several runs: a comparison. The file needs no network and no other file. Open it in any
browser, send it, or print it.""",
        json=True,
    ),
    "export": Command(
        ExportConfig,
        "kd3.commands.export:run",
        ("run",),
        "kd3 export RUN --out DIR [--format onnx,torchscript,...] [--int8] [options]",
        """\
examples:
  kd3 export runs/a --out shipped
  kd3 export runs/a --out shipped --format onnx,torch-export,torchscript,safetensors --int8
  kd3 export runs/a/student --out shipped --images photos/

Batch norms are folded. Each file is run on web images and checked against the student; a file that differs is refused.
DIR/README.md is a model card with measurements and loading instructions. DIR/predict.py classifies an image without
kd3. ONNX needs an extra: pip install 'kd3[export]'""",
        json=True,
    ),
    "inspect": Command(
        InspectConfig,
        "kd3.commands.inspect:run",
        (),
        "kd3 inspect --teacher TEACHER [options]",
        """\
examples:
  kd3 inspect --teacher teacher.yaml --pool pool
  kd3 inspect --teacher teacher.yaml --student kd3:resnet20
  kd3 inspect --teacher hf:./vit-finetuned
  kd3 inspect --teacher timm:resnet18.a1_in1k

teacher.yaml:
  arch: kd3:resnet56          # or timm:NAME, torchvision:NAME, hf:NAME_OR_FOLDER, torchscript:FILE,
                              # torch-export:FILE, path/to/net.py:build, package.module:build
  weights: resnet56.pt        # relative to this file; .pt .pth .th .safetensors; or pretrained, the library's own
  num_classes: 10
  mean: [0.485, 0.456, 0.406] # of RGB in [0, 1]; one value, as in [0.1307], for a teacher of grey images
  std: [0.229, 0.224, 0.225]
  input_size: 32
  classes: [airplane, automobile, ...]   # optional
  output: 1                   # optional: the output that holds the logits
  weights_key: state_dict_ema # optional: one of several state dicts in the weights file
  prefix: student.            # optional: one of several networks in it""",
        json=True,
    ),
    "methods": Command(
        MethodsConfig,
        "kd3.commands.about:list_methods",
        (),
        "kd3 methods [--json]",
        """\
example:
  kd3 methods --json

Options of a method: kd3 distill --help METHOD.""",
        json=True,
    ),
    "study": Command(
        StudyConfig,
        "kd3.commands.study:run",
        ("study",),
        "kd3 study STUDY --out DIR --teacher TEACHER --student ARCH --pool POOL [options]",
        """\
examples:
  kd3 study table1 --out table1 --teacher teacher.yaml --student kd3:resnet20 --pool pool --eval-data test.zip
  kd3 study components --out parts --teacher teacher.yaml --student kd3:resnet20 --pool pool --seeds 0 --images 60k
  kd3 study my.yaml --out mine --teacher teacher.yaml --student kd3:resnet20 --pool pool --dry-run

Every run has an ordinary run folder under DIR/runs. Finished runs are never repeated: run the same command again after
an interruption, or with more --seeds. DIR/table.md, table.csv, results.json and figure.png are updated as runs finish.
To add seeds or rows on another machine or day, pass the earlier results.json: --known results.json.
Many runs on one pool are faster with --fixed-views 8: they share the teacher's features, on the pool's disk.

studies: """
        + ", ".join(studies()),
        json=True,
    ),
    "reproduce": Command(
        ReproduceConfig,
        "kd3.commands.reproduce:run",
        ("table",),
        "kd3 reproduce TABLE --out DIR [--data DATA] [--budget paper] [--plan] [options]",
        """\
examples:
  kd3 reproduce table1 --plan --out table1
  kd3 reproduce table1 --out table1 --only mnist,cifar10
  kd3 reproduce pairs --out pairs --only cifar10-wrn_40_2-wrn_16_2 --budget paper --teachers checkpoints/

tables:
"""
        + "\n".join(
            f"  {name:<7} {entry.title}: {len(entry.pairs)} pair{'s' * (len(entry.pairs) != 1)}"
            for name, entry in TABLES.items()
        )
        + """

DATA holds the data sets that kd3 dataset has made, under their names. A teacher that is not given is trained on the
original data first. Each pair is a study below DIR, as kd3 study runs it: finished runs are never repeated, and the
same command goes on after an interruption. DIR/table.md has the published figures beside. More: docs/paper.md""",
        json=True,
    ),
    "schema": Command(
        SchemaConfig,
        "kd3.commands.about:print_schema",
        ("file",),
        "kd3 schema {distill,teacher,study}",
        """\
example:
  kd3 schema teacher > teacher.schema.json

Then write this in the first line of teacher.yaml, for editors with a YAML language server (VS Code, Neovim, ...):
  # yaml-language-server: $schema=./teacher.schema.json""",
    ),
    "completion": Command(
        CompletionConfig,
        "kd3.commands.about:print_completion",
        ("shell",),
        "kd3 completion {bash,zsh,tcsh}",
        """\
examples:
  source <(kd3 completion bash)
  kd3 completion bash > ~/.local/share/bash-completion/completions/kd3
  kd3 completion zsh > ~/.zfunc/_kd3""",
    ),
    "demo": Command(
        DemoConfig,
        "kd3.commands.demo:run",
        (),
        "kd3 demo [--out DIR] [options]",
        """\
example:
  kd3 demo --out demo

It needs an extra: pip install 'kd3[demo]'""",
    ),
    "select": Command(
        SelectConfig,
        "kd3.commands.select:run",
        (),
        "kd3 select --teacher TEACHER --pool POOL --out DIR [options]",
        """\
examples:
  kd3 select --teacher teacher.yaml --pool pool --out kept
  kd3 select --teacher teacher.yaml --pool pool --out kept-b --student runs/a --threshold 0.9

Nothing is trained. The teacher's logits are stored beside the pool for the next time. DIR then holds:
  selection.parquet  each image: source, key, class, confidence, threshold, kept, reason
  kept.jsonl         source and key of each kept image, as JSON
  selection.json     settings, totals, and figures by class
  grids/             CLASS-kept.png and CLASS-refused.png, from the most confident down, and overview.png

To copy the kept files of crawled folders:
  jq -rj 'join("/") + "\\u0000"' DIR/kept.jsonl | xargs -0 cp --parents -t clean/
Files that are equal byte for byte appear once; POOL/duplicates.csv lists the others.""",
        json=True,
    ),
    "plan": Command(
        PlanConfig,
        "kd3.commands.plan:run",
        (),
        "kd3 plan --teacher TEACHER --pool POOL [options]",
        """\
examples:
  kd3 plan --teacher teacher.yaml --pool pool
  kd3 plan --teacher teacher.yaml --pool pool --minutes 30 --deployment camera/

Nothing is written. The command examines 1,000 images of the pool, times each candidate on one thread of this machine's
CPU, and takes twenty steps of a run. Times assume an otherwise idle machine.""",
        json=True,
    ),
    "shift": Command(
        ShiftConfig,
        "kd3.commands.shift:run",
        (),
        "kd3 shift --teacher TEACHER --pool POOL [--reference DATA] [options]",
        """\
examples:
  kd3 shift --teacher teacher.yaml --pool pool
  kd3 shift --teacher teacher.yaml --pool pool --reference saved.zip --out shift

Without a reference kd3 uses only the teacher: the training statistics in its batch norms, its confidence on the pool,
and its predicted classes. A reference adds distances in its feature space.
Figures need an extra: pip install 'kd3[plots]'""",
        json=True,
    ),
}
