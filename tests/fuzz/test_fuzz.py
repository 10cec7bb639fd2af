"""Broken data of every kind: never a crash, a hang, or a write outside the output; `make fuzz` breaks far more.

All inputs are drawn from seeds, so failures are reproducible. If a decoder kills the process, pytest names the test.
"""

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import fuzz_targets as targets
import numpy as np
import pytest
import torch
import yaml
from fuzz_mutations import MUTATIONS, mutated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pool_containers import KINDS, files_of, pictures
from pool_pictures import encoded, noise

import kd3
from kd3.config.records import Signature
from kd3.models.arch import build_arch
from kd3.models.student import own_head
from kd3.models.student_files import save_student
from kd3.sources.record import REASONS

INPUTS = int(os.environ.get("KD3_FUZZ", "600"))  # broken images; a tenth of it of whatever is slower to read
FEW = max(1, INPUTS // 10)

FILES = ["folder", "tar", "tar.gz", "zip", "parquet of structs", "parquet of bytes", "save_to_disk", "arrow file"]
FILES += ["list", "list.csv", "list.lst"]


def tell(what, outcomes):
    print(f"fuzz: {what}: {sum(outcomes.values()):,} inputs; " + ", ".join(f"{n:,} {o}" for o, n in outcomes.items()))


def everything_under(place):
    return {path.relative_to(place): path.lstat().st_size for path in place.rglob("*")}


def test_every_mutation_changes_something():
    data = targets.seeds()["png"]
    for name, mutate in MUTATIONS.items():
        draw = np.random.default_rng(1)
        assert sum(mutate(data, draw) != data for _ in range(20)) >= 15, name


def test_broken_images_are_decoded_or_refused_with_a_reason():
    draw = np.random.default_rng(0)
    seeds = list(targets.seeds().items())
    outcomes = Counter()
    for number in range(INPUTS):
        _, data = mutated(seeds[number % len(seeds)][1], draw)
        outcomes[targets.decoded(data)] += 1
    tell("images", outcomes)
    assert outcomes["decoded"] > 0
    assert outcomes["not an image"] > 0
    assert outcomes["truncated"] > 0


@pytest.mark.parametrize("name", sorted(targets.plug_ins()))
def test_broken_images_of_every_plug_in_of_pillow(name):
    from PIL import Image

    whole = targets.plug_ins()[name]
    accepts = Image.OPEN[name][1]
    assert accepts is None or accepts(whole[:16])  # so that its reader is reached
    draw = np.random.default_rng(len(whole))
    outcomes = Counter([targets.decoded(whole)])
    for number in range(max(8, FEW // 4)):
        # The first bytes are kept, or no plug-in would look at the rest.
        broken = mutated(whole, draw)[1]
        outcomes[targets.decoded(whole[:16] + broken[16:] if number % 2 else broken)] += 1
    tell(f"Pillow's {name}", outcomes)
    assert set(outcomes) <= {"decoded", *REASONS}


def test_every_plug_in_of_pillow_has_a_seed():
    from PIL import Image

    seeds = targets.plug_ins()
    assert sorted(seeds) == sorted(Image.OPEN)


@pytest.mark.parametrize("kind", FILES)
def test_broken_images_in_every_source_cost_themselves_alone(kind, tmp_path):
    draw = np.random.default_rng(len(kind))
    seeds = list(targets.seeds().values())
    files = {f"good{number}.png": encoded(noise(number)) for number in range(3)}
    files |= {f"{number:05d}.img": mutated(seeds[number % len(seeds)], draw)[1] for number in range(FEW)}
    (tmp_path / "crawl").mkdir()
    source = KINDS[kind](tmp_path / "crawl", np.zeros((0, 32, 32, 3), np.uint8), files)
    before = everything_under(tmp_path)
    workers = 0 if INPUTS < 5000 else 2
    pool = kd3.ingest(source, tmp_path / "pool", image_size=16, workers=workers, max_pixels=1 << 22)
    counts = pool.manifest.counts
    assert counts.kept + counts.duplicates + sum(counts.rejected.values()) == len(files)
    assert counts.kept >= 3
    assert pool.verify() == []
    assert {p: s for p, s in everything_under(tmp_path).items() if p.parts[0] != "pool"} == before
    tell(f"images in {kind}", Counter({"kept": counts.kept, **counts.rejected}))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"folder"}))
def test_broken_containers_beside_sound_images_cost_their_own_alone(kind, tmp_path):
    draw = np.random.default_rng(len(kind))
    images = pictures(6)
    (tmp_path / "whole").mkdir()
    KINDS[kind](tmp_path / "whole", images, files_of(images))
    largest = max((p for p in (tmp_path / "whole").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    outcomes = Counter()
    for number in range(max(2, FEW // 30)):
        place = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", place / "crawl" / "whole")
        for good in range(3):
            noise(100 + good).save(place / "crawl" / f"good{good}.png")
        target = place / "crawl" / "whole" / largest.relative_to(tmp_path / "whole")
        target.write_bytes(mutated(largest.read_bytes(), draw)[1])
        outcomes[targets.ingested(place, place / "crawl", good=3)] += 1
        assert {path.name for path in place.iterdir()} == {"crawl", "pool"}
        shutil.rmtree(place)
    tell(kind, outcomes)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".th"])
def test_broken_checkpoints_are_loaded_whole_or_refused(suffix, tmp_path):
    from safetensors.torch import save_file

    network = build_arch("kd3:resnet8", num_classes=3)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=suffix == ".pt")
    whole, draw = path.read_bytes(), np.random.default_rng(4)
    outcomes = Counter()
    for _ in range(FEW // 2):
        path.write_bytes(mutated(whole, draw)[1])
        outcomes[targets.checkpoint(path)] += 1
    tell(f"checkpoints {suffix}", outcomes)
    assert outcomes["refused"] > 0


def test_broken_pools_are_refused_or_told_by_verify(pool_folder, tmp_path):
    draw = np.random.default_rng(5)
    # Beside these lie what was computed of the pool, with checks of its own.
    names = ["manifest.json", *kd3.ImagePool.open(pool_folder).manifest.files, "images-00000.bin"]
    outcomes = Counter()
    for number in range(FEW):
        name = names[number % len(names)]
        place = tmp_path / "pool"
        shutil.copytree(pool_folder, place)
        data = (place / name).read_bytes()
        how, broken = mutated(data, draw) if data else ("cut", data)
        (place / name).write_bytes(broken)
        outcome = targets.opened_pool(place)
        outcomes[outcome] += 1
        if name != "manifest.json" and broken != data:
            assert outcome != "sound", (name, how)
        shutil.rmtree(place)
    tell("pools", outcomes)


def test_broken_students_are_refused_or_loaded(teacher_file, pool_folder, tmp_path):
    small = {"images": 32, "batch_size": 16, "holdout": 12, "device": "cpu", "precision": "32", "track": "none"}
    run = kd3.distill(teacher_file, "kd3:resnet8", pool_folder, tmp_path / "run", **small)
    student = run.folder / "student"
    draw = np.random.default_rng(6)
    outcomes = Counter()
    for number in range(FEW // 3):
        place = tmp_path / "student"
        shutil.copytree(student, place)
        files = sorted(path for path in place.rglob("*") if path.is_file())
        path = files[number % len(files)]
        path.write_bytes(mutated(path.read_bytes(), draw)[1])
        outcomes[targets.opened_student(place)] += 1
        shutil.rmtree(place)
    tell("students", outcomes)


# Settings: values of any kind where others belong, and text that may not be YAML at all.

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KNOWN = ["arch", "weights", "num_classes", "mean", "std", "input_size", "classes", "title", "images", "rows", "seeds"]
KNOWN += ["method", "train", "kd3", "lr", "seed", "preset", "common", "dial", "settings", "vary", "pool", "name"]
UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
HARD = settings(max_examples=max(60, FEW), deadline=None, suppress_health_check=UNCHECKED)


@pytest.mark.parametrize("kind", targets.CONFIGURATIONS)
@HARD
@given(values=st.dictionaries(st.sampled_from(KNOWN), ANYTHING, max_size=6))
def test_settings_of_any_kind_are_accepted_or_refused_in_words(kind, values, tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    targets.CONFIGURATIONS[kind](path)


@pytest.mark.parametrize("kind", targets.CONFIGURATIONS)
@HARD
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
def test_bytes_that_may_not_be_yaml_are_refused_in_words(kind, data, tmp_path):
    path = tmp_path / "file.yaml"
    path.write_bytes(data)
    targets.CONFIGURATIONS[kind](path)


ARCHES = [
    "os:mkdir",
    "os:getcwd",
    "../x.py:build",
    "/x.py:f",
    "hf:..",
    "hf:./x",
    "timm:resnet18",
    "kd3:vgg8",
    "a:b:c",
]
NUMBERS = st.sampled_from([0, -1, 1, 7, 2**31, 2**63, 10**400, 1.5, float("nan"), float("inf"), "3", None, True])
PARTS = ["arch", "arch_args", "num_classes", "classes", "mean", "std", "input_size", "head", "projector", "classifier"]
INNER = ["in_channels", "out_channels", "width", "in_features", "out_features", "channels", "classifier", "features"]


@pytest.fixture(scope="module")
def whole_student(tmp_path_factory):
    place = tmp_path_factory.mktemp("student")
    network = build_arch("kd3:resnet8", num_classes=3)
    made = own_head(network, Signature((0.5,) * 3, (0.2,) * 3, 16, ["a", "b", "c"]), name="resnet8")
    save_student(made, place, arch="kd3:resnet8", arch_args={}, about={})
    return place


@HARD
@given(data=st.data())
def test_students_settings_of_any_kind_run_nothing_and_are_accepted_or_refused_in_words(data, whole_student, tmp_path):
    values = json.loads((whole_student / "config.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        group = data.draw(st.sampled_from([values, *[value for value in values.values() if isinstance(value, dict)]]))
        name = data.draw(st.sampled_from(PARTS + INNER))
        group[name] = data.draw(ANYTHING | NUMBERS | st.lists(NUMBERS, max_size=4) | st.sampled_from(ARCHES))
    shutil.copy(whole_student / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    before = everything_under(tmp_path)
    targets.opened_student(tmp_path)
    assert everything_under(tmp_path) == before


# Things in a crawl that are no files, or not where they say.


def test_a_hostile_heap_writes_nothing_outside_and_ends(tmp_path):
    crawl = tmp_path / "crawl"
    (crawl / "folder.png").mkdir(parents=True)
    good = encoded(noise(1))
    (crawl / "good.png").write_bytes(good)
    os.mkfifo(crawl / "pipe.png")
    (crawl / "zero.png").symlink_to("/dev/zero")
    (crawl / "loop.png").symlink_to("loop.png")
    (crawl / "up").symlink_to("..")
    (crawl / "nowhere.jpg").symlink_to("gone.jpg")
    (Path(os.fsdecode(os.fsencode(crawl) + b"/\xff\xfe.png"))).write_bytes(encoded(noise(2)))
    with zipfile.ZipFile(crawl / "a.zip", "w") as archive:
        for name in ("../../escaped.png", "/tmp/kd3-escaped.png", "C:\\escaped.png", "a/" * 200 + "deep.png"):
            archive.writestr(name, encoded(noise(len(name))))
    with tarfile.open(crawl / "b.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"odd{kind.decode()}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("../up.png")
        member.size = len(good)
        archive.addfile(member, io.BytesIO(encoded(noise(9)).ljust(len(good), b"\0")[: len(good)]))
    inner = (crawl / "a.zip").read_bytes()
    with zipfile.ZipFile(crawl / "nested.zip", "w") as archive:
        archive.writestr("again.zip", inner)
    with zipfile.ZipFile(crawl / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(300 << 20))
    before = everything_under(tmp_path)
    pool = kd3.ingest(crawl, tmp_path / "pool", image_size=16, workers=1)
    assert {p: s for p, s in everything_under(tmp_path).items() if p.parts[0] != "pool"} == before
    assert not Path("/tmp/kd3-escaped.png").exists()
    assert pool.verify() == []
    assert pool.manifest.counts.kept >= 5
    assert pool.manifest.counts.rejected["not a regular file"] >= 2
    tell("hostile heap", Counter({"kept": pool.manifest.counts.kept, **pool.manifest.counts.rejected}))
