"""Teachers and students from timm, torchvision, transformers, TorchScript and torch.export."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from model_libraries import need
from torch import nn

import kd3
from kd3.models.arch import build_arch
from kd3.models.head import find_head
from kd3.models.load_teacher import load_teacher
from kd3.runtime.errors import KD3Error

SMALL = {"images": 96, "batch_size": 16, "holdout": 12, "precision": "32", "device": "cpu", "warmup_steps": 2}
COMMON = {"num_classes": 3, "mean": [0.5] * 3, "std": [0.25] * 3, "input_size": 16, "classes": ["cat", "dog", "ship"]}
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "patch_size": 4}


def described(folder, **values):
    folder.mkdir(exist_ok=True)
    path = folder / "teacher.yaml"
    path.write_text(yaml.safe_dump({**COMMON, **values}))
    return path


def hf_folder(folder, *, labels=("cat", "dog", "ship"), processor=True):
    from transformers import ViTConfig, ViTForImageClassification

    names = dict(enumerate(labels))
    config = ViTConfig(**VIT, image_size=16, id2label=names, label2id={name: place for place, name in names.items()})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ViTForImageClassification(config).save_pretrained(folder)
    if processor:
        said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3, "size": {"height": 16, "width": 16}}
        (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def own_file(folder):
    """A net of the user's own, its checkpoint as a training script leaves it."""
    (folder / "net.py").write_text(
        "from torch import nn\n"
        "def build(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
        "nn.Linear(8, num_classes))\n"
    )
    network = build_arch("net.py:build", num_classes=3, relative_to=folder)
    weights = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 9, "state_dict": weights, "best_acc": 0.5}, folder / "w.pth.tar")
    return described(folder, arch="net.py:build", weights="w.pth.tar")


def library_file(folder, arch, **arch_args):
    network = build_arch(arch, num_classes=3, arch_args=arch_args, input_size=16).train()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        for _ in range(20):
            network(torch.randn(32, 3, 16, 16))  # for its batch norms, without which an untrained net says nothing
    torch.save(network.state_dict(), folder / "w.pt")
    return described(folder, arch=arch, weights="w.pt", arch_args=arch_args)


def plain_net():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        ).eval()


def torchscript_file(folder):
    with pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.save(torch.jit.trace(plain_net(), torch.zeros(2, 3, 16, 16)), folder / "t.ts")
    return described(folder, arch="torchscript:t.ts")


def torch_export_file(folder, *, dynamic=True):
    shapes = {"input": {0: torch.export.Dim("batch")}} if dynamic else None
    program = torch.export.export(plain_net(), (torch.zeros(2 if dynamic else 1, 3, 16, 16),), dynamic_shapes=shapes)
    torch.export.save(program, folder / "t.pt2")
    return described(folder, arch="torch-export:t.pt2")


def teacher_from(kind, folder):
    folder.mkdir(exist_ok=True)
    if kind in ("timm", "torchvision", "transformers"):
        need(kind)
    if kind == "transformers":
        return hf_folder(folder / "vit").as_posix()
    makers = {
        "own file": lambda: own_file(folder),
        "zoo": lambda: library_file(folder, "kd3:resnet8"),
        "timm": lambda: library_file(folder, "timm:resnet10t"),
        "torchvision": lambda: library_file(folder, "torchvision:shufflenet_v2_x0_5"),
        "torchscript": lambda: torchscript_file(folder),
        "torch-export": lambda: torch_export_file(folder),
    }
    return str(makers[kind]())


@pytest.mark.parametrize("kind", ["own file", "zoo", "timm", "torchvision", "transformers"])
def test_teachers_of_all_these_sources_are_distilled_by_kd3(kind, pool_folder, tmp_path):
    teacher = teacher_from(kind, tmp_path / "t")
    teacher = f"hf:{teacher}" if kind == "transformers" else teacher
    run = kd3.distill(teacher, "kd3:resnet8", pool_folder, tmp_path / "run", **SMALL)
    student = kd3.load_student(run.folder)
    assert student.classes == ["cat", "dog", "ship"]
    assert student(student.normalise(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))).shape == (2, 3)


@pytest.mark.parametrize("kind", ["torchscript", "torch-export"])
def test_teachers_without_a_head_to_share_say_why_and_are_distilled_by_kd(kind, pool_folder, tmp_path):
    teacher = teacher_from(kind, tmp_path / "t")
    with pytest.raises(KD3Error, match=r"cannot be shared: .*--method kd|--kd3.classifier own"):
        kd3.distill(teacher, "kd3:resnet8", pool_folder, tmp_path / "a", **SMALL)
    assert not (tmp_path / "a").exists()
    own = {"classifier": "own", "alignment": "none", "logit_weight": 1}
    for name, settings in {"kd": {"method": "kd"}, "kd3": {"kd3": own}}.items():
        run = kd3.distill(teacher, "kd3:resnet8", pool_folder, tmp_path / name, **SMALL, **settings)
        assert 0 <= run.agreement <= 100


STUDENTS = {
    "timm:resnet10t": {},
    "timm:vit_tiny_patch16_224": {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "hf:FOLDER": {},
}


@pytest.mark.parametrize("arch", ["timm:resnet10t", "timm:vit_tiny_patch16_224", "hf:FOLDER"])
def test_students_of_the_libraries_take_the_teachers_classifier_and_load_alone(
    arch, teacher_file, pool_folder, tmp_path
):
    need("transformers" if arch.startswith("hf") else "timm")
    name = f"hf:{hf_folder(tmp_path / 'vit')}" if arch == "hf:FOLDER" else arch
    settings = {"student_args": STUDENTS[arch]}
    run = kd3.distill(teacher_file, name, pool_folder, tmp_path / "run", **SMALL, **settings)
    (tmp_path / "vit").exists() and (tmp_path / "vit").rename(tmp_path / "moved")  # nothing but the run is needed
    student = kd3.load_student(run.folder)
    images = torch.from_numpy(kd3.ImagePool.open(pool_folder).read(np.arange(4)))
    assert student(student.normalise(images)).shape == (4, 3)


@pytest.mark.parametrize(
    ("arch", "arch_args"),
    [
        ("timm:vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}),
        ("timm:vit_base_patch16_clip_quickgelu_224", {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}),
        ("timm:vit_relpos_small_patch16_224", {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}),
    ],
)
def test_vision_transformers_are_shared_by_their_embedding(arch, arch_args):
    need("timm")
    network = build_arch(arch, num_classes=5, arch_args=arch_args, input_size=16).eval()
    head = find_head(network, 16)
    assert (head.channels, head.num_classes) == (24, 5)


def test_a_vision_transformer_of_torchvision_is_built_for_the_size_and_shared():
    need("torchvision")
    head = find_head(build_arch("torchvision:vit_b_16", num_classes=5, input_size=32).eval(), 32)
    assert (head.classifier, head.channels) == ("heads.head", 768)


def test_a_folder_of_transformers_needs_no_description(tmp_path):
    need("transformers")
    teacher = load_teacher(f"hf:{hf_folder(tmp_path / 'vit')}")
    assert teacher.classes == ["cat", "dog", "ship"]
    assert teacher.normalise.mean == (0.1, 0.2, 0.3)
    assert (teacher.input_size, teacher.num_classes) == (16, 3)
    assert kd3.predict(f"hf:{tmp_path / 'vit'}", [picture(tmp_path)]).images[0][1][0][0] in teacher.classes


def picture(folder):
    from PIL import Image

    Image.new("RGB", (20, 20), "red").save(folder / "a.png")
    return folder / "a.png"


def test_what_a_description_says_wins_over_what_the_library_knows(tmp_path):
    need("transformers")
    hf_folder(tmp_path / "vit")
    (tmp_path / "teacher.yaml").write_text("arch: hf:vit\nmean: [0.9, 0.9, 0.9]\nclasses: [a, b, c]\n")
    teacher = load_teacher(tmp_path / "teacher.yaml")  # the folder lies beside the description
    assert (teacher.normalise.mean, teacher.normalise.std) == ((0.9, 0.9, 0.9), (0.5, 0.5, 0.5))
    assert teacher.classes == ["a", "b", "c"]


def test_what_neither_says_is_named(tmp_path):
    need("transformers")
    with pytest.raises(KD3Error, match=r"'mean' is missing \(teacher hf:"):
        load_teacher(f"hf:{hf_folder(tmp_path / 'vit', processor=False)}")


def test_labels_that_nobody_named_are_numbers(tmp_path):
    need("transformers")
    assert load_teacher(f"hf:{hf_folder(tmp_path / 'v', labels=('LABEL_0', 'LABEL_1'))}").classes == ["0", "1"]


@pytest.mark.parametrize("kind", ["torchscript", "torch-export"])
def test_a_network_in_a_file_says_what_the_network_said(kind, tmp_path):
    images = torch.rand(5, 3, 16, 16)
    description = teacher_from(kind, tmp_path)
    teacher = load_teacher(description)
    torch.testing.assert_close(teacher(images), plain_net()(images).detach())
    assert teacher.fingerprint() == load_teacher(description).fingerprint()


def test_an_export_for_a_fixed_number_of_images_is_explained(tmp_path):
    with pytest.raises(KD3Error, match=r"torch-export:t\.pt2 .* exported for batches of 1, and got 4"):
        load_teacher(torch_export_file(tmp_path, dynamic=False))


WRONG = {
    "an unknown network of timm": ({"arch": "timm:resnet19", "weights": "w.pt"}, "timm has no network 'resnet19'; did"),
    "one of torchvision": (
        {"arch": "torchvision:resnet19", "weights": "w.pt"},
        "torchvision has no network 'resnet19'",
    ),
    "no classifier": ({"arch": "torchvision:fcn_resnet50", "weights": "w.pt"}, "torchvision has no network 'fcn_res"),
    "wrong arguments": (
        {"arch": "timm:resnet10t", "weights": "w.pt", "arch_args": {"wings": 2}},
        "timm:resnet10t cannot be built: TypeError: .*wings",
    ),
    "an absent folder": ({"arch": "hf:./nowhere"}, "hf:./nowhere: there is no folder"),
    "a folder of something else": ({"arch": "hf:."}, "holds no config.json of transformers"),
    "a zoo network without weights": ({"arch": "kd3:resnet8"}, "'weights' is missing .*name the checkpoint of kd3:re"),
    "weights that the zoo has not": (
        {"arch": "kd3:resnet8", "weights": "pretrained"},
        "kd3:resnet8 comes without weights",
    ),
    "nothing said of whose weights": (
        {"arch": "timm:resnet10t"},
        "'weights' is missing .*name the checkpoint of timm:resnet10t, or write weights: pretrained for those that tim",
    ),
    "nor here": ({"arch": "torchvision:resnet18"}, "'weights' is missing .*weights: pretrained for those that torchvi"),
    "features alone": (
        {"arch": "timm:vit_small_patch14_dinov2", "weights": "pretrained"},
        "timm's weights of vit_small_patch14_dinov2 are of features without a classifier",
    ),
    "a class count for trained weights": (
        {"arch": "timm:resnet10t", "weights": "pretrained", "arch_args": {"num_classes": 3}},
        "trained weights have the classes that they have; take 'num_classes' out",
    ),
    "the same for torchvision": (
        {"arch": "torchvision:resnet18", "weights": "pretrained", "arch_args": {"num_classes": 3}},
        "trained weights have the classes that they have; take 'num_classes' out",
    ),
    "colours that nothing reads": (
        {"arch": "torchscript:t.ts", "colours": "bgr"},
        "says colours: bgr, but no convolution in it reads the three colours",
    ),
    "an absent file": ({"arch": "torchscript:no.ts"}, "torchscript:no.ts: there is no file"),
    "a checkpoint for a network": (
        {"arch": "torchscript:w.pt"},
        "as torchscript: it is a checkpoint; name it under we",
    ),
    "TorchScript for an export": ({"arch": "torch-export:t.ts"}, "it is TorchScript; write torchscript:t.ts"),
    "a file of another kind": ({"arch": "torchscript:teacher.yaml"}, "cannot be read as torchscript"),
    "another file of another kind": ({"arch": "torch-export:teacher.yaml"}, "cannot be read as torch-export"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_a_teacher_is_reported(kind, tmp_path):
    values, message = WRONG[kind]
    source = values["arch"].partition(":")[0]
    if source in ("timm", "torchvision", "hf"):
        need("transformers" if source == "hf" else source)
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    if "t.ts" in values["arch"]:
        torchscript_file(tmp_path)
    with pytest.raises(KD3Error, match=message):
        load_teacher(described(tmp_path, **values))


@pytest.mark.parametrize("arch", ["timm:resnet10t", "torchvision:shufflenet_v2_x0_5"])
def test_a_checkpoint_without_its_classifier_is_refused(arch, tmp_path):
    need(arch.partition(":")[0])
    path = library_file(tmp_path, arch)
    weights = torch.load(tmp_path / "w.pt")
    torch.save({name: value for name, value in weights.items() if not name.startswith("fc.")}, tmp_path / "w.pt")
    with pytest.raises(KD3Error, match=r"does not fit the architecture .*2 missing \(fc.weight, fc.bias\)"):
        load_teacher(path)


def test_a_network_that_was_trained_on_bgr_takes_rgb_where_its_description_says_so(tmp_path):
    own_file(tmp_path)
    plain = load_teacher(tmp_path / "teacher.yaml")
    values = yaml.safe_load((tmp_path / "teacher.yaml").read_text())
    turned = load_teacher(described(tmp_path, **{**values, "colours": "bgr"}))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(turned(images), plain(images.flip(1)))
    assert turned.head == plain.head


def test_weights_and_networks_are_no_descriptions(tmp_path):
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(
        KD3Error, match=r"w\.pt holds weights or a network, which is no description of a teacher; write a YAML file"
    ):
        load_teacher(tmp_path / "w.pt")
    torchscript_file(tmp_path)
    with pytest.raises(KD3Error, match=r"'num_classes' is missing .*describe it in a YAML file"):
        load_teacher(f"torchscript:{tmp_path}/t.ts")


def test_what_a_library_says_of_its_own_weights_is_taken_for_others_and_named(tmp_path):
    need("timm")
    path = library_file(tmp_path, "timm:resnet10t")
    values = yaml.safe_load(path.read_text())
    del values["mean"]
    path.write_text(yaml.safe_dump(values))
    teacher = load_teacher(path)
    assert teacher.normalise.mean == pytest.approx((0.485, 0.456, 0.406))
    assert teacher.assumed == ["mean"]


def test_frozen_programs_are_told_apart_by_their_files(tmp_path):
    prints = set()
    for number, scale in enumerate((1.0, 2.0)):
        network = plain_net()
        network[0].weight.data *= scale
        with pytest.warns(DeprecationWarning, match="jit"):
            torch.jit.save(torch.jit.freeze(torch.jit.script(network)), tmp_path / f"{number}.ts")
        prints.add(load_teacher(described(tmp_path, arch=f"torchscript:{number}.ts")).fingerprint())
    assert len(prints) == 2


def test_a_student_that_began_from_its_librarys_weights_loads_without_them(tmp_path):
    from kd3.config.records import Signature
    from kd3.models.student import own_head
    from kd3.models.student_files import save_student

    need("timm")
    network = build_arch("timm:test_resnet", num_classes=3, input_size=32)
    student = own_head(network, Signature([0] * 3, [1] * 3, 32, ["a", "b", "c"]), name="x")
    save_student(student, tmp_path, arch="timm:test_resnet", arch_args={"pretrained": True, "drop_rate": 0.1}, about={})
    assert json.loads((tmp_path / "config.json").read_text())["arch_args"] == {"drop_rate": 0.1}
    assert kd3.load_student(tmp_path).num_classes == 3


def test_weights_that_cannot_be_fetched_are_told_in_a_sentence(tmp_path, monkeypatch):
    need("timm")
    import timm

    def create_model(*_, **__):
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(
        KD3Error, match=r"the weights of timm:resnet18 cannot be had: OSError: We couldn't connect .* fi"
    ):
        load_teacher("timm:resnet18")


def test_a_network_in_a_file_cannot_be_a_student(teacher_file, pool_folder, tmp_path):
    torchscript_file(tmp_path)
    with pytest.raises(KD3Error, match="is a finished network and cannot be a student"):
        kd3.distill(teacher_file, f"torchscript:{tmp_path}/t.ts", pool_folder, tmp_path / "run", **SMALL)


def test_a_library_that_is_missing_is_told_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(KD3Error, match=r"timm is not installed: pip install 'kd3\[timm\]'; timm imports torchvision"):
        load_teacher(described(tmp_path, arch="timm:resnet10t", weights="w.pt"))


def test_beside_a_torchvision_that_cannot_be_imported_timm_says_so_and_transformers_does_without(tmp_path):
    need("transformers")
    need("timm")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    folder = hf_folder(tmp_path / "vit")
    timm = described(tmp_path, arch="timm:resnet10t", weights="w.pt")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from kd3.cli import main\n"
        f"for teacher in ('hf:{folder}', {str(timm)!r}): print(main(['inspect', '--teacher', teacher]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "can be shared" in done.stdout
    assert done.stdout.splitlines()[-1] == "2"
    assert done.stderr.splitlines() == [line for line in done.stderr.splitlines() if "timm is installed but" in line]
    assert "cannot be imported (RuntimeError: operator nms does not exist); timm imports torchvision" in done.stderr


@pytest.mark.parametrize("prefix", ["timm", "hf"])
def test_a_folder_that_timm_saved_is_a_teacher(prefix, tmp_path):
    need("timm")
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(6)
        network = timm.create_model("test_resnet", num_classes=3).eval()
    more = {"mean": [0.1, 0.2, 0.3], "std": [0.5] * 3, "input_size": [3, 32, 32], "label_names": ["cat", "dog", "ship"]}
    timm.models.save_for_hf(network, tmp_path / "saved", model_config=more)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    config["pretrained_cfg"] |= {key: more[key] for key in ("mean", "std", "input_size")}
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    teacher = load_teacher(f"{prefix}:{tmp_path / 'saved'}")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(teacher(images), network(images), rtol=1e-4, atol=1e-5)
    assert teacher.normalise.mean == (0.1, 0.2, 0.3)
    (tmp_path / "saved" / "model.safetensors").unlink(missing_ok=True)
    (tmp_path / "saved" / "pytorch_model.bin").unlink(missing_ok=True)
    with pytest.raises(KD3Error, match=r"holds no weights \(model.safetensors or"):
        load_teacher(f"{prefix}:{tmp_path / 'saved'}")
    (tmp_path / "saved" / "config.json").write_text("[]")
    with pytest.raises(KD3Error, match=f"^{prefix}:"):
        load_teacher(f"{prefix}:{tmp_path / 'saved'}")
