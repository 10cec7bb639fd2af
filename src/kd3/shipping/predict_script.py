"""`predict.py` beside an exported student: classifies files with numpy, Pillow and onnxruntime.

It is made of this package's own modules, so that a picture becomes the very pixels that the student was trained on.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from kd3.pool import half_pictures, pictures, plugins, scaling, to_rgb

# Each needs those before it; none needs more of kd3.
MODULES: Sequence[ModuleType] = (scaling, to_rgb, half_pictures, plugins, pictures)
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
    """Return the class of a picture file; raises UnusablePicture or OSError."""
    return str(answer(path)["class"])


def answer(path: str | Path) -> dict[str, str | float | bool]:
    """Return class, probability in [0, 1] and, where the model knows it, whether to escalate; raises as `classify`.

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
        except (UnusablePicture, OSError) as problem:
            print(f"{{path}}: unusable: {{problem}}", file=sys.stderr)
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
