"""`predict.py` beside an export reads every file as kd3 does, and needs no kd3."""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import kd3
from kd3.config.records import Preparation, Signature
from kd3.models.arch import build_arch
from kd3.models.student import own_head
from kd3.models.student_files import save_student
from kd3.pool import Decoded, DecodeSettings, decode_records, list_records

EXPECTS = Signature([0.4, 0.5, 0.6], [0.2, 0.25, 0.3], 16, [f"class {number}" for number in range(12)], "squash")
# All that is not Python's own but these is missing where the script runs.
ALLOWED = ("numpy", "PIL", "onnxruntime")
RUN = """
import json, runpy, sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Without())
sys.argv = {argv}
"""
MISSING = ["kd3", "torch", "pydantic", "pyarrow", "scipy", "yaml", "fsspec", "safetensors", "onnx", "pillow_heif"]
DIGESTS = """
sys.path.insert(0, {folder})
import hashlib, warnings, predict
warnings.simplefilter("ignore")
from pathlib import Path
def seen(path):
    try:
        picture = predict.read_picture(Path(path).read_bytes(), size=16, fit=predict.PREPARATION["fit"])
    except predict.UnusablePicture as problem:
        return problem.reason
    return hashlib.sha256(picture.image.tobytes()).hexdigest()
print(json.dumps({{path: seen(path) for path in sys.argv[1:]}}))
"""
SCRIPT = "runpy.run_path({script}, run_name='__main__')\n"


def run_without_kd3(code, argv, cwd):
    text = RUN.format(missing=MISSING, argv=["predict.py", *map(str, argv)]) + code
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-I", "-c", text], cwd=cwd, capture_output=True, text=True, env=environment, timeout=120
    )


@pytest.fixture(scope="module", params=["crop", "squash"])
def shipped(request, tmp_path_factory):
    """An export of a student with opinions, whose pictures are made in one of the ways."""
    place = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = build_arch("kd3:resnet8", num_classes=12)
        network.linear.weight.data *= 30
        colours = torch.randn(200, 3, 1, 1).expand(-1, -1, 16, 16)
        network.linear.bias.data -= network.eval()(colours).mean(0).detach()
    signature = dataclasses.replace(EXPECTS, fit=request.param)
    save_student(
        own_head(network, signature, name="resnet8").eval(),
        place / "student",
        arch="kd3:resnet8",
        arch_args={},
        about={},
    )
    kd3.export(place / "student", place / "ship", images="none", check_images=4)
    return place


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Pictures of all kinds, sound ones and others."""
    folder = tmp_path_factory.mktemp("odd")
    draw = np.random.default_rng(0)

    def picture(width=50, height=30):
        small = draw.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)

    for turn in (3, 5, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = turn
        picture(90, 60).save(folder / f"turned{turn}.jpg", exif=exif)
        picture(300, 210).save(folder / f"large{turn}.jpg", exif=exif, quality=90)
    for mode in ("RGBA", "LA", "P", "L", "1", "CMYK", "F"):
        picture().convert(mode).save(folder / f"{mode}.tif")
    alpha = picture().convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    alpha.save(folder / "alpha.png")
    alpha.quantize(30).save(folder / "palette.gif")
    alpha.putalpha(0)
    alpha.save(folder / "unused.tga")
    alpha.save(folder / "transparent.webp", lossless=True, exact=True)
    wide = draw.integers(0, 65536, (24, 24)).astype(np.uint16)
    Image.fromarray(wide).save(folder / "wide.png")
    Image.fromarray((wide // 300).astype(np.int32)).save(folder / "int32.tif")
    picture(500, 350).save(folder / "progressive.jpg", progressive=True)
    picture(3, 90).save(folder / "narrow.bmp")
    picture(16, 16).save(folder / "as it is.png")
    buffer = io.BytesIO()
    picture(120, 120).save(buffer, "JPEG", quality=95)
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (folder / "closed.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2] + b"\xff\xd9")
    (folder / "page.png").write_text("<html>")
    (folder / "empty.png").write_bytes(b"")
    (folder / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    Image.new("L", (20_000, 6_000)).save(folder / "bomb.png")
    return folder


def check(shipped, folder, least):
    """Compare pixels and classes with kd3's own."""
    fit = shipped.name.rstrip("0123456789")
    outcomes = list(decode_records(list_records([str(folder)]), DecodeSettings.to_see(Preparation(16, fit)), workers=0))
    paths = [str(folder / one.record.key) for one in outcomes if not one.record.key.endswith(".txt")]
    expected = {}
    for one in outcomes:
        result = one.result
        if isinstance(result, Decoded):
            value = hashlib.sha256(np.ascontiguousarray(result.pixels.transpose(1, 2, 0)).tobytes()).hexdigest()
        else:
            value = result.reason
        expected[str(folder / one.record.key)] = value
    done = run_without_kd3(DIGESTS.format(folder=repr(str(shipped / "ship"))), paths, folder)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found == {path: expected[path] for path in paths}
    assert sum(len(value) == 64 for value in found.values()) >= least

    said = {name: best[0][0] for name, best in kd3.predict(shipped / "student", [folder]).images}
    done = run_without_kd3(SCRIPT.format(script=repr(str(shipped / "ship/predict.py"))), paths, folder)
    classes = dict(line.split("\t") for line in done.stdout.splitlines())
    assert classes == {path: said[path] for path in classes}
    assert len(classes) >= least
    assert len(set(classes.values())) > 2
    assert "unusable: truncated" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


def test_it_sees_and_says_what_kd3_does_of_pictures_of_all_kinds(shipped, odd):
    check(shipped, odd, 20)


def test_also_of_the_odd_files_of_the_shared_data(shipped, shared_data):
    check(shipped, shared_data / "odd", 22)


def test_it_finds_its_model_from_anywhere_and_prints_the_class_of_one_picture(shipped, odd, tmp_path):
    shutil.copytree(shipped / "ship", tmp_path / "moved away")
    done = run_without_kd3(SCRIPT.format(script=repr(str(tmp_path / "moved away/predict.py"))), ["L.tif"], odd)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.strip() == kd3.predict(shipped / "student", [odd / "L.tif"]).images[0][1][0][0]


@pytest.mark.parametrize(("argv", "status"), [([], 2), (["--help"], 0)])
def test_without_a_picture_it_says_how_it_is_used(argv, status, shipped, tmp_path):
    done = run_without_kd3(SCRIPT.format(script=repr(str(shipped / "ship/predict.py"))), argv, tmp_path)
    assert done.returncode == status
    assert "python predict.py FILE" in (done.stdout if status == 0 else done.stderr)


def test_a_file_that_is_not_there_is_told_in_a_line(shipped, tmp_path):
    done = run_without_kd3(SCRIPT.format(script=repr(str(shipped / "ship/predict.py"))), ["no.jpg"], tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("no.jpg: unusable: ")
    assert len(done.stderr.splitlines()) == 1


def test_no_name_is_defined_twice_and_no_import_of_kd3_is_left(shipped):
    text = (shipped / "ship/predict.py").read_text()
    names = re.findall(r"^(?:def|class) (\w+)|^(\w+)(?:: [^=]+)? = ", text, re.MULTILINE)
    flat = [name or other for name, other in names]
    assert sorted(flat) == sorted(set(flat))
    assert "kd3" not in re.sub(r'""".*?"""|#.*', "", text, flags=re.DOTALL)
    imported = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) == set(ALLOWED)
