"""The methods: losses composed as the paper says, gradients where they belong, selection as configured."""

import copy

import pytest
import torch
from torch.nn import functional as F

import kd3
from kd3.config.methods import METHODS, DFNDOptions, KD3Options, KDOptions, MethodEntry, SimKDOptions
from kd3.config.training import TrainSettings
from kd3.methods import Batch, Method, Parts, StepResult, build_method
from kd3.models.arch import build_arch
from kd3.runtime.compute import Compute
from kd3.selection import blend_logits, predict, select_everything, teacher_weight
from kd3.training.learner import Learner

PAPER = KD3Options(
    alignment_weight=1, alignment_scale="raw", logit_weight=0, contrastive="mixdistribution",
    contrastive_weight=0.001, selection="dynamic", teacher_weight="paper", scoring="fresh",
)  # fmt: skip


class Opinions:
    """A scan of fixed logits that counts what it is asked for."""

    def __init__(self, teacher, student):
        self.teacher, self.student = teacher, student
        self.count = len(teacher)
        self.asked = []

    def teacher_logits(self):
        self.asked.append("teacher")
        yield self.teacher

    def predictions(self, teacher_weight):
        self.asked.append(("now", teacher_weight))
        return predict(blend_logits(self.teacher, self.student, teacher_weight))

    def latest_predictions(self, teacher_weight, *, refreshed):
        self.asked.append(("latest", teacher_weight, refreshed))
        return predict(blend_logits(self.teacher, self.student, teacher_weight))


@pytest.fixture
def teacher(teacher_file):
    return kd3.load_teacher(teacher_file)


@pytest.fixture
def images():
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def make(name, options, teacher, images):
    torch.manual_seed(0)
    backbone = build_arch("kd3:resnet8", num_classes=3)
    return build_method(name, options, Parts(teacher, backbone, "resnet8", images))


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def generator():
    return torch.Generator().manual_seed(7)


@torch.no_grad()
def test_the_papers_loss_is_alignment_plus_a_thousandth_of_the_contrast(teacher, images):
    method = make("kd3", PAPER, teacher, images).eval()
    result = method(Batch(images, generator()))

    target = teacher.outputs(images)
    own, student = method.student.outputs(images)
    distance = (student.logits - target.logits).norm(dim=1)
    squares = (student.features - target.features) ** 2
    alignment = (torch.sigmoid(distance)[:, None, None, None] * squares).mean()
    assert float(result.terms["alignment"]) == pytest.approx(float(alignment), rel=1e-5)

    from kd3.losses.mixdistribution import mix_distribution

    mixed = method.student.features(mix_distribution(images, beta_parameter=0.1, generator=generator()))
    vectors = torch.cat([F.normalize(method.embedding(f.mean((2, 3))), dim=1) for f in (own, mixed)])
    similarity = (vectors @ vectors.T / 0.3).fill_diagonal_(float("-inf"))
    contrast = F.cross_entropy(similarity, torch.arange(16).roll(8))
    assert float(result.terms["contrastive"]) == pytest.approx(0.001 * float(contrast), rel=1e-4)
    assert float(result.loss) == pytest.approx(float(alignment + 0.001 * contrast), rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_reaches_the_student_and_never_the_teacher(name, teacher, images):
    options = PAPER if name == "kd3" else METHODS[name].options()
    method = make(name, options, teacher, images)
    result = method(Batch(images, generator(), labels=LABELS))
    assert torch.isfinite(result.loss)
    assert float(result.loss.detach()) == pytest.approx(sum(float(t.detach()) for t in result.terms.values()), rel=1e-5)
    result.loss.backward()
    for parameter_name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any("teacher" in key for key in method.state_dict())


@pytest.mark.parametrize("name", METHODS)
def test_the_teacher_stays_in_evaluation_while_the_method_trains(name, teacher, images):
    method = make(name, METHODS[name].options(), teacher, images).train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    method(Batch(images, generator(), labels=LABELS))
    assert method.student.training
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_the_default_has_no_second_view_and_the_paper_has(teacher, images):
    assert make("kd3", KD3Options(), teacher, images).embedding is None
    assert make("kd3", PAPER, teacher, images).embedding.weight.shape == (128, 64)


def test_the_papers_preset_is_as_its_authors_ran_it(teacher, images):
    from kd3.config.distill import preset_values

    preset = preset_values("paper")
    assert preset["precision"] == "32"
    assert preset["train"]["epoch_of"] == "selected"
    assert preset["train"]["random_weights"] == "torch"
    made = make("kd3", KD3Options(**preset["kd3"]), teacher, images)
    assert made.embedding.bias.shape == (128,)
    assert make("kd3", PAPER, teacher, images).embedding.bias is None


@pytest.mark.parametrize(("name", "classifier"), [("simkd", None), ("kd3", "shared"), ("kd3", "own")])
def test_a_students_larger_map_is_pooled_before_the_projector(name, classifier, images):
    torch.manual_seed(1)
    small = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=8, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(6, 3),
    )  # fmt: skip
    teacher = kd3.Teacher(small, mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    options = SimKDOptions() if name == "simkd" else KD3Options(classifier=classifier)
    method = make(name, options, teacher, images)
    seen = []
    projector = method.projector if classifier == "own" else method.student.projector
    projector[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    method(Batch(images, generator()))
    assert seen == [(8, 64, 2, 2)]


def test_a_part_of_the_batch_can_be_contrasted(teacher, images):
    half = make("kd3", PAPER.model_copy(update={"contrastive_fraction": 0.5}), teacher, images).eval()
    seen = []
    half.student.backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    half(Batch(images, generator()))
    assert seen == [8, 4]


def statistics_after_a_step(options, teacher, images):
    method = make("kd3", options, teacher, images).train()
    method(Batch(images, generator()))
    return {name: value for name, value in method.student.state_dict().items() if "running" in name}


def test_the_mixed_view_is_kept_out_of_the_running_statistics(teacher, images):
    plain = statistics_after_a_step(KD3Options(), teacher, images)
    apart = statistics_after_a_step(KD3Options(contrastive="mixdistribution", gamma_scale=4), teacher, images)
    assert plain.keys() == apart.keys()
    assert len(plain) > 10
    for name, value in plain.items():
        assert torch.allclose(value, apart[name]), name


def test_the_papers_preset_counts_the_mixed_view_in_the_running_statistics(teacher, images):
    plain = statistics_after_a_step(KD3Options(), teacher, images)
    counted = statistics_after_a_step(
        KD3Options(contrastive="mixdistribution", gamma_scale=4, mixed_statistics="counted"), teacher, images
    )
    backbone = [name for name in plain if name.startswith("backbone")]
    assert backbone
    assert not any(torch.allclose(plain[name], counted[name]) for name in backbone)


def test_features_that_go_negative_take_the_last_relu_away(teacher, images):
    assert make("kd3", KD3Options(), teacher, images).student.projector.final_relu
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 3)
    )
    signed = kd3.Teacher(module, mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    assert not make("kd3", KD3Options(), signed, images).student.projector.final_relu


def test_selection_blends_both_networks_as_the_schedule_says(teacher, images):
    sure, torn = torch.tensor([[9.0, 0, 0]] * 40), torch.zeros(40, 3)
    sure[:20] = torch.tensor([0, 9.0, 0])
    sure[:5] = torch.tensor([0, 0, 9.0])
    method = make("kd3", PAPER, teacher, images)
    early, late = Opinions(sure, torn), Opinions(torn, sure)
    assert len(method.select(early, 0.0, at_least=1).index) == 40
    assert early.asked == [("now", pytest.approx(0.993, abs=1e-3))]
    method.select(late, 0.9, at_least=1)
    assert late.asked == [("now", 0.0)]


def test_selection_can_take_what_the_steps_predicted(teacher, images):
    method = make("kd3", KD3Options(selection="dynamic", scoring="training", refreshed=0.1), teacher, images)
    scan = Opinions(torch.randn(40, 3), torch.randn(40, 3))
    method.select(scan, 0.3, at_least=1)
    weight = teacher_weight(0.3, "smooth")
    assert scan.asked[0] == ("latest", weight, 0.1)

    said = method.eval()(Batch(images, generator())).predictions
    blended = weight * teacher(images) + (1 - weight) * method.student(images)
    torch.testing.assert_close(said.confidence, blended.softmax(1).max(1).values, rtol=1e-4, atol=1e-4)
    assert said.label.tolist() == blended.argmax(1).tolist()
    assert not said.confidence.requires_grad


class MeanSquare(Method):
    """A method of a user: it overrides only the two abstract methods."""

    def select(self, scan, progress, *, at_least):
        return select_everything(scan.count)

    def forward(self, batch):
        loss = (self.student(batch.images) - self.teacher(batch.images)).square().mean()
        return StepResult(loss, {"square": loss})


def test_a_new_method_needs_a_selection_a_loss_and_an_entry(teacher, images, monkeypatch):
    monkeypatch.setitem(METHODS, "square", MethodEntry("", "", KDOptions, f"{__name__}:MeanSquare"))
    method = make("square", KDOptions(), teacher, images)
    before = copy.deepcopy(method.student.state_dict())
    learner = Learner(method, TrainSettings(micro_batch=3, batch_norm="local", warmup_steps=0), seed=0, total_steps=4,
                      compute=Compute(torch.device("cpu"), "32"))  # fmt: skip
    result = learner.step(0, torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8))
    assert float(result.loss) == float(result.terms["square"]) > 0
    assert any(not torch.equal(value, before[name]) for name, value in method.student.state_dict().items())


def test_a_batch_divides_with_all_that_belongs_to_it(teacher, images):
    batch = Batch(images, generator(), teacher.outputs(images), LABELS)
    parts = list(batch.split(3))
    assert [len(part.images) for part in parts] == [3, 3, 2]
    assert all(part.generator is batch.generator for part in parts)
    for place in range(3):
        here = slice(3 * place, 3 * place + 3)
        assert torch.equal(parts[place].labels, LABELS[here])
        for part, whole in zip(parts[place].teacher, batch.teacher, strict=True):
            assert torch.equal(part, whole[here])


def test_steps_predict_nothing_that_nobody_asks_for(teacher, images):
    assert make("kd3", KD3Options(), teacher, images)(Batch(images, generator())).predictions is None


@pytest.mark.parametrize(
    ("name", "options"), [("kd", KDOptions()), ("kd3", KD3Options(selection="none")), ("simkd", SimKDOptions())]
)
def test_methods_that_take_everything_score_nothing(name, options, teacher, images):
    opinions = Opinions(torch.zeros(5, 3), torch.zeros(5, 3))
    assert make(name, options, teacher, images).select(opinions, 0.0, at_least=1).index.tolist() == [0, 1, 2, 3, 4]
    assert opinions.asked == []


def test_a_head_that_cannot_be_shared_is_refused_with_the_way_out(images):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build_arch("kd3:resnet8", num_classes=3)

        def forward(self, x):
            return 3 * self.inner(x)

    teacher = kd3.Teacher(Scaled(), mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    with pytest.raises(kd3.KD3Error, match=r"cannot be shared.*use --method kd"):
        make("kd3", KD3Options(), teacher, images)
    assert torch.isfinite(make("kd", KDOptions(), teacher, images)(Batch(images, generator())).loss)


def test_a_random_part_is_drawn_once_by_the_seed(teacher, images):
    opinions = Opinions(torch.zeros(100, 3), torch.zeros(100, 3))
    one, again = make("kd", KDOptions(share=0.3), teacher, images), make("kd", KDOptions(share=0.3), teacher, images)
    first = one.select(opinions, 0.0, at_least=1).index.tolist()
    assert len(first) == len(set(first)) == 30
    assert first == sorted(first)
    assert one.select(opinions, 0.5, at_least=1).index.tolist() == first
    assert again.select(opinions, 0.0, at_least=1).index.tolist() == first
    torch.manual_seed(9)
    backbone = build_arch("kd3:resnet8", num_classes=3)
    other = build_method("kd", KDOptions(share=0.3), Parts(teacher, backbone, "r", images))
    assert other.select(opinions, 0.0, at_least=1).index.tolist() != first
    assert one.select(opinions, 0.0, at_least=50).index.numel() == 50
    assert opinions.asked == []


@torch.no_grad()
def test_simkd_is_the_plain_mean_square_between_features(teacher, images):
    paper = SimKDOptions(alignment_weight=1, alignment_scale="raw")
    method = make("simkd", paper, teacher, images).eval()
    squares = (method.student.outputs(images)[1].features - teacher.outputs(images).features) ** 2
    assert float(method(Batch(images, generator())).loss) == pytest.approx(float(squares.mean()), rel=1e-5)
    energy = float((teacher.outputs(images).features ** 2).mean())
    relative = make("simkd", SimKDOptions(), teacher, images).eval()
    assert float(relative(Batch(images, generator())).loss) == pytest.approx(
        100 * float(squares.mean()) / energy, rel=1e-4
    )


def test_simkd_is_kd3_without_its_other_parts(teacher, images):
    bare = KD3Options(selection="none", alignment="plain", logit_weight=0)
    with torch.no_grad():
        losses = [
            float(make(name, options, teacher, images).eval()(Batch(images, generator())).loss)
            for name, options in (("kd3", bare), ("simkd", SimKDOptions()))
        ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@torch.no_grad()
def test_dfnd_distils_and_adapts_to_the_teachers_mistakes(teacher, images):
    method = make("dfnd", DFNDOptions(teacher_accuracy=0.8), teacher, images).eval()
    result = method(Batch(images, generator()))
    student, target = method.student(images).double(), teacher(images).double()
    kl = (F.softmax(target / 4, 1) * (F.log_softmax(target / 4, 1) - F.log_softmax(student / 4, 1))).sum(1).mean()
    assert float(result.terms["soft_targets"]) == pytest.approx(16 * float(kl), rel=1e-4)
    # At first mistakes are spread evenly: 0.8 stays, 0.1 goes to either other class.
    said = F.softmax(student, 1)
    adapted = [0.8 * float(p[y]) + 0.1 * (1 - float(p[y])) for p, y in zip(said, target.argmax(1), strict=True)]
    expected = -sum(torch.tensor(p).log().item() for p in adapted) / len(adapted)
    assert float(result.terms["noisy_labels"]) == pytest.approx(expected, rel=1e-4)


def test_dfnd_keeps_the_images_that_the_teacher_is_surest_of(teacher, images):
    logits = torch.zeros(40, 3)
    logits[:, 1] = torch.arange(40.0) / 4  # surer and surer, beyond what a probability in float32 can tell
    method = make("dfnd", DFNDOptions(share=0.25), teacher, images)
    selection = method.select(Opinions(logits, logits), 0.0, at_least=1)
    assert selection.index.tolist() == list(range(30, 40))
    assert selection.kept_per_class.tolist() == [0, 10, 0]
    confidence = logits[30:].double().softmax(1).amax(1).mean()
    assert float(method.assumed_accuracy) == pytest.approx(min(float(confidence), 0.999), abs=1e-6)
    given = make("dfnd", DFNDOptions(teacher_accuracy=0.7), teacher, images)
    given.select(Opinions(logits, logits), 0.0, at_least=1)
    assert float(given.assumed_accuracy) == 0.7


@pytest.mark.parametrize("alignment", ["weighted", "plain", "none"])
@pytest.mark.parametrize("contrastive", ["mixdistribution", "none"])
def test_a_student_with_its_own_classifier_ships_without_the_projector(teacher, images, alignment, contrastive):
    options = KD3Options(classifier="own", logit_weight=1, alignment=alignment, contrastive=contrastive)
    method = make("kd3", options, teacher, images)
    result = method(Batch(images, generator()))
    wanted = {"soft_targets"} | ({"alignment"} if alignment != "none" else set())
    assert set(result.terms) == wanted | ({"contrastive"} if contrastive != "none" else set())
    result.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert method.student.classifier is None
    assert not any("projector" in name for name in method.student.state_dict())


def test_the_teacher_alone_can_choose(teacher, images):
    method = make("kd3", KD3Options(selection="teacher-only"), teacher, images)
    scan = Opinions(torch.randn(40, 3), torch.randn(40, 3))
    method.select(scan, 0.9, at_least=1)
    assert scan.asked[0] == ("now", 1.0)


@pytest.mark.parametrize("wrong", [{"classifier": "own"}, {"alignment": "none"}])
def test_an_objective_without_anything_to_learn_from_is_refused(wrong):
    from kd3.config.settings import build

    with pytest.raises(kd3.KD3Error, match="give logit_weight more than 0"):
        build(KD3Options, {**wrong, "logit_weight": 0}, where="test")


def test_any_teacher_can_teach_a_student_with_its_own_classifier(images):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build_arch("kd3:resnet8", num_classes=3)

        def forward(self, x):
            return 3 * self.inner(x)

    teacher = kd3.Teacher(Scaled(), mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    options = KD3Options(classifier="own", alignment="none", logit_weight=1)
    assert torch.isfinite(make("kd3", options, teacher, images)(Batch(images, generator())).loss)


@pytest.mark.parametrize(
    ("values", "named"), [({"threshold": 0.5}, "threshold"), ({"selection": "none", "refreshed": 0.5}, "refreshed")]
)
def test_options_of_the_selection_are_refused_where_nothing_selects_by_confidence(values, named):
    with pytest.raises(ValueError, match=f"{named} belongs to selection 'dynamic'"):
        KD3Options(**values)
    KD3Options(**{**values, "selection": "dynamic"})


def test_the_papers_schedule_may_stay_where_only_the_selection_is_switched_off():
    assert KD3Options(selection="none", teacher_weight="paper").selection == "none"
