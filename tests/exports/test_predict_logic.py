"""What `predict.py` makes of a model's logits and metadata, with a runtime in the test's own hands."""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kd3.exports.card import predict_script

PREPARATION = {"size": 8, "fit": "crop"}
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.25, 0.125]


class Runtime:
    """Stands for onnxruntime: gives the logits set here, and keeps what it was given."""

    def __init__(self):
        self.logits, self.about, self.given = [1.0, 3.0, 2.0], {"classes": json.dumps(["a", "b", "ü"])}, []

    def InferenceSession(self, path, providers):
        assert path.endswith("mine.onnx")
        assert providers == ["CPUExecutionProvider"]
        return self

    def get_modelmeta(self):
        return SimpleNamespace(custom_metadata_map=self.about)

    def run(self, names, inputs):
        self.given.append(inputs["images"])
        return [np.array([self.logits], dtype=np.float32)]


@pytest.fixture
def runtime(monkeypatch):
    made = Runtime()
    module = ModuleType("onnxruntime")
    module.InferenceSession = made.InferenceSession
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    return made


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "p.png"
    image = Image.new("RGB", (8, 8), (255, 51, 102))
    image.putpixel((6, 1), (0, 255, 0))  # in the second row
    image.save(path)
    return path


def script(tmp_path, **how):
    how = {"normalises": False, **how}
    # Its annotations refer to the runtime, and are never evaluated.
    space = {"__name__": "predict", "__file__": str(tmp_path / "predict.py")}
    exec(compile(predict_script("mine.onnx", PREPARATION, **how), "predict.py", "exec"), space)
    return SimpleNamespace(**space)


def test_the_probability_is_that_of_the_logits_over_the_temperature(runtime, picture, tmp_path):
    predict = script(tmp_path)
    assert predict.answer(picture) == {"class": "b", "probability": pytest.approx(0.6652, abs=1e-4)}
    runtime.about["temperature"] = "2.0"
    assert predict.answer(picture)["probability"] == pytest.approx(0.5065, abs=1e-4)
    assert predict.classify(picture) == "b"
    runtime.logits = [900.0, -900.0, 0.0]  # as large as no exponential can be
    assert predict.answer(picture) == {"class": "a", "probability": 1.0}


@pytest.mark.parametrize(
    ("logits", "threshold", "escalate"),
    [
        ([1.0, 3.0, 2.0], 1.5, True),
        ([1.0, 3.0, 2.0], 1.0, False),  # not less than the threshold
        ([1.0, 3.0, 2.0], 0.5, False),
        ([3.0, 3.0, -9.0], 0.1, True),
        ([5.0, -5.0, -4.0], 8.9, False),
        ([5.0], 0.5, True),  # one class: nothing to be sure by
    ],
)
def test_the_teacher_is_asked_where_the_margin_is_less_than_the_threshold(
    logits, threshold, escalate, runtime, picture, tmp_path
):
    runtime.logits, runtime.about["threshold"] = logits, str(threshold)
    assert script(tmp_path).answer(picture)["escalate"] is escalate


def test_pixels_are_given_as_they_are_or_normalised_or_as_the_luma(runtime, picture, tmp_path):
    runtime.about |= {"mean": json.dumps(MEAN), "std": json.dumps(STD)}
    script(tmp_path).answer(picture)
    script(tmp_path, normalises=True).answer(picture)
    runtime.about |= {"mean": "[0.5]", "std": "[0.25]"}
    script(tmp_path, normalises=True, is_grey=True).answer(picture)
    plain, floats, grey = runtime.given
    assert plain.dtype == np.uint8
    assert plain.shape == floats.shape == (1, 3, 8, 8)
    assert plain[0, :, 0, 0].tolist() == [255, 51, 102]
    assert plain[0, :, 1, 6].tolist() == [0, 255, 0]
    assert floats[0, :, 3, 5] == pytest.approx([(1 - 0.1) / 0.5, (0.2 - 0.2) / 0.25, (0.4 - 0.3) / 0.125], abs=1e-5)
    assert grey.shape == (1, 1, 8, 8)
    luma = (0.299 * 255 + 0.587 * 51 + 0.114 * 102) / 255
    assert grey[0, 0, 0, 0] == pytest.approx((luma - 0.5) / 0.25, abs=1e-5)


def test_lines_status_and_streams(runtime, picture, tmp_path, capsys):
    predict, gone = script(tmp_path), tmp_path / "gone.png"
    assert predict.main([str(picture)]) == 0
    assert capsys.readouterr().out == "b\n"
    runtime.about["threshold"] = "5"
    assert predict.main([str(picture), str(gone), str(picture)]) == 1
    out, err = capsys.readouterr()
    assert out == f"{picture}\tb\tescalate\n" * 2
    assert err == f"{gone}: unusable: No such file or directory\n"
    runtime.logits = [0.0, 0.0, 9.0]
    assert predict.main(["--json", str(picture)]) == 0
    found = json.loads(out := capsys.readouterr().out)
    assert (found["image"], found["class"], found["escalate"]) == (str(picture), "ü", False)
    assert "ü" in out
    for argv, status, stream in ((["-h"], 0, 0), (["--help"], 0, 0), ([], 2, 1), (["--json"], 2, 1)):
        assert predict.main(argv) == status
        said = capsys.readouterr()
        assert "python predict.py FILE" in said[stream]
        assert said[1 - stream] == ""


def test_an_image_of_too_many_pixels_is_refused_unread(runtime, tmp_path, capsys):
    predict = script(tmp_path)
    side = 1 + int(predict.MAX_PIXELS**0.5)
    large = Image.new("1", (side, side))
    large.save(tmp_path / "large.png")
    assert predict.main([str(tmp_path / "large.png")]) == 1
    assert "too many pixels" in capsys.readouterr().err
    assert predict.MAX_PIXELS <= 2 * Image.MAX_IMAGE_PIXELS <= predict.MAX_PIXELS + 2


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_name_no_class(odd, runtime, picture, tmp_path, capsys):
    predict = script(tmp_path)
    runtime.logits[1] = odd
    assert predict.main([str(picture)]) == predict.main(["--json", str(picture)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("unusable: no class") == 2
