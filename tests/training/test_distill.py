"""Whole runs on a tiny pool: outputs, repeatability, interruption."""

import json
import signal

import numpy as np
import pytest
import torch
from torch import nn

import kd3
from kd3.config.distill import DistillConfig
from kd3.runtime.errors import KD3Error
from kd3.runtime.run_folder import RunFolder, read_metrics
from kd3.scoring.scan import is_as_good
from kd3.training import learner
from kd3.training.budget import load_checkpoint
from kd3.training.learner import Learner

SMALL = {"images": 320, "batch_size": 16, "holdout": 12, "precision": "32", "device": "cpu", "warmup_steps": 2}


def run(teacher_file, pool_folder, out, **options):
    return kd3.distill(teacher_file, "kd3:resnet8", pool_folder, out, **{**SMALL, **options})


def weights(folder):
    return kd3.load_student(folder).state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def finished(teacher_file, pool_folder, tmp_path_factory):
    return run(teacher_file, pool_folder, tmp_path_factory.mktemp("runs") / "kd3", seed=1)


def test_a_run_leaves_everything_behind(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert {"config.yaml", "origin.json", "metrics.jsonl", "summary.json", "student", "checkpoints"} <= names
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert summary["images"] == 320
    assert summary["steps"] == 20
    assert 0 <= summary["agreement"] <= 100


def test_losses_are_named_and_sum_up(finished):
    events = read_metrics(finished.folder / "metrics.jsonl", "train")
    assert events
    for event in events:
        assert event["loss"] == pytest.approx(event["alignment"] + event["soft_targets"], rel=1e-5)
        assert event["lr"] > 0


def test_the_held_out_images_are_never_selected(finished, pool_folder):
    from kd3.scoring.batches import split_pool

    held_out = set(split_pool(kd3.ImagePool.open(pool_folder), 12).holdout.tolist())
    assert len(held_out) == 12
    selections = list((finished.folder / "selections").iterdir())
    assert selections
    for path in selections:
        assert not held_out & set(np.load(path).tolist())


def test_the_holdout_does_not_depend_on_the_seed_of_the_run(pool_folder):
    from kd3.commands.distill_parts import split_of

    values = {"teacher": "t", "student": "s", "pool": str(pool_folder), "out": "o", "train": {"holdout": 12}}
    configs = [DistillConfig(**values, seed=seed) for seed in (0, 1, 7)]
    first, *others = [split_of(config, kd3.ImagePool.open(pool_folder)) for config in configs]
    assert len(first.holdout) == 12
    assert [split.holdout.tolist() for split in others] == [first.holdout.tolist()] * 2
    assert [split.train.tolist() for split in others] == [first.train.tolist()] * 2


def test_a_share_of_the_pool_is_part_of_a_larger_one_and_keeps_the_held_out_images(teacher_file, pool_folder, tmp_path):
    from kd3.scoring.batches import split_pool

    pool = kd3.ImagePool.open(pool_folder)
    whole, half, tenth = (split_pool(pool, 12, share=share) for share in (1, 0.5, 0.1))
    assert whole.holdout.tolist() == half.holdout.tolist() == tenth.holdout.tolist()
    assert [len(split.train) for split in (whole, half, tenth)] == [108, 54, 11]
    assert set(tenth.train) < set(half.train) < set(whole.train)
    done = run(teacher_file, pool_folder, tmp_path / "half", method="kd", share=0.5)
    assert set(np.load(done.folder / "selections" / "00001.npy")) == set(half.train)
    with pytest.raises(KD3Error, match=r"a share of 0\.01 .* leaves 1 images to train on"):
        run(teacher_file, pool_folder, tmp_path / "none", share=0.01)


def test_the_same_seed_gives_the_same_student_and_another_seed_another(finished, teacher_file, pool_folder, tmp_path):
    again = run(teacher_file, pool_folder, tmp_path / "again", seed=1)
    other = run(teacher_file, pool_folder, tmp_path / "other", seed=2)
    assert_same(weights(finished.folder), weights(again.folder))
    name = "backbone.layer1.0.conv1.weight"
    assert not torch.equal(weights(finished.folder)[name], weights(other.folder)[name])


def test_running_from_the_saved_configuration_repeats_the_run(finished, tmp_path):
    from kd3.cli import main

    assert main(["distill", "--config", str(finished.folder / "config.yaml"), "--out", str(tmp_path / "r")]) == 0
    assert_same(weights(finished.folder), weights(tmp_path / "r"))


@pytest.mark.parametrize(("scoring", "stop_at"), [("fresh", 1), ("fresh", 7), ("fresh", 19), ("training", 7)])
def test_an_interrupted_run_resumes_to_the_same_student(
    scoring, stop_at, finished, teacher_file, pool_folder, tmp_path, monkeypatch
):
    options = {"seed": 1, "kd3": {"selection": "auto" if scoring == "fresh" else "dynamic", "scoring": scoring}}
    whole = finished if scoring == "fresh" else run(teacher_file, pool_folder, tmp_path / "whole", **options)
    whole_step = Learner.step

    def step(self, number, *batch):
        result = whole_step(self, number, *batch)
        if number == stop_at:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(KeyboardInterrupt, match="continue with: kd3 distill --resume"):
        run(teacher_file, pool_folder, tmp_path / "r", **options)
    monkeypatch.undo()
    assert RunFolder(tmp_path / "r").state() == "interrupted"
    assert load_checkpoint(RunFolder(tmp_path / "r").last)[0].step == stop_at + 1
    resumed = run(teacher_file, pool_folder, tmp_path / "r", **options, resume=True)
    assert_same(weights(whole.folder), weights(resumed.folder))

    def history(folder):
        timeless = ("seconds", "images_per_second")
        events = read_metrics(folder / "metrics.jsonl")
        return [{k: v for k, v in e.items() if k not in timeless} for e in events if e["event"] != "train"]

    assert history(resumed.folder) == history(whole.folder)


def test_folding_batch_norms_changes_rounding_and_no_more(teacher_file, pool_folder, tmp_path):
    # By SGD: the orthogonal steps of Muon make much of a rounding where a gradient is small.
    plain, folded = (
        run(teacher_file, pool_folder, tmp_path / str(fold), seed=1, fold_batch_norms=fold, optimizer="sgd")
        for fold in (False, True)
    )
    one, other = ([e["loss"] for e in read_metrics(done.folder / "metrics.jsonl", "train")] for done in (plain, folded))
    assert other == pytest.approx(one, rel=0.02)
    assert other != one
    assert list(weights(folded.folder)) == list(weights(plain.folder))


def test_plain_kd_trains_its_own_classifier_on_everything(teacher_file, pool_folder, tmp_path):
    done = run(teacher_file, pool_folder, tmp_path / "kd", method="kd")
    assert "backbone.linear.weight" in done.student.state_dict()
    first = next(read_metrics(done.folder / "metrics.jsonl", "selection"))
    assert first["kept"] == first["of"] == 108


def test_training_brings_the_student_towards_the_teacher(teacher_file, pool_folder, tmp_path):
    done = run(teacher_file, pool_folder, tmp_path / "r", images=3200, lr=0.05)
    losses = [event["loss"] for event in read_metrics(done.folder / "metrics.jsonl", "train")]
    assert losses[-1] < 0.6 * losses[0]


def test_the_shared_classifier_stays_the_teachers(finished, teacher_file):
    teacher = kd3.load_teacher(teacher_file)
    assert torch.equal(finished.student.backbone.linear.weight, teacher.module.linear.weight)


def test_neither_checkpoint_nor_student_contains_the_teacher(finished):
    _, method, _ = load_checkpoint(RunFolder(finished.folder).last)
    assert {name for name in method if not name.startswith("student.")} == {"alpha"}
    assert not any("teacher" in name for name in weights(finished.folder))


def test_the_papers_objective_runs_with_all_three_terms(teacher_file, pool_folder, tmp_path):
    done = run(teacher_file, pool_folder, tmp_path / "paper", preset="paper", epochs=None, images=64)
    event = next(read_metrics(done.folder / "metrics.jsonl", "train"))
    assert {"alignment", "contrastive"} <= event.keys()
    assert "soft_targets" not in event
    assert not any("embedding" in name for name in weights(done.folder))


OF_WHAT_IS_SELECTED = {
    "images": None, "epochs": 3, "epoch_of": "selected", "seed": 1, "preset": "paper", "optimizer": "sgd", "lr": 0.01,
    "kd3": {"threshold": 0.5},  # of the preset's dynamic selection
}  # fmt: skip


def test_an_epoch_can_be_one_pass_over_what_is_selected(teacher_file, pool_folder, tmp_path, monkeypatch):
    whole = run(teacher_file, pool_folder, tmp_path / "whole", **OF_WHAT_IS_SELECTED)
    kept = [event["kept"] for event in read_metrics(whole.folder / "metrics.jsonl", "selection")]
    assert len(kept) == 3
    assert any(count < 108 for count in kept)
    last = [0 if count % 16 < 2 else count % 16 for count in kept]
    assert whole.summary["images"] == sum(count // 16 * 16 + rest for count, rest in zip(kept, last, strict=True))
    rates = [event["lr"] for event in read_metrics(whole.folder / "metrics.jsonl", "train")]
    assert [rates[0], rates[-1]] == pytest.approx([0.01, 0.00001])  # the last milestone is at 2.625 of 3 epochs

    whole_step = Learner.step

    def step(self, number, *batch):
        result = whole_step(self, number, *batch)
        if number == 9:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(KeyboardInterrupt, match="after 10 of at most 21 steps"):
        run(teacher_file, pool_folder, tmp_path / "r", **OF_WHAT_IS_SELECTED)
    monkeypatch.undo()
    resumed = kd3.distill(teacher_file, "kd3:resnet8", pool_folder, tmp_path / "r", resume=True)
    assert resumed.summary["images"] == whole.summary["images"]
    assert_same(weights(whole.folder), weights(resumed.folder))


def test_random_weights_can_be_drawn_as_torch_draws_them(teacher_file, pool_folder, tmp_path):
    options = {"images": 16, "matrix_lr": 1e-9, "lr": 1e-9, "init": "random"}
    he, own = (
        weights(run(teacher_file, pool_folder, tmp_path / kind, random_weights=kind, **options).folder)
        for kind in ("he", "torch")
    )
    for name in ("backbone.layer3.0.conv2.weight", "projector.3.weight"):
        fan_in = he[name][0].numel()
        fan_out = he[name][:, 0].numel()
        assert float(own[name].abs().max()) <= fan_in**-0.5 * 1.001
        assert float(own[name].std()) == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)
        assert float(he[name].std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_live_modules_need_no_files(pool_folder, tmp_path):
    torch.manual_seed(0)

    def net(width):
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(width, 3),
        )  # fmt: skip

    pool = kd3.ImagePool.from_array(kd3.ImagePool.open(pool_folder).read(np.arange(100)))
    teacher = kd3.Teacher(net(12), mean=[0.5] * 3, std=[0.25] * 3)
    done = kd3.distill(teacher, net(6), pool, tmp_path / "live", **{**SMALL, "holdout": 10})
    images = torch.from_numpy(pool.read(np.arange(4)))
    student = done.student
    assert student(student.normalise(images)).shape == (4, 3)


def test_labelled_data_are_reported_and_choose_nothing(finished, teacher_file, pool_folder, labelled, tmp_path):
    done = run(teacher_file, pool_folder, tmp_path / "r", seed=1, eval_data=str(labelled))
    looks = read_metrics(done.folder / "metrics.jsonl", "evaluation")
    assert looks
    assert all("accuracy" in look for look in looks)
    assert_same(weights(finished.folder), weights(done.folder))


def test_the_end_is_always_looked_at_and_before_it_no_oftener_than_asked(teacher_file, pool_folder, tmp_path):
    # KD takes every image, so that its rounds are as long on any machine: 6 of 20 steps.
    looks = {}
    for at_most in (1, 2, 50):
        done = run(teacher_file, pool_folder, tmp_path / str(at_most), method="kd", evals=at_most)
        looks[at_most] = [event["step"] for event in read_metrics(done.folder / "metrics.jsonl", "evaluation")]
    assert looks == {1: [20], 2: [12, 20], 50: [6, 12, 18, 20]}


def test_the_student_kept_is_the_latest_that_is_as_good_as_the_best(finished):
    evaluations = list(read_metrics(finished.folder / "metrics.jsonl", "evaluation"))
    summary = json.loads((finished.folder / "summary.json").read_text())
    kept = next(e for e in evaluations if e["step"] == summary["best_step"])
    assert summary["agreement"] == kept["agreement"]
    highest = max(e["agreement"] for e in evaluations)
    held_out = SMALL["holdout"]
    later = [e for e in evaluations if e["step"] > kept["step"]]
    assert is_as_good(kept["agreement"], highest, images=held_out)
    assert not any(is_as_good(e["agreement"], highest, images=held_out) for e in later)


@pytest.mark.parametrize(
    ("now", "highest", "images", "kept"),
    [
        (70.0, 70.0, 1000, True),
        (68.6, 70.0, 1000, True),  # one standard error is 1.449 points
        (68.5, 70.0, 1000, False),
        (68.6, 70.0, 4000, False),
        (100.0, 100.0, 10, True),
        (99.9, 100.0, 10, False),
        (30.0, 70.0, 1000, False),
    ],
)
def test_a_later_student_is_kept_within_a_standard_error_of_the_best(now, highest, images, kept):
    assert is_as_good(now, highest, images=images) is kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "kd33"}, "unknown method 'kd33'; did you mean 'kd3'"),
        ({"method": "hinton"}, "unknown method 'hinton'; known: dfnd, kd, kd3, labels, simkd"),
        ({"lrr": 1}, "unknown setting 'lrr' .*did you mean 'train.lr'"),
        ({"kd3": {"treshold": 1}}, "unknown setting 'kd3.treshold' .*did you mean 'threshold'"),
        ({"kd3": {"threshold": 2}}, "kd3.threshold .*less than or equal to 1; got 2"),
        ({"epochs": 3}, "images or as epochs, not both"),
        ({"device": "tpu"}, "device 'tpu'"),
        ({"precision": "16"}, "precision 16 needs a GPU"),
        ({"preset": "papr"}, "unknown preset 'papr'; did you mean 'paper'"),
        ({"eval_data": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_leaves_nothing(options, message, teacher_file, pool_folder, tmp_path):
    with pytest.raises(KD3Error, match=message) as problem:
        run(teacher_file, pool_folder, tmp_path / "r", **options)
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "r").exists()


def test_a_pool_of_smaller_images_is_refused(teacher_file, crawl, tmp_path):
    kd3.ingest(crawl, tmp_path / "pool", image_size=12, workers=0)
    with pytest.raises(KD3Error, match="12 pixels but the teacher takes 16; ingest them with --image-size 16 or more"):
        run(teacher_file, tmp_path / "pool", tmp_path / "r")


def test_used_folders_are_refused(finished, teacher_file, pool_folder, tmp_path):
    with pytest.raises(KD3Error, match="holds a finished run"):
        run(teacher_file, pool_folder, finished.folder, seed=1)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(KD3Error, match="holds no kd3 run"):
        run(teacher_file, pool_folder, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_resuming_with_another_setting_is_refused(teacher_file, pool_folder, tmp_path):
    folder = RunFolder(tmp_path / "r")
    run(teacher_file, pool_folder, folder.path, seed=1)
    folder.summary.unlink()
    with pytest.raises(KD3Error, match=r"seed is 1 in the run .* cannot become 2"):
        run(teacher_file, pool_folder, folder.path, seed=2, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_in_a_sentence(teacher_file, pool_folder, tmp_path):
    with pytest.raises(KD3Error, match=r"the loss is not finite at one of the steps 1 to \d+ \(of its terms: "):
        run(teacher_file, pool_folder, tmp_path / "r", method="kd", lr=1e18, warmup_steps=0)
    left = json.loads((tmp_path / "r" / "not-finite.json").read_text())
    first, last = left["steps"]
    assert list(map(int, left["positions"])) == list(range(first, last + 1))
    pool = kd3.ImagePool.open(pool_folder)
    seen = {place for batch in left["positions"].values() for place in batch}
    assert seen <= set(range(len(pool)))
    assert {len(batch) for batch in left["positions"].values()} == {SMALL["batch_size"]}


def test_a_run_that_was_killed_before_it_had_settings_is_begun_anew(teacher_file, pool_folder, tmp_path):
    folder = tmp_path / "r"
    (folder / "selections").mkdir(parents=True)
    for name in ("origin.json", ".lock", ".config.yaml.77.tmp"):
        (folder / name).write_text("{")
    run(teacher_file, pool_folder, folder, images=32)
    assert not list(folder.rglob(".*.tmp"))


def test_what_a_killed_process_was_writing_is_removed(teacher_file, pool_folder, tmp_path, monkeypatch):
    folder = tmp_path / "r"

    def killed(optimizer, step, *rest):
        if step == 9:
            signal.raise_signal(signal.SIGINT)
        return learner_rate(optimizer, step, *rest)

    learner_rate = learner.set_learning_rate
    monkeypatch.setattr(learner, "set_learning_rate", killed)
    with pytest.raises(KeyboardInterrupt):
        run(teacher_file, pool_folder, folder)
    monkeypatch.undo()
    (folder / "checkpoints" / ".last.pt.77.tmp").write_text("half")
    run(teacher_file, pool_folder, folder, resume=True)
    assert not list(folder.rglob(".*.tmp"))


def test_a_second_signal_leaves_the_checkpoint_before_it(finished, teacher_file, pool_folder, tmp_path, monkeypatch):
    set_learning_rate = learner.set_learning_rate

    def interrupted_inside_a_step(optimizer, step, *rest):
        if step == 17:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        set_learning_rate(optimizer, step, *rest)

    monkeypatch.setattr(learner, "set_learning_rate", interrupted_inside_a_step)
    monkeypatch.setattr("kd3.runtime.interruption.ONE_REQUEST_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(teacher_file, pool_folder, tmp_path / "r", seed=1)
    monkeypatch.undo()
    assert load_checkpoint(RunFolder(tmp_path / "r").last)[0].step <= 17
    resumed = run(teacher_file, pool_folder, tmp_path / "r", seed=1, resume=True)
    assert_same(weights(finished.folder), weights(resumed.folder))


def test_resuming_on_another_pool_or_teacher_is_refused(teacher_file, pool_folder, crawl, tmp_path):
    import shutil

    pool = shutil.copytree(pool_folder, tmp_path / "pool")
    folder = RunFolder(tmp_path / "r")
    run(teacher_file, pool, folder.path, seed=1)
    folder.summary.unlink()
    shutil.rmtree(pool)
    kd3.ingest(crawl, pool, image_size=16, fit="squash", limit=100, workers=0)
    with pytest.raises(KD3Error, match=r"the pool is not what the run .* was begun with"):
        run(teacher_file, pool, folder.path, seed=1, resume=True)


def test_a_live_student_is_copied_and_can_be_resumed(teacher_file, pool_folder, tmp_path, monkeypatch):
    from kd3.models.arch import build_arch
    from kd3.training import loop

    net = build_arch("kd3:resnet8", num_classes=3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    evaluate = loop.Fit._evaluate_student

    def stop(self):
        evaluate(self)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop.Fit, "_evaluate_student", stop)
    with pytest.raises(KeyboardInterrupt, match="the same call and resume=True"):
        kd3.distill(teacher_file, net, pool_folder, tmp_path / "r", **SMALL)
    monkeypatch.undo()
    done = kd3.distill(teacher_file, net, pool_folder, tmp_path / "r", **SMALL, resume=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert done.student(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    assert "kd3 evaluate" not in str(done)


def test_a_budget_in_the_file_replaces_the_presets(teacher_file, pool_folder, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("preset: paper\ntrain: {images: 64, batch_size: 16, holdout: 12}\n")
    done = kd3.distill(teacher_file, "kd3:resnet8", pool_folder, tmp_path / "r", config=config, device="cpu")
    assert done.summary["images"] == 64


@pytest.mark.parametrize(
    "budget", [{"epochs": float("inf")}, {"images": "1e400"}, {"images": True}, {"lr": float("nan")}]
)
def test_budgets_that_are_no_numbers_are_refused(budget, teacher_file, pool_folder, tmp_path):
    with pytest.raises(KD3Error):
        run(teacher_file, pool_folder, tmp_path / "r", **{"images": None, **budget})
    assert not (tmp_path / "r").exists()


def test_a_student_that_does_not_run_at_this_size_is_refused(teacher_file, pool_folder, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(10, 3))
    for method in ("kd", "kd3"):
        with pytest.raises(KD3Error, match="does not run on an image of 16 x 16"):
            kd3.distill(teacher_file, net, pool_folder, tmp_path / "r", **SMALL, method=method)


def test_an_output_that_cannot_be_made_is_refused(teacher_file, pool_folder, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(KD3Error, match=r"cannot be used|cannot be written"):
        run(teacher_file, pool_folder, tmp_path / "file" / "run")


def test_labels_that_are_all_the_same_are_refused(teacher_file, labelled, tmp_path):
    crawl = tmp_path / "crawl"
    (crawl / "ship").mkdir(parents=True)
    for picture in labelled.rglob("*.png"):  # 24 of them
        (crawl / "ship" / f"{picture.parent.name}-{picture.name}").write_bytes(picture.read_bytes())
    kd3.ingest(crawl, tmp_path / "pool", image_size=16, workers=0)
    with pytest.raises(KD3Error, match=r"all images of the pool .* are labelled 'ship'"):
        run(teacher_file, tmp_path / "pool", tmp_path / "r", method="labels")
    assert not (tmp_path / "r").exists()


def test_a_pool_in_which_the_teacher_sees_one_class_is_warned_of(teacher_file, labelled, tmp_path, capsys):
    kd3.ingest(labelled, tmp_path / "pool", image_size=16, workers=0)
    teacher = kd3.load_teacher(teacher_file)
    teacher.module.linear.bias.data[2] += 1e4
    few = {**SMALL, "images": 32, "method": "kd"}
    kd3.distill(teacher, "kd3:resnet8", tmp_path / "pool", tmp_path / "one", **few)
    assert "for one class, 'ship', so a student would learn only this class" in capsys.readouterr().err
