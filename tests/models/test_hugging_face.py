"""`hf:` with missing parts: weights, files, code, torchvision, the network."""

import json
import shutil

import pytest
import torch
import yaml
from model_libraries import need
from safetensors.torch import load_file, save_file
from test_model_sources import COMMON, hf_folder

from kd3.models.arch import build_arch
from kd3.models.head import find_head
from kd3.models.load_teacher import load_teacher
from kd3.runtime.errors import KD3Error


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    need("transformers")
    return hf_folder(tmp_path_factory.mktemp("hf") / "vit")


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "vit")
    return tmp_path / "vit"


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def change_json(folder, name="config.json", **values):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def without_head(folder):
    change_weights(folder, lambda found: {key: value for key, value in found.items() if "classifier" not in key})


def without_a_layer(folder):
    change_weights(folder, lambda found: {key: value for key, value in found.items() if ".1." not in key})


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])


def own_code(folder):
    change_json(folder, model_type="mine", auto_map={"AutoConfig": "conf.Mine", "AutoModel": "net.Mine"})
    (folder / "conf.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


BROKEN = {
    "no head": (
        without_head,
        r"no weights for 2 of its tensors \(classifier.bias, classifier.weight\): it is not a tra",
    ),
    "a layer missing": (without_a_layer, r"no weights for 16 of its tensors \(vit.*, \.\.\.\)"),
    "cut short": (cut_short, "cannot be loaded from .*vit: SafetensorError: "),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded from .*no file named"),
    "of other shapes": (lambda folder: change_json(folder, intermediate_size=50), "the weights have other shapes"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read from .*not a valid JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "cannot be read from .*: ValueError"),
    "code of its own": (own_code, "needs code of its own, which kd3 does not run"),
    "no classifier": (lambda folder: change_json(folder, model_type="bert"), "is no image classifier of transformers"),
    "not finite": (
        lambda folder: change_weights(folder, lambda found: {k: v * float("nan") for k, v in found.items()}),
        "puts out values that are not finite",
    ),
    "a list of settings": (
        lambda folder: (folder / "preprocessor_config.json").write_text("[]"),
        "preprocessor_config.json does not describe an image processor",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_refused_in_a_sentence(kind, copy, capfd):
    change, message = BROKEN[kind]
    change(copy)
    with pytest.raises(KD3Error, match=message) as problem:
        load_teacher(f"hf:{copy}")
    assert "\n" not in str(problem.value)
    assert capfd.readouterr() == ("", "")  # nothing of the library's
    assert not (copy / "ran").exists()


@pytest.mark.parametrize(
    ("arch_args", "message"),
    [
        ({"num_labels": 5}, "take 'num_labels' out of arch_args"),
        ({"wings": 2}, r"\(vit\) has no setting 'wings'"),
        ({"intermediate_size": 50}, "the weights have other shapes than the configuration"),
        ({"hidden_size": "large"}, "cannot take hidden_size: 'large'"),
    ],
)
def test_arguments_that_do_not_fit_the_weights_are_refused(arch_args, message, whole, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump({"arch": f"hf:{whole}", "arch_args": arch_args}))
    with pytest.raises(KD3Error, match=message):
        load_teacher(path)


@pytest.mark.parametrize("arch_args", [{"hidden_act": "no such"}, {"patch_size": 0}])
def test_a_student_that_cannot_be_built_is_told_in_a_sentence(arch_args, whole):
    with pytest.raises(KD3Error, match=r"hf:.* cannot "):
        build_arch(f"hf:{whole}", num_classes=3, arch_args=arch_args, input_size=16)


def test_classes_that_do_not_exclude_each_other_are_refused(copy):
    change_json(copy, problem_type="multi_label_classification")
    with pytest.raises(KD3Error, match=r"gives an image several labels .*classes that exclude each other"):
        load_teacher(f"hf:{copy}")


def test_a_file_for_a_folder_is_reported(whole):
    with pytest.raises(KD3Error, match="is a file; name the folder that holds it"):
        load_teacher(f"hf:{whole}/model.safetensors")


def test_weights_in_half_precision_are_a_teacher_in_float32(copy):
    change_weights(copy, lambda found: {key: value.half() for key, value in found.items()})
    change_json(copy, dtype="float16")
    teacher = load_teacher(f"hf:{copy}")
    assert teacher(torch.zeros(2, 3, 16, 16)).dtype == torch.float32


def test_the_preparation_is_told_and_the_colours_are_followed(copy):
    plain = load_teacher(f"hf:{copy}")
    change_json(copy, "preprocessor_config.json", do_flip_channel_order=True, resample=2)
    turned = load_teacher(f"hf:{copy}")
    images = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(turned(images), plain(images.flip(1)))
    assert turned.pictures == "the whole picture squashed to 16 x 16, bilinear (kd3 ingest --fit squash)"
    assert turned.fingerprint() != plain.fingerprint()


def test_a_hub_model_is_taken_from_the_cache_and_asked_for_only_where_it_is_not_there(whole, monkeypatch, capfd):
    import transformers

    asked = []
    real = {
        name: getattr(transformers, name).from_pretrained for name in ("AutoConfig", "AutoModelForImageClassification")
    }

    def stand_in(name, cached):
        def from_pretrained(place, *, local_files_only, **others):
            asked.append((name, local_files_only))
            assert place == "someone/vit"
            if local_files_only and not cached:
                raise OSError("not in the cache\nof the library")
            if not local_files_only:
                raise OSError("We couldn't connect\nto the hub")
            return real[name](str(whole), local_files_only=True, **others)

        return from_pretrained

    described = {**COMMON, "arch": "hf:someone/vit"}
    (whole.parent / "t.yaml").write_text(yaml.safe_dump(described))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: whole / "preprocessor_config.json")
    for name in real:
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", stand_in(name, cached=True))
    assert load_teacher(whole.parent / "t.yaml").num_classes == 3
    assert {local for _, local in asked} == {True}
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", stand_in("AutoConfig", cached=False))
    with pytest.raises(
        KD3Error, match="no folder here, not in the library's cache, and cannot be had from the hub: We"
    ):
        load_teacher(whole.parent / "t.yaml")
    assert "asking the Hugging Face hub for someone/vit" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("deit", {}),  # two heads, or one: the library has two classes for it
        ("clip", {}),  # what it sees has a configuration inside the other
        ("mobilenet_v1", {"depth_multiplier": 0.25, "min_depth": 4}),  # of which an untrained one puts out 1e-29
    ],
)
def test_students_of_kinds_that_are_built_otherwise(kind, settings, tmp_path):
    need("transformers")
    import transformers

    small = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    if kind == "clip":
        settings = {"vision_config": {**small, "patch_size": 4, "image_size": 224}, "text_config": {**small}}
    elif kind == "deit":
        settings = {**small, "patch_size": 4}
    transformers.AutoConfig.for_model(kind, **settings).to_json_file(tmp_path / "config.json")
    network = build_arch(f"hf:{tmp_path}", num_classes=5, input_size=32).eval()
    head = find_head(network, 32)
    assert head.num_classes == 5
    assert head.classifier == "classifier"
    # The map of 1 x 1 at its end is a vector, not one of the layers before.
    assert head.features is None
