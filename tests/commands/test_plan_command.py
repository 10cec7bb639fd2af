"""Advice of `kd3 plan`, and the basis of each rule."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import kd3
from in_process import here
from kd3.commands.plan import _Run
from kd3.config.methods import METHODS
from kd3.config.training import TrainSettings
from kd3.evaluation.compatibility import check_normalisation
from kd3.evaluation.shift_verdict import forecast
from kd3.methods import Parts, build_method
from kd3.models.costs import Cost, costs
from kd3.models.libraries.zoo import build_by_name
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.runtime.compute import resolve
from kd3.runtime.errors import KD3Error
from kd3.studies import advice
from kd3.studies.candidates import FEW, Pace, candidates, exported, pace_of

DOCS = Path(__file__).parents[2]
TEACHER = Cost(800_000, 100_000_000, 3_200_000, 4_000_000, one=10.0, many=400.0, batch=64)


def cost(share: float, speed: float = 2.0) -> Cost:
    return replace(TEACHER, multiply_adds=round(share * TEACHER.multiply_adds), one=10 / speed, many=400 / speed)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(3)
    network = build_by_name("resnet14", num_classes=3)
    network.linear.weight.data *= 20
    torch.save(network.state_dict(), folder / "weights.pt")
    values = {"arch": "kd3:resnet14", "weights": "weights.pt", "num_classes": 3, "input_size": 16}
    (folder / "teacher.yaml").write_text(yaml.safe_dump({**values, "mean": [0.5] * 3, "std": [0.25] * 3}))
    return str(folder / "teacher.yaml")


@pytest.fixture(scope="module")
def elsewhere(crawl, tmp_path_factory):
    """A list of pictures that lie outside its folder."""
    path = tmp_path_factory.mktemp("lists") / "camera.txt"
    path.write_text("\n".join(map(str, sorted(crawl.glob("*.png")))))
    return path


@pytest.fixture(scope="module")
def found(teacher, pool_folder, elsewhere):
    before = sorted(pool_folder.rglob("*"))
    with pytest.raises(kd3.KD3Error, match="--trust-entries"):
        kd3.plan(teacher, pool_folder, deployment=elsewhere, quiet=True)
    plan = kd3.plan(teacher, pool_folder, deployment=elsewhere, trust_entries=True, quiet=True)
    assert sorted(pool_folder.rglob("*")) == before  # nothing is written
    return plan


def test_students_are_the_smaller_ones_of_the_family_and_the_shrunk_teacher(found):
    names = [choice.name for choice in found.choices]
    assert names[0] == "kd3:resnet8"  # resnet20 and larger are no smaller than the teacher
    assert set(names[1:]) <= {"shrink:0.5", "shrink:0.3", "shrink:0.15"}
    assert len(names) + len(found.problems) == 4
    for choice in found.choices:
        assert choice.cost.multiply_adds < found.teacher_cost.multiply_adds
        assert 4 * choice.cost.parameters < choice.cost.bytes < 5 * choice.cost.parameters
        assert choice.inherits == 1
    assert found.teacher_cost.memory > found.teacher_cost.bytes


def test_the_range_is_the_curves_for_the_budget_that_is_recommended(found, teacher, pool_folder):
    measured = kd3.shift(teacher, pool_folder, quiet=True).measurement
    said, distance = measured.opinions, measured.batch_norms.mean
    assert found.images == 200_000
    expected = forecast(distance, said.effective_classes, classes=3, images=120, trained=200_000)
    assert asdict(found.forecast) == pytest.approx(asdict(expected), rel=0.05)  # in bfloat16 batches round apart
    assert found.verdict.sentence.startswith(found.verdict.about_crawl)


def test_it_is_told_to_people_and_to_machines(found):
    text = str(found)
    for words in (
        "one image",
        "64 images",
        "begin with" if found.student else "none of these",
        "steps of",
        "kd3 distill",
    ):
        assert words in text
    assert "images of " in found.deployment
    values = json.loads(json.dumps(found.to_dict(), default=str))
    assert values["pace"]["steps"] >= 1
    assert values["choices"][0]["cost"]["one"] > 0
    assert values["command"].startswith("kd3 distill --teacher ")


def test_eight_bits_are_timed_beside_float32_of_the_same_files(teacher, pool_folder):
    before = sorted(pool_folder.rglob("*"))
    plan = kd3.plan(teacher, pool_folder, int8=True, quiet=True)
    assert sorted(pool_folder.rglob("*")) == before
    assert list(plan.exported) == ["teacher", *(choice.name for choice in plan.choices)]
    for name, one in plan.exported.items():
        assert one.float32.keys() == one.int8.keys() == {1, 64}
        assert 0 < one.int8[1] < one.int8[64]
        network = next((choice.cost for choice in plan.choices if choice.name == name), plan.teacher_cost)
        assert one.bytes < network.bytes  # a byte a weight, and the graph
    assert "in int8" in str(plan)
    assert str(plan).count(" MB") == 2 * (1 + len(plan.choices)) + len(plan.exported)
    json.dumps(plan.to_dict())


class Unexportable(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :3] if float(images.sum()) > 0 else images.flatten(1)[:, 3:6]


def test_a_network_that_no_exporter_takes_costs_its_row_only():
    torch.manual_seed(0)
    networks = {"good": build_by_name("resnet8", num_classes=3).eval(), "odd": Unexportable()}
    found, problems = exported(networks, torch.randn(8, 3, 16, 16))
    assert list(found) == ["good"]
    (problem,) = problems
    assert problem.startswith("odd cannot be exported: ")
    assert "\n" not in problem


class Clock:
    """A learner whose step takes a second, a tenth of one more for each image, and whose optimizer takes the second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.batches: list[int] = []
        self.optimizer = SimpleNamespace(step=self._optimize)

    def step(self, number, images, places):
        assert len(images) == len(places)
        self.now += 1 + len(images) / 10
        self.batches.append(len(images))

    def _optimize(self):
        self.now += 1


@pytest.mark.parametrize(
    ("seconds", "measured", "steps"),
    [(1000.0, 48, 20), (100.0, 27, 20), (5.0, FEW, 1)],  # enough for whole batches, for parts of them, for few
)
def test_a_step_that_takes_too_long_is_measured_on_fewer_images_and_extrapolated(seconds, measured, steps, monkeypatch):
    torch.manual_seed(0)
    networks = [build_by_name("resnet8", num_classes=3) for _ in range(2)]
    teacher = Teacher(networks[0], mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 16, 16), dtype=np.uint8)
    sample = teacher.normalise(torch.from_numpy(pixels[:2]))
    method = build_method("kd", METHODS["kd"].options(), Parts(teacher, networks[1], "kd3:resnet8", sample))
    settings = TrainSettings(batch_size=48).settled(inherited=False)
    clock = Clock()
    monkeypatch.setattr("kd3.studies.candidates.idle_seconds", lambda device: clock.now)
    monkeypatch.setattr("kd3.studies.candidates.Learner", lambda *args, **settings: clock)
    found = pace_of(
        method, ImagePool.from_array(pixels), np.arange(60), settings, resolve("cpu", "32"), seconds=seconds
    )
    assert set(clock.batches[1:]) == {measured}
    assert (found.steps, found.batch) == (steps, 48)
    assert found.seconds == pytest.approx(1 + 4.8)


def test_minutes_that_are_too_few_for_a_step_are_refused(teacher, pool_folder):
    done = here("plan", "--teacher", teacher, "--pool", pool_folder, "--minutes", "0.000001", "--quiet")
    assert (done.returncode, done.stdout) == (2, "")
    assert "too few for one step of 128 images" in done.stderr
    done = here("plan", "--teacher", teacher, "--pool", pool_folder, "--minutes", "0")
    assert done.returncode == 2


def test_minutes_buy_images_and_the_time_of_these_is_no_longer():
    run = _Run(Pace(20, 64, seconds=0.5), 64)
    for minutes in (5, 30, 300):
        images = run.affordable(minutes, cost(0.3), TEACHER)
        assert 0.85 * minutes * 60 < run.seconds(images, cost(0.3), cost(0.3), TEACHER) <= minutes * 60
    smaller = run.seconds(60_000, cost(0.1, speed=8), cost(0.3), TEACHER)
    assert smaller < run.seconds(60_000, cost(0.3), cost(0.3), TEACHER)
    assert run.seconds(64, cost(0.3), cost(0.3), TEACHER) == 0.5


def test_the_student_to_begin_with_is_of_the_size_of_our_results_and_faster():
    several = {"kd3:resnet20": cost(0.33), "shrink:0.3": cost(0.32), "shrink:0.15": cost(0.15)}
    assert advice.best_student(several, TEACHER) == "kd3:resnet20"
    assert advice.best_student({**several, "kd3:resnet20": cost(0.33, speed=0.7)}, TEACHER) == "shrink:0.3"
    assert advice.best_student({"kd3:resnet8": cost(0.1, speed=0.7)}, TEACHER) is None
    assert advice.best_student({}, TEACHER) is None


def test_a_teacher_whose_classifier_cannot_be_shared_is_distilled_by_kd():
    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            return 3 * nn.functional.cosine_similarity(
                self.body(x).mean((2, 3))[:, None], self.head.weight[None], dim=2
            )

    sizes = {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": 16}
    assert advice.method_for(Teacher(Cosine(), **sizes))[0] == "kd"
    assert advice.method_for(Teacher(build_by_name("resnet8", num_classes=4), **sizes))[0] == "kd3"


@pytest.mark.parametrize("affordable", [None, 10_000, 90_000, 5_000_000])
def test_every_budget_names_a_page_that_is_there(affordable):
    images, said = advice.budget_for(affordable)
    assert images <= 1_000_000
    assert (DOCS / said.page).is_file()


def test_a_pool_of_another_size_is_refused(teacher_file, pool_folder, tmp_path):
    description = yaml.safe_load(Path(teacher_file).read_text())
    description |= {"input_size": 32, "weights": str(Path(teacher_file).parent / "weights.pt")}
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(description))
    with pytest.raises(KD3Error, match="--image-size 32"):
        kd3.plan(tmp_path / "teacher.yaml", pool_folder, quiet=True)


def test_each_part_of_a_plan_shows_its_progress(teacher, monkeypatch, capsys):
    monkeypatch.setattr("kd3.runtime.console.LOG_EVERY_SECONDS", 0.0)
    loaded = kd3.load_teacher(teacher)
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8))
    sample = loaded.normalise(pixels)
    students, _ = candidates(loaded, sample)
    assert capsys.readouterr().err.count("candidate students: ") >= len(students)
    costs({students[0].name: students[0].network, "teacher": loaded}, sample)
    assert "latency: 16 of 16 measurements" in capsys.readouterr().err
    check_normalisation(loaded, pixels)
    assert "mean, std and colours: 8 of 8 passes" in capsys.readouterr().err
    parts = Parts(loaded, students[0].network, students[0].name, sample)
    pool = ImagePool.from_array(pixels.repeat(10, 1, 1, 1).numpy())
    settings = TrainSettings(batch_size=20).settled(inherited=False)
    pace_of(
        build_method("kd", METHODS["kd"].options(), parts), pool, np.arange(40), settings, resolve("cpu", "32"), steps=3
    )
    assert "steps of a run: 6 of 6 steps" in capsys.readouterr().err
