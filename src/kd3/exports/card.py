"""Files beside an export: the model card, and `predict.py`, which needs numpy, Pillow and onnxruntime only.

`predict.py` beside an exported student: classifies files with numpy, Pillow and onnxruntime. It is made of this
package's own modules, so that a picture becomes the very pixels that the student was trained on.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from kd3.config.records import Preparation
from kd3.config.shrink import architecture_in_words
from kd3.evaluation.accuracy import share
from kd3.exports.comparison import Written
from kd3.models.load_teacher import runs_code
from kd3.pool import pictures, rgb
from kd3.runtime.run_summary import adaptation_in_words, cascade_images_in_words, cascade_in_words, with_adaptation
from kd3.runtime.text import code, escaped, table

# Each needs those before it; none needs more of kd3.
MODULES: Sequence[ModuleType] = (rgb, pictures)
OWN = "kd3"

HEAD = '''"""Classify picture files: python predict.py FILE [FILE ...]

From Python: `from predict import classify`, then `classify("picture.jpg")`. It needs numpy, Pillow and onnxruntime;
{file} must lie beside it. Pictures are prepared as kd3 did for training, by its own code (Apache-2.0).

With --json a line of JSON for each file: class, probability and, where the model knows when to ask its teacher,
"escalate": true or false. `answer("picture.jpg")` gives the same in Python. Without --json a tab and the word
escalate follow the class of a picture of which the teacher should be asked.
"""'''
MAIN = '''\
MODEL = Path(__file__).resolve().parent / {file!r}
PREPARATION = {preparation}
_loaded: list[onnxruntime.InferenceSession] = []


def classify(path: str | Path) -> str:
    """Return the class of a picture file; raises UnusablePicture, OSError or ArithmeticError."""
    return str(answer(path)["class"])


def answer(path: str | Path) -> dict[str, str | float | bool]:
    """Return class, probability in [0, 1] and, where the model knows it, whether to escalate; raises as `classify`.

    ArithmeticError: the model has no answer, since its logits are not finite.

    The probability is softmax(logits / temperature); to escalate is to ask the teacher, since the largest logit is less
    than the threshold above the second.
    """
    if not _loaded:
        _loaded.append(onnxruntime.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"]))
    session = _loaded[0]
    about = session.get_modelmeta().custom_metadata_map
    picture = read_picture(Path(path).read_bytes(), size=PREPARATION["size"], fit=PREPARATION["fit"])
    images = np.asarray(picture.image, dtype=np.uint8).transpose(2, 0, 1)[None]{normalise}
    logits = session.run(None, {{"images": images}})[0][0].astype(np.float64)
    if not np.isfinite(logits).all():
        raise ArithmeticError("no class (the network's logits of it are not finite)")
    place = int(logits.argmax())
    scaled = np.exp((logits - logits[place]) / json.loads(about.get("temperature", "1")))
    found: dict[str, str | float | bool] = {{"class": str(json.loads(about["classes"])[place])}}
    found["probability"] = float(1 / scaled.sum())
    if "threshold" in about:
        margin = logits[place] - np.delete(logits, place).max() if len(logits) > 1 else 0.0
        found["escalate"] = bool(margin < json.loads(about["threshold"]))
    return found


def main(paths: list[str]) -> int:
    """Print a line for each file; return the exit status."""
    as_json, paths = paths[:1] == ["--json"], paths[paths[:1] == ["--json"] :]
    if not paths or paths[0] in ("-h", "--help"):
        print(__doc__ or "python predict.py FILE [FILE ...]", file=sys.stdout if paths else sys.stderr)
        return 0 if paths else 2
    Image.MAX_IMAGE_PIXELS = (MAX_PIXELS + 1) // 2  # Pillow refuses from twice of it, also in images inside a file
    warnings.simplefilter("ignore")
    status = 0
    for path in paths:
        try:
            found = answer(path)
        except (UnusablePicture, OSError, ArithmeticError) as problem:
            why = getattr(problem, "strerror", None) or problem  # without the path, which the line begins with
            print(f"{{path}}: unusable: {{why}}", file=sys.stderr)
            status = 1
        else:
            said = str(found["class"]) + "\\tescalate" * bool(found.get("escalate"))
            said = said if len(paths) == 1 else f"{{path}}\\t{{said}}"
            print(json.dumps({{"image": path, **found}}, ensure_ascii=False) if as_json else said)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
'''
NORMALISE = """
    mean, std = (np.array(json.loads(about[name]), dtype=np.float32)[:, None, None] for name in ("mean", "std"))
    images = ({images} / np.float32(255) - mean) / std"""
LUMA = "np.tensordot(np.float32([[0.299, 0.587, 0.114]]), images, (1, 1)).transpose(1, 0, 2, 3)"
IMPORTS = """\
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
"""


def predict_script(file: str, preparation: Mapping[str, Any], *, normalises: bool, is_grey: bool = False) -> str:
    """Return the text of `predict.py` for an ONNX file in the same folder.

    `normalises`: the graph takes normalised floats instead of uint8; with `is_grey`, of the luma.
    """
    imports: set[str] = set()
    bodies = []
    for module in MODULES:
        found, body = _parts(inspect.getsource(module))
        imports |= found
        bodies.append(body)
    normalise = NORMALISE.format(images=LUMA if is_grey else "images") if normalises else ""
    main = MAIN.format(file=file, preparation=json.dumps(dict(preparation)), normalise=normalise)
    taken, _ = _parts(IMPORTS)
    return "\n".join(
        [
            HEAD.format(file=file) + "\n",
            "from __future__ import annotations\n",
            *sorted(imports | taken, key=lambda line: (line.startswith("from"), line)),
            "\n\n" + "\n\n\n".join(bodies) + "\n\n",
            main,
        ]
    )


def _parts(source: str) -> tuple[set[str], str]:
    """Split a module into its imports, line by line without those of kd3, and the rest."""
    tree = ast.parse(source)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    lines = {
        ast.unparse(node)
        for node in imports
        if not (isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in (OWN, "__future__"))
    }
    end = max(node.end_lineno or 0 for node in imports)
    return lines, "\n".join(source.splitlines()[end:]).strip("\n")


ONNX_EXAMPLE = """\
from predict import classify

print(classify("picture.jpg"))
"""
PREDICT = "predict.py"
OLD_RUNTIME, OLD_IR, OLD_OPSET = "1.16.0", 8, 17  # tried by hand, 2026-11-30: docs/shipping.md
KD3_EXAMPLE = """\
import kd3

student = kd3.load_student("student"{trust})
logits = student(student.normalise(images))  # images: uint8 RGB (B, 3, {side}, {side})
"""
TORCH_EXAMPLE = """\
import torch

model = {load}
logits = model(images)  # images: {takes}
"""


@dataclass(frozen=True)
class Card:
    """The contents of a card."""

    student: Mapping[str, Any]  # the description in the student's folder
    written: Sequence[Written]
    preprocessing: str
    images: int  # for the comparison
    where: str
    threads: int
    machine: str
    date: str
    pool: Mapping[str, Any] | None = None  # name, images, sources
    adaptation: Mapping[str, Any] | None = None  # record of the batch norms' adaptation, if any
    cascade: Mapping[str, Any] | None = None  # record of the cascade, if any
    onnx: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # file: IR version, opset
    variants: Sequence[tuple[str, float, float]] = field(default=())  # of 8 bits: words, chose, reported

    def script(self) -> str | None:
        """Return `predict.py`, which classifies pictures without kd3, if an ONNX file was written."""
        file = next((one.file for one in self.written if one.file.endswith(".onnx")), None)
        if file is None:
            return None
        preparation = Preparation.of(self.student.get("preparation"), size=self.student["input_size"])
        return predict_script(
            file, preparation.to_dict(), normalises=self.preprocessing != "inside", is_grey=self._is_grey()
        )

    def text(self) -> str:
        """Return the card as Markdown."""
        return (
            "\n\n".join([self._front_matter(), *self._what(), *self._measured(), *self._loading(), *self._limits()])
            + "\n"
        )

    def _front_matter(self) -> str:
        lines = ["---", "library_name: kd3", "pipeline_tag: image-classification"]
        lines += ["tags:", "- image-classification", "- knowledge-distillation", "- kd3", "---"]
        return "\n".join(lines)

    def _what(self) -> list[str]:
        about, classes = self.student.get("about", {}), self.student["classes"]
        if self.adaptation is not None:
            about = with_adaptation(about, self.adaptation)
        name = escaped(architecture_in_words(self.student) or "a module of your own")
        method = escaped(about.get("method", "an unknown method"))
        shown = ", ".join(escaped(one) for one in classes[:20]) + (", ..." if len(classes) > 20 else "")
        text = (
            f"# {name}, distilled with {method}\n\nAn image classifier of {len(classes)} classes ({shown}) for RGB "
            f"images of {self.student['input_size']} x {self.student['input_size']} pixels. It learned from a "
            f"teacher's answers on web images, without the images that the teacher was trained on."
        )
        rows = [("teacher", escaped(Path(str(about.get("teacher", "unknown"))).name)), ("method", method)]
        if about.get("agreement") is not None:
            rows.append(("agreement with the teacher on held-out web images", f"{about['agreement']:.1f}%"))
        if about.get("accuracy") is not None:
            rows.append(("accuracy on labelled images", _accuracy(about["accuracy"], about.get("accuracy_images"))))
        if about.get("teacher_accuracy") is not None:
            theirs = _accuracy(about["teacher_accuracy"], about.get("accuracy_images"))
            rows.append(("the teacher's accuracy on them", theirs))
            if about.get("difference") is not None:
                rows.append(("difference", f"{about['difference']:+.1f} points"))
        if self.pool is not None:
            rows.append(("web images", f"{self.pool['images']:,} in {escaped(self.pool['name'])}"))
        adapted = [] if self.adaptation is None else [escaped(adaptation_in_words(self.adaptation))]
        return [text, table([("", ""), *rows]), *adapted, *self._cascade()]

    def _cascade(self) -> list[str]:
        """Describe the threshold for asking the teacher and its place in the files; empty if unknown."""
        if self.cascade is None:
            return []
        head = ("agreement of student and teacher together with the teacher", "images that go to the teacher")
        rows = [head]
        for one in self.cascade["thresholds"]:
            share = "no threshold" if one["margin"] is None else f"{one['escalated']:.1f}%"
            rows.append((f"{one['agreement']:g}%, promised at {self.cascade['confidence']:g}% confidence", share))
        used = (
            "ONNX files hold `temperature` and `threshold` in their metadata: softmax(logits / temperature) are "
            "probabilities; where the largest logit is less than the threshold above the second, ask the teacher. "
            "`predict.py` does both."
        )
        if any("int8" in one.file for one in self.written):
            used += " The promise was measured with the student in float; that of its 8-bit file was not measured."
        words = [escaped(one) for one in cascade_in_words(self.cascade)]
        found = escaped(f"Found on {cascade_images_in_words(self.cascade)}.")
        return ["## When to ask the teacher", table(rows), " ".join([found, *words]), used]

    def _measured(self) -> list[str]:
        small, large = 1, 64
        with_teacher = any(one.teacher_agreement is not None for one in self.written)
        head = ["file", "size", "same class as the student", "largest difference of a logit"]
        head += [f"batch of {size}" for size in (small, large)] + (["agrees with the teacher"] if with_teacher else [])
        rows = [tuple(head)]
        for one in self.written:
            difference = "" if one.largest_difference is None else f"{one.largest_difference:.1e}"
            times = [f"{one.milliseconds[size]:.2f} ms" if size in one.milliseconds else "" for size in (small, large)]
            teacher = [] if not with_teacher else [f"{one.teacher_agreement:.1f}%" if one.teacher_agreement else ""]
            size = f"{one.bytes / 1e6:.2f} MB"
            rows.append((code(one.file), size, f"{one.same_class:.1f}%", difference, *times, *teacher))
        text = (
            f"Compared with the student in PyTorch on {self.images:,} {escaped(self.where)}; "
            f"times on {escaped(self.machine)}, {self.threads} thread{'s' if self.threads > 1 else ''}, "
            f"medians, {self.date}."
        )
        parts = ["## Measured", text, table(rows)]
        if self.variants:
            words = (
                "8 bits, calibrated on web images: same class as the student, on the half of the images that chose the "
                "first row, and on the other, which tells how good it is:"
            )
            shown = [
                (escaped(words_), f"{chose:.1f}%", f"{reported:.1f}%") for words_, chose, reported in self.variants
            ]
            parts += [words, table([("scales and layers", "half that chose", "other half"), *shown])]
        return parts

    def _loading(self) -> list[str]:
        side = self.student["input_size"]
        parts = ["## How to load it", self._takes()]
        if self.script():
            words = (
                f"Without kd3 (numpy, Pillow and onnxruntime), in this folder: `python {PREDICT} picture.jpg`, which "
                f"prints the class; it turns, scales and cuts a picture as was done for training. From Python:"
            )
            parts += [words, _code(ONNX_EXAMPLE)]
        parts += [self._runtime(file, *versions) for file, versions in self.onnx.items()]
        for one in self.written:
            if one.file == "student/":
                parts += ["With kd3:", _code(KD3_EXAMPLE.format(side=side, trust=self._trust()))]
            elif not one.file.endswith(".onnx"):
                call = "torch.export.load({!r}).module()" if one.file.endswith(".pt2") else "torch.jit.load({!r})"
                load = call.format(one.file).replace("'", '"')
                parts += [f"{code(one.file)}:", _code(TORCH_EXAMPLE.format(load=load, takes=self._type()))]
        return parts

    def _trust(self) -> str:
        arch = self.student["arch"]
        return ", trust_code=True" if arch is not None and runs_code(arch) else ""

    def _runtime(self, file: str, ir: int, opset: int) -> str:
        import onnxruntime

        text = f"`{file}` is of IR {ir}, opset {opset}, and was run here with onnxruntime {onnxruntime.__version__}."
        if ir <= OLD_IR and opset <= OLD_OPSET:
            text += f" The oldest that kd3's files of this IR and opset were run with is {OLD_RUNTIME}."
        return text

    def _type(self) -> str:
        side = self.student["input_size"]
        if self.preprocessing == "inside":
            return f"uint8 RGB (B, 3, {side}, {side})"
        if self._is_grey():
            return f"normalised float32 luma, 0.299 R + 0.587 G + 0.114 B, (B, 1, {side}, {side})"
        return f"normalised float32 RGB (B, 3, {side}, {side})"

    def _is_grey(self) -> bool:
        return len(self.student["mean"]) == 1

    def _takes(self) -> str:
        mean, std = (json.dumps(self.student[name]) for name in ("mean", "std"))
        made = Preparation.of(self.student.get("preparation"), size=self.student["input_size"])
        pictures = f"Pictures become {made}, {made.resampling}."
        if self.preprocessing == "inside":
            return (
                f"The graph takes {self._type()}, as decoders give it; it normalises itself (mean {mean}, std {std}). "
                f"{pictures}"
            )
        return f"The graph takes {self._type()}: (x / 255 - mean) / std with mean {mean}, std {std}. {pictures}"

    def _limits(self) -> list[str]:
        return [
            "## Limits",
            "Agreement was measured on web images; accuracy on the data that the teacher was trained on may be higher "
            "or lower. The student inherits the teacher's mistakes and biases. Web images have owners: their licences "
            "are not part of this file, and whoever ships the student should know them.",
        ]


def _accuracy(value: float, images: int | None) -> str:
    """Return an accuracy with the interval of its number of images, if that is known."""
    if not images:
        return f"{value:.1f}%"
    found = share(round(value * images / 100), images)
    return f"{value:.1f}% of {images:,} (95% interval {found.low:.1f} to {found.high:.1f})"


def _code(text: str) -> str:
    return f"```python\n{text}```"
